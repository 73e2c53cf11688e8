"""The guardian: a process beside statepipe that sets a migration right where statepipe itself was killed.

It is forked before there is any thread, hears each step before anything is done about it, and ends with statepipe. If
its socket ends without a last word, statepipe was killed, or broke off over what nobody had foreseen: then the tables'
rule (formats/handover.py) says what is safe. It reaches QEMU by a connection of its own; a QEMU that statepipe started
has a second monitor for it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from typing import Any, NoReturn, Self

from statepipe.engine.signals import ENDING, held
from statepipe.formats.handover import Action, Destination, Source, recovery
from statepipe.qemu.monitor import FINAL, Monitor
from statepipe.qemu.settings import restore

NOTE_LIMIT = 64 << 10
"""Bytes of one note: a state, or the settings that QEMU had."""

NOTED = ("state", "qmp", "runs", "before", "pid", "over")
"""What it has to know. Whatever else a journal tells, as the other host's words on its guest, may be of any size."""

Known = Mapping[str, Any]
Recover = Callable[[Known, "socket.socket | None"], str]
"""Sets things right by what is known, and by a monitor if one was lent; says what came of it. Raises StatepipeError."""


LastWord = Callable[[Callable[[], str]], object]
"""Calls what sets things right, and tells what came of it, or what was raised: there is nobody above to tell."""


class Guardian:
    """Forks on entering; in the guardian, should it have to act, `last_word` has all to say."""

    def __init__(self, recover: Recover, last_word: LastWord) -> None:
        self._recover, self._last_word = recover, last_word
        self._settled = False

    def __enter__(self) -> Self:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with held(), theirs:
            self._pid = os.fork()
            if not self._pid:
                _guard(theirs, self._recover, self._last_word)
        return self

    def note(self, facts: Known, fds: tuple[int, ...] = ()) -> None:
        """Let it know; a later word on a thing takes the place of an earlier one. Whether it lives is no matter."""
        known = {name: facts[name] for name in NOTED if name in facts}
        with suppress(OSError):
            socket.send_fds(self._ours, [json.dumps(known).encode()], fds)

    def settle(self) -> None:
        """The tables have come to an end of theirs, whichever: only who is killed now needs it still."""
        self._settled = True

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """What broke off in the midst has left QEMU as it was, as if we had been killed: then it acts, and we wait."""
        if self._settled or error is None:
            self.note({"over": True})
        self._ours.close()
        os.waitpid(self._pid, 0)


def _guard(ours: socket.socket, recover: Recover, last_word: LastWord) -> NoReturn:
    """The guardian's whole life."""
    try:
        _stand_apart(ours.fileno())
        known, spare = _listen(ours)
        if "state" in known and "over" not in known:
            last_word(lambda: recover(known, spare))
    finally:
        os._exit(0)


def _stand_apart(keep: int) -> None:
    """Out of reach of what ends statepipe, and holding nothing of it but standard error."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd != keep:
            with suppress(OSError):  # that of the listing itself
                os.close(fd)


def _listen(ours: socket.socket) -> tuple[dict[str, Any], socket.socket | None]:
    """All that was said until the end, and the monitor that was lent."""
    known: dict[str, Any] = {}
    spare: socket.socket | None = None
    looked = False
    while True:
        text, fds, _, _ = socket.recv_fds(ours, NOTE_LIMIT, 1)
        if not text:
            return known, spare
        known.update(json.loads(text))
        if fds:
            spare = socket.socket(fileno=fds[0])
        if "pid" in known and not looked:  # while it cannot be another's yet
            looked = True
            with suppress(OSError):
                known["pidfd"] = os.pidfd_open(known["pid"])


# --- what is safe


def recover_source(known: Known, spare: socket.socket | None) -> str:
    """Before GO the destination never runs: the guest runs on here. `known`: state, qmp, runs, before."""
    state = Source[known["state"]]
    actions = recovery(state)
    if not actions:
        return f"{state.value}; nothing is done about it"
    with closing(Monitor(known["qmp"])) as monitor:
        if Action.CANCEL in actions and monitor.migration()["status"] not in ("none", *FINAL):
            monitor.execute("migrate_cancel")
            monitor.migration_outcome()
        monitor.wait_until_running()
        if known["runs"] and monitor.run_state() != "running":
            monitor.resume()
        restore(monitor, known["before"])
        return f"the migration is undone, the guest here is {monitor.run_state()}"


def recover_destination(known: Known, spare: socket.socket | None) -> str:
    """Before GO the guest must never run here, after it nowhere else. `known`: state, pid and pidfd, qmp, runs.

    Without a pidfd, QEMU had ended already when it was noted.
    """
    state = Destination[known["state"]]
    if state in (Destination.INCOMING, Destination.WAITING, Destination.ENDED):  # which was about to be ended
        if "pidfd" in known:
            with suppress(ProcessLookupError):  # it was quicker
                signal.pidfd_send_signal(known["pidfd"], signal.SIGKILL)
        return "the QEMU that waited here for the guest is ended"
    if state is Destination.STARTING and known["runs"]:
        with closing(Monitor(spare or known["qmp"])) as monitor:
            monitor.resume()
        return "the guest runs here"
    return f"{state.value}; nothing is done about it"
