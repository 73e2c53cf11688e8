"""A relay that stands for a way of some length: `python -m tests.bench.delayed PORT SECONDS` passes on what comes to a
port of its own, which it prints, to PORT of this host, and each answer back. A round trip takes SECONDS longer.

A new connection costs a round trip, too, as TCP's greeting does. TCP's slow start is not in it: many bytes come as fast
as on this host.
"""

from __future__ import annotations

import asyncio
import socket
import sys

PIECE = 1 << 18


async def relay(port: int, seconds: float) -> None:
    """Serve until we are killed."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted = asyncio.get_running_loop().time() + seconds
        there, onward = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.TaskGroup() as group:
            for source, sink in ((reader, onward), (there, writer)):
                way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
                group.create_task(_take(source, way, seconds / 2, greeted))
                group.create_task(_give(way, sink))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=PIECE)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _take(
    source: asyncio.StreamReader, way: asyncio.Queue[tuple[float, bytes]], late: float, start: float
) -> None:
    """Note of each piece when it is to arrive: `late` seconds after it came, or `start`. The last one is empty."""
    loop, piece = asyncio.get_running_loop(), b"?"
    while piece:
        try:
            piece = await source.read(PIECE)
        except ConnectionError:
            piece = b""
        way.put_nowait((max(loop.time(), start) + late, piece))


async def _give(way: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
    sink.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        due, piece = await way.get()
        await asyncio.sleep(max(due - asyncio.get_running_loop().time(), 0))
        if not piece or sink.is_closing():
            sink.close()
            return
        sink.write(piece)


if __name__ == "__main__":
    asyncio.run(relay(int(sys.argv[1]), float(sys.argv[2])))
