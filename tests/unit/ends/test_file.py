"""FileSink and FileSource: a name means a whole file. The order of the calls is seen by strace in a real process."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from statepipe.ends.file import FileSink, open_nameless
from statepipe.ends.source import FileSource
from statepipe.errors import StatepipeError
from tests.conformance.running import started

WRITER = """
import sys
from statepipe.ends.file import FileSink
with FileSink(sys.argv[1]) as sink:
    sink.write(b"the new one")
    print("written", flush=True)
    if sys.stdin.readline() == "commit\\n":
        sink.commit()
"""

NO_TMPFILE = "inject=openat:error=EOPNOTSUPP"
"""With -P the folder: the file system says that it has no nameless files."""


def writer(path: Path) -> list[str]:
    return [sys.executable, "-c", WRITER, str(path)]


def traced(path: Path, log: Path, *expressions: str) -> list[str]:
    """The writer under strace, its calls that concern files logged."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    options = [word for expression in expressions for word in ("-e", expression)]
    return ["strace", "-f", "-q", "-y", "-o", str(log), *options, *writer(path)]


def without_tmpfile(path: Path, log: Path) -> list[str]:
    """The writer on a file system without nameless files: it is looked into four times, then opened for O_TMPFILE."""
    command = traced(path, log, "trace=openat", f"{NO_TMPFILE}:when=5")
    return [*command[:1], "-P", str(path.parent), *command[1:]]


def commit(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input="commit\n", capture_output=True, text=True)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "state"
    path.parent.mkdir()
    path.write_text("the old one")
    return path


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


def test_the_bytes_are_on_disk_before_the_name_and_the_name_before_success(old: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    calls = "trace=write,fsync,fdatasync,link,linkat,rename,renameat,renameat2"
    assert commit(traced(old, log, calls)).returncode == 0
    folder = str(old.parent)
    seen = [line.split(None, 1)[1] for line in log.read_text().splitlines() if folder in line]
    kinds = [re.match(r"\w+", call)[0] for call in seen]  # type: ignore[index]
    assert kinds.pop(0) == "linkat" and seen.pop(0), "of an empty file, to see whether it will do"
    assert kinds == ["write", "fsync", "linkat", "linkat", "renameat2", "renameat", "fsync"]  # the second link: OLD
    assert f"<{folder}>" not in seen[1]
    assert kinds[-1] == "fsync" and f"<{folder}>" in seen[-1]
    assert old.read_text() == "the new one" and names(old) == ["state"]


def test_a_new_file_is_for_its_owner_alone(old: Path) -> None:
    before = os.umask(0)
    try:
        with FileSink(str(old)) as sink:
            sink.write(b"secret")
            sink.commit()
    finally:
        os.umask(before)
    assert stat.S_IMODE(old.stat().st_mode) == 0o600


def test_nothing_is_there_before_the_commit(old: Path) -> None:
    with FileSink(str(old)) as sink:
        sink.write(b"half")
        assert names(old) == ["state"] and old.read_text() == "the old one"


def test_an_exception_leaves_the_old_file_alone(old: Path) -> None:
    with pytest.raises(ZeroDivisionError), FileSink(str(old)) as sink:
        sink.write(b"half")
        raise ZeroDivisionError
    assert names(old) == ["state"] and old.read_text() == "the old one"


def test_kill_9_leaves_the_old_file_alone(old: Path) -> None:
    with started(writer(old)) as process:
        assert process.stdout and process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert names(old) == ["state"] and old.read_text() == "the old one"


@pytest.mark.parametrize("before", ["the old one", None])
def test_what_was_committed_can_be_withdrawn(before: str | None, old: Path) -> None:
    """And what it replaced is there again."""
    if before is None:
        old.unlink()
    with FileSink(str(old)) as sink:
        sink.commit()
        sink.withdraw()
    assert names(old) == ([] if before is None else ["state"])
    assert before is None or old.read_text() == before


def test_without_nameless_files_it_has_a_temporary_name(old: Path, tmp_path: Path) -> None:
    with started(without_tmpfile(old, tmp_path / "log")) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == b"written\n"
        part, state = names(old)
        assert re.fullmatch(r"\.state\.[0-9a-f]{12}\.part", part) and state == "state"
        assert stat.S_IMODE((old.parent / part).stat().st_mode) == 0o600
        process.stdin.write(b"commit\n")
        assert process.wait() == 0
    assert names(old) == ["state"] and old.read_text() == "the new one"


def test_without_nameless_files_a_failure_removes_the_temporary_one(old: Path, tmp_path: Path) -> None:
    done = subprocess.run(without_tmpfile(old, tmp_path / "log"), input="", capture_output=True, text=True)
    assert done.returncode == 0
    assert re.search("O_TMPFILE.*INJECTED", (tmp_path / "log").read_text())
    assert names(old) == ["state"] and old.read_text() == "the old one"


def test_the_remains_of_a_killed_one_are_swept_and_those_of_a_living_one_are_not(old: Path, tmp_path: Path) -> None:
    with started(without_tmpfile(old, tmp_path / "log")) as living:
        assert living.stdin and living.stdout and living.stdout.readline() == b"written\n"
        alive = next(name for name in names(old) if name.endswith(".part"))
        (old.parent / ".state.99999999.part").write_text("what a killed one left")
        (old.parent / ".other.99999999.part").write_text("of another file")
        with FileSink(str(old)) as sink:
            assert names(old) == sorted([".other.99999999.part", alive, "state"])
            sink.commit()
        living.stdin.write(b"commit\n")
        assert living.wait() == 0
    assert names(old) == [".other.99999999.part", "state"]


@pytest.mark.parametrize("base", ["a*b", "[x]", "?", "-rf", "a b\n", "ä", "x" * 200, "x" * 255, "äö€" * 36 + "xyz"])
def test_any_name_will_do(base: str, tmp_path: Path) -> None:
    (tmp_path / ".ab.1.part").write_text("not ours")
    with FileSink(str(tmp_path / base)) as sink:
        sink.write(b"x")
        sink.commit()
    assert sorted(os.listdir(tmp_path)) == sorted([".ab.1.part", base])


def test_a_link_is_followed_to_the_file_it_names(old: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(old)
    with FileSink(str(link)) as sink:
        sink.write(b"the new one")
        sink.commit()
    assert link.is_symlink() and old.read_text() == "the new one"


@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "device"])
def test_what_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "special"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(str(path))
    else:
        path.symlink_to("/dev/null")
    for end in (FileSink, FileSource) if kind in ("folder", "device") else (FileSink,):
        with pytest.raises(StatepipeError, match="is not a regular file"):
            end(str(path))
    assert os.listdir(tmp_path) == ["special"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StatepipeError, match=r"cannot create .*: No such file or directory"):
        FileSink(str(tmp_path / "none" / "state"))
    with pytest.raises(StatepipeError, match=r"cannot open .*: No such file or directory"):
        FileSource(str(tmp_path / "none"))


FAULTS = {
    "write": "inject=write:error=ENOSPC",
    "fsync": "inject=fsync:error=EIO:when=1",
    "link": "inject=linkat:error=EIO",
    "rename": "inject=renameat2:error=EIO",
}


@pytest.mark.parametrize("call", FAULTS)
def test_a_call_that_fails_leaves_the_old_file_alone(call: str, old: Path, tmp_path: Path) -> None:
    part = old.parent / "x"
    command = traced(old, tmp_path / "log", "trace=write,fsync,linkat,renameat2", FAULTS[call])
    if call == "write":  # of the file's alone: python's own are to succeed
        command = ["/bin/sh", "-c", 'ulimit -f 0; trap "" XFSZ; exec "$@"', "sh", *writer(old)]
    done = commit(command)
    assert done.returncode == 1 and "StatepipeError: cannot " in done.stderr
    assert names(old) == ["state"] and old.read_text() == "the old one"
    assert not part.exists()


def test_a_name_that_may_not_last_is_taken_away(old: Path, tmp_path: Path) -> None:
    """The folder's fsync fails: the new file is not promised, and the old one is there again."""
    done = commit(traced(old, tmp_path / "log", "trace=fsync", "inject=fsync:error=EIO:when=2"))
    assert done.returncode == 1
    assert names(old) == ["state"] and old.read_text() == "the old one"


def test_both_ends_of_a_file_can_be_looked_at(old: Path) -> None:
    with FileSource(str(old)) as source:
        assert (source.size(), source.tail(4, 3), source.tail(8, 99), source.tail(99, 1)) == (11, b"old", b"one", b"")
        assert b"".join(source) == b"the old one"


@pytest.mark.parametrize("fails", [False, True])
def test_a_read_that_the_disk_cuts_short_is_not_the_end(
    old: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """A disk error in the middle shows only at the next read."""
    pread = os.pread

    def short(fd: int, size: int, offset: int) -> bytes:
        if fails and offset >= 6:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, min(size, 3), offset)

    with FileSource(str(old)) as source:
        monkeypatch.setattr(os, "pread", short)
        if fails:
            with pytest.raises(StatepipeError, match="Input/output error"):
                source.tail(0, 11)
        else:
            assert source.tail(1, 99) == b"he old one"


def test_a_file_knows_when_its_name_is_gone(old: Path) -> None:
    with FileSource(str(old)) as source:
        assert source.has_name()
        os.replace(old, old.with_suffix(".new"))
        assert source.has_name()
        old.with_suffix(".new").unlink()
        assert not source.has_name()


def test_a_nameless_file_is_nowhere(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    fd = open_nameless(folder)
    os.close(folder)
    if fd is None:
        pytest.skip("this file system has none")
    assert os.listdir(tmp_path) == []
    os.close(fd)
