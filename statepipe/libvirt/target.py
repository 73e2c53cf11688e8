"""A domain that libvirt restores from our FIFO, and what became of it: asked by statepipe, or by its guardian.

If statepipe is killed, its end of the FIFO is closed, and QEMU refuses the state. But libvirt would wait for ever in an
open() that comes later: so the guardian removes the FIFO, and lets an open that is under way return.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from statepipe.errors import StatepipeError
from statepipe.libvirt.offer import IMAGE, wake
from statepipe.libvirt.virsh import ANSWER, PAUSED, SHUT_OFF, DomainState, LibvirtError, NoDomain, Virsh, parse_state
from statepipe.libvirt.witness import SAVING
from statepipe.recovery.guardian import Notes
from statepipe.telling import Tell
from statepipe.wakeups import polled

CLEARING = 10.0
"""Seconds in which libvirt ends a domain whose stream was broken off. It takes it 0.2 s, and some on a busy host."""

STARTING = DomainState(PAUSED, "starting up")
"""What libvirt reports of a domain until it has restored it, or given it up."""

JUST = 1.0
"""Seconds in which an open that was under way returns, if it is not known whether virsh was started."""

TURN = 0.1
"""Seconds between two looks at it: an event could have come before anybody waited for it."""

OFFERED, HANDED = "OFFERED", "HANDED"
"""What the guardian is told: libvirt may read the state, and all of it was written."""


class Target(NamedTuple):
    """The domain: its connection, its name for people, and its UUID for virsh."""

    virsh: Virsh
    name: str
    uuid: str

    @property
    def words(self) -> list[str | None]:
        """The same for the guardian."""
        return [self.virsh.uri, self.name, self.uuid]

    def demand_idle(self, warn: Tell) -> bool:
        """Return whether libvirt has a definition of it. Raises LibvirtError if it runs already, or if libvirt has its
        name or its UUID for another domain. `warn` hears of another state that its next start would load."""
        try:
            its = self.virsh.facts(self.uuid)
        except NoDomain:  # it was transient, or another host's
            self._demand_free_name()
            return False
        state = parse_state(its.get("State", ""))
        if state.state != SHUT_OFF:  # also one that sleeps, or has crashed and is kept, has its guest
            state = self.virsh.state(self.uuid)
            command = self.virsh.typed("destroy", self.name)
            hint = f"it would be another guest on the same disks; to give that up: {command}"
            if state == STARTING or state.reason == SAVING:
                hint = "another load or save of it is under way: wait until that has ended"
            raise LibvirtError(f"the domain {self.name} is {state} already", hint=hint)
        if (name := its.get("Name", self.name)) != self.name:
            what = (
                f"the domain {self.name} ({self.uuid}) is called {name} now, and libvirt restores it by its name alone"
            )
            raise LibvirtError(what, hint=f"give it back its name: {self.virsh.typed('domrename', name, self.name)}")
        if its.get("Managed save") == "yes":
            command = self.virsh.typed("managedsave-remove", self.name)
            warn(
                f"libvirt also keeps a managed save of {self.name}, and the next start of the domain loads that: once "
                f"the guest has run, it no longer fits the disks; to remove it: {command}"
            )
        return True

    @property
    def transience(self) -> str:
        """What to know of a domain that libvirt has no definition of."""
        dump, define = self.virsh.typed("dumpxml", self.name), self.virsh.typed("define", "FILE")
        return (
            f"libvirt has no definition of the domain {self.name}, which is gone once its guest ends; to keep one: "
            f"{dump} > FILE; {define}"
        )

    def _demand_free_name(self) -> None:
        """Raises LibvirtError if another domain has the name, such as one that was defined anew without the UUID."""
        its = self.virsh.named(self.name)
        if its is None:
            return
        state, undefine = its.get("State", ""), self.virsh.typed("undefine", self.name)
        if state == SHUT_OFF:
            rename = self.virsh.typed("domrename", self.name, "NEW")
            hint = f"if it is a later definition of the same guest: {undefine} (its disks stay); else: {rename}"
        else:
            hint = f"end it first: {self.virsh.typed('shutdown', self.name)}"
            hint += f"; then: {undefine}" if its.get("Persistent") == "yes" else ""
        what = f"libvirt has another domain named {self.name}: it is {state} and has the UUID {its.get('UUID')}"
        raise LibvirtError(f"{what}, that of the saved one is {self.uuid}", hint=hint)

    def became(self, deadline: float, meanwhile: Callable[[], object] = lambda: None, *, within: float = ANSWER) -> str:
        """Return for a message what became of it. Until the deadline, libvirt may end it, and `meanwhile` is called
        again and again. libvirt is to answer within so many seconds."""
        try:
            while (state := self.virsh.state(self.uuid, within)).state == PAUSED and time.monotonic() < deadline:
                meanwhile()
                time.sleep(TURN)
            if state == STARTING:  # a paused guest would be taken for the result
                command = self.virsh.typed("domstate", "--reason", self.name)
                return f"libvirt is not done with the domain {self.name} yet, which is {state}; ask it later: {command}"
            return f"the domain {self.name} is {state}"
        except NoDomain:
            return f"the domain {self.name} does not run, and libvirt has no definition of it"
        except StatepipeError as error:
            command = self.virsh.typed("domstate", "--reason", self.name)
            return f"what became of the domain {self.name} is not known ({error}); ask libvirt later: {command}"


def recover_offer(known: Notes, tell: Tell) -> str:
    """Withdraw what was offered by a statepipe that was killed, and return what became of the domain.

    `known`: state, domain (the target, and the folder of the FIFO), and virsh (its end) once it was started.
    """
    uri, name, uuid, folder = known["domain"]
    target, path, reading = Target(Virsh(uri), name, uuid), os.path.join(folder, IMAGE), -1
    try:
        with suppress(OSError):  # it was withdrawn
            reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.unlink(path)
        start, ending = time.monotonic(), polled(*([known["virsh"]] if "virsh" in known else []))
        deadline = start + CLEARING
        while not ending.poll(TURN * 1000) and time.monotonic() < (deadline if "virsh" in known else start + JUST):
            if reading >= 0:
                wake(reading)
        if known["state"] == HANDED:
            return f"libvirt has all of the state, and {target.became(0)}"
        return f"libvirt was not given all of the state, and {target.became(deadline)}"
    finally:
        if reading >= 0:
            os.close(reading)
        shutil.rmtree(folder, ignore_errors=True)
