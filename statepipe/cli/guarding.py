"""The guardian's program, which migrate, receive and save start with the arguments VERB SIDE FD."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from statepipe.cli.messages import is_heard, say, warn
from statepipe.errors import StatepipeError
from statepipe.recovery.guardian import Decide, Recover, guard
from statepipe.typed import NoReturn

MINUTE = 60.0


def main(verb: str, side: str, fd: str) -> None:
    """Wait until statepipe has ended, and finish or undo its work if it was killed or has left it."""

    def speak(why: str, recover: Callable[[], str]) -> None:
        try:
            warn(verb, f"{why}: {recover()}")
        except Decide as sent:  # nothing is left to undo
            warn(verb, f"{why}: {sent}")
            say(f"statepipe: hint: {sent.hint}")
        except (StatepipeError, OSError) as error:
            warn(verb, f"{why}, and its work could not be undone: {error}")
            hint = error.hint if isinstance(error, StatepipeError) else None
            say(f"statepipe: hint: {hint or 'see: statepipe resolve --help'}")

    told: dict[str, float] = {}

    def tell(text: str) -> None:
        """Say the same text at most once a minute, as this can wait for days. The guest waits for no reader of it."""
        if time.monotonic() - told.get(text, -MINUTE) >= MINUTE and is_heard(0):
            told[text] = time.monotonic()
            warn(verb, text)

    guard(int(fd), _recovery(side), speak, tell)


def _recovery(side: str) -> Recover:
    """Import what it may have to do at once: when it has to, the files may be those of another version."""
    if side == "domain":
        from statepipe.libvirt.witness import recover_domain

        return recover_domain
    if side == "offer":
        from statepipe.libvirt.target import recover_offer

        return recover_offer
    from statepipe.recovery.rescue import RECOVERIES

    return RECOVERIES[side]


def run() -> NoReturn:
    """Run `main` with the arguments of the command line, and exit at once."""
    main(*sys.argv[1:])
    os._exit(0)


if __name__ == "__main__":
    run()
