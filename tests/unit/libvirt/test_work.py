"""virsh while libvirt is at work: how it ends, and what it says then."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from statepipe.errors import StatepipeError
from statepipe.libvirt.virsh import Virsh
from statepipe.libvirt.work import SAID_LIMIT, AtWork

Script = Callable[[str], Virsh]


def test_one_that_succeeds_has_no_reason(virsh: Script) -> None:
    with AtWork(virsh("exit 0"), "restore") as work:
        assert work.has_ended()
        assert work.reason() is None


def test_the_reason_is_libvirts_last_message(virsh: Script) -> None:
    script = "echo 'error: Failed to restore domain from /x' >&2; echo 'error: no room' >&2; exit 1"
    with AtWork(virsh(script), "restore") as work:
        assert work.has_ended()
        assert str(work.reason()) == "libvirt: no room"


def test_the_reason_is_what_it_says_last(virsh: Script) -> None:
    """However much LIBVIRT_DEBUG makes it write before."""
    script = f"head -c {SAID_LIMIT * 2} /dev/zero >&2; echo >&2; echo 'error: no room' >&2; exit 1"
    with AtWork(virsh(script), "restore") as work:
        assert work.has_ended()
        assert str(work.reason()) == "libvirt: no room"


def test_one_that_was_killed_says_by_what(virsh: Script) -> None:
    with AtWork(virsh("kill -9 $$"), "restore") as work:
        assert work.has_ended()
        assert str(work.reason()) == "virsh was ended by signal 9"


def test_it_does_not_wait_for_a_reader_of_its_messages(virsh: Script) -> None:
    with AtWork(virsh(f"head -c {SAID_LIMIT * 4} /dev/zero; exit 1"), "restore") as work:
        assert work.has_ended()
        assert len(str(work.reason())) < 1000


def test_what_is_to_be_done_meanwhile_is_done_again_and_again(virsh: Script) -> None:
    calls: list[int] = []
    with AtWork(virsh("exec cat"), "restore") as work:  # at the end of its input, which is there at once
        work.has_ended(meanwhile=lambda: calls.append(1))
    with AtWork(virsh("exec sleep 60"), "restore") as work:
        assert not work.has_ended(0.25, lambda: calls.append(2))
    assert calls[0] == 1
    assert calls.count(2) >= 2


def test_a_virsh_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StatepipeError, match="cannot start"):
        AtWork(Virsh(None), "restore")
