"""Where every stage does with counting, the kernel moves the bytes: from a descriptor to another, past this process.

The first buffer goes the ordinary way, for a stage that looks at how the stream begins. From then on, whenever all
stages are blind (stage.Meter) and nothing is in flight between them, the rest is spliced, and every counter is told.
What the kernel refuses or fails at, the ordinary way tries again: it can say which end is to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from statepipe.ends.fd import FdSink, FdSource
from statepipe.ends.relay import can_relay, move, mover
from statepipe.stage import Link, Meter


@dataclass(frozen=True, slots=True)
class Shortcut:
    """A way from a source to a sink past the links of stages that only count."""

    source: FdSource
    links: Sequence[Link]
    meters: Sequence[Meter]
    sink: FdSink
    step: Callable[[int], int]

    @property
    def open(self) -> bool:
        """Whether it may be taken now."""
        return self.source.bytes == self.sink.bytes and all(meter.blind for meter in self.meters)

    def take(self) -> bool:
        """Move all there is; False if the kernel would not, and the ordinary way must go on.

        Raises what waiting for the source and for a throttle raises.
        """
        try:
            move(self.source, self.step, self._moved, self._room)
        except OSError:  # tried again, and told, by the ordinary way
            return False
        return True

    def _room(self, wanted: int) -> int:
        for meter in self.meters:
            wanted = meter.admit(wanted)
        return wanted

    def _moved(self, count: int) -> None:
        self.source.bytes += count
        for link, meter in zip(self.links, self.meters, strict=True):
            link.bytes += count
            meter.passed(count)
        self.sink.bytes += count


def find_shortcut(source: object, links: Sequence[Link], sink: object) -> Shortcut | None:
    """The shortcut there may be. Not for a source with an idle time, whose flush marks a stage waits for."""
    if type(source) is not FdSource or type(sink) is not FdSink or source.marks_idle:
        return None
    stages: list[object] = [link.stage for link in links]
    meters = [stage for stage in stages if isinstance(stage, Meter)]
    if len(meters) < len(links) or not can_relay(source.fd, sink.fd):
        return None
    step = mover(source.fd, sink.fd)
    return None if step is None else Shortcut(source, links, meters, sink, step)
