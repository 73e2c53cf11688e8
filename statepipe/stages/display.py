"""Show progress to people, without ever delaying the data.

A separate thread draws everything, and the end of the stream waits for it only a limited time. It writes only if that
does not block: not to a stopped terminal (Ctrl-S), nor to a log that nobody reads. In the background it does not write
to the terminal; and the kernel does not stop the thread for it (threads.start), whatever `stty tostop` says.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress

from tqdm import tqdm
from tqdm.utils import disp_len, disp_trim

from statepipe.threads import join, start
from statepipe.typed import Any, Protocol, TextIO
from statepipe.units import format_rate, format_size, number_in

BAR_PAUSE, LINE_PAUSE = 0.2, 10.0
"""Seconds between two updates of a terminal's bar, and between two lines of a log."""

LAST_LOOK = 500
"""Milliseconds that the last figures wait for a terminal that accepts no output."""

FAREWELL = 1.0
"""Seconds that the end of the stream waits for them: a terminal can be stopped during the last write."""

COLUMNS, ROWS = 80, 24
"""The size of a terminal that does not report one, such as a serial line."""


class Shown(Protocol):
    """The progress that is shown."""

    @property
    def passed_bytes(self) -> int: ...

    def total(self) -> int | None: ...

    def line(self) -> str: ...

    def more(self) -> list[str]: ...


class Display:
    """A context that shows progress on `out`: as a bar on a terminal, as lines elsewhere."""

    def __init__(self, progress: Shown, out: TextIO, name: str) -> None:
        self._progress, self._out, self._name = progress, out, name
        self._fd = _number(out)
        self._bar = _Bar(out, name) if out.isatty() else None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> Display:
        start(self._thread)
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        join(self._thread, FAREWELL)

    def _show(self) -> None:
        with suppress(OSError, ValueError):  # the output has gone or was closed: the data still flow
            while not self._over.wait(LINE_PAUSE if self._bar is None else BAR_PAUSE):
                if self._may_write(0):
                    self._draw()
            if self._may_write(LAST_LOOK):
                self._draw()
                if self._bar is not None:
                    self._bar.close()

    def _draw(self) -> None:
        bar = self._bar
        if bar is None:
            self._out.write(": ".join(filter(None, ["progress", self._name, self._progress.line()])) + "\n")
            self._out.flush()
            return
        bar.total = self._progress.total()
        bar.bar_format = _OPEN_FORMAT if bar.total is None else _FORMAT
        bar.ncols = columns(self._out)
        bar.set_postfix_str(", ".join(self._progress.more()), refresh=False)
        bar.update(self._progress.passed_bytes - bar.n)
        bar.refresh()

    def _may_write(self, patience: int) -> bool:
        """Return whether a write does not block, after at most `patience` ms, and we are not in the background."""
        if self._fd is None:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not poll.poll(patience):
            return False
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:  # not a terminal, or not ours
            return True


def columns(out: TextIO) -> int | None:
    """Return how many columns a line may use now: one less than there are, as a full line may begin the next.

    None for an output without a width. Raises OSError if the terminal has gone.
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
    """tqdm's bar, without its thread that watches for stalled bars, and cleared only as far as the terminal is wide.

    tqdm clears the whole previous line; on a terminal that was made narrower, that would wrap into the next line.
    """

    monitor_interval = 0

    def __init__(self, out: TextIO, name: str) -> None:
        how: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "mininterval": 0}
        how |= {"delay": 1e-9}  # not drawn yet
        how |= {"nrows": ROWS}  # without rows, tqdm shows nothing
        super().__init__(desc=f"{name}: " if name else None, file=out, **how)

    @property
    def format_dict(self) -> dict[str, Any]:
        """The fields of a line: tqdm's own, and sizes and the rate in the units of all our messages."""
        known = dict(super().format_dict)
        rate = known["rate"] or (known["n"] / known["elapsed"] if known["elapsed"] else 0)
        whole = format_size(known["total"]) if known["total"] else "?"
        return known | {"done": format_size(known["n"]), "whole": whole, "speed": format_rate(int(rate))}

    def __del__(self) -> None:
        """Do nothing: tqdm would draw it once more, from any thread, and block."""

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
