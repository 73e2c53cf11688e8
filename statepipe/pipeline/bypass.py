"""Bytes that no stage needs to see: the kernel moves them between two descriptors, past this process.

The first buffer takes the ordinary way, because a stage may look at how the stream begins. From then on, whenever all
stages are blind (stage.Meter) and nothing is in flight between them, the rest is spliced, and every counter is updated.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

from statepipe.ends.fd import FdSink, FdSource
from statepipe.ends.net import SocketSink, SocketSource, is_network
from statepipe.ends.relay import can_relay, move, mover
from statepipe.stage import Link, Meter


class Shortcut(NamedTuple):
    """A way from a source to a sink past the links of stages that only count."""

    source: FdSource
    links: Sequence[Link]
    meters: Sequence[Meter]
    sink: FdSink | SocketSink
    step: Callable[[int], int]

    @property
    def open(self) -> bool:
        """Return whether it may be taken now."""
        return self.source.bytes == self.sink.bytes and all(meter.blind for meter in self.meters)

    def take(self) -> bool:
        """Move all bytes; return False if the kernel refuses, and the ordinary way must continue.

        The ordinary way repeats a failed call, and its error then names the end that failed. But a socket reports an
        error once, and a second read would find a clean end of the stream: so such an error is raised at once. Also
        raises what waiting for the source and for a throttle raises.
        """

        def room(wanted: int) -> int:
            for meter in self.meters:
                wanted = meter.admit(wanted)
            return wanted

        def moved(count: int) -> None:
            self.source.bytes += count
            for link, meter in zip(self.links, self.meters, strict=True):
                link.bytes += count
                meter.passed(count)
            self.sink.bytes += count

        try:
            move(self.source, self.step, moved, room)
        except OSError as error:
            sockets = [end for end in (self.source, self.sink) if stat.S_ISSOCK(os.fstat(end.fd).st_mode)]
            can_wait = isinstance(error, BlockingIOError) and not isinstance(self.sink, SocketSink)
            if sockets and is_network(error) and not can_wait:
                raise sockets[0].lost(error) from error  # the kernel moves nothing between two sockets
            return False
        return True


def find_shortcut(source: object, links: Sequence[Link], sink: object) -> Shortcut | None:
    """Return the shortcut, if there is one. A source that marks idle times has none: a stage waits for its marks."""
    if type(source) not in (FdSource, SocketSource) or type(sink) not in (FdSink, SocketSink):
        return None
    assert isinstance(source, FdSource) and isinstance(sink, FdSink | SocketSink)
    stages: list[object] = [link.stage for link in links]
    meters = [stage for stage in stages if isinstance(stage, Meter)]
    if source.marks_idle or len(meters) < len(links) or not can_relay(source.fd, sink.fd):
        return None
    step = mover(source.fd, sink.fd)
    return None if step is None else Shortcut(source, links, meters, sink, step)
