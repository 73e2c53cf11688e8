"""A socket's name: had only by one that listens, and taken away only where nothing does."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from statepipe.ends.rendezvous import file_of, listen, remove, sweep


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield opened
    os.close(opened)


def test_the_name_is_there_alone_with_its_mode_and_somebody_listens(folder: int, tmp_path: Path) -> None:
    listener, file = listen(folder, "name", 1, 0o640)
    with closing(listener), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "name"))
        assert os.listdir(folder) == ["name"] and file == file_of(folder, "name")
        assert stat.S_IMODE((tmp_path / "name").stat().st_mode) == 0o640
        with pytest.raises(OSError) as taken:
            listen(folder, "name", 1)
        assert taken.value.errno == errno.EADDRINUSE and os.listdir(folder) == ["name"]


@pytest.mark.parametrize("kind", ["left over", "busy", "a file"])
def test_only_what_was_left_over_is_taken_away(folder: int, tmp_path: Path, kind: str) -> None:
    """One that is busy has no room for another connection: nothing waits until it has."""
    if kind == "a file":
        (tmp_path / "name").write_text("no socket")
    listener, _ = listen(folder, "other" if kind == "a file" else "name", 0)
    with closing(listener), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / ("other" if kind == "a file" else "name")))
        if kind == "left over":
            listener.close()
        sweep(folder, "name")
        assert (file_of(folder, "name") is None) is (kind == "left over")


def test_a_name_that_another_has_by_now_stays(folder: int, tmp_path: Path) -> None:
    listener, file = listen(folder, "name", 1)
    with closing(listener):
        (tmp_path / "another").write_text("another's")
        os.rename(tmp_path / "another", tmp_path / "name")
        remove(folder, "name", file)
    assert (tmp_path / "name").read_text() == "another's"
