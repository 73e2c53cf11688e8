"""One who serves, where this host cannot have it so: nobody is started, and nothing spins."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from statepipe.commands.plan import Plan
from statepipe.commands.receive import AGAIN, Request, receive
from statepipe.ends.address import parse_address
from statepipe.ends.net import Patience
from statepipe.errors import InterruptedBySignal


def test_a_guardian_that_cannot_be_started_is_tried_again_after_a_while(tmp_path: Path) -> None:
    """Its program is gone, as in the midst of an upgrade."""
    refused: list[tuple[float, str]] = []

    def note(error: Exception) -> None:
        refused.append((time.monotonic(), str(error)))
        if len(refused) == 2:
            raise InterruptedBySignal(15)

    plan = Plan(parse_address(f"unix://{tmp_path}/in"), (), Patience())
    with pytest.raises(InterruptedBySignal):
        receive(Request(plan, lambda words: (), guests=1), lambda text: None, note, ["/nowhere/guardian"], ())
    assert all("/nowhere/guardian" in words for _, words in refused)
    assert refused[1][0] - refused[0][0] >= AGAIN
