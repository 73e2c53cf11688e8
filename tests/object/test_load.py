"""Guests that start from an object: lazily, from ranges alone, and as from a file; and what a store that fails does."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from statepipe.lazy.opening import demand_servable
from statepipe.objectstore import reader
from statepipe.objectstore.settings import Reading
from statepipe.stages.agekeys import identities
from statepipe.state.file import Keys, open_state
from statepipe.state.loading import prepare
from statepipe.state.pagestore import pages_of
from tests import agefiles
from tests.object.faulty import LOOK, READ, WRONG, Plan, faulty
from tests.object.stores import EACH, EACH_AT_LEISURE, Bucket
from tests.qemu.harness import assert_continues, statepipe_command
from tests.qemu.lazily import SLOW, Lazy, assert_went_on, noise
from tests.qemu.loading import Saved, loaded, qemu_command, save_guest
from tests.world import world

KEY = ("-i", str(agefiles.KEY_FILE))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, qemu72: str) -> Saved:
    """A guest with 24 MB of noise, saved while it ran."""
    folder = tmp_path_factory.mktemp("saved")
    return save_guest(folder, qemu72, args=noise(folder))


class Gate:
    """A plan: requests are counted, and refused while it is shut."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.fault: str | None = None
        self.refused = threading.Event()

    def __call__(self, kind: str) -> str | None:
        self.kinds.append(kind)
        if self.fault is not None:
            self.refused.set()
        return self.fault


@contextmanager
def stored(bucket: Bucket, saved: Saved, plan: Plan, *, sealed: bool = False) -> Iterator[tuple[Saved, dict[str, str]]]:
    """The state as an object, and the environment in which it is reached through a proxy."""
    whole = saved.file.read_bytes()
    bucket.put("key", agefiles.sealed(whole) if sealed else whole)
    with faulty(bucket.store, plan) as endpoint:
        there = replace(saved, file=cast(Path, bucket.address("key")))  # it is only written into command lines
        yield there, bucket.through(endpoint)


@EACH
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("way", ["usual", "large", "cache"])
def test_trailer_index_and_devices_take_four_round_trips_at_most(
    bucket: Bucket, saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool, way: str
) -> None:
    """Requests for both ends are made at once. Of a large guest, the ends that are read at once hold nothing of use.

    Azure knows no range from the end: there, a look comes before it.
    """
    gate = Gate()
    if way == "large":
        monkeypatch.setattr(reader, "ENDS", 1)
    with stored(bucket, saved, gate, sealed=sealed) as (there, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        reading = Reading(cache=str(tmp_path) if way == "cache" else None)
        keys = Keys(lambda: identities([str(agefiles.KEY_FILE)], None, world()), lambda: iter, reading)
        with open_state(str(there.file), keys) as source:
            pages = pages_of(prepare(source))
            demand_servable(pages)
            assert pages.devices() and pages.head().startswith(b"QEVM")
    looks = gate.kinds.count(LOOK) if way == "large" else 0
    assert looks <= 1
    assert len(gate.kinds) <= (4 if way == "usual" else 5) + looks


@EACH
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "encrypted"])
def test_a_guest_starts_lazily_from_an_object(tmp_path: Path, bucket: Bucket, saved: Saved, sealed: bool) -> None:
    keys = KEY if sealed else ()
    gate = Gate()
    with (
        stored(bucket, saved, gate, sealed=sealed) as (there, environment),
        Lazy(tmp_path, there, *keys, env=environment) as lazy,
    ):
        words = lazy.here()
        assert words[-1] == bucket.address("key")
        lazy.complete()
        assert_went_on(saved, lazy)


@EACH
def test_an_ordinary_load_of_an_object(
    tmp_path: Path, bucket: Bucket, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stored(bucket, saved, Gate(), sealed=True) as (there, environment):
        monkeypatch.setenv(*next(iter(environment.items())))
        with loaded(tmp_path, there, *KEY) as guest:
            guest.wait_ticks(3)
            assert_continues(saved.before, guest.serial())


@pytest.mark.parametrize("fault", ["503", "stall", "reset"])
def test_a_store_that_goes_away_pauses_faults_and_comes_back(
    tmp_path: Path, bucket: Bucket, saved: Saved, fault: str
) -> None:
    gate = Gate()
    with (
        stored(bucket, saved, gate) as (there, environment),
        Lazy(tmp_path, there, "--throttle", SLOW, "--retry", "60", env=environment) as lazy,
    ):
        lazy.here()
        gate.fault = fault
        assert gate.refused.wait(60)
        gate.fault = None
        lazy.complete()
        assert_went_on(saved, lazy)


@EACH_AT_LEISURE
def test_a_store_that_stays_away_leaves_the_guest_for_a_load_that_continues(
    tmp_path: Path, bucket: Bucket, saved: Saved
) -> None:
    gate = Gate()
    with (
        stored(bucket, saved, gate) as (there, environment),
        Lazy(tmp_path, there, "--throttle", SLOW, "--retry", "1", env=environment) as lazy,
    ):
        words = lazy.here()
        gate.fault = "503"
        assert lazy.status() == 5
        said = lazy.stderr()
        assert re.search(
            rf"of {bucket.address('key')}: the store answered 503 (SlowDown|ServerBusy|backendError)", said
        ), said
        assert "do not end its QEMU" in said and f"continue with: statepipe load --resume --qmp {words[3]}" in said
        gate.fault = None
        lazy.restart([*statepipe_command(), *words[words.index("load") :]])
        lazy.complete()
        assert lazy.status() == 0
        assert_went_on(saved, lazy)


@EACH
def test_an_object_that_is_replaced_under_a_guest_is_an_error_that_names_it(
    tmp_path: Path, bucket: Bucket, saved: Saved
) -> None:
    with (
        stored(bucket, saved, Gate()) as (there, environment),
        Lazy(tmp_path, there, "--throttle", SLOW, env=environment) as lazy,
    ):
        lazy.here()
        bucket.put("key", saved.file.read_bytes()[::-1])
        assert lazy.status() == 1
        said = lazy.stderr()
        assert f"{bucket.address('key')} was replaced or removed while it was read, before byte" in said
        assert "continue with: statepipe load --resume" in said


def test_a_frame_that_changed_on_its_way_is_read_again(tmp_path: Path, bucket: Bucket, saved: Saved) -> None:
    left = [5]

    def plan(kind: str) -> str | None:
        left[0] -= kind == READ
        return WRONG if left[0] == 0 else None

    with stored(bucket, saved, plan) as (there, environment), Lazy(tmp_path, there, env=environment) as lazy:
        lazy.complete()
        assert_went_on(saved, lazy)
        assert left[0] <= 0


@EACH
def test_what_one_start_has_read_serves_the_next(tmp_path: Path, bucket: Bucket, saved: Saved) -> None:
    """And what a guest touched first is learned beside it."""
    gate = Gate()
    cache = ("--cache", str(tmp_path / "cache"))
    with stored(bucket, saved, gate) as (there, environment):
        for number, more in enumerate([["--learn=1"], []]):
            folder = tmp_path / str(number)
            folder.mkdir()
            gate.kinds.clear()
            with Lazy(folder, there, *cache, *more, env=environment) as lazy:
                lazy.complete()
                assert_went_on(saved, lazy)
                assert (".working-set: " in lazy.stderr()) == bool(more), lazy.stderr()
        assert gate.kinds == [LOOK]
        (learned,) = (tmp_path / "cache").glob("statepipe-*/*.working-set")
        assert learned.stat().st_size


def clone(folder: Path, there: Saved, *options: str) -> Sequence[str]:
    folder.mkdir()
    words = ["load", "--lazy", "--clone", str(folder / "overlays"), *options, str(there.file), "--"]
    return [*statepipe_command(), *words, *qemu_command(folder, there)]


@EACH_AT_LEISURE
@pytest.mark.parametrize("guests", [3, pytest.param(10, marks=pytest.mark.faults)])
def test_several_clones_at_once_from_one_object(tmp_path: Path, bucket: Bucket, saved: Saved, guests: int) -> None:
    before = saved.image.read_bytes()
    with stored(bucket, saved, Gate()) as (there, environment), ExitStack() as stack:
        clones = []
        for number in range(guests):
            lazy = Lazy.__new__(Lazy)
            lazy.folder, lazy._env = tmp_path / str(number), os.environ | environment
            lazy._stderr = tmp_path / f"{number}-stderr"
            lazy.restart(clone(lazy.folder, there, "--cache", str(tmp_path / "cache")))
            clones.append(stack.enter_context(lazy))
        for lazy in clones:
            lazy.complete()
            assert_went_on(saved, lazy)
    assert saved.image.read_bytes() == before
