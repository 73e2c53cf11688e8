"""The two FIFOs, with a thread in the place of libvirt: it opens, writes and closes as qemu_saveimage.c does."""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from statepipe.errors import IntegrityError, StatepipeError, TruncatedError
from statepipe.formats.libvirtimage import HEADER_SIZE, PARTIAL, SAVED, Domain, beginning
from statepipe.libvirt import intake as module
from statepipe.libvirt.intake import Intake, answer, is_asked, knocking, remove
from statepipe.libvirt.virsh import LibvirtSilent

IMAGE = beginning(Domain(b"<domain/>", b"<cookie/>", True)).replace(SAVED, PARTIAL, 1)
FINAL = IMAGE.replace(PARTIAL, SAVED, 1)[:HEADER_SIZE]
PATIENCE = 30


class Libvirt:
    """Runs what it is given in a thread, one after the other; `done` waits for the last one's result or raises."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                self._results.put(work())
            except OSError as error:
                self._results.put(error)

    def begin(self, work: Callable[[], Any]) -> None:
        self._work.put(work)

    def done(self) -> Any:
        result = self._results.get(timeout=PATIENCE)
        if isinstance(result, OSError):
            raise result
        return result

    def end(self) -> None:
        self._work.put(None)
        self._thread.join(PATIENCE)


@pytest.fixture
def libvirt() -> Iterator[Libvirt]:
    running = Libvirt()
    yield running
    running.end()


@pytest.fixture
def ended() -> Iterator[tuple[int, Callable[[], None]]]:
    """A descriptor that is readable once the function was called, as of a virsh that ends."""
    reading, writing = os.pipe()
    yield reading, lambda: os.write(writing, b".") and None
    os.close(reading)
    os.close(writing)


@pytest.fixture
def intake(runtime: Path) -> Iterator[Intake]:
    with Intake() as made:
        yield made
    assert list(runtime.iterdir()) == []


def first(path: str, data: bytes = IMAGE + b"stream") -> None:
    """The first open: of what is not a regular file, without O_CREAT."""
    flags = os.O_WRONLY | os.O_TRUNC
    try:
        os.stat(path)
    except FileNotFoundError:
        flags |= os.O_CREAT
    fd = os.open(path, flags, 0o600)
    write(fd, data)


def second(path: str) -> None:
    """The second open, with the request to commit."""
    write(os.open(path, os.O_WRONLY), FINAL)


def write(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def take(intake: Intake, libvirt: Libvirt, ended: int) -> None:
    """The image, to its end."""
    libvirt.begin(lambda: first(intake.path))
    assert intake.await_image(ended, 60)
    header, data = intake.read_beginning()
    assert header.is_partial and data.startswith(b"<domain/>\0<cookie/>\0")
    os.set_blocking(intake.data, True)
    assert os.read(intake.data, 100) == b"stream"
    libvirt.done()
    assert os.read(intake.data, 100) == b""


def test_libvirt_is_answered_when_it_was_asked_to(intake: Intake, libvirt: Libvirt, ended: Any) -> None:
    take(intake, libvirt, ended[0])
    assert not is_asked(intake.question)
    libvirt.begin(lambda: second(intake.path))
    assert intake.await_question(ended[0], 60) and is_asked(intake.question)
    assert answer(intake.question, None) is True
    libvirt.done()


def test_libvirt_cannot_commit_while_the_first_reader_is_open(intake: Intake, libvirt: Libvirt, ended: Any) -> None:
    """A naive reader would have its 92 bytes by now."""
    take(intake, libvirt, ended[0])
    libvirt.begin(lambda: second(intake.path))
    assert intake.await_question(ended[0], 60)
    intake.keep_full()
    intake.refuse()
    with pytest.raises(BrokenPipeError):
        libvirt.done()


def test_libvirt_cannot_end_its_first_step_before_we_have_read(intake: Intake, libvirt: Libvirt, ended: Any) -> None:
    """So its second open always finds the second FIFO, however short the image is."""
    libvirt.begin(lambda: first(intake.path, IMAGE))
    libvirt.begin(lambda: second(intake.path))
    assert intake.await_image(ended[0], 60)
    intake.read_beginning()
    libvirt.done()
    assert intake.await_question(ended[0], 60)
    assert answer(intake.question, None) is True
    libvirt.done()


def test_a_first_open_that_comes_late_makes_no_file(intake: Intake, libvirt: Libvirt) -> None:
    """libvirt would save the guest into it, and end it."""
    intake.keep_full()
    intake.refuse()
    libvirt.begin(lambda: first(intake.path))
    with pytest.raises(FileNotFoundError):
        libvirt.done()
    assert not os.path.exists(intake.folder)


def test_a_second_open_that_comes_late_finds_nothing(intake: Intake, libvirt: Libvirt, ended: Any) -> None:
    take(intake, libvirt, ended[0])
    intake.keep_full()
    intake.refuse()
    libvirt.begin(lambda: second(intake.path))
    with pytest.raises(FileNotFoundError):
        libvirt.done()


@pytest.mark.parametrize("steps", ["first", "second"])
def test_an_open_that_is_under_way_returns_and_its_write_fails(
    intake: Intake, libvirt: Libvirt, ended: Any, steps: str
) -> None:
    """It has found the FIFO, and waits for a reader."""
    if steps == "second":
        take(intake, libvirt, ended[0])
    place = os.open(intake.folder, os.O_PATH)  # leads to the FIFO although the folder has another name by then
    intake.keep_full()
    intake.refuse()
    libvirt.begin(lambda: (first if steps == "first" else second)(f"/proc/self/fd/{place}/{module.IMAGE}"))
    with knocking(intake.folder), pytest.raises(BrokenPipeError):
        libvirt.done()
    os.close(place)


@pytest.mark.parametrize("steps", ["first", "second"])
def test_a_folder_that_cannot_be_renamed_is_refused_all_the_same(
    intake: Intake, libvirt: Libvirt, ended: Any, steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if steps == "second":
        take(intake, libvirt, ended[0])
    intake.keep_full()

    def fail(*words: Any) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "rename", fail)
    intake.refuse()
    libvirt.begin(lambda: (first if steps == "first" else second)(intake.path))
    with knocking(intake.folder), pytest.raises(BrokenPipeError):
        libvirt.done()
    remove(intake.folder)
    assert not os.path.exists(intake.folder)


def test_a_libvirt_that_goes_away_is_not_waited_for(intake: Intake, libvirt: Libvirt, ended: Any) -> None:
    take(intake, libvirt, ended[0])
    libvirt.begin(lambda: os.close(os.open(intake.path, os.O_WRONLY)))
    libvirt.done()
    ended[1]()
    assert not intake.await_question(ended[0], 60)
    assert answer(intake.question, None) is False


def test_a_libvirt_that_opens_and_does_not_write_may_still_do_so(intake: Intake, ended: Any, libvirt: Libvirt) -> None:
    take(intake, libvirt, ended[0])
    writing = os.open(intake.path, os.O_WRONLY)
    assert intake.await_question(ended[0], 60)
    assert answer(intake.question, 1) is None
    write(writing, FINAL)
    assert answer(intake.question, None) is True


@pytest.mark.parametrize("final", [IMAGE[:HEADER_SIZE], b"x" * HEADER_SIZE, FINAL[:-40]])
def test_other_bytes_are_no_commit(intake: Intake, libvirt: Libvirt, ended: Any, final: bytes) -> None:
    take(intake, libvirt, ended[0])
    libvirt.begin(lambda: write(os.open(intake.path, os.O_WRONLY), final))
    assert intake.await_question(ended[0], 60)
    assert answer(intake.question, None) is False
    libvirt.done()


def test_a_virsh_that_ends_without_an_image(intake: Intake, libvirt: Libvirt, ended: Any) -> None:
    ended[1]()
    assert not intake.await_image(ended[0], 60)


def test_an_image_without_a_byte_is_none(intake: Intake, libvirt: Libvirt, ended: Any) -> None:
    """libvirt opened it, and failed."""
    libvirt.begin(lambda: first(intake.path, b""))
    libvirt.done()
    threading.Timer(0, ended[1]).start()
    assert not intake.await_image(ended[0], 60)


@pytest.mark.parametrize(
    ("data", "kind"),
    [(IMAGE[:50], TruncatedError), (IMAGE[:200], TruncatedError), (b"QEVM" * 40, IntegrityError)],
)
def test_another_beginning_is_refused(
    intake: Intake, libvirt: Libvirt, ended: Any, data: bytes, kind: type[StatepipeError]
) -> None:
    libvirt.begin(lambda: first(intake.path, data))
    assert intake.await_image(ended[0], 60)
    with pytest.raises(kind):
        intake.read_beginning()
    libvirt.done()


def test_what_was_left_to_another_process_stays(runtime: Path) -> None:
    with Intake() as intake:
        intake.leave()
    assert sorted(os.listdir(intake.folder)) == [module.FINAL, module.IMAGE]
    remove(intake.folder)
    assert list(runtime.iterdir()) == []


def test_no_place_for_a_fifo_is_told(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "mkfifo", refuse)
    with pytest.raises(StatepipeError, match="cannot make a FIFO at"):
        Intake().__enter__()
    assert list(runtime.iterdir()) == []


def test_a_libvirt_that_does_nothing_is_not_waited_for_without_end(intake: Intake, ended: Any) -> None:
    with pytest.raises(LibvirtSilent, match=r"has not begun the save after 0\.1 s"):
        intake.await_image(ended[0], 0.1)
    with pytest.raises(LibvirtSilent, match=r"has not finished the save after 0\.1 s"):
        intake.await_question(ended[0], 0.1)
