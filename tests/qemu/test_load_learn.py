"""load --lazy --learn: what the guest touched first is sent before the guest runs at the next load."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import agefiles
from tests.qemu.harness import Guest, assert_continues, run_statepipe, wait_for
from tests.qemu.lazily import NOISE, Lazy, assert_went_on, memory_of
from tests.qemu.loading import (
    MEMORY,
    Load,
    Saved,
    assert_never_ran,
    end_qemu,
    loaded,
    qemu_command,
    qemu_pid,
    run_load,
)
from tests.statefiles import DATA, layout

FILLED = 8
"""MiB that the guest sums up at each tick."""

LEARN = "--learn=1"


def copied(saved: Saved, folder: Path) -> Saved:
    """The same state in a file of its own, so that its working set is this test's."""
    file = folder / "state"
    shutil.copy(saved.file, file)
    return Saved(file, saved.image, saved.before, saved.qemu)


def working_set(saved: Saved) -> Path:
    return Path(f"{saved.file}.working-set")


@dataclass(frozen=True, slots=True)
class Done:
    """What a load said; how many MiB it sent in all, and before the guest ran; the number of requests."""

    said: str
    all: float
    first: float
    asked: int


def run_lazily(folder: Path, saved: Saved, *options: str) -> Done:
    """Load the guest to the end and let it count on."""
    folder.mkdir()
    with Lazy(folder, saved, *options) as lazy:
        lazy.complete()
        assert_went_on(saved, lazy)
        said = lazy.stderr()
    found = re.search(r"loaded: ([\d.]+) MiB in [\d.]+ s(?:, ([\d.]+) MiB of it before the guest ran)?", said)
    assert found, said
    asked = re.search(r"waited (\d+) times", said)
    return Done(said, float(found[1]), float(found[2] or 0), int(asked[1]) if asked else 0)


def learn(folder: Path, saved: Saved, *options: str) -> int:
    """Learn until the working set has all that the guest sums up. Return its number of pages."""
    for attempt in range(20):
        done = run_lazily(folder / f"learning{attempt}", saved, LEARN, *options)
        assert f"{working_set(saved)}: the guest touched " in done.said
        if (pages := len(_pages(saved))) > FILLED << 8:
            return pages
    raise AssertionError(f"only {pages} pages were learned: {done}")


def _pages(saved: Saved) -> set[tuple[str, int]]:
    """The pages of the working set."""
    found = set()
    for block in json.loads(working_set(saved).read_bytes())["blocks"]:
        at = 0
        for skipped, count in zip(block["pages"][::2], block["pages"][1::2], strict=True):
            found |= {(str(block["name"]), at + skipped + number) for number in range(count)}
            at += skipped + count
    return found


def rewrite(saved: Saved, change: Callable[[dict[str, object]], object]) -> None:
    """Change the facts of the working set."""
    facts = json.loads(working_set(saved).read_bytes())
    change(facts)
    working_set(saved).write_text(json.dumps(facts, separators=(",", ":")))


def test_what_was_learned_is_sent_before_the_guest_runs(tmp_path: Path, noisy: Saved) -> None:
    saved = copied(noisy, tmp_path)
    pages = learn(tmp_path, saved)
    assert stat.S_IMODE(working_set(saved).stat().st_mode) == 0o600
    before = working_set(saved).read_bytes()
    done = run_lazily(tmp_path / "again", saved)
    assert done.asked < pages / 10 and FILLED <= done.first < done.all / 2
    assert "warning" not in done.said
    assert working_set(saved).read_bytes() == before, "it was written without --learn"


def test_learning_again_keeps_what_was_learned(tmp_path: Path, noisy72: Saved) -> None:
    saved = copied(noisy72, tmp_path)
    run_lazily(tmp_path / "learning", saved, LEARN)
    before = _pages(saved)
    done = run_lazily(tmp_path / "again", saved, LEARN)
    assert done.first and before <= _pages(saved)


def everything(facts: dict[str, object]) -> None:
    """All of the guest's memory, and its video memory."""
    facts["blocks"] = [{"name": "pc.ram", "pages": [0, MEMORY << 8]}]


def every_other_page(facts: dict[str, object]) -> None:
    """Where the kernel gives QEMU huge pages, a page between two of these may read as zeros and be there too early."""
    facts["blocks"] = [{"name": "pc.ram", "pages": [1, 1] * (MEMORY << 7)}]


@pytest.mark.parametrize("change", [None, everything, every_other_page])
def test_the_memory_is_that_of_an_ordinary_load(
    tmp_path: Path, noisy: Saved, change: Callable[[dict[str, object]], None] | None
) -> None:
    saved = copied(noisy, tmp_path)
    learn(tmp_path, saved)
    if change is not None:
        rewrite(saved, change)
    memories = []
    for options in (["--lazy"], []):
        folder = tmp_path / f"load{len(options)}"
        folder.mkdir()
        with loaded(folder, saved, *options, args=["-S"]) as guest:
            wait_for("all memory", lambda: re.search("all memory is loaded|loaded and verified", guest.stderr()))
            assert ("of it before the guest ran" in guest.stderr()) == bool(options), guest.stderr()
            memories.append(memory_of(guest, folder / "memory"))
    assert random.Random(7).randbytes(NOISE)[: NOISE // 2] in memories[0], "the noise was not loaded"
    assert memories[0] == memories[1]


@pytest.mark.parametrize("change", [everything, every_other_page])
def test_a_guest_goes_on_with_a_set_that_somebody_made(
    tmp_path: Path, noisy: Saved, change: Callable[[dict[str, object]], None]
) -> None:
    saved = copied(noisy, tmp_path)
    learn(tmp_path, saved)
    rewrite(saved, change)
    done = run_lazily(tmp_path / "again", saved)
    assert done.first > done.all * 0.4


def foreign(facts: dict[str, object]) -> None:
    facts["blake3"] = "0" * 64


def outside(facts: dict[str, object]) -> None:
    facts["blocks"] = [{"name": "pc.ram", "pages": [MEMORY << 8, 1]}]


@pytest.mark.parametrize(
    ("change", "why"), [(foreign, "it belongs to another state"), (outside, "it is damaged: it names pages that")]
)
def test_one_that_does_not_fit_is_ignored_with_a_warning(
    tmp_path: Path, noisy72: Saved, change: Callable[[dict[str, object]], None], why: str
) -> None:
    saved = copied(noisy72, tmp_path)
    learn(tmp_path, saved)
    rewrite(saved, change)
    done = run_lazily(tmp_path / "again", saved)
    assert f"warning: {working_set(saved)} is ignored: {why}" in done.said and not done.first


def test_of_an_encrypted_state(tmp_path: Path, noisy72: Saved) -> None:
    saved = copied(noisy72, tmp_path)
    saved.file.write_bytes(agefiles.sealed(saved.file.read_bytes()))
    key = ["-i", str(agefiles.KEY_FILE)]
    pages = learn(tmp_path, saved, *key)
    done = run_lazily(tmp_path / "again", saved, *key)
    assert done.asked < pages / 10 and done.first >= FILLED


def kill_and_continue(saved: Saved, lazy: Lazy) -> None:
    """Kill statepipe once the guest runs, and continue with the command that it has printed."""
    resume = lazy.here()
    lazy.wait_ticks(1)
    lazy.signal(signal.SIGKILL)
    lazy.status()
    done = run_statepipe(*resume)
    assert done.returncode == 0, done.stderr
    assert_went_on(saved, lazy)


def test_killed_while_it_learns_it_is_continued_and_nothing_is_written(tmp_path: Path, noisy: Saved) -> None:
    saved = copied(noisy, tmp_path)
    with Lazy(tmp_path, saved, "--learn=600") as lazy:
        kill_and_continue(saved, lazy)
    assert not working_set(saved).exists()


def test_killed_after_pages_were_sent_first_it_is_continued(tmp_path: Path, noisy: Saved) -> None:
    """QEMU counts those as received, so they are not sent again."""
    saved = copied(noisy, tmp_path)
    learn(tmp_path, saved)
    folder = tmp_path / "again"
    folder.mkdir()
    with Lazy(folder, saved, "--throttle", "2M") as lazy:
        kill_and_continue(saved, lazy)


def test_ended_while_pages_are_sent_first_nothing_has_happened(tmp_path: Path, noisy72: Saved) -> None:
    saved = copied(noisy72, tmp_path)
    learn(tmp_path, saved)
    rewrite(saved, everything)
    with Load(tmp_path, saved, "--lazy", saved.file, "--", *qemu_command(tmp_path, saved), delay=500) as load:
        wait_for("QEMU", lambda: qemu_pid(tmp_path))
        load.signal(signal.SIGTERM)
        assert load.status() == 128 + signal.SIGTERM
    assert "while its memory is loaded" not in load.stderr()
    assert_never_ran(tmp_path)


def test_into_a_qemu_that_waits_with_shared_memory(tmp_path: Path, noisy: Saved) -> None:
    """The kernel may give huge pages to it, too."""
    saved = copied(noisy, tmp_path)
    learn(tmp_path, saved)
    rewrite(saved, every_other_page)
    memory = ["-object", f"memory-backend-memfd,id=pc.ram,size={MEMORY}M", "-machine", "memory-backend=pc.ram"]
    words = {"qemu": saved.qemu, "memory": MEMORY, "image": saved.image, "args": memory, "incoming": "defer"}
    with Guest(tmp_path, **words) as guest:  # type: ignore[arg-type]
        done = run_statepipe("load", "--lazy", LEARN, "--qmp", guest.socket, saved.file)
        assert done.returncode == 0, done.stderr
        assert "of it before the guest ran" in done.stderr and "the guest touched " in done.stderr
        guest.wait_ticks(2)
        assert_continues(saved.before, guest.serial())


def test_a_damaged_frame_of_the_set_refuses_the_load_before_the_guest_runs(tmp_path: Path, noisy72: Saved) -> None:
    saved = copied(noisy72, tmp_path)
    learn(tmp_path, saved)
    rewrite(saved, everything)
    data = bytearray(saved.file.read_bytes())
    frame = next(piece for piece in layout(bytes(data)) if piece.magic == DATA and piece.end > len(data) * 0.8)
    data[(frame.start + frame.end) // 2] ^= 1
    saved.file.write_bytes(data)
    done = run_load(tmp_path, saved, "--lazy")
    assert done.returncode == 3 and f"of {saved.file}, at byte " in done.stderr, done.stderr
    assert "resume" not in done.stderr
    assert_never_ran(tmp_path)


def test_a_set_that_cannot_be_written_is_a_warning(tmp_path: Path, noisy72: Saved) -> None:
    saved = copied(noisy72, tmp_path)
    working_set(saved).write_text("somebody's notes")
    done = run_lazily(tmp_path / "learning", saved, LEARN)
    assert "warning: the working set was not written: " in done.said
    assert working_set(saved).read_text() == "somebody's notes"


def test_of_a_paused_guest_nothing_is_learned(tmp_path: Path, paused72: Saved) -> None:
    saved = copied(paused72, tmp_path)
    command = qemu_command(tmp_path, saved)
    err = tmp_path / "err"
    try:
        with err.open("w") as stderr:
            words = ["load", "--lazy", "--learn=600", "--detach", saved.file, "--", *command]
            done = run_statepipe(*words, capture_output=False, stderr=stderr, stdout=subprocess.DEVNULL)
        assert done.returncode == 0, err.read_text()
    finally:
        end_qemu(tmp_path)
    assert "warning: nothing is learned" in err.read_text() and not working_set(saved).exists()
