"""progress: how much has passed, how fast, and when it will be over; for people, for `ps`, and for programs.

The figures are of this place in the pipe: bytes, the rate over the last seconds and over all, and, where the size is
known (said, or that of a file at standard input) or a migration stream tells, the time left. A terminal shows a bar;
elsewhere a line is written now and then and one at the end, for a log (display.py). Programs read JSON lines
(pipeline/statuslines.py). Nobody who looks can stop the data.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from statepipe.errors import IntegrityError
from statepipe.formats.qemu.stream import QemuStream
from statepipe.stage import Buffer
from statepipe.stages.context import Context
from statepipe.stages.display import Display
from statepipe.stages.eta import Remaining
from statepipe.threads import cores
from statepipe.units import format_size

WINDOW = 3.0
"""Seconds that the rate `now` looks back."""

SETTLED = 8 << 20
"""Bytes for each block of a mebibyte that a codec may hold (threads.parallel: 4 more than cores) before its ratio is
told: what went in and has not come out then changes it by an eighth at most (of xz, whose blocks are of 4 MiB, by a
half). At 500 KiB it was 7876."""

SAMPLE = 0.1
"""Seconds from one sample of the flow to the next at least."""


class Flow:
    """Bytes that pass, against the clock. Told by one thread, asked by any."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.bytes = 0
        self._clock = clock
        self._begun = clock()
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int]] = deque([(self._begun, 0)])

    def add(self, count: int) -> None:
        """So many more have passed."""
        with self._lock:
            self.bytes += count
            if self._clock() - self._samples[-1][0] >= SAMPLE:
                self._samples.append((self._clock(), self.bytes))

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return self._clock() - self._begun

    def average(self) -> float:
        """Bytes a second since the beginning."""
        return self.bytes / max(self.seconds, 1e-9)

    def rate(self) -> float:
        """Bytes a second over the last WINDOW seconds; less if nothing comes."""
        with self._lock:
            now = self._clock()
            while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW:
                self._samples.popleft()
            then, count = self._samples[0]
            return (self.bytes - count) / max(now - then, 1e-9)


class Progress:
    """The stage. `size` is how many bytes will pass here, if that is known."""

    def __init__(self, context: Context, size: int | None = None, name: str = "") -> None:
        self._context = context
        self._size, self._name = size, name
        self._flow = Flow(context.clock)
        self._stream: QemuStream | None = None
        self._remaining: Remaining | None = None
        self._looked = self._ended = False

    def expect(self, size: int) -> None:
        """The source's size, where nothing changes the bytes on their way here. What was said before, holds."""
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
        """Whether it need not see the bytes: unless they are a migration stream (stage.Meter)."""
        return self._looked and self._stream is None

    def admit(self, wanted: int) -> int:
        """All of them."""
        return wanted

    def passed(self, count: int) -> None:
        """So many have."""
        self._flow.add(count)

    def _look(self, buffer: Buffer) -> None:
        """Follow a migration stream, for as long as it is one: what is wrong with it is for others to say."""
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
        """How many have passed."""
        return self._flow.bytes

    def left(self) -> int | None:
        """Bytes still to come, if that can be told."""
        if self._size_holds:
            return (self._size or 0) - self._flow.bytes
        remaining = self._remaining
        return None if remaining is None else remaining.bytes(self.rate())

    @property
    def _size_holds(self) -> bool:
        """Whether a size is known, and not more has passed already: then it was none."""
        return self._size is not None and self._flow.bytes <= self._size

    def rate(self) -> float:
        """Bytes a second: of late, or on average while nothing comes."""
        return self._flow.rate() or self._flow.average()

    def facts(self) -> dict[str, Any]:
        """Rates in bytes a second, `eta` in seconds (None: not known) and from what it is, ready for JSON."""
        left, rate = self.left(), self.rate()
        facts: dict[str, Any] = {"rate": round(self._flow.rate()), "average": round(self._flow.average())}
        known = left is not None and rate > 0
        facts["eta"] = round(left / rate, 1) if known and left is not None else None
        facts["eta_from"] = self._grounds() if known else None
        if (stream := self._stream) is not None:
            facts |= {"phase": stream.phase.value, "rounds": stream.rounds, "ram_bytes": stream.ram_bytes}
        return facts

    def _grounds(self) -> str:
        """What the time left is told from: the size, the guest's memory, or the stream, as an upper bound."""
        if self._size_holds:
            return "size"
        return "stream" if self._remaining is None or self._remaining.is_bound else "memory"

    def total(self) -> int | None:
        """Bytes that will have passed in the end."""
        left = self.left()
        return None if left is None else self._flow.bytes + left

    def line(self) -> str:
        """All of it in a line for people."""
        facts = self.facts()
        parts = [f"{format_size(self._flow.bytes)} in {clock_time(self._flow.seconds)}"]
        parts += [f"{format_size(facts['rate'])}/s", f"{format_size(facts['average'])}/s on average", *self.more()]
        return ", ".join(parts)

    def more(self) -> list[str]:
        """What a bar cannot show: the time left, the ratio of the codec beside it, the round of a migration."""
        facts, parts = self.facts(), []
        if facts["eta"]:
            parts.append(f"{'at most ' if facts['eta_from'] == 'stream' else ''}{clock_time(facts['eta'])} left")
        if (ratio := self._ratio()) is not None:
            parts.append(f"ratio {ratio:.2f}")
        if facts.get("rounds"):
            parts.append(f"round {facts['rounds']}")
        return parts

    def _ratio(self) -> float | None:
        """Plain to packed bytes of the first codec in this pipeline, once what it holds back makes no difference."""
        stages = (self._context.status() or {}).get("stages", ())
        for place, stage in enumerate(stages):
            if stage["name"] in ("compress", "decompress") and stage["in"] and stage["out"]:
                is_over = self._ended and any(later["name"] == "progress" for later in stages[place + 1 :])
                packs = stage["name"] == "compress"
                plain, packed = (stage["in"], stage["out"]) if packs else (stage["out"], stage["in"])
                return plain / packed if is_over or plain >= SETTLED * (cores() + 4) else None
        return None


def clock_time(seconds: float) -> str:
    """`7.2 s`, `1:05`, `2:03:09`."""
    minutes, rest = divmod(int(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
