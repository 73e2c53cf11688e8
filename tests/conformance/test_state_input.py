"""A state through a descriptor, standard input or a shell's <(…), is read at both its ends as a file is."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from statepipe.errors import StatepipeError
from statepipe.state.spool import from_descriptor
from tests.agefiles import KEY_FILE, RECIPIENT, sealed
from tests.conformance.running import PATIENCE, STATEPIPE, assert_one_error, run, started, wait
from tests.preload import failing, library
from tests.statefiles import cut, noisy_stream, state_file

STREAM = noisy_stream()
PLAIN = state_file(cut(STREAM, 8))
KEY = ("-i", str(KEY_FILE))

Done = subprocess.CompletedProcess[bytes]


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where what comes is kept."""
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def from_pipe(data: bytes, folder: Path, words: Sequence[str]) -> Done:
    return run(*words, data=data)


def from_file(data: bytes, folder: Path, words: Sequence[str]) -> Done:
    (folder / "file").write_bytes(data)
    with open(folder / "file", "rb") as file:
        done = run(*words, stdin=file)
        assert file.read() == b"", "it has been read"
    return done


def from_within_a_file(data: bytes, folder: Path, words: Sequence[str]) -> Done:
    (folder / "file").write_bytes(b"before it" + data)
    with open(folder / "file", "rb", buffering=0) as file:
        file.read(len(b"before it"))
        return run(*words, stdin=file)


Way = Callable[[bytes, Path, Sequence[str]], Done]

WAYS: tuple[Way, ...] = (from_pipe, from_file, from_within_a_file)

SEALED: dict[str, Callable[[], bytes]] = {
    "plain": lambda: PLAIN,
    "age": lambda: sealed(PLAIN),
    "age, armored": lambda: run("encrypt", "-a", RECIPIENT, data=PLAIN).stdout,
}


@pytest.mark.parametrize(
    ("way", "how"),
    [
        (from_pipe, "age"),
        (from_pipe, "age, armored"),
        (from_file, "age, armored"),
        (from_within_a_file, "plain"),
    ],
)
def test_it_is_verified_and_inspected(way: Way, how: str, tmp_path: Path, spool: Path) -> None:
    data = SEALED[how]()
    done = way(data, tmp_path, ["verify-state", *KEY, "-"])
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"standard input: whole: statepipe state")
    done = way(data, tmp_path, ["inspect", *KEY, "-"])
    assert (done.returncode, done.stderr) == (0, b"") and b"file:       standard input\n" in done.stdout
    assert not os.listdir(spool)


@pytest.mark.parametrize("way", WAYS)
def test_it_is_loaded(way: Way, tmp_path: Path) -> None:
    done = way(PLAIN, tmp_path, ["load", "-"])
    assert (done.returncode, done.stdout) == (0, STREAM), done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_one_that_was_cut_is_none(way: Way, tmp_path: Path) -> None:
    done = way(PLAIN[:-1], tmp_path, ["verify-state", "-"])
    assert (done.returncode, done.stdout) == (3, b"")
    assert_one_error(done.stderr, "verify-state", "the trailer is missing")


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0"])
def test_a_descriptor_is_read_from_where_it_stands(name: str, tmp_path: Path) -> None:
    """By its name it was opened anew, and so from the file's beginning."""
    done = from_within_a_file(PLAIN, tmp_path, ["verify-state", name])
    assert done.returncode == 0 and b": whole: " in done.stdout, done.stderr


@pytest.mark.parametrize("verb", ["verify-state", "inspect", "load"])
def test_what_is_no_state_is_not_kept(verb: str, spool: Path) -> None:
    """It has no end, and would have filled the disk."""
    with open("/dev/zero", "rb") as endless:
        done = run(verb, "-", stdin=endless, env={**os.environ, "TMPDIR": str(spool)}, preexec_fn=little_room)
    assert (done.returncode, done.stdout.strip(b"!")) == (3, b"")
    assert_one_error(done.stderr, verb, "standard input is not a saved state: it begins with the bytes 00 00")


def little_room() -> None:
    """Where a mebibyte would be kept of it, that is an error already."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def test_nor_is_a_file_system_filled_to_its_last_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others write there, too."""
    nearly_full = os.statvfs_result((4096, 4096, 1 << 20, 10, 10, 1, 1, 1, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: nearly_full)
    with (
        open("/dev/zero", "rb", buffering=0) as endless,
        pytest.raises(StatepipeError, match="No space left") as caught,
    ):
        os.set_inheritable(endless.fileno(), True)  # as what a caller has opened
        from_descriptor(endless.fileno(), "it", lambda head: None)
    assert caught.value.offset is not None and caught.value.offset < 32 << 20


@pytest.mark.parametrize("way", [from_pipe, from_file])
def test_without_a_file_it_is_meant(way: Way, tmp_path: Path) -> None:
    done = way(PLAIN, tmp_path, ["verify-state"])
    assert done.returncode == 0 and b"standard input: whole" in done.stdout


def test_what_a_pipe_has_is_inspected(tmp_path: Path) -> None:
    done = run("inspect", data=PLAIN)
    assert done.returncode == 0 and b"file:       standard input\n" in done.stdout


@pytest.mark.parametrize("verb", ["verify-state", "inspect"])
@pytest.mark.parametrize("where", ["/dev/null", "a terminal"])
def test_what_nobody_has_given_is_not_waited_for(where: str, verb: str) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb"), open(theirs if where == "a terminal" else where, "rb", buffering=0) as file:
        done = run(verb, stdin=file)
    assert done.returncode == 2
    assert_one_error(done.stderr, verb, "needs a file")


def test_a_terminal_is_no_state() -> None:
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "rb", buffering=0) as terminal:
        done = run("verify-state", "-", stdin=terminal)
    assert done.returncode == 2
    assert_one_error(done.stderr, "verify-state", "standard input is a terminal")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('"$@" >>log', "standard output is appended to a file"),
        ('"$@" >log 2>&1', "standard output is the same as standard error"),
        ('"$@" 2>&1 | cat >log; exit ${PIPESTATUS[0]}', "standard output is the same as standard error"),
    ],
)
def test_no_guest_goes_into_a_log(line: str, why: str, tmp_path: Path) -> None:
    """Where `-- QEMU` was forgotten it did, with status 0."""
    (tmp_path / "state").write_bytes(PLAIN)
    (tmp_path / "log").write_bytes(b"before\n")
    command = ["bash", "-c", line, "bash", *STATEPIPE, "load", "state"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=PATIENCE)
    said = done.stderr + (tmp_path / "log").read_bytes()
    assert done.returncode == 2 and why.encode() in said and b"load state -- qemu-system" in said
    assert STREAM[:64] not in said


def lookalike(folder: Path, program: str) -> str:
    """A program that is called as QEMU is."""
    return str(shutil.copy(shutil.which(program) or "", folder / "qemu-x"))


def test_a_state_does_not_come_from_the_qemu_that_waits_for_it(tmp_path: Path) -> None:
    """As by -incoming "exec:statepipe load -": both waited for ever."""
    words = [lookalike(tmp_path, "bash"), "-c", '"$@"; exit $?', "qemu", *STATEPIPE, "load", "-"]
    with started(words) as qemu:
        assert qemu.wait(PATIENCE) == 2
        assert b"standard input is connected to QEMU" in qemu.stderr.read()
        assert qemu.stdout.read() == b"!"


@pytest.mark.parametrize(
    "words",
    [
        ["-serial", "file:state"],
        ["-hda", "state"],
        ["-hda", "another"],
        ["-blockdev", "{'driver': 'file', 'filename': './state'}"],
    ],
)
def test_a_state_is_no_file_of_the_qemu_that_is_to_have_it(words: list[str], tmp_path: Path) -> None:
    """It was emptied before it was read."""
    (tmp_path / "state").write_bytes(PLAIN)
    (tmp_path / "another").hardlink_to(tmp_path / "state")
    done = run("load", "state", "--", lookalike(tmp_path, "true"), *words, cwd=tmp_path)
    assert done.returncode == 2
    assert_one_error(done.stderr, "load", "QEMU's command line names state, which is the state to load")
    assert (tmp_path / "state").read_bytes() == PLAIN


def test_a_qemu_that_leaves_its_folder_is_not_started(tmp_path: Path) -> None:
    """With -daemonize, and before it opens its disks to run the guest: by then their names may lead nowhere."""
    (tmp_path / "state").write_bytes(PLAIN)
    done = run("load", "state", "--", lookalike(tmp_path, "true"), "-daemonize", cwd=tmp_path)
    assert done.returncode == 2
    assert_one_error(done.stderr, "load", "the QEMU command has -daemonize")
    assert b"--detach" in done.stderr


def test_a_shells_pipe_is_one_of_several(tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(PLAIN)
    line = '"$@" verify-state <(cat whole) - whole <(head -c 900 whole)'
    done = in_bash(line, tmp_path, input=PLAIN)
    assert done.returncode == 3 and done.stdout.count(b": whole: ") == 3, done.stderr
    assert done.stderr.count(b" is incomplete: the trailer is missing") == 1


def in_bash(line: str, folder: Path, **options: Any) -> Done:
    command = ["bash", "-c", line, "bash", *STATEPIPE]
    return subprocess.run(command, capture_output=True, cwd=folder, timeout=PATIENCE, **options)


def test_standard_input_is_not_two_of_several() -> None:
    done = run("verify-state", "-", "-", data=PLAIN)
    assert done.returncode == 2
    assert_one_error(done.stderr, "verify-state", "can be read only once")


@pytest.mark.parametrize(
    ("line", "why"), [("ulimit -f 8", "File too large"), ("export TMPDIR=none", "No such file or directory")]
)
def test_where_it_cannot_be_kept_the_place_and_the_way_out_are_told(line: str, why: str, tmp_path: Path) -> None:
    done = in_bash(f'{line}; exec "$@" verify-state -', tmp_path, input=PLAIN)
    assert (done.returncode, done.stdout) == (1, b"")
    assert_one_error(done.stderr, "verify-state", "cannot copy standard input to", why)
    assert b"hint: a state is read at both ends, so it is copied first: set TMPDIR to a folder with room" in done.stderr


def test_where_files_have_names_none_is_left(tmp_path: Path, spool: Path) -> None:
    command = [*failing(library(tmp_path), "tmpfile", errno.EOPNOTSUPP), *STATEPIPE, "verify-state", "-"]
    done = subprocess.run(command, input=PLAIN, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0 and not os.listdir(spool), done.stderr


def test_one_that_is_killed_leaves_nothing(spool: Path) -> None:
    with started([*STATEPIPE, "verify-state", "-"]) as process:
        process.stdin.write(PLAIN)
        wait(process, lambda: is_kept(process.pid, spool))
        process.kill()
        process.wait(PATIENCE)
    assert not os.listdir(spool)


def is_kept(pid: int, folder: Path) -> bool:
    """Whether it has a file there that holds all of the state."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        try:
            if os.readlink(path).startswith(f"{folder}/") and os.stat(path).st_size == len(PLAIN):
                return True
        except FileNotFoundError:  # closed meanwhile
            continue
    return False


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
@pytest.mark.parametrize("where", [["--qmp", "nowhere"], ["--", "qemu-system-x86_64"]])
def test_a_guest_is_not_run_on_memory_that_would_be_gone_with_us(name: str, where: list[str]) -> None:
    """An interrupted lazy load is continued from the file: a copy of standard input has no name."""
    way = where if where[0] == "--" else []
    done = run("load", "--lazy", *([] if way else where), name, *way, data=PLAIN)
    assert done.returncode == 2
    assert_one_error(done.stderr, "load", "an interrupted load could not be continued from it")
    assert b"store the state in a file" in done.stderr and b"--lazy=auto" not in done.stderr


def test_a_load_is_not_continued_from_standard_input() -> None:
    done = run("load", "--resume", "--qmp", "nowhere", "-", data=PLAIN)
    assert done.returncode == 2
    assert_one_error(done.stderr, "load", "standard input cannot be loaded lazily")


def test_standard_input_is_loaded_whole_where_that_is_allowed() -> None:
    done = run("load", "--lazy=auto", "--qmp", "nowhere", "-", data=PLAIN)
    assert done.returncode == 6 and b"warning: all memory is loaded first: standard input" in done.stderr
