"""A migrate or a receive to which something happens at a step: `python -m tests.qemu.breaking …`.

It breaks off over what nobody had foreseen, or its QEMU is stopped, at the very moment when the step was written down
and nothing has been done about it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from statepipe.ends.address import parse_address
from statepipe.ends.net import Patience
from statepipe.errors import StatepipeError
from statepipe.migration import migrate, receive
from statepipe.pipeline.signals import as_exceptions
from statepipe.session.options import ConnectionPlan

RETRY = 5.0
"""Seconds without a link: so soon is a lost one given up."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def guard(side: str) -> list[str]:
    return [sys.executable, "-P", "-m", "statepipe.cli.guarding", "guardian", side]


def breaking_at(step: str) -> Callable[[dict[str, Any]], None]:
    """A listener that fails when the step is told; where it has a number, that process is stopped instead."""
    where, _, pid = step.partition("=")

    def listen(facts: dict[str, Any]) -> None:
        if facts.get("state") == where:
            if not pid:
                raise RuntimeError("nobody has foreseen this")
            os.kill(int(pid), signal.SIGSTOP)

    return listen


def main(side: str, step: str, creds: str, address: str, *words: str) -> None:
    """`words`: the source's monitor, or QEMU's command line; with one word alone, the monitor of one that waits."""
    plan = ConnectionPlan(parse_address(address), [], Patience(), creds=creds, retry=RETRY)
    listeners = [breaking_at(step)]
    if side == "migrate":
        migrate.migrate(migrate.MigrateRequest(words[0], plan), say, guard("source"), listeners)
    else:
        where: dict[str, Any] = {"qmp": words[0]} if len(words) == 1 else {"command": words, "detach": True}
        request = receive.ReceiveRequest(plan, lambda names: [], **where)
        receive.receive(request, say, lambda error: say(f"refused: {error}"), guard("destination"), listeners)


if __name__ == "__main__":
    try:
        with as_exceptions():
            main(*sys.argv[1:])
    except StatepipeError as error:
        say(f"error: {error}; hint: {error.hint}")
        sys.exit(error.exit_code)
