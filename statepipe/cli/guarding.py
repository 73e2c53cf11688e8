"""The guardian's own program, which migrate, receive and save --qmp start: its words are VERB SIDE FD."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from statepipe.cli.messages import is_heard, say, warn
from statepipe.errors import StatepipeError
from statepipe.recovery.guardian import GuestSent, guard

MINUTE = 60.0


def main(verb: str, side: str, fd: str) -> None:
    """Until statepipe has ended, and all is right."""

    def speak(recover: Callable[[], str]) -> None:
        try:
            warn(verb, f"statepipe did not come to its end: {recover()}")
        except GuestSent as sent:  # the stream has come to its end without statepipe
            warn(verb, f"statepipe did not come to its end: {sent}")
            say(f"statepipe: hint: {sent.hint}")
        except (StatepipeError, OSError) as error:
            warn(verb, f"statepipe did not come to its end, and what it left could not be set right: {error}")
            hint = error.hint if isinstance(error, StatepipeError) else None
            say(f"statepipe: hint: {hint or 'see: statepipe resolve --help'}")

    told: dict[str, float] = {}

    def tell(text: str) -> None:
        """It may wait for days: the same words are said once a minute. The guest does not wait for who reads them."""
        if time.monotonic() - told.get(text, -MINUTE) >= MINUTE and is_heard(0):
            told[text] = time.monotonic()
            warn(verb, text)

    guard(int(fd), side, speak, tell)


def run() -> NoReturn:
    """`main` with the words of the command line, and nothing after it."""
    main(*sys.argv[1:])
    os._exit(0)


if __name__ == "__main__":
    run()
