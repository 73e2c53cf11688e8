"""Bytes of a session's link in any portions, as tests have them at hand: a session reads them from its connection."""

from __future__ import annotations

from collections.abc import Iterator

from statepipe.session.protocol.channels import ChannelVerdict
from statepipe.session.protocol.frames import Frame, FrameReader, Greeting, Violation
from statepipe.session.protocol.states import Event
from statepipe.session.protocol.wire import Wire
from statepipe.stage import Buffer


def fed(reader: FrameReader, data: Buffer) -> Iterator[Frame | Greeting]:
    """What `data` completes. Raises Violation."""
    left = memoryview(data)
    while left:
        count = min(len(reader.room()), len(left))
        reader.room()[:count] = left[:count]
        left = left[count:]
        if (item := reader.filled(count)) is not None:
            yield item


def receive(wire: Wire, number: int, data: Buffer) -> list[Event]:
    """What the machine makes of bytes that came over a link. Raises as `Wire.receive`."""
    try:
        return [event for item in fed(wire.links[number].reader, data) for event in wire.receive(number, item)]
    except Violation as error:
        wire.abort(ChannelVerdict(error.exit_code, str(error)))  # as a session that fails
        raise
