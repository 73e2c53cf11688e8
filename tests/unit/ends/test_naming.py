"""How a complete file gets its name: a file that is not to be replaced never is, whenever it appears."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from statepipe.ends import naming
from statepipe.ends.file import FileSink
from statepipe.ends.naming import drop_part, is_named, keep, take_back
from statepipe.errors import StatepipeError, UsageError

OLD, NEW, OTHER = b"old state", b"new state", b"other state"

SYSTEMS = ("all", "no O_TMPFILE", "no links", "links denied", "no renameat2", "neither")


def is_state(head: bytes) -> bool:
    return head.endswith(b"state")


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a file system or a kernel may lack."""
    lacks: str = request.param
    if lacks in ("no O_TMPFILE", "no links", "links denied", "neither"):
        refuse(monkeypatch, "open", errno.EOPNOTSUPP, lambda words: words[1] & os.O_TMPFILE == os.O_TMPFILE)
    if lacks in ("no links", "links denied", "neither"):
        number = errno.EACCES if lacks == "links denied" else errno.EPERM  # AppArmor's, and that of FAT
        refuse(monkeypatch, "link", number, lambda words: True)
    if lacks in ("no renameat2", "neither"):
        monkeypatch.setattr("ctypes.CDLL", lambda *words, **more: None)
    return lacks


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, number: int, applies: Callable[[tuple[Any, ...]], bool]) -> None:
    """Have a call of the system fail."""
    call = getattr(os, name)

    def refusing(*words: Any, **more: Any) -> Any:
        if applies(words):
            raise OSError(number, os.strerror(number))
        return call(*words, **more)

    monkeypatch.setattr(os, name, refusing)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "folder").mkdir()
    yield tmp_path / "folder" / "state"


def written(path: Path, meanwhile: Callable[[], object] = lambda: None, before: bytes | None = None) -> None:
    """Write NEW there, where `before` was, and call `meanwhile` before it gets its name."""
    if before is not None:
        path.write_bytes(before)
    with FileSink(str(path), replaceable=is_state) as sink:
        sink.write(NEW)
        meanwhile()
        sink.commit()


def moved_in(path: Path, content: bytes) -> Callable[[], object]:
    """Another file takes the name."""

    def move() -> None:
        other = path.with_name("other")
        other.write_bytes(content)
        other.rename(path)

    return move


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


@pytest.mark.parametrize("before", [None, b"", OLD])
def test_what_was_there_at_the_beginning_is_replaced(system: str, path: Path, before: bytes | None) -> None:
    written(path, before=before)
    assert path.read_bytes() == NEW and names(path) == ["state"]


@pytest.mark.parametrize("before", [None, b"", OLD])
@pytest.mark.parametrize("content", [OTHER, b"", b"a disk image"])
def test_a_file_that_appears_is_not(system: str, path: Path, before: bytes | None, content: bytes) -> None:
    with pytest.raises(UsageError, match="state exists already, and it ") as caught:
        written(path, moved_in(path, content), before)
    assert caught.value.exit_code == 2 and caught.value.hint is not None and "--overwrite" in caught.value.hint
    assert path.read_bytes() == content and names(path) == ["state"]


def test_nor_is_one_that_was_written_into_what_was_there(system: str, path: Path) -> None:
    with pytest.raises(UsageError, match="exists already, and it is not a saved state"):
        written(path, lambda: path.write_bytes(b"a disk image"), b"")
    assert path.read_bytes() == b"a disk image" and names(path) == ["state"]


@pytest.mark.parametrize("content", [b"another state", b"old State"[:4] + b"state"])
def test_nor_is_a_state_that_was_written_over_another(system: str, path: Path, content: bytes) -> None:
    """As `cp` does it: the file is the same one, and what it holds is not. The second is as long as the older one."""
    with pytest.raises(UsageError, match="exists already, and it was changed since the beginning"):
        written(path, lambda: path.write_bytes(content), OLD)
    assert path.read_bytes() == content and names(path) == ["state"]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_nor_is_what_is_no_file(system: str, path: Path, make: Callable[[Path], object]) -> None:
    with pytest.raises(StatepipeError, match="is not a regular file"):
        written(path, lambda: make(path))
    assert names(path) == ["state"] and not path.is_file()


def test_where_the_older_one_is_gone_the_name_is_free(system: str, path: Path) -> None:
    written(path, path.unlink, OLD)
    assert path.read_bytes() == NEW and names(path) == ["state"]


def test_with_overwrite_what_appears_is_replaced(system: str, path: Path) -> None:
    with FileSink(str(path)) as sink:
        sink.write(NEW)
        moved_in(path, OTHER)()
        sink.commit()
    assert path.read_bytes() == NEW and names(path) == ["state"]


# Between the last look and the naming itself: each call that names is preceded by another process's.


@pytest.mark.parametrize("lacks", ["nothing", "O_TMPFILE", "links"])
def test_the_last_instant_is_none(path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    """The name was free."""
    if lacks != "nothing":
        refuse(monkeypatch, "open", errno.EOPNOTSUPP, lambda words: words[1] & os.O_TMPFILE == os.O_TMPFILE)
    if lacks == "links":
        refuse(monkeypatch, "link", errno.EPERM, lambda words: True)
        intrude(monkeypatch, naming, "_renameat2", moved_in(path, OTHER), lambda words: words[2] == "state")
    else:
        intrude(monkeypatch, os, "link", moved_in(path, OTHER), lambda words: words[1] == "state")
    with pytest.raises(UsageError, match="it was not there at the beginning"):
        written(path)
    assert path.read_bytes() == OTHER and names(path) == ["state"]


def test_nor_is_it_if_an_older_file_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intrude(monkeypatch, naming, "_renameat2", moved_in(path, OTHER), lambda words: True)
    with pytest.raises(UsageError, match="it was not there at the beginning"):
        written(path, before=OLD)
    assert path.read_bytes() == OTHER and names(path) == ["state"]


def test_nor_if_the_older_file_is_written_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intrude(monkeypatch, naming, "_renameat2", lambda: path.write_bytes(OTHER), lambda words: True)
    with pytest.raises(UsageError, match="it was changed since the beginning"):
        written(path, before=OLD)
    assert path.read_bytes() == OTHER and names(path) == ["state"]


def test_nor_if_ours_is_removed_before_the_other_file_is_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is nothing to exchange it with."""
    intrude(monkeypatch, naming, "_exchange_back", path.unlink, lambda words: True)
    intrude(monkeypatch, naming, "_renameat2", moved_in(path, OTHER), lambda words: True)
    with pytest.raises(UsageError, match="it was not there at the beginning"):
        written(path, before=OLD)
    assert path.read_bytes() == OTHER and names(path) == ["state"]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_with_overwrite_what_is_no_file_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
) -> None:
    def moved() -> None:
        path.unlink()
        make(path)

    path.write_bytes(OLD)
    intrude(monkeypatch, naming, "_renameat2", moved, lambda words: True)
    with pytest.raises(StatepipeError, match="is not a regular file"), FileSink(str(path)) as sink:
        sink.commit()
    assert names(path) == ["state"] and not path.is_file()


@pytest.mark.parametrize("before", [None, OLD])
def test_a_temporary_name_that_is_another_files_is_noticed(
    path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    """Who writes to the folder can put a link there, and the state would be wherever that leads."""
    refuse(monkeypatch, "open", errno.EOPNOTSUPP, lambda words: words[1] & os.O_TMPFILE == os.O_TMPFILE)

    def swap() -> None:
        (part,) = (name for name in os.listdir(path.parent) if name.endswith(".part") and "older" not in name)
        path.with_name(part).unlink()
        path.with_name(part).symlink_to("/dev/null")

    with pytest.raises(UsageError, match="exists already"):
        written(path, swap, before)


def test_a_name_that_another_save_sweeps_at_once_is_made_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "open", errno.EOPNOTSUPP, lambda words: words[1] & os.O_TMPFILE == os.O_TMPFILE)

    def sweep() -> None:
        for part in path.parent.iterdir():
            part.unlink()

    intrude(monkeypatch, fcntl, "flock", sweep, lambda words: True)
    written(path)
    assert path.read_bytes() == NEW and names(path) == ["state"]


def intrude(
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
    intruder: Callable[[], object],
    applies: Callable[[tuple[Any, ...]], bool],
) -> None:
    """Call `intruder` just before the first such call."""
    call, waiting = getattr(place, name), [intruder]

    def intruded(*words: Any, **more: Any) -> Any:
        if waiting and applies(words):
            waiting.pop()()
        return call(*words, **more)

    monkeypatch.setattr(place, name, intruded)


def test_an_answer_that_the_network_lost_is_no_other_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS asks again, and finds the name that its first request has made."""
    call = os.link

    def twice(*words: Any, **more: Any) -> None:
        call(*words, **more)
        if words[1] == "state":
            call(*words, **more)

    monkeypatch.setattr(os, "link", twice)
    written(path)
    assert path.read_bytes() == NEW and names(path) == ["state"]


# --- taken back


@pytest.mark.parametrize("before", [None, OLD])
@pytest.mark.parametrize("overwrites", [False, True])
def test_what_was_committed_can_be_taken_back(system: str, path: Path, before: bytes | None, overwrites: bool) -> None:
    if before is not None:
        path.write_bytes(before)
    with FileSink(str(path), replaceable=None if overwrites else is_state) as sink:
        sink.commit()
        sink.withdraw()
    is_lost = system == "neither"  # it could not be kept
    assert names(path) == ([] if before is None or is_lost else ["state"])
    assert not path.exists() or path.read_bytes() == before


def test_another_file_is_not_taken_back(path: Path) -> None:
    with FileSink(str(path), replaceable=is_state) as sink:
        sink.commit()
        moved_in(path, OTHER)()
        with pytest.raises(StatepipeError, match=r"cannot take back .*: File exists"):
            sink.withdraw()
    assert path.read_bytes() == OTHER and names(path) == ["state"]


@pytest.mark.parametrize("before", [None, OLD])
def test_nor_is_one_that_takes_the_name_at_that_instant(
    path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    if before is not None:
        path.write_bytes(before)
    with FileSink(str(path), replaceable=is_state) as sink:
        sink.commit()
        intrude(monkeypatch, naming, "_renameat2", moved_in(path, OTHER), lambda words: True)
        with pytest.raises(StatepipeError, match=r"cannot take back .*: File exists"):
            sink.withdraw()
    assert path.read_bytes() == OTHER and names(path) == ["state"]


@pytest.mark.parametrize("before", [None, OLD])
@pytest.mark.parametrize("step", ["commit", "withdraw"])
def test_a_name_that_can_neither_last_nor_be_taken_back_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None, step: str
) -> None:
    """As on a device that has begun to fail. The older file is not lost with it."""
    if before is not None:
        path.write_bytes(before)
    with FileSink(str(path), replaceable=is_state) as sink:
        sink.write(NEW)

        def fail(folder: int) -> None:
            monkeypatch.setattr(naming, "_renameat2", failing)
            monkeypatch.setattr(naming, "rename", failing)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def failing(*words: Any) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        if step == "withdraw":
            sink.commit()
            monkeypatch.setattr(naming, "_renameat2", failing)
        else:
            monkeypatch.setattr("statepipe.ends.file.sync_names", fail)
        with pytest.raises(StatepipeError) as caught:
            sink.commit() if step == "commit" else sink.withdraw()
    hint, told = caught.value.hint or "", f"{path} could not be taken back: "
    if before is None:
        assert f"{told}remove it" in hint and names(path) == ["state"]
        return
    assert f"{told}put the older file in its place, with: mv " in hint
    (older,) = (name for name in names(path) if name != "state")
    assert path.read_bytes() == NEW and path.with_name(older).read_bytes() == OLD
    subprocess.run(["sh", "-c", hint.partition("with: ")[2].partition(";")[0]], check=True)
    assert path.read_bytes() == OLD and names(path) == ["state"]


@pytest.mark.parametrize("overwrites", [False, True])
def test_no_other_save_removes_the_older_file_of_a_killed_one(path: Path, overwrites: bool) -> None:
    """As long as its guardian may need it to take the new file back."""
    path.write_bytes(OLD)
    sink = FileSink(str(path), replaceable=None if overwrites else is_state)
    words, fds = sink.naming()
    kept = {name: os.dup(fd) for name, fd in fds.items()}
    sink.commit()
    for fd in fds.values():  # it is killed
        os.close(fd)
    with FileSink(str(path)):
        assert len(names(path)) == 2
    take_back(kept["file"], kept["place"], words)
    assert path.read_bytes() == OLD and names(path) == ["state"]
    for fd in kept.values():
        os.close(fd)


def test_what_somebody_has_removed_is_taken_back(path: Path) -> None:
    with FileSink(str(path), replaceable=is_state) as sink:
        sink.commit()
        path.unlink()
        sink.withdraw()
    assert names(path) == []


@pytest.mark.parametrize("before", [None, OLD])
@pytest.mark.parametrize("step", ["part", "both", "exchanged", "without links", "done"])
def test_another_process_finishes_or_undoes_it_at_each_step(path: Path, step: str, before: bytes | None) -> None:
    """As the guardian does for a killed one."""
    for undoes in (False, True):
        new = path.with_name(".part")
        new.write_bytes(NEW)
        if before is not None:
            path.write_bytes(before)
            if step != "without links":
                os.link(path, path.with_name(".older"))
        if step == "both":
            path.unlink(missing_ok=True)
            os.link(new, path)
        elif before is not None and step in ("exchanged", "without links"):
            path.rename(path.with_name("aside"))
            new.rename(path)
            path.with_name("aside").rename(new)
        elif step != "part":
            new.rename(path)
        words = {"base": "state", "part": ".part", "older": ".older"}
        folder = os.open(path.parent, os.O_RDONLY)
        fd = os.open(new if step == "part" else path, os.O_RDONLY)
        assert is_named(fd, folder, "state") == (step != "part")
        if step == "part":
            drop_part(fd, folder, words)
            path.with_name(".older").unlink(missing_ok=True)  # the next save does that
        else:
            (take_back if undoes else keep)(fd, folder, words)
        os.close(fd)
        os.close(folder)
        left = [] if undoes or step != "without links" or before is None else [".part"]  # the next save removes it
        if undoes or step == "part":
            assert names(path) == ([] if before is None else ["state"])
            assert before is None or path.read_bytes() == before
        else:
            assert names(path) == [*left, "state"] and path.read_bytes() == NEW
        for name in names(path):
            path.with_name(name).unlink()
