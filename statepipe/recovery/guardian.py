"""The guardian: a process that finishes or undoes a migration, save or load that statepipe has left unfinished.

It is a program of its own, started anew rather than forked: statepipe has threads by then, and a fork would copy their
locks with nobody to release them. It hears of each step before anything is done about it, and ends with statepipe. If
its socket ends without a last note, statepipe was killed or stopped at an error that nobody foresaw. Then it does what
is safe: rescue.py says what, and for a guest of libvirt's libvirt/witness.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from statepipe.errors import InterruptedBySignal, QemuError, StatepipeError
from statepipe.pipeline.signals import ENDING
from statepipe.processes import Process
from statepipe.telling import Tell
from statepipe.typed import Any, Self

NOTE_LIMIT = 64 << 10
"""Bytes of one note: a state, or the settings that QEMU had."""

NOTED = ("state", "qmp", "runs", "was", "before", "pid", "over", "stopped", "socket", "domain", "names", "drop", "left")
"""What it needs to know. Other entries of a journal may have any size, as what the other host sends of its guest."""

FDS = 4
"""Most descriptors with one note."""

Notes = Mapping[str, Any]
"""What it was told, by name; a descriptor is under its name too."""

GuardCommand = Sequence[str]
"""The program that calls `guard`, and its words; the number of the socket follows them."""

Recover = Callable[[Notes, Tell], str]
"""Does what is safe, by what it was told, and returns what became of the guest. Raises StatepipeError."""

LastWord = Callable[[str, Callable[[], str]], object]
"""Calls what restores the guest, and reports its result or what it raised: there is no caller to report to. The text
says why the guardian acts: BROKE_OFF or LEFT."""

BROKE_OFF = "statepipe ended unexpectedly"
LEFT = "statepipe left the rest to its guardian"
"""It has reported its failure, and not waited for a QEMU or a libvirt that did not answer."""


class Decide(QemuError):
    """Nothing is left to undo, and the hint says how a person decides."""


class Guardian:
    """Entering starts it with the command. Raises StatepipeError if it cannot be started."""

    def __init__(self, command: GuardCommand) -> None:
        self._command = command
        self._settled = self._left = False

    def __enter__(self) -> Self:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        fd = theirs.fileno()
        try:
            self._process = Process([*self._command, str(fd)], {0: nothing, 1: nothing, 2: 2, fd: fd})
        except BaseException:
            self._ours.close()
            raise
        finally:
            theirs.close()
            os.close(nothing)
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def has_ended(self) -> bool:
        """Whether it has ended before its time."""
        return self._process.has_ended()

    def note(self, facts: Notes, fds: Mapping[str, int] | None = None) -> None:
        """Let it know `facts`, which replace earlier ones of the same name, and give it duplicates of `fds`. It closes
        those whose names are in `drop`. Does nothing if it has ended.

        Raises StatepipeError for a note of more than NOTE_LIMIT bytes: it could use no part of it.
        """
        known = {name: facts[name] for name in NOTED if name in facts} | {"fds": list(fds or ())}
        text = json.dumps(known).encode()
        if len(text) > NOTE_LIMIT:
            what = f"QEMU's migration settings take {len(text)} bytes, and the guardian keeps at most {NOTE_LIMIT}"
            hint = "shorten the longest value in query-migrate-parameters, and try again"
            raise StatepipeError(what, hint=hint)
        with suppress(OSError):
            socket.send_fds(self._ours, [text], list((fds or {}).values()))

    def settle(self) -> None:
        """The tables have reached an end: it does nothing, unless we are killed before this context is left."""
        self._settled = True

    def leave(self) -> None:
        """It acts once we have ended, and we do not wait for it, as QEMU does not answer."""
        self._left = True
        self.note({"left": True})

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """If it is not settled, an error has left QEMU as a kill would: then it acts, and we wait for it."""
        if self._settled or error is None:
            self.note({"over": True})
        elif isinstance(error, StatepipeError):
            self.note({"left": True})
        self._ours.close()
        in_haste = isinstance(error, InterruptedBySignal) and not self._settled
        if not (self._left or in_haste):  # else it may take as long as QEMU does
            self._process.reap()


def guard(fd: int, recover: Recover, last_word: LastWord, tell: Tell) -> None:
    """Run the guardian, in its own program: `fd` is its socket.

    If it must act, it calls `recover`; `last_word` reports the result, and `tell` what is waited for meanwhile.
    """
    for number in ENDING:  # what ends statepipe does not reach it; it ends with statepipe all the same
        signal.signal(number, signal.SIG_IGN)
    known: dict[str, Any] = {"states": []}  # each state in order; a descriptor is under its name
    with socket.socket(fileno=fd) as ours:
        while True:
            text, fds, _, _ = socket.recv_fds(ours, NOTE_LIMIT, FDS)
            if not text:
                break
            note = json.loads(text)
            known["states"] += [note["state"]] if "state" in note else []
            known.update(note | dict(zip(note.pop("fds"), fds, strict=True)))
            for name in known.pop("drop", ()):
                os.close(known.pop(name))
    if "state" in known and "over" not in known:
        last_word(LEFT if "left" in known else BROKE_OFF, lambda: recover(known, tell))
