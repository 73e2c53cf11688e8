"""What killed saves and loads leave behind: a libvirt that waits goes on where that is safe, and nothing is committed.
A thread stands for libvirt, which opens and writes as it does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from statepipe.formats.libvirtimage import Domain, beginning
from statepipe.libvirt.intake import Intake
from statepipe.libvirt.leftover import sweep
from statepipe.libvirt.offer import Offer
from tests.qemu.harness import wait_for

IMAGE = beginning(Domain(b"<domain/>", b"<cookie/>", True))


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "statepipe"


class Libvirt(threading.Thread):
    """Runs a function; `result` is what it returned or raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work, self.result, self.number = work, None, 0
        self.start()
        wait_for("open", lambda: (self.number and self._is_waiting()) or not self.is_alive())

    def run(self) -> None:
        self.number = threading.get_native_id()
        try:
            self.result: object = self._work()
        except OSError as error:
            self.result = error

    def _is_waiting(self) -> bool:
        return "partner" in Path(f"/proc/self/task/{self.number}/wchan").read_text()


def write(path: str, data: bytes) -> None:
    """Open without O_CREAT, as libvirt does where a FIFO was, and write all."""
    fd = os.open(path, os.O_WRONLY)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@pytest.fixture
def left() -> Iterator[Intake]:
    """A save that was killed with its guardian after it made its FIFOs."""
    with Intake() as intake:
        intake.leave()
    assert sorted(os.listdir(intake.folder)) == ["final", "image"]
    yield intake


def test_a_libvirt_that_waits_for_a_killed_save_goes_on_and_saves_nothing(left: Intake, runtime: Path) -> None:
    libvirt = Libvirt(lambda: write(left.path, IMAGE))
    assert libvirt.is_alive()
    sweep()
    libvirt.join(30)
    assert isinstance(libvirt.result, BrokenPipeError) and os.listdir(runtime) == []


def test_one_that_comes_late_finds_no_place_for_a_file(left: Intake) -> None:
    sweep()
    with pytest.raises(FileNotFoundError):
        os.open(left.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)


def test_one_that_asks_to_commit_is_not_let_in(left: Intake, runtime: Path) -> None:
    """92 bytes fit into a pipe: if a reader came and went, they could be taken for an answer."""
    os.rename(os.path.join(left.folder, "final"), left.path)
    os.link(left.path, runtime / "same")
    libvirt = Libvirt(lambda: write(left.path, IMAGE[:92]))
    sweep()
    assert os.listdir(runtime) == ["same"] and libvirt.is_alive()
    os.close(os.open(runtime / "same", os.O_RDONLY | os.O_NONBLOCK))  # only the test may do that
    libvirt.join(30)
    assert not libvirt.is_alive()


def test_a_refusal_that_was_killed_is_finished(left: Intake, runtime: Path) -> None:
    os.rename(left.folder, f"{left.folder}.refused")
    sweep()
    assert os.listdir(runtime) == []


def test_what_a_living_save_or_its_guardian_uses_stays() -> None:
    with Intake() as intake:
        sweep()
        assert sorted(os.listdir(intake.folder)) == ["final", "image"]
        guardian = os.dup(intake.lock)
        intake.leave()
    sweep()
    assert sorted(os.listdir(intake.folder)) == ["final", "image"]
    os.close(guardian)
    sweep()
    assert not os.path.lexists(intake.folder)


def test_a_libvirt_that_waits_for_a_killed_load_reads_nothing(runtime: Path) -> None:
    folder = runtime / f"load-{'0' * 16}"
    folder.mkdir(mode=0o700, parents=True)
    os.mkfifo(folder / "image")
    (folder / "domain.xml").write_text("<domain/>")
    libvirt = Libvirt(lambda: read(str(folder / "image")))
    assert libvirt.is_alive()
    sweep()
    libvirt.join(30)
    assert libvirt.result == b"" and os.listdir(runtime) == []


def test_what_a_living_load_offers_stays() -> None:
    with Offer(IMAGE) as offer:
        sweep()
        assert os.path.lexists(offer.path)
    assert not os.path.lexists(offer.folder)


def test_only_such_folders_are_swept(runtime: Path) -> None:
    names = ["123", "load-123.qmp", "save-", "save-123", f"save-{'g' * 16}", f"other-{'0' * 16}"]
    runtime.mkdir(mode=0o700)
    for name in names:
        (runtime / name).mkdir()
    sweep()
    assert sorted(os.listdir(runtime)) == sorted(names)


def test_where_nothing_can_be_swept_nothing_is_said(runtime: Path) -> None:
    runtime.write_text("no folder")
    sweep()
