"""progress: how many bytes have passed, how fast, and the time left; for people, for `ps`, and for programs.

The figures are for this place in the pipe: bytes, the rate over the last seconds and on average, and the time left, if
the size is known (an option, or the file at standard input) or a migration stream tells it. A terminal shows a bar; a
log gets a line now and then and one at the end (display.py). Programs read JSON lines (pipeline/statuslines.py). A
reader that is stuck never stops the data.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from statepipe.errors import IntegrityError
from statepipe.formats.qemu.stream import QemuStream
from statepipe.stage import Buffer
from statepipe.stages.context import Context
from statepipe.stages.display import Display
from statepipe.stages.eta import Remaining
from statepipe.threads import cores
from statepipe.typed import Any
from statepipe.units import format_size

RATE_WINDOW = 3.0
"""Seconds that the current rate covers."""

SETTLED = 8 << 20
"""Bytes that must pass for each block of 1 MiB that a codec may hold (threads.parallel: cores + 4) before its ratio is
shown. The blocks inside the codec then change it by at most an eighth (xz, with blocks of 4 MiB: by half). At 500 KiB
it was 7876."""

SAMPLE = 0.1
"""The minimum of seconds between two samples of the flow."""


class Flow:
    """Counts bytes over time. One thread may call `add`, any thread the rest."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.bytes = 0
        self._clock = clock
        self._begun = clock()
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int]] = deque([(self._begun, 0)])

    def add(self, count: int) -> None:
        """Report that `count` more bytes have passed."""
        with self._lock:
            self.bytes += count
            if self._clock() - self._samples[-1][0] >= SAMPLE:
                self._samples.append((self._clock(), self.bytes))

    @property
    def seconds(self) -> float:
        """Return the seconds since the beginning."""
        return self._clock() - self._begun

    def average(self) -> float:
        """Return the bytes a second since the beginning."""
        return self.bytes / max(self.seconds, 1e-9)

    def rate(self) -> float:
        """Return the bytes a second over the last RATE_WINDOW seconds; it falls if nothing arrives."""
        with self._lock:
            now = self._clock()
            while len(self._samples) > 1 and self._samples[1][0] <= now - RATE_WINDOW:
                self._samples.popleft()
            then, count = self._samples[0]
            return (self.bytes - count) / max(now - then, 1e-9)


class Progress:
    """The stage. `size`: how many bytes will pass here, if known."""

    def __init__(self, context: Context, size: int | None = None, name: str = "") -> None:
        self._context = context
        self._size, self._name = size, name
        self._flow = Flow(context.clock)
        self._stream: QemuStream | None = None
        self._remaining: Remaining | None = None
        self._looked = self._ended = False

    def expect(self, size: int) -> None:
        """Set the number of bytes that will arrive, unless the user gave it."""
        if self._size is None:
            self._size = size

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        self._flow = Flow(self._context.clock)
        with Display(self, self._context.messages, self._name):
            for buffer in upstream:
                self._look(buffer)
                self._flow.add(len(buffer))
                yield buffer
            self._ended = True

    @property
    def blind(self) -> bool:
        """Return whether it does not need to see the bytes, because they are not a migration stream (stage.Meter)."""
        return self._looked and self._stream is None

    def admit(self, wanted: int) -> int:
        """Return `wanted`: all bytes may pass."""
        return wanted

    def passed(self, count: int) -> None:
        """Report that `count` bytes have passed."""
        self._flow.add(count)

    def _look(self, buffer: Buffer) -> None:
        """Follow a migration stream. If it is damaged, stop following: other stages report that."""
        if not self._looked and len(buffer):
            self._looked = True
            if buffer[:4] == b"QEVM":
                self._stream = QemuStream()
                self._remaining = Remaining(self._stream, self._context.memory, self._context.clock)
        if self._stream is not None and self._remaining is not None:
            try:
                self._stream.feed(buffer)
                self._remaining.look()
            except IntegrityError:
                self._stream = self._remaining = None

    @property
    def passed_bytes(self) -> int:
        """Return the number of bytes that have passed."""
        return self._flow.bytes

    def left(self) -> int | None:
        """Return the bytes still to come, if that is known."""
        if self._size_holds:
            return (self._size or 0) - self._flow.bytes
        remaining = self._remaining
        return None if remaining is None else remaining.bytes(self.rate())

    @property
    def _size_holds(self) -> bool:
        """Return whether a size is known and still possible: not more bytes have passed."""
        return self._size is not None and self._flow.bytes <= self._size

    def rate(self) -> float:
        """Return the bytes a second: the current rate, or the average while nothing arrives."""
        return self._flow.rate() or self._flow.average()

    def facts(self) -> dict[str, Any]:
        """Return the figures for JSON: rates in bytes a second, `eta` in seconds (None: not known) and its source.

        `eta_from` is the size, the guest's memory, or the stream, which gives an upper bound.
        """
        left, rate = self.left(), self.rate()
        facts: dict[str, Any] = {"rate": round(self._flow.rate()), "average": round(self._flow.average())}
        facts["eta"] = facts["eta_from"] = None
        if left is not None and rate > 0:
            bound = self._remaining is None or self._remaining.is_bound
            facts["eta"] = round(left / rate, 1)
            facts["eta_from"] = "size" if self._size_holds else "stream" if bound else "memory"
        if (stream := self._stream) is not None:
            facts |= {"phase": stream.phase.value, "rounds": stream.rounds, "ram_bytes": stream.ram_bytes}
        return facts

    def total(self) -> int | None:
        """Return the bytes that will have passed at the end."""
        left = self.left()
        return None if left is None else self._flow.bytes + left

    def line(self) -> str:
        """Return all figures in a line for people."""
        facts = self.facts()
        parts = [f"{format_size(self._flow.bytes)} in {clock_time(self._flow.seconds)}"]
        parts += [f"{format_size(facts['rate'])}/s", f"{format_size(facts['average'])}/s on average", *self.more()]
        return ", ".join(parts)

    def more(self) -> list[str]:
        """Return the figures that a bar does not have: the time left, the codec's ratio, the round of a migration."""
        facts, parts = self.facts(), []
        if facts["eta"]:
            parts.append(f"{'at most ' if facts['eta_from'] == 'stream' else ''}{clock_time(facts['eta'])} left")
        if (ratio := self._ratio()) is not None:
            parts.append(f"ratio {ratio:.2f}")
        if facts.get("rounds"):
            parts.append(f"round {facts['rounds']}")
        return parts

    def _ratio(self) -> float | None:
        """Return the ratio of plain to packed bytes of the first codec in this pipeline, once it is accurate."""
        stages = (self._context.status() or {}).get("stages", ())
        for place, stage in enumerate(stages):
            if stage["name"] in ("compress", "decompress") and stage["in"] and stage["out"]:
                is_over = self._ended and any(later["name"] == "progress" for later in stages[place + 1 :])
                packs = stage["name"] == "compress"
                plain, packed = (stage["in"], stage["out"]) if packs else (stage["out"], stage["in"])
                return plain / packed if is_over or plain >= SETTLED * (cores() + 4) else None
        return None


def clock_time(seconds: float) -> str:
    """Return a time as `7.2 s`, `1:05` or `2:03:09`."""
    minutes, rest = divmod(int(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
