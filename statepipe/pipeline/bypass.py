"""Bytes that no stage changes: the kernel moves them between two descriptors, past this process.

The first buffer takes the ordinary way, because a stage may look at how the stream begins. From then on, as soon as
nothing is in flight between the stages:
- If all of them are blind (stage.Meter), the rest is spliced, and every counter is updated.
- If one follows the stream, the stages get a copy of the bytes, and the originals are moved once the copy has passed
  them (ends/tap.py). So errors, counters and waits are those of the ordinary way.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import closing, suppress

from statepipe.ends.fd import FdSource
from statepipe.ends.net import SocketSink, SocketSource, is_network
from statepipe.ends.relay import can_relay, move, mover, patiently
from statepipe.ends.tap import Tap, new_tap
from statepipe.errors import StatepipeError
from statepipe.stage import Buffer, Link, Meter, Vouching
from statepipe.typed import Protocol, runtime_checkable


@runtime_checkable
class Target(Protocol):
    """A sink that only writes to its descriptor `fd`, so that others may write there too, and report it to `wrote`."""

    bytes: int

    @property
    def fd(self) -> int: ...

    def write(self, buffer: Buffer) -> None: ...

    def wrote(self, count: int) -> None: ...

    def lost(self, error: OSError) -> StatepipeError: ...


class Bypass:
    """The ways from a source to a sink past the links of stages that change nothing."""

    def __init__(self, source: FdSource, links: Sequence[Link], meters: Sequence[Meter], sink: Target) -> None:
        self.source, self.links, self.meters, self.sink = source, links, meters, sink
        self._silence = sink.silence if isinstance(sink, SocketSink) else None
        self._tapped = False

    def write(self, buffer: Buffer) -> None:
        """Write what came out of the links: the originals of the bytes, where they are in the kernel."""
        tap, left = self.source.tap, len(buffer)
        if tap is None or tap.pending < left:
            self.sink.write(buffer)
            return
        try:
            while left and (moved := self._move(tap, left)):
                left -= moved
                self.sink.wrote(moved)
        except OSError as error:
            self._report(error, self.sink)
        if left:  # the kernel refused
            self.source.untap()
            self.sink.write(memoryview(buffer)[-left:])

    def _move(self, tap: Tap, count: int) -> int:
        return patiently(lambda: tap.move(self.sink.fd, count), tap.source, self.sink.fd, self._silence)

    def look(self) -> bool:
        """Take a way that is open now; return False if there will be none any more. Raises what it meets there."""
        if self.source.bytes != self.sink.bytes:  # some are still on their way
            return True
        if all(meter.blind for meter in self.meters):
            return self._move_all()
        if not self._tapped:
            self._tapped = True
            if not any(isinstance(meter, Vouching) and meter.vouches for meter in self.meters):
                with suppress(OSError):  # no descriptor is left for a pipe, or the kernel has no tee
                    self.source.tap = new_tap(self.source.fd, self.sink.fd)
        return True

    def _move_all(self) -> bool:
        """Move all bytes; return False if the kernel refuses, and the ordinary way must continue.

        The ordinary way repeats a failed call, and its error then names the end that failed. But a socket reports an
        error once, and a second read would find a clean end of the stream: so such an error is raised at once. Also
        raises what waiting for the source and for a throttle raises.
        """
        self.source.untap()
        try:
            step = mover(self.source.fd, self.sink.fd, self._silence)
        except OSError:  # no descriptor is left for a pipe
            return False
        with closing(step):
            try:
                move(self.source, step, self._moved, self._room)
                ended = not step.held
            except OSError as error:
                self._report(error, *(() if step.held else (self.source,)), self.sink)
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

    def _report(self, error: OSError, *ends: FdSource | Target) -> None:
        """Raise the error of the first socket among the ends, which reports it only once."""
        sockets = [end for end in ends if stat.S_ISSOCK(os.fstat(end.fd).st_mode)]
        can_wait = isinstance(error, BlockingIOError) and not isinstance(self.sink, SocketSink)
        if sockets and is_network(error) and not can_wait:
            raise sockets[0].lost(error) from error


def find_bypass(source: object, links: Sequence[Link], sink: object) -> Bypass | None:
    """Return the ways, if there are any: all stages are meters, and both ends are descriptors that block."""
    if type(source) not in (FdSource, SocketSource) or not isinstance(sink, Target):
        return None
    assert isinstance(source, FdSource)
    stages: list[object] = [link.stage for link in links]
    meters = [stage for stage in stages if isinstance(stage, Meter)]
    if len(meters) < len(links) or not can_relay(source.fd, sink.fd):
        return None
    return Bypass(source, links, meters, sink)
