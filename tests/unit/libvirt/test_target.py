"""The domain that is to be restored: what libvirt must not have under its name or its UUID, and what to type then."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from statepipe.libvirt.target import Target
from statepipe.libvirt.virsh import LibvirtError, Virsh

UUID, OTHER = "3fbf76b1-f6fe-43d6-bf76-cd41371924dc", "4f5e0344-1361-4cf0-a2cc-1db4992a7020"

Script = Callable[[str], Virsh]


def info(name: str, uuid: str, state: str, persistent: str = "yes") -> str:
    return f"Name: {name}\nUUID: {uuid}\nState: {state}\nPersistent: {persistent}\nManaged save: no"


def target(
    virsh: Script, *, by_uuid: str | None = None, by_name: str | None = None, state: str = "running (booted)"
) -> Target:
    """A domain vm1 of a libvirt that answers so to dominfo."""
    cases = {f"--domain={UUID}": by_uuid, "--domain=vm1": by_name}
    words = "\n".join(f"'{word}') echo '{answer}'; exit 0;;" for word, answer in cases.items() if answer is not None)
    virsh(f"""
case "$*" in *list*) exit 0;; *domstate*) echo '{state}'; exit 0;; esac
for word; do case "$word" in
x) ;;
{words}
esac; done
echo "error: failed to get domain 'vm1'" >&2; exit 1""")
    return Target(Virsh("qemu:///session"), "vm1", UUID)


def refusal(its: Target) -> tuple[str, str]:
    with pytest.raises(LibvirtError) as caught:
        its.demand_idle(pytest.fail)
    return str(caught.value), str(caught.value.hint)


def test_one_that_is_defined_or_unknown_passes(virsh: Script) -> None:
    assert target(virsh, by_uuid=info("vm1", UUID, "shut off")).demand_idle(pytest.fail)
    assert not target(virsh).demand_idle(pytest.fail)
    assert not target(virsh, by_name=info("other", OTHER, "running")).demand_idle(pytest.fail)  # vm1 is its id


def test_one_that_runs_is_refused(virsh: Script) -> None:
    what, hint = refusal(target(virsh, by_uuid=info("vm1", UUID, "running")))
    assert what == "the domain vm1 is running (booted) already"
    assert hint.endswith("to give that up: virsh --connect=qemu:///session destroy vm1")


@pytest.mark.parametrize("state", ["paused (starting up)", "paused (saving)"])
def test_one_that_is_restored_or_saved_already_is_to_be_waited_for(virsh: Script, state: str) -> None:
    what, hint = refusal(target(virsh, by_uuid=info("vm1", UUID, "paused"), state=state))
    assert what == f"the domain vm1 is {state} already"
    assert hint == "another load or save of it is under way: wait until that has ended"


def test_one_that_was_defined_anew_is_named_with_both_uuids(virsh: Script) -> None:
    what, hint = refusal(target(virsh, by_name=info("vm1", OTHER, "shut off")))
    assert what == (
        f"libvirt has another domain named vm1: it is shut off "
        f"and has the UUID {OTHER}, that of the saved one is {UUID}"
    )
    assert "virsh --connect=qemu:///session undefine vm1 (its disks stay)" in hint
    assert "virsh --connect=qemu:///session domrename vm1 NEW" in hint


@pytest.mark.parametrize(("persistent", "then"), [("yes", True), ("no", False)])
def test_another_one_that_runs_is_to_end_first(virsh: Script, persistent: str, then: bool) -> None:
    what, hint = refusal(target(virsh, by_name=info("vm1", OTHER, "running", persistent)))
    assert "it is running" in what
    assert hint.startswith("end it first: virsh --connect=qemu:///session shutdown vm1")
    assert ("undefine" in hint) is then


def test_one_that_was_renamed_gets_its_name_back(virsh: Script) -> None:
    what, hint = refusal(target(virsh, by_uuid=info("new name", UUID, "shut off")))
    assert f"the domain vm1 ({UUID}) is called new name now" in what
    assert hint == "give it back its name: virsh --connect=qemu:///session domrename 'new name' vm1"
