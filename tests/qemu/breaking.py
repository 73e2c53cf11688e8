"""A migrate or a receive that breaks off over what nobody had foreseen: `python -m tests.qemu.breaking …`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from statepipe.commands import migrate, receive
from statepipe.commands.plan import Plan
from statepipe.ends.address import parse_address
from statepipe.ends.net import Patience


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def last_word(act: Callable[[], str]) -> None:
    say(f"guardian: {act()}")


def breaking_at(step: str) -> Callable[[dict[str, Any]], None]:
    """A listener that fails when the step is told."""

    def listen(facts: dict[str, Any]) -> None:
        if facts.get("state") == step:
            raise RuntimeError("nobody has foreseen this")

    return listen


def main(side: str, step: str, creds: str, address: str, *words: str) -> None:
    """`words`: the source's monitor, or QEMU's command line; with one word alone, the monitor of one that waits."""
    plan = Plan(parse_address(address), [], Patience(), creds=creds)
    listeners = [breaking_at(step)]
    if side == "migrate":
        migrate.migrate(migrate.Request(words[0], plan), say, last_word, listeners)
    else:
        where: dict[str, Any] = {"qmp": words[0]} if len(words) == 1 else {"command": words, "detach": True}
        receive.receive(receive.Request(plan, lambda names: [], **where), say, last_word, listeners)


if __name__ == "__main__":
    main(*sys.argv[1:])
