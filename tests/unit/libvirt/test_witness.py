"""What the guardian does with a save whose file has its name, if libvirt does not tell what became of the guest."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from statepipe.ends import naming
from statepipe.ends.file import FileSink
from statepipe.libvirt import witness
from statepipe.libvirt.virsh import STATES, DomainState
from statepipe.libvirt.witness import ANSWERING, Job, judge, recover_domain
from statepipe.recovery.guardian import Decide


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt is not there, and is not asked for a minute."""
    monkeypatch.setattr(witness, "RESUMED", 0.1)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    uri = f"qemu:///session?socket={tmp_path}/nothing"
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    return Job(uri, uuid, "vm1", str(tmp_path / "save-1"), str(tmp_path / "state"), "1")


@pytest.fixture
def question(tmp_path: Path) -> Iterator[int]:
    """The reader of a FIFO without a writer: libvirt has closed it, and has written or not."""
    os.mkfifo(tmp_path / "final")
    reading = os.open(tmp_path / "final", os.O_RDONLY | os.O_NONBLOCK)
    os.close(os.open(tmp_path / "final", os.O_WRONLY))
    yield reading
    os.close(reading)


def known(job: Job, question: int, sink: FileSink, states: list[str]) -> dict[str, object]:
    """What a statepipe has told that was killed."""
    names, fds = sink.naming()
    return {"states": states, "domain": list(job), "question": question, "names": names, **fds}


def test_a_file_stays_if_libvirt_may_have_been_answered(job: Job, question: int) -> None:
    """The guest is gone if it was, even if nobody can be asked, as on a host that is shut down."""
    with FileSink(job.path) as sink:
        sink.write(b"state")
        sink.commit()
        with pytest.raises(Decide, match="holds the whole state") as caught:
            recover_domain(known(job, question, sink, ["ASKED", "NAMING", ANSWERING]), print)
    assert "libvirt does not say" in str(caught.value.hint)
    assert Path(job.path).read_bytes() == b"state"


def test_a_file_is_taken_back_if_libvirt_has_gone_without_an_answer(job: Job, question: int) -> None:
    """The guest is still there: libvirt lets it run on when it is back."""
    with FileSink(job.path) as sink:
        sink.commit()
        assert "there is no file" in recover_domain(known(job, question, sink, ["ASKED", "NAMING"]), print)
    assert not Path(job.path).exists()


def test_a_file_that_cannot_be_taken_back_is_told(job: Job, question: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device that has begun to fail."""

    def fail(*words: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with FileSink(job.path) as sink:
        sink.commit()
        monkeypatch.setattr(naming, "_renameat2", fail)
        with pytest.raises(Decide, match="could not be taken back: Read-only") as caught:
            recover_domain(known(job, question, sink, ["ASKED", "NAMING"]), print)
        assert "remove it if it is there, as its guest is not saved" in str(caught.value.hint)
        monkeypatch.undo()
        sink.withdraw()


def test_a_refusal_that_libvirt_does_not_confirm_is_no_failure_to_undo(job: Job) -> None:
    """Nothing is left to do: only what becomes of the guest is not known."""
    with pytest.raises(Decide, match="libvirt was refused, and there is no file") as caught:
        recover_domain({"states": ["ASKED"], "domain": list(job)}, print)
    assert "libvirt does not say" in str(caught.value.hint)


def test_a_virsh_that_cannot_be_started_tells_nothing(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no reason to give up: the file may be the only place of the guest by then."""
    (tmp_path / "env").symlink_to(str(shutil.which("env")))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job.ask(0.1) is None


@pytest.mark.parametrize("is_signed", [False, True])
def test_only_a_domain_that_is_shut_off_has_no_guest(is_signed: bool) -> None:
    stays = [state for state in STATES if judge(DomainState(state, ""), is_signed=is_signed)]
    assert stays == ["shut off"]
    assert judge(None, is_signed=is_signed) == is_signed
