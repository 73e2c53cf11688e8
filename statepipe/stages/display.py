"""How a progress is shown to people, and that whoever looks holds back no byte.

All of it is drawn by a thread of its own, the end included, which is waited for only so long. It writes where that
would not wait: not to a terminal that was stopped (Ctrl-S), nor to a log that nobody reads. In the background it leaves
the terminal to others; and no thread of ours is stopped for writing there (threads.py), whatever stty tostop says.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TextIO

from tqdm import tqdm
from tqdm.utils import disp_len, disp_trim

from statepipe.threads import join, start
from statepipe.units import format_rate, format_size, number_in

BAR_PAUSE, LINE_PAUSE = 0.2, 10.0
"""Seconds between two looks of a terminal's bar, and between two lines of a log."""

LAST_LOOK = 500
"""Milliseconds that the last figures wait for a terminal that takes nothing."""

FAREWELL = 1.0
"""Seconds that the end waits for them. They may be longer under way: a terminal can be stopped in that very moment."""

COLUMNS, ROWS = 80, 24
"""Of a terminal that does not tell how large it is, as many a serial line."""


class Shown(Protocol):
    """What is shown."""

    @property
    def passed_bytes(self) -> int: ...

    def total(self) -> int | None: ...

    def line(self) -> str: ...

    def more(self) -> list[str]: ...


class Display:
    """Within it, a progress is shown on `out`: as a bar on a terminal, as lines elsewhere."""

    def __init__(self, progress: Shown, out: TextIO, name: str) -> None:
        self._progress, self._out, self._name = progress, out, name
        self._fd = _number(out)
        self._bar = _new_bar(out, name) if out.isatty() else None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> Display:
        start(self._thread)
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        join(self._thread, FAREWELL)

    def _show(self) -> None:
        """Nobody to look at it is no reason to stop."""
        with suppress(OSError, ValueError):  # it has gone, or was closed
            self._show_lines() if self._bar is None else self._show_bar(self._bar)

    def _show_lines(self) -> None:
        while not self._over.wait(LINE_PAUSE):
            if self._may_write(0):
                self._say()
        if self._may_write(LAST_LOOK):
            self._say()

    def _say(self) -> None:
        self._out.write(": ".join(filter(None, ["progress", self._name, self._progress.line()])) + "\n")
        self._out.flush()

    def _show_bar(self, bar: _Bar) -> None:
        while not self._over.wait(BAR_PAUSE):
            if self._may_write(0):
                self._draw(bar)
        if self._may_write(LAST_LOOK):
            self._draw(bar)
            bar.close()

    def _draw(self, bar: _Bar) -> None:
        bar.total = self._progress.total()
        bar.bar_format = _OPEN_FORMAT if bar.total is None else _FORMAT
        bar.ncols = columns(self._out)
        bar.set_postfix_str(", ".join(self._progress.more()), refresh=False)
        bar.update(self._progress.passed_bytes - bar.n)
        bar.refresh()

    def _may_write(self, patience: int) -> bool:
        """Whether a write would not wait, within so many milliseconds, and what is there is ours to write to."""
        if self._fd is None:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(patience)) and self._is_in_front()

    def _is_in_front(self) -> bool:
        """Whether we are no background job of the terminal, if it is one, and ours."""
        try:
            return self._fd is None or os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True


def columns(out: TextIO) -> int | None:
    """How many a line may have there, at this moment: one less than there are, as a full one may begin the next.

    None for what has no width. Raises OSError once it has gone.
    """
    fd = _number(out)
    if fd is None:
        return None
    told = os.environ.get("COLUMNS", "")
    width = os.get_terminal_size(fd).columns or (number_in(told, 0, 10_000) or 0) or COLUMNS
    return max(width - 1, 1)


def _number(out: TextIO) -> int | None:
    try:
        return out.fileno()
    except (OSError, ValueError):
        return None


class _Bar(tqdm):  # type: ignore[type-arg]  # generic for type checkers alone
    """Without tqdm's thread that watches for stalled bars: ours is drawn by a thread of its own. Wiped as it is wide.

    tqdm itself wipes what stood there before, which on a terminal that was made narrower goes over into the next line.
    """

    monitor_interval = 0

    @property
    def format_dict(self) -> dict[str, Any]:
        """What stands in a line: sizes and the rate in the units of all our messages, beside tqdm's own words."""
        known = dict(super().format_dict)
        rate = known["rate"] or (known["n"] / known["elapsed"] if known["elapsed"] else 0)
        whole = format_size(known["total"]) if known["total"] else "?"
        return known | {"done": format_size(known["n"]), "whole": whole, "speed": format_rate(int(rate))}

    def __del__(self) -> None:
        """tqdm would draw it once more, from whatever thread that is, and wait."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        before = 0

        def show(text: str) -> None:
            nonlocal before
            most = columns(file)
            line = text if most is None else disp_trim(text, most)
            width = disp_len(line)
            rest = max((before if most is None else min(before, most)) - width, 0)
            before = width
            file.write(f"\r{line}{' ' * rest}")
            file.flush()

        return show


_FORMAT = "{desc}{percentage:3.0f}%|{bar}| {done}/{whole} [{elapsed}, {speed}{postfix}]"
_OPEN_FORMAT = "{desc}{done} [{elapsed}, {speed}{postfix}]"


def _new_bar(out: TextIO, name: str) -> _Bar:
    """One that is not drawn yet: `delay` has tqdm wait. It shows nothing at all where it finds no rows."""
    before = f"{name}: " if name else None
    how: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "mininterval": 0}
    return _Bar(desc=before, file=out, nrows=ROWS, delay=1e-9, **how)
