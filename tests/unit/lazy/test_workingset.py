"""The working set beside a state: written, read again, and ignored with a warning where it does not fit."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from statepipe.errors import StatepipeError
from statepipe.lazy import workingset
from statepipe.lazy.pageset import PageSet
from statepipe.lazy.workingset import Recorder, page_set, read_working_set
from statepipe.state.pagestore import PageStore, open_pages
from tests.statefiles import NO_KEYS, cut, noisy_stream, state_file


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PageStore]:
    path = tmp_path / "state"
    path.write_bytes(state_file(cut(noisy_stream(), 3), index=True))
    with open_pages(str(path), NO_KEYS) as opened:
        yield opened


def recorded(store: PageStore, *pages: int, known: PageSet | None = None) -> Recorder:
    """A recorder that these pages of the first block were asked of."""
    recorder = Recorder(store, known)
    for page in pages:
        recorder.add(0, page)
    return recorder


def read(store: PageStore) -> tuple[PageSet | None, list[str]]:
    """The set that is found, and the warnings."""
    said: list[str] = []
    return read_working_set(store, said.append), said


def test_what_was_learned_is_read_again_and_added_to(store: PageStore) -> None:
    path = Path(recorded(store, 9, 3, 4).write())
    assert path == Path(store.name + ".working-set") and stat.S_IMODE(path.stat().st_mode) == 0o600
    first, said = read(store)
    assert first is not None and not said and dict(first.runs())[0] == [(3, 2), (9, 1)]
    recorded(store, 10, known=first).write()
    again, _ = read(store)
    assert again is not None and dict(again.runs())[0] == [(3, 2), (9, 2)]


def test_without_one_nothing_is_said(store: PageStore) -> None:
    assert read(store) == (None, [])


def test_beside_a_long_name_there_is_none(tmp_path: Path, store: PageStore) -> None:
    path = tmp_path / ("n" * 250)
    os.rename(store.name, path)
    with open_pages(str(path), NO_KEYS) as long:
        assert read(long) == (None, [])
        with pytest.raises(StatepipeError, match="File name too long"):
            recorded(long, 1).write()


def _foreign(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"blake3":"', b'"blake3":"' + b"0" * 64 + b'","was":"'))


def _cut(path: Path) -> None:
    os.truncate(path, 50)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _huge(path: Path) -> None:
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_foreign, "it belongs to another state"),
        (_cut, "it is damaged: it is not JSON"),
        (_fifo, "it is not a regular file"),
        (_folder, "it cannot be read: Is a directory"),
        (_loop, "it cannot be read: Too many levels of symbolic links"),
        (_huge, "it is damaged: it is larger than 4 MiB"),
    ],
)
def test_one_that_does_not_fit_is_ignored_with_a_warning(
    store: PageStore, change: Callable[[Path], None], why: str
) -> None:
    path = Path(recorded(store, 1).write())
    change(path)
    found, said = read(store)
    assert found is None and len(said) == 1
    assert said[0].startswith(f"{path} is ignored: {why}") and said[0].endswith("remove it")
    assert ("--learn" in said[0]) == (change not in (_fifo, _folder, _loop)), "--learn would not replace it"


def test_a_file_that_is_no_working_set_is_not_replaced(store: PageStore) -> None:
    path = Path(store.name + ".working-set")
    path.write_text("a list of things to do")
    with pytest.raises(StatepipeError, match="is not a working set, and is not replaced"):
        recorded(store, 1).write()
    assert path.read_text() == "a list of things to do"


def test_a_file_that_takes_its_place_is_not_replaced(
    tmp_path: Path, store: PageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another user's folder, a link can lead elsewhere once the file was looked at."""
    path, precious = Path(recorded(store, 1).write()), tmp_path / "elsewhere" / "shadow"
    precious.parent.mkdir()
    precious.write_text("root:x:0:0")
    look = workingset._content

    def swapped(name: str) -> bytes | None:
        found = look(name)
        path.unlink()
        path.symlink_to(precious)
        return found

    monkeypatch.setattr(workingset, "_content", swapped)
    with pytest.raises(StatepipeError, match="exists already"):
        recorded(store, 2).write()
    assert precious.read_text() == "root:x:0:0" and [*precious.parent.iterdir()] == [precious]


def test_the_set_of_another_state_is_replaced(store: PageStore) -> None:
    _foreign(Path(recorded(store, 1).write()))
    recorded(store, 2).write()
    found, said = read(store)
    assert found is not None and not said and dict(found.runs())[0] == [(2, 1)]


def test_of_too_many_pages_the_first_ones_count(store: PageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statepipe.lazy.workingset.MOST_PAGES", 4)
    known = page_set(store)
    known.add(0, 20, 2)
    recorder = recorded(store, 30, 20, 31, known=known)
    assert recorder.is_full
    recorder.add(0, 1)
    assert dict(recorder.pages.runs())[0] == [(20, 2), (30, 2)]
