"""Descriptors that a command line names: only those that were open already, and each is written on where it stands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import agefiles
from tests.conformance.running import PATIENCE, STATEPIPE, STREAM, assert_one_error, run, started

LOG = b"what others have written\n"
DATA = b"what passes"

CLOSED = [
    ["encrypt", "--passphrase-fd", "3"],
    ["encrypt", "--passphrase-fd", "99999999999"],
    ["encrypt", "--passphrase-fd", "9" * 5000],
    ["encrypt", "--passphrase-file", "/dev/fd/3"],
    ["encrypt", "--passphrase-file", "//dev/fd/3"],
    ["encrypt", "--passphrase-file", "/proc/self/root/dev/fd/3"],
    ["encrypt", "--passphrase-file", "folder/3"],
    ["encrypt", "-R", "/proc/self/fd/4"],
    ["decrypt", "--identity", "/dev/fd/../fd/5"],
    ["decrypt", "-i", "link"],
    ["pipe", "decrypt:passphrase-fd=3"],
    ["progress", "--status-fd", "4"],
    ["pipe", "progress:status-fd=3", "checksum"],
    ["verify", "--from", "/dev/fd/6"],
    ["checksum", "--to", "/dev/fd/3"],
    ["tee", "/dev/fd/4"],
    ["tee", "--on-error", "warn", "/proc/thread-self/fd/4"],
    ["save", "/dev/fd/3"],
    ["recv", "-o", "/dev/fd/3", "tcp://127.0.0.1:0"],
    ["migrate", "--qmp", "/none", "--status-fd", "3", "host"],
    ["pair", "--code-file", "/dev/fd/3", "host"],
]


@pytest.mark.parametrize("words", CLOSED, ids=lambda words: " ".join(words)[:60])
def test_one_that_is_not_open_is_none_of_ours(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/fd/3")
    (tmp_path / "folder").symlink_to("/dev/fd")
    done = run(*words, data=DATA, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert_one_error(done.stderr, words[0], "descriptor ", " is not open")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces")
@pytest.mark.parametrize("path", ["/dev/fd/3", "/proc/self/fd/3", "/proc/self/root/dev/fd/3"])
def test_where_proc_is_of_other_processes_each_is_found_all_the_same(path: str, tmp_path: Path) -> None:
    """In a PID namespace of its own with the /proc of the one around it, processes have other numbers there."""
    log = tmp_path / "log"
    log.write_bytes(LOG)
    apart = ["unshare", "--pid", "--fork", *STATEPIPE]
    done = subprocess.run([*apart, "tee", path], input=DATA, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 2 and b"descriptor 3 is not open" in done.stderr
    shell = f'exec "$@" 3>>{log}'
    done = subprocess.run(
        ["sh", "-c", shell, "sh", *apart, "tee", path], input=DATA, capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert log.read_bytes() == LOG + DATA


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes another user's link")
@pytest.mark.parametrize("words", [["tee"], ["compress", "-o"], ["save"]], ids=" ".join)
def test_another_users_link_makes_no_descriptor_of_a_file(words: list[str], tmp_path: Path) -> None:
    """What was to be kept would be among what others write: a guest's memory, in a log."""
    (tmp_path / "for all").mkdir()
    (tmp_path / "for all").chmod(0o1777)
    link = tmp_path / "for all" / "x"
    link.symlink_to("/dev/stdout")
    os.chown(link, 65534, 65534, follow_symlinks=False)
    done = run(*words, str(link), data=STREAM)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"contains a link of user 65534" in done.stderr


@pytest.mark.parametrize("name", ["STATEPIPE_CONFIG", "STATEPIPE_IDENTITIES"])
def test_nor_is_one_that_the_environment_names(name: str) -> None:
    done = run("decrypt", data=DATA, env={**os.environ, name: "/dev/fd/3"})
    assert done.returncode == 2
    assert_one_error(done.stderr, "decrypt", "descriptor 3 is not open")


@pytest.mark.parametrize(("path", "closed"), [("/dev/stdin", "<&-"), ("/dev/stdout", ">&-")])
def test_nor_is_a_standard_one_that_is_closed(path: str, closed: str, tmp_path: Path) -> None:
    words = ["verify", "--from", path] if path == "/dev/stdin" else ["tee", path]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *STATEPIPE, *words], stderr=subprocess.PIPE, timeout=PATIENCE
    )
    assert done.returncode == 2 and b"is not open" in done.stderr


def test_one_that_is_open_is_the_callers(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a passphrase\n")
    with open(tmp_path / "secret", "rb") as secret:
        sealed = run(
            "encrypt", "--passphrase-file", f"/dev/fd/{secret.fileno()}", data=DATA, pass_fds=[secret.fileno()]
        )
    assert sealed.stdout.startswith(b"age-encryption.org/v1\n")
    with open(tmp_path / "secret", "rb") as secret:
        opened = run("decrypt", "--passphrase-fd", str(secret.fileno()), data=sealed.stdout, pass_fds=[secret.fileno()])
    assert opened.stdout == DATA


# --- as FILE


DIGEST = b"  -\n"

WRITTEN = {
    "tee /dev/stdout": (">>", 2 * DATA),
    "tee link": (">>", 2 * DATA),
    "tee /dev/fd/7": ("7>>", DATA),
    "checksum --to /dev/stdout": (">>", DIGEST),
    "checksum --to /dev/stderr": ("2>>", DIGEST),
    "checksum --to /proc/self/fd/2": ("2>>", DIGEST),
    "pipe tee:/dev/fd/7 compress": ("7>>", DATA),
}


@pytest.mark.parametrize("words", WRITTEN)
def test_what_is_behind_one_is_written_on(words: str, tmp_path: Path) -> None:
    """A log, say: nothing is put in its place, and nothing cut off."""
    where, end = WRITTEN[words]
    log = tmp_path / "log"
    log.write_bytes(LOG)
    (tmp_path / "link").symlink_to("/dev/stdout")
    before = log.stat().st_ino
    line = f'exec "$@" {where} log'
    done = subprocess.run(
        ["bash", "-c", line, "bash", *STATEPIPE, *words.split()],
        input=DATA,
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
        timeout=PATIENCE,
    )
    assert (done.returncode, log.stat().st_ino) == (0, before)
    written = log.read_bytes()
    assert written.startswith(LOG) and written.endswith(end)
    assert sorted(os.listdir(tmp_path)) == ["link", "log"]


def test_one_that_stands_within_a_file_writes_from_there(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"headXXXXXXXXXXXtail")
    with open(tmp_path / "image", "r+b") as image:
        image.seek(4)
        assert run("tee", f"/dev/fd/{image.fileno()}", data=DATA, pass_fds=[image.fileno()]).returncode == 0
    assert (tmp_path / "image").read_bytes() == b"head" + DATA + b"tail"


@pytest.mark.parametrize("out", ["-", "/dev/stdout"])
def test_a_state_goes_through_a_pipe(out: str, tmp_path: Path) -> None:
    """No return path is there: it is the state that standard output takes."""
    (tmp_path / "stream").write_bytes(STREAM)
    line = f'cat stream | "$@" save {out} | cat > state && test ! -e ./- && exec "$@" verify-state state'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line, "bash", *STATEPIPE], capture_output=True, cwd=tmp_path, timeout=PATIENCE
    )
    assert done.returncode == 0 and b"whole" in done.stdout


@pytest.mark.parametrize("name", ["/dev/stdout", "-"])
def test_a_stream_is_received_into_one(name: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(LOG)
    with (
        open(log, "ab") as out,
        started(
            [*STATEPIPE, "recv", "-o", name, "tcp://127.0.0.1:0"], stdin=subprocess.DEVNULL, stdout=out
        ) as receiver,
    ):
        port = receiver.stderr.readline().split()[-1].decode()
        assert run("send", f"tcp://127.0.0.1:{port}", data=DATA).returncode == 0
        assert receiver.wait(PATIENCE) == 0
    assert log.read_bytes() == LOG + DATA


def test_a_dash_is_standard_output_for_a_new_key(tmp_path: Path) -> None:
    done = run("keygen", "-o", "-", cwd=tmp_path)
    assert done.returncode == 0 and b"AGE-SECRET-KEY-1" in done.stdout and not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
def test_a_guest_is_not_ended_for_a_state_that_a_pipe_took(name: str, tmp_path: Path) -> None:
    """Its reader may not keep it. QEMU is not even asked."""
    done = run("save", "--qmp", str(tmp_path / "none"), "--then", "quit", name)
    assert (done.returncode, done.stdout) == (2, b"")
    assert_one_error(done.stderr, "save", "--then quit would end the guest")


@pytest.mark.parametrize("kind", ["without a name", "not empty", "empty, and has a name"])
def test_nor_for_one_in_a_file_that_would_not_keep_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "state"
    with open(path, "wb") as file:
        if kind == "without a name":
            path.unlink()
        elif kind == "not empty":
            file.write(LOG)
            file.flush()
        name, fds = f"/dev/fd/{file.fileno()}", [file.fileno()]
        done = run("save", "--qmp", str(tmp_path / "none"), "--then", "quit", name, pass_fds=fds)
    if kind.startswith("empty"):
        assert b"--then quit" not in done.stderr and b"none" in done.stderr  # it went on, to the monitor
    else:
        assert (done.returncode, done.stdout) == (2, b"")
        assert_one_error(done.stderr, "save", "--then quit would end the guest", kind)


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_no_state_goes_to_a_terminal(name: str) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "wb") as terminal:
        done = run("save", name, data=STREAM, stdout=terminal)
    assert done.returncode == 2
    assert_one_error(done.stderr, "save", "/dev/stdout is a terminal")


def test_one_that_is_not_open_for_writing_is_refused(tmp_path: Path) -> None:
    with open(agefiles.KEY_FILE, "rb") as file:
        done = run("tee", f"/dev/fd/{file.fileno()}", data=DATA, pass_fds=[file.fileno()])
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"is not open for writing" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["compress", "-o", "out"],
        ["checksum"],
        ["compress", "/dev/stdin", "-o", "out"],
        ["save", "out"],
        ["load", "-"],
        ["verify-state", "/dev/fd/0"],
        ["send", "tcp://127.0.0.1:1"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_read_is_told_before_anything_is_done(words: list[str], tmp_path: Path) -> None:
    line = 'exec "$@" 0>log'
    done = subprocess.run(
        ["bash", "-c", line, "bash", *STATEPIPE, *words], capture_output=True, cwd=tmp_path, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout.strip(b"!")) == (2, b"")
    assert_one_error(done.stderr, words[0], "is not open for reading")
    assert not (tmp_path / "out").exists()


def test_its_reader_that_leaves_ends_us_quietly(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run("tee", f"/dev/fd/{writing}", data=DATA, pass_fds=[writing])
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
