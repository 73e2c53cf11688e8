"""What cannot be is found before the first byte, and what a host does not have is done without."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests import preload, warm
from tests.conformance.running import (
    PATIENCE,
    STATEPIPE,
    STREAM,
    assert_none_left,
    assert_one_error,
    run,
    started,
    stop,
)
from tests.refusing import refusing

DATA = bytes(range(256)) * 400
NOBODY = 65534


def tee(path: Path | str, before: Sequence[str] = (), **options: object) -> subprocess.CompletedProcess[bytes]:
    """A copy at `path`; `before` stands before its command line."""
    command = [*before, *STATEPIPE, "tee", str(path)]
    return warm.run(command, input=DATA, capture_output=True, timeout=PATIENCE, **options)  # type: ignore[call-overload, no-any-return]


def assert_refused(done: subprocess.CompletedProcess[bytes], *words: str) -> None:
    """With these words, and nothing had passed."""
    assert (done.returncode, done.stdout) == (1, b"")
    assert_one_error(done.stderr, "tee", *words)


@pytest.fixture
def as_root() -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root makes such a place")


def as_somebody() -> list[str]:
    """Another user, who may read all files: this tree is root's."""
    rights = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={NOBODY}", "--clear-groups", *rights]


# --- names and places


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    assert_refused(tee(tmp_path / ("n" * 256)), "cannot create", "File name too long")


@pytest.mark.parametrize("name", ["n" * 255, "n" * 250, "ö" * 127])
def test_the_longest_name_is_not(name: str, tmp_path: Path) -> None:
    assert tee(tmp_path / name).returncode == 0
    assert os.listdir(tmp_path) == [name]
    assert tee(tmp_path / name).returncode == 0, "and what is there is replaced"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    "there",
    [b"QFI\xfb\0\0\0\3", bytes(512), b"SQLite format 3\0", b"\x1f\x8b\x08 a backup"],
    ids=["qcow2", "raw", "db", "gz"],
)
@pytest.mark.parametrize("way", [[], ["--qmp", "none"]], ids=["exec", "qmp"])
def test_what_is_no_state_is_not_replaced_by_one(there: bytes, way: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(there)
    done = run("save", *way, "file", data=STREAM, cwd=tmp_path)
    assert done.returncode == 2
    assert_one_error(done.stderr, "save", "file exists already, and it is not a saved state: it begins ")
    assert b"--overwrite" in done.stderr
    assert (tmp_path / "file").read_bytes() == there


@pytest.mark.parametrize("there", [b"", b"QEVM", b"age-encryption.org/v1\n", "a save's", b"anything"])
def test_an_older_state_is(there: bytes | str, tmp_path: Path) -> None:
    words = ["--overwrite"] if there == b"anything" else []
    if isinstance(there, str):
        assert run("save", "file", data=STREAM, cwd=tmp_path).returncode == 0
    else:
        (tmp_path / "file").write_bytes(there)
    done = run("save", *words, "file", data=STREAM, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert run("verify-state", "file", cwd=tmp_path).returncode == 0


def test_a_file_that_is_a_mount_point(as_root: None, tmp_path: Path) -> None:
    """As a container's -v FILE:FILE makes it."""
    (tmp_path / "file").write_bytes(b"old")
    mounted = ["unshare", "-m", "sh", "-c", 'mount --bind file file; exec "$@"', "sh"]
    assert_refused(tee("file", mounted, cwd=tmp_path), "file is a mount point")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_folder_that_is_mounted_read_only(as_root: None, tmp_path: Path) -> None:
    mounted = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro none "$0"; exec "$@"', str(tmp_path)]
    assert_refused(tee(tmp_path / "file", mounted), "cannot create", "Read-only file system")


def test_a_file_of_somebody_else_in_a_sticky_folder(as_root: None, tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / "theirs").write_bytes(b"old")
    (tmp_path / "theirs").chmod(0o666)
    assert_refused(tee("theirs", as_somebody(), cwd=tmp_path), "cannot replace theirs: it belongs to user 0", "sticky")
    assert (tmp_path / "theirs").read_bytes() == b"old"
    assert tee("ours", as_somebody(), cwd=tmp_path).returncode == 0
    assert tee("ours", as_somebody(), cwd=tmp_path).returncode == 0, "what is one's own is replaced"


@pytest.fixture
def flagged(as_root: None, tmp_path: Path) -> Iterator[Path]:
    """A folder with a file, both for chattr; without flags again afterwards."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    if shutil.which("chattr") is None or subprocess.run(["lsattr", folder], capture_output=True).returncode:
        pytest.skip("no flags of files here")
    yield folder
    subprocess.run(["chattr", "-ia", folder, folder / "file"], check=True)


@pytest.mark.parametrize(
    ("flag", "on", "words"),
    [
        ("+i", "file", "it cannot be changed or removed"),
        ("+a", "file", "it cannot be changed or removed"),
        ("+i", ".", "where files cannot be renamed"),
        ("+a", ".", "where files cannot be renamed"),
    ],
)
def test_flags_of_a_file_or_its_folder(flagged: Path, flag: str, on: str, words: str) -> None:
    subprocess.run(["chattr", flag, flagged / on], check=True)
    assert_refused(tee(flagged / "file"), words)
    assert os.listdir(flagged) == ["file"] and (flagged / "file").read_bytes() == b"old"


WRONG = ["/dev/null", "/proc/file", "/none/file", "."]


@pytest.mark.parametrize("file", WRONG)
def test_a_guest_hears_nothing_of_a_file_that_cannot_be(file: str) -> None:
    """Its monitor would have been asked next."""
    for words in ([file], [f"tee:{file}", "state"], [f"checksum:to={file}", "state"])[: 2 if file == WRONG[0] else 3]:
        done = run("save", "--qmp", "/none/monitor", *words)
        assert done.returncode == 1
        assert file in done.stderr.decode().splitlines()[0] and b"monitor" not in done.stderr, done.stderr
    assert not os.path.exists("state")


def test_a_listener_never_listens_for_a_file_that_cannot_be(tmp_path: Path) -> None:
    done = run("recv", "-o", str(tmp_path), "tcp://127.0.0.1:0")
    assert done.returncode == 1
    assert_one_error(done.stderr, "recv", "is not a regular file")


# --- users


def test_a_user_whom_no_database_knows(as_root: None, tmp_path: Path) -> None:
    """As in a container that was given a bare number, with nothing of a home."""
    tmp_path.chmod(0o777)
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd()}
    stranger = ["setpriv", "--reuid=43217", *as_somebody()[2:]]
    assert tee("file", stranger, cwd=tmp_path, env=bare).returncode == 0
    done = subprocess.run(
        [*stranger, *STATEPIPE, "pair", "localhost"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=tmp_path,
        env=bare,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert_one_error(done.stderr, "pair", "user 43217 has no home")
    assert os.listdir(tmp_path) == ["file"], "nor is one made of a tilde"


# --- what a kernel, a file system or a sandbox may lack


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preload.library(tmp_path_factory.mktemp("preload"))


MISSING = [
    ("fsync-folder", errno.EINVAL),
    ("fsync-folder", errno.EOPNOTSUPP),
    ("fadvise", errno.ENOSYS),
    ("flock", errno.ENOLCK),
    ("flock", errno.ENOSYS),
    ("tmpfile", errno.EOPNOTSUPP),
    ("tmpfile", errno.EPERM),
    ("linkat", errno.EPERM),
    ("linkat", errno.ENOENT),
]


@pytest.mark.parametrize(("call", "error"), MISSING, ids=lambda each: str(each))
def test_a_file_is_made_without(call: str, error: int, library: Path, tmp_path: Path) -> None:
    for content in b"old", DATA:
        (tmp_path / "file").write_bytes(content)
        done = tee(tmp_path / "file", preload.failing(library, call, error))
        assert (done.returncode, done.stdout, done.stderr) == (0, DATA, b"")
        assert (tmp_path / "file").read_bytes() == DATA and os.listdir(tmp_path) == ["file"]


def test_without_proc_a_file_is_made_as_well(as_root: None, tmp_path: Path) -> None:
    hidden = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc; exec "$@"', "sh"]
    assert tee(tmp_path / "file", hidden).returncode == 0
    assert (tmp_path / "file").read_bytes() == DATA and os.listdir(tmp_path) == ["file"]


REFUSED = [
    *("pidfd_open", "pidfd_send_signal", "splice", "tee", "sendfile", "linkat", "flock", "memfd_create", "userfaultfd"),
    *("eventfd2", "sched_getaffinity", "renameat2"),
]


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS], ids=["refused", "not there"])
def test_every_newer_call_can_be_done_without(error: int, tmp_path: Path) -> None:
    """As in a sandbox, or on an older kernel. Each program is seen to end, and a copy is there whole."""
    words = ["external:cat", "throttle:unlimited", "tee:copy", "progress", "checksum"]
    line = ["sh", "-c", '"$@" | cat', "sh", *refusing(error, *REFUSED), *STATEPIPE, "pipe", *words]
    done = subprocess.run(line, input=DATA, capture_output=True, cwd=tmp_path, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, DATA) and b"error" not in done.stderr, done.stderr
    assert (tmp_path / "copy").read_bytes() == DATA and os.listdir(tmp_path) == ["copy"]


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS], ids=["refused", "not there"])
def test_without_pidfds_a_program_that_fails_is_known_to_have(error: int) -> None:
    done = subprocess.run(
        [*refusing(error, "pidfd_open"), *STATEPIPE, "external", "--", "sh", "-c", "cat; exit 7"],
        input=DATA,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert_one_error(done.stderr, "external", "status 7")


def test_a_pipe_that_cannot_be_made_is_told_of() -> None:
    command = [*refusing(errno.EPERM, "pipe2"), *STATEPIPE, "compress"]
    done = subprocess.run(command, input=DATA, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert_one_error(done.stderr, "compress", "cannot create a pipe: pipe2: Operation not permitted")


@pytest.mark.parametrize("call", ["pidfd_open", "pidfd_send_signal"])
def test_a_guest_is_not_waited_for_where_no_process_can_be_ended_for_sure(call: str, tmp_path: Path) -> None:
    """Whatever fails, the QEMU that was to have it is ended, and seen to be: so it is said before one comes."""
    words = ["receive", "--qmp", "/nowhere", f"unix://{tmp_path}/in"]
    command = [*refusing(errno.EPERM, call), *STATEPIPE, *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert_one_error(done.stderr, "receive", f"{call}: Operation not permitted")
    assert b"listening" not in done.stderr and os.listdir(tmp_path) == []


def test_without_pidfds_a_signal_leaves_no_program() -> None:
    mark = f"MARK={uuid.uuid4()}"
    command = [*refusing(errno.EPERM, "pidfd_open"), *STATEPIPE, "external", "--", "sh", "-c", "cat; sleep 1000"]
    with started(["env", mark, *command]) as process:
        process.stdin.write(DATA[:1000])
        assert process.stdout.read(1000) == DATA[:1000]
        assert stop(process, signal.SIGTERM)[0] == 143
    assert_none_left(mark)


def test_a_user_of_few_threads_is_told_of_limits(as_root: None) -> None:
    """Others of the same user may run: nothing is said of how many threads are enough."""
    few = ["setpriv", "--reuid=43218", *as_somebody()[2:], "prlimit"]
    seen = set()
    for count in 1, 2, 3, 5, 9:
        for words in ["compress"], ["external", "--", "cat"]:
            command = [*few, f"--nproc={count}", *STATEPIPE, *words]
            done = subprocess.run(command, input=DATA, capture_output=True, cwd="/", timeout=PATIENCE)
            seen.add(done.returncode)
            if done.returncode:
                assert_one_error(done.stderr, words[0], "")
                assert b"ulimit -u" in done.stderr or b"Resource temporarily unavailable" in done.stderr
    assert seen == {0, 1}


def test_a_lack_of_memory_is_told() -> None:
    """How much is enough depends on the host: between too little for Python itself and enough, some is too little."""
    said = set()
    for kibibytes in range(400_000, 60_000, -10_000):
        limits = ["sh", "-c", f'ulimit -v {kibibytes}; exec "$@"', "sh"]
        done = subprocess.run(
            [*limits, *STATEPIPE, "compress"], input=DATA * 100, capture_output=True, timeout=PATIENCE
        )
        if done.returncode and not done.stderr.startswith(b"statepipe: "):
            break  # not even Python starts, or finds its modules
        if done.returncode:
            assert_one_error(done.stderr, "compress", "")
            assert b"ulimit -v" in done.stderr
        said.add(done.returncode)
    assert said == {0, 1}
