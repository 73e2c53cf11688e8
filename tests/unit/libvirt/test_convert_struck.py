"""convert that is struck at each of its steps, in both directions: what had the name has it still, or the new file has
it and is whole; what it was made of is as it was, and the next one leaves nothing else behind."""

from __future__ import annotations

import errno
import gzip
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from statepipe.errors import StatepipeError
from statepipe.formats.libvirtimage import GZIP, RAW, ZSTD, beginning
from statepipe.libvirt.convert import Conversion, convert
from statepipe.stages.packing import choose
from statepipe.state.verify import verify_state
from tests import preload
from tests.disks import tmpfs
from tests.qemu.harness import statepipe_command
from tests.qemu.striking import steps_of, striking
from tests.statefiles import DOMAIN, NO_KEYS, cut, layout, noisy_stream, state_file

STREAM = noisy_stream()
IMAGE = beginning(DOMAIN, GZIP) + gzip.compress(STREAM)
STATE = state_file(cut(STREAM, 3), domain=DOMAIN, index=True)
OLDER = b"QEVM, older"
"""Begins as what a conversion may replace."""

WAYS = {"to a state file": (IMAGE, []), "to a raw image": (STATE, ["--to-image"])}
"""What is converted, with which option. An image of zstd is written as a state file is."""

EARLY = ("before open_state", "after prepare", "after new_output", "before FileSink.sync", "before FileSink.commit")
"""Steps before the new file has its name, in their order."""

LATE = ("before sync_names", "after sync_names", "after FileSink.commit")
"""Steps from the naming on."""

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Conversions:
    """Conversions of one file to another, by the program."""

    def __init__(self, folder: Path, way: str) -> None:
        self.data, self.options = WAYS[way]
        self.folder, self.source, self.record = folder / "new", folder / "from", folder / "steps"
        self.folder.mkdir(exist_ok=True)
        self.new = self.folder / "new"
        self.source.write_bytes(self.data)

    def run(self, start: Sequence[object], to: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run one; `start` is the program, and what it runs in."""
        words = [*map(str, start), "convert", *self.options, str(self.source), str(to or self.new)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[3])
        assert self.source.read_bytes() == self.data
        return done

    def strike(self, number: signal.Signals, step: str) -> subprocess.CompletedProcess[str]:
        """Run one that is struck by a signal at a step."""
        return self.run(striking(number, step, self.record))

    def assert_whole(self) -> None:
        """The new file is, and it is alone."""
        assert verify_state(str(self.new), NO_KEYS)["bytes"] == len(STREAM)
        assert os.listdir(self.folder) == ["new"]


@pytest.fixture(params=WAYS)
def conversions(tmp_path: Path, request: pytest.FixtureRequest) -> Conversions:
    return Conversions(tmp_path, request.param)


def test_the_steps_are_reached(conversions: Conversions) -> None:
    """All that are struck below, in this order."""
    done = conversions.strike(signal.SIGKILL, "nowhere")
    assert done.returncode == 0, done.stderr
    wanted = [*EARLY, *LATE]
    assert [step for step in steps_of(conversions.record) if step in wanted] == wanted
    conversions.assert_whole()


@pytest.mark.parametrize("step", EARLY)
def test_killed_before_the_file_has_its_name_there_is_none(conversions: Conversions, step: str) -> None:
    assert conversions.strike(signal.SIGKILL, step).returncode == -signal.SIGKILL
    assert os.listdir(conversions.folder) == []


@pytest.mark.parametrize("step", LATE)
def test_killed_after_that_the_file_is_whole(conversions: Conversions, step: str) -> None:
    assert conversions.strike(signal.SIGKILL, step).returncode == -signal.SIGKILL
    conversions.assert_whole()


@pytest.mark.parametrize("step", ["before FileSink._keep_older", "after FileSink._keep_older", "before replace"])
def test_killed_before_the_name_changes_hands_the_older_file_stays(conversions: Conversions, step: str) -> None:
    conversions.new.write_bytes(OLDER)
    assert conversions.strike(signal.SIGKILL, step).returncode == -signal.SIGKILL
    assert conversions.new.read_bytes() == OLDER
    assert conversions.run(statepipe_command()).returncode == 0  # it removes what is left of the other
    conversions.assert_whole()


def test_killed_as_the_name_changes_hands_the_new_file_is_whole(conversions: Conversions) -> None:
    conversions.new.write_bytes(OLDER)
    assert conversions.strike(signal.SIGKILL, "after replace").returncode == -signal.SIGKILL
    assert conversions.run(statepipe_command()).returncode == 0
    conversions.assert_whole()


@pytest.mark.parametrize(
    ("number", "step"),
    [
        *((number, "before FileSink.sync") for number in ENDING),
        *(
            pytest.param(number, step, marks=pytest.mark.faults)
            for number in ENDING
            for step in EARLY
            if step not in ("before FileSink.sync", "before FileSink.commit")
        ),
    ],
)
def test_stopped_before_that_there_is_none(conversions: Conversions, number: signal.Signals, step: str) -> None:
    conversions.new.write_bytes(OLDER)
    done = conversions.strike(number, step)
    assert done.returncode == 128 + number, done.stderr
    assert conversions.new.read_bytes() == OLDER and os.listdir(conversions.folder) == ["new"]


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGTERM, "before FileSink.commit"),
        *(pytest.param(number, step, marks=pytest.mark.faults) for number in ENDING for step in LATE),
    ],
)
def test_a_signal_while_it_gets_its_name_is_too_late(
    conversions: Conversions, number: signal.Signals, step: str
) -> None:
    done = conversions.strike(number, step)
    assert done.returncode == 0, done.stderr
    conversions.assert_whole()


# --- disks


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of tests/preload.py."""
    return preload.library(tmp_path_factory.mktemp("preload"))


@pytest.mark.parametrize(
    ("call", "number"),
    [("write", errno.ENOSPC), ("fsync", errno.EIO), ("fsync-folder", errno.EIO), ("linkat", errno.EDQUOT)],
)
def test_a_call_that_fails_leaves_the_older_file(conversions: Conversions, built: Path, call: str, number: int) -> None:
    conversions.new.write_bytes(OLDER)
    done = conversions.run([*preload.failing(built, call, number), *statepipe_command()])
    assert done.returncode == 1 and os.strerror(number) in done.stderr, done.stderr
    assert conversions.new.read_bytes() == OLDER and os.listdir(conversions.folder) == ["new"]


def test_a_disk_that_is_full_leaves_no_file(conversions: Conversions) -> None:
    with tmpfs(16384) as folder:
        done = conversions.run(statepipe_command(), folder / "new")
        assert done.returncode == 1 and "No space left on device" in done.stderr, done.stderr
        assert os.listdir(folder) == []


def test_short_and_interrupted_calls_change_nothing(conversions: Conversions, built: Path) -> None:
    done = conversions.run([*preload.under(built, SHORT=1, INTERRUPT=1), *statepipe_command()])
    assert done.returncode == 0, done.stderr
    conversions.assert_whole()


# --- damage


@pytest.mark.parametrize(
    ("data", "to"),
    [(IMAGE, None), (IMAGE, RAW), (IMAGE, ZSTD), (STATE, RAW), (STATE, ZSTD)],
    ids=["image to state", "image to raw", "image to zstd", "state to raw", "state to zstd"],
)
def test_a_source_that_is_damaged_or_cut_leaves_no_file_or_a_whole_one(
    tmp_path: Path, data: bytes, to: int | None
) -> None:
    """Whole, as not every bit of an image is covered: its XML has no digest, and gzip's header unused bits."""
    source, new = tmp_path / "from", tmp_path / "new"
    how = Conversion(choose("zstd:3").packing(lambda: 0.0), [], [], to, None, False)
    texts = len(beginning(DOMAIN, GZIP)) if data is IMAGE else layout(STATE)[1].end
    for place in [*range(0, 92, 3), *range(92, texts, 1997), *range(texts, len(data), 499), len(data) - 1]:
        cut_off, flipped = data[:place], bytearray(data)
        flipped[place] ^= 1 << place % 8
        for damaged in (cut_off, bytes(flipped)):
            source.write_bytes(damaged)
            try:
                convert(str(source), str(new), NO_KEYS, how)
            except StatepipeError:
                assert not new.exists()
            else:
                assert damaged is not cut_off and verify_state(str(new), NO_KEYS)["bytes"] == len(STREAM)
                new.unlink()
            assert source.read_bytes() == damaged and os.listdir(tmp_path) == ["from"]
