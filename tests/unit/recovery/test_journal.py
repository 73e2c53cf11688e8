"""The journal: what is on the disk when a step is taken, of what a host leaves that crashed."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from statepipe.recovery.handover import DESTINATION, SOURCE, WITHOUT_SYNC, Action, Destination, Source
from statepipe.recovery.journal import Journal, read_journal


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[str]]:
    """The states in the journal as of the last fsync: what a crash cannot take away."""
    safe: list[str] = []
    fsync = os.fsync

    def seen(fd: int) -> None:
        fsync(fd)
        rows = read_journal(str(tmp_path / "journal"))
        safe[:] = [row["state"] for row in rows if "state" in row]

    monkeypatch.setattr(os, "fsync", seen)
    return lambda: safe


def test_what_says_where_the_guest_runs_is_on_the_disk_before_it_is_done(
    tmp_path: Path, on_disk: Callable[[], list[str]]
) -> None:
    way = [Source.PRECOPY, Source.PROMISED, Source.HANDING, Source.HANDED, Source.COMMITTED, Source.MOVED]
    found = []
    with closing(Journal(str(tmp_path / "journal"), {"side": "source"})) as journal:
        for state in way:
            assert journal.write(state) is None
            found.append(on_disk()[-1])
    assert found == ["PRECOPY", "PRECOPY", "PRECOPY", "PRECOPY", "COMMITTED", "MOVED"]
    assert on_disk() == [state.name for state in way], "none is left out"


def test_a_state_without_sync_follows_one_that_says_the_same_of_the_guest() -> None:
    """Whatever a crash takes away, no guest was given away that the last line on the disk does not speak of."""
    for table, risky in ((SOURCE, Action.SEND_GO), (DESTINATION, Action.START)):
        light = [state for state in WITHOUT_SYNC if state in table]
        assert light
        entries: list[tuple[enum.Enum, tuple[Action, ...]]] = [out for row in table.values() for out in row.values()]
        for state, actions in entries:
            assert state not in light or not {risky, Action.RESUME, Action.END} & set(actions), state
    assert not {Source.COMMITTED, Source.RESUMING, Destination.STARTING, Destination.RUNS} & set(WITHOUT_SYNC)
