"""send ssh://HOST/PATH: the session of docs/protocol.md through ssh, which starts the receiver and authenticates it.

The first ssh runs `recv --session-stdio` on the other host. That receiver outlives its ssh: for it, the end of its
standard input is only a lost link, and so is a SIGHUP. Each later ssh runs `recv --attach NAME`, which finds the
receiver in the runtime folder and gives it another link. The remote command line contains no secret: the session's
token is sent only through ssh.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from statepipe.session.farwords import far_words
from statepipe.session.options import ConnectionPlan
from statepipe.session.overtls import sending
from statepipe.session.pipelink import PipeTransport
from statepipe.session.ssh import Ssh, has_terminal, ssh_command
from statepipe.session.streams import Inlet, Outlet
from statepipe.wakeups import Stoppable

FIRST = 30.0
"""Seconds that the first ssh may take if it cannot ask a person and there is no --timeout: it may wake a host."""

SSH_REDIAL = 10.0
"""Seconds that a later ssh may take to log in and start statepipe: an old machine over a long way needs three."""


class SshDial(Stoppable):
    """Makes links: the first without a limit if a person at the terminal may have to type a passphrase or check a
    host key, each later one within `redial` seconds. Leaving the context ends a dial.

    If ssh's configuration shares a connection, every second of the later links does not use it: a dead shared
    connection would delay each of them.

    `words` start the other side: a verb with --session-stdio (a tunnel from `-`), which reports where later links find
    it. Each such verb accepts links with `insidessh.inside`.
    """

    def __init__(self, plan: ConnectionPlan, words: Sequence[str], redial: float = SSH_REDIAL) -> None:
        super().__init__()
        self._plan, self._words, self._asks, self._redial = plan, words, has_terminal(), redial
        self._name: str | None = None
        self._later = itertools.count()

    def another(self) -> SshDial:
        """Return what makes links of another session with the same other side, which this one has reached."""
        dial = SshDial(self._plan, self._words, self._redial)
        dial._name = self._name
        return dial

    def __call__(self) -> PipeTransport:
        """Raises PeerError; StatepipeError if there is no ssh."""
        plan, is_first = self._plan, self._name is None
        within = (plan.patience.silence or FIRST) if is_first else self._redial
        apart = not is_first and next(self._later) % 2 == 1
        words = self._words if self._name is None else ["recv", "--attach", self._name]
        remote = " ".join([plan.remote, *far_words(words)])
        command = ssh_command(plan.address, plan.ssh, remote, asks=self._asks, within=within, apart=apart)
        started = Ssh(command, plan.address, asks=self._asks)
        self._name, transport = started.greeted(None if self._asks and is_first else within, self._stop)
        return transport


def times(plan: ConnectionPlan) -> list[str]:
    """Return the plan's limits as options for the other side."""
    given = (("--timeout", plan.patience.silence), ("--retry", plan.retry))
    return [word for option, seconds in given if seconds is not None for word in (option, f"{seconds:g}")]


@contextmanager
def sending_inside(plan: ConnectionPlan) -> Iterator[tuple[Inlet, Outlet]]:
    """Open a session with a receiver that ssh starts. Raises PeerError; StatepipeError if there is no ssh."""
    dial = SshDial(plan, ["recv", "--session-stdio", "--output", plan.address.path, *times(plan)])
    with sending(plan, dial, dial) as ends:
        yield ends
