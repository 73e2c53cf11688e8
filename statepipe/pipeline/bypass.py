"""Bytes that no stage needs to see: the kernel moves them between two descriptors, past this process.

The first buffer takes the ordinary way, because a stage may look at how the stream begins. From then on, whenever all
stages are blind (stage.Meter) and nothing is in flight between them, the rest is spliced, and every counter is updated.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

from statepipe.ends.fd import FdSink, FdSource
from statepipe.ends.file import FileSink
from statepipe.ends.net import SocketSink, SocketSource, is_network
from statepipe.ends.output import DescriptorSink
from statepipe.ends.relay import Mover, can_relay, move, mover
from statepipe.stage import Link, Meter

Target = FdSink | FileSink | SocketSink
SOURCES, TARGETS = (FdSource, SocketSource), (FdSink, DescriptorSink, FileSink, SocketSink)


class Shortcut(NamedTuple):
    """A way from a source to a sink past the links of stages that only count."""

    source: FdSource
    links: Sequence[Link]
    meters: Sequence[Meter]
    sink: Target

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
        try:
            step = mover(self.source.fd, self.sink.fd)
        except OSError:  # no descriptor is left for a pipe
            return False
        with closing(step):
            try:
                move(self.source, step, self._moved, self._room)
                ended = not step.held
            except OSError as error:
                self._report(error, step)
                ended = False
            for piece in step.rest():
                self._passed(len(piece))
                self.sink.write(piece)
        return ended

    def _room(self, wanted: int) -> int:
        for meter in self.meters:
            wanted = meter.admit(wanted)
        return wanted

    def _passed(self, count: int) -> None:
        self.source.bytes += count
        for link, meter in zip(self.links, self.meters, strict=True):
            link.bytes += count
            meter.passed(count)

    def _moved(self, count: int) -> None:
        self._passed(count)
        self.sink.wrote(count)

    def _report(self, error: OSError, step: Mover) -> None:
        """Raise the error of a socket, which reports it only once; of two sockets, that of the one that failed."""
        ends = (self.sink,) if step.held else (self.source, self.sink)
        sockets = [end for end in ends if stat.S_ISSOCK(os.fstat(end.fd).st_mode)]
        can_wait = isinstance(error, BlockingIOError) and not isinstance(self.sink, SocketSink)
        if sockets and is_network(error) and not can_wait:
            raise sockets[0].lost(error) from error


def find_shortcut(source: object, links: Sequence[Link], sink: object) -> Shortcut | None:
    """Return the shortcut, if there is one: all stages are meters, and both ends are descriptors that block."""
    if type(source) not in SOURCES or type(sink) not in TARGETS:
        return None
    assert isinstance(source, FdSource) and isinstance(sink, Target)
    stages: list[object] = [link.stage for link in links]
    meters = [stage for stage in stages if isinstance(stage, Meter)]
    if len(meters) < len(links) or not can_relay(source.fd, sink.fd):
        return None
    return Shortcut(source, links, meters, sink)
