"""What runs ahead in a thread, whatever a signal interrupts in the one that pulls it."""

from __future__ import annotations

import itertools
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from types import FrameType
from typing import Any

import pytest

from statepipe.threads import ahead, parallel

PATIENCE = 60


class Interrupted(Exception):
    """As a signal's exception, which may come between any two bytecodes."""


def interrupted_at(count: int) -> bool:
    """Interrupt a pull at its bytecode of that number, then put all away; False where it has fewer."""
    left = count

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        frame.f_trace_opcodes = True
        left -= event == "opcode"
        if not left:
            sys.settrace(None)
            raise Interrupted
        return trace

    flow = ahead(iter(range(10)), 2)
    assert next(flow) == 0
    sys.settrace(trace)
    try:
        next(flow), next(flow)
    except Interrupted:
        return True
    finally:
        sys.settrace(None)
        flow.close()
    return False


def test_wherever_it_is_interrupted_nothing_waits_for_ever() -> None:
    for count in itertools.count(1):
        outcome: list[bool] = []
        thread = threading.Thread(target=lambda at=count, to=outcome: to.append(interrupted_at(at)), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        assert outcome, f"it hangs, interrupted at bytecode {count}"
        if not outcome[0]:
            assert count > 10
            return


@pytest.mark.parametrize(("weight", "most"), [(1, 13), (3, 5), (100, 5)])
def test_heavy_items_count_as_several_but_the_workers_never_lack_some(weight: int, most: int) -> None:
    """Nothing is taken from the flow: what it pulled until it waits is what is in flight."""
    pulled: queue.SimpleQueue[int] = queue.SimpleQueue()
    waits = threading.Event()

    def items() -> Iterator[int]:
        for number in itertools.count():
            pulled.put(number)
            if number == most - 1:
                waits.set()
            yield number

    flow = parallel(lambda item: item, items(), 1, spare=12, weight=lambda item: weight)
    with closing(flow):
        assert next(flow) == 0 and waits.wait(PATIENCE)
        assert [next(flow) for _ in range(30)] == list(range(1, 31))
    assert pulled.qsize() <= 31 + 1 + most
