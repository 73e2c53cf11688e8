"""send ssh://HOST/PATH: the session of docs/protocol.md inside ssh, which starts the receiver and says who is who.

The first ssh runs `recv --session-stdio` there. That receiver outlives its ssh: an end of its standard input is only a
dead link, and so is a SIGHUP. Each later ssh runs `recv --attach NAME`, which finds it in the runtime folder and gives
it another link. What the shell there is told holds no secret: the session's token passes inside ssh alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from statepipe.session.farwords import far_words
from statepipe.session.options import Plan
from statepipe.session.overtls import sending
from statepipe.session.pipelink import PipeTransport
from statepipe.session.ssh import Ssh, has_terminal, ssh_command
from statepipe.session.streams import Inlet, Outlet
from statepipe.wakeups import Stoppable

FIRST = 30.0
"""Seconds that the first may take where nobody can be asked and --timeout does not say: it wakes a host, perhaps."""

SSH_REDIAL = 10.0
"""Seconds that a later ssh may take to log in and start statepipe: an old machine over a long way needs three."""


class SshDial(Stoppable):
    """Makes links: the first as patiently as ssh is where somebody may be at the terminal, who types a passphrase or
    looks at a host's key; each later one within `redial` seconds. Leaving it ends a dial.

    Where ssh's configuration shares a connection, every second of the later ones does without: a shared connection
    that is dead would hold up each of them.

    `words` start the other side there: a verb with --session-stdio (a tunnel from `-`), which says where later links
    find it. Each verb that can be met so lets links in with `insidessh.inside`.
    """

    def __init__(self, plan: Plan, words: Sequence[str], redial: float = SSH_REDIAL) -> None:
        super().__init__()
        self._plan, self._words, self._asks, self._redial = plan, words, has_terminal(), redial
        self._name: str | None = None
        self._later = itertools.count()

    def __call__(self) -> PipeTransport:
        """Raises PeerError, StatepipeError where there is no ssh."""
        plan, is_first = self._plan, self._name is None
        within = (plan.patience.silence or FIRST) if is_first else self._redial
        apart = not is_first and next(self._later) % 2 == 1
        command = ssh_command(plan.address, plan.ssh, self._remote(), asks=self._asks, within=within, apart=apart)
        started = Ssh(command, plan.address, asks=self._asks)
        self._name, transport = started.greeted(None if self._asks and is_first else within, self._stop)
        return transport

    def _remote(self) -> str:
        """The line for the shell there."""
        words = self._words if self._name is None else ["recv", "--attach", self._name]
        return " ".join([self._plan.remote, *far_words(words)])


def times(plan: Plan) -> list[str]:
    """The plan's patience as options for the other side."""
    given = (("--timeout", plan.patience.silence), ("--retry", plan.retry))
    return [word for option, seconds in given if seconds is not None for word in (option, f"{seconds:g}")]


@contextmanager
def sending_inside(plan: Plan) -> Iterator[tuple[Inlet, Outlet]]:
    """Open a session with a receiver that ssh starts. Raises PeerError; StatepipeError if there is no ssh."""
    dial = SshDial(plan, ["recv", "--session-stdio", "--output", plan.address.path, *times(plan)])
    with sending(plan, dial, dial) as ends:
        yield ends
