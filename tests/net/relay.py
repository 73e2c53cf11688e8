"""A TCP relay with faults: it delays, slices, slows, holds back, and breaks connections off, as networks do."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Faults:
    """What is done to every connection. `cut_after` gives the bytes until each one's end, which is a reset, or with
    `politely` what a program that ends leaves, a FIN; `flip_after` those until a bit is flipped; `swallow_after` those
    after which all is taken and nothing passed on. The rest may change.
    """

    delay: float = 0.0
    slice: int = 1 << 16
    bandwidth: float | None = None
    cut_after: Callable[[], int] | None = None
    politely: bool = False
    flip_after: Callable[[], int] | None = None
    swallow_after: Callable[[], int] | None = None
    clear: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.clear.set()


class Relay:
    """Listens on a port of its own and passes on to another. `cuts` counts resets, `accepted` connections."""

    def __init__(self, port: int, faults: Faults, host: str) -> None:
        self.faults = faults
        self.cuts = self.flips = self.accepted = self.bytes = 0
        self._target = port
        self._listener = socket.create_server((host, 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    def _listen(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            self._open += [near, far]
            faults = self.faults
            left = [faults.cut_after()] if faults.cut_after else None
            passes = [faults.swallow_after()] if faults.swallow_after else None
            for pair in ((near, far), (far, near)):
                clean = faults.flip_after() if faults.flip_after and pair[0] is near else None
                thread = threading.Thread(target=self._pump, args=(*pair, left, clean, passes))
                self._threads.append(thread)
                thread.start()

    def _pump(
        self,
        source: socket.socket,
        sink: socket.socket,
        left: list[int] | None,
        clean: int | None,
        passes: list[int] | None,
    ) -> None:
        """`left` are the bytes both ways until the end, `passes` those until none passes any more, `clean` those this
        way until a bit is flipped."""
        faults = self.faults
        with contextlib.suppress(OSError):
            while data := source.recv(faults.slice):
                faults.clear.wait()
                if faults.delay or faults.bandwidth:
                    time.sleep(faults.delay + len(data) / (faults.bandwidth or float("inf")))
                if clean is not None and 0 <= clean < len(data):
                    data = data[:clean] + bytes([data[clean] ^ 1]) + data[clean + 1 :]
                    self.flips += 1
                clean = None if clean is None else clean - len(data)
                if passes is not None:
                    data, passes[0] = data[: max(passes[0], 0)], passes[0] - len(data)
                sink.sendall(data)
                self.bytes += len(data)
                if left is not None:
                    left[0] -= len(data)
                    if left[0] <= 0:
                        self.cuts += 1
                        (hang_up if faults.politely else reset)(source, sink)
                        return
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Reset all that is open."""
        self.cuts += 1
        reset(*self._open)
        self._open.clear()

    def close(self) -> None:
        """End everything."""
        self.faults.clear.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        reset(*self._open)
        for thread in self._threads:
            thread.join()


def reset(*connections: socket.socket) -> None:
    """Close with RST, whoever is blocked in them."""
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.shutdown(socket.SHUT_RD)
        connection.close()


def hang_up(*connections: socket.socket) -> None:
    """Close with FIN: what has come is read first, or the kernel would send a reset."""
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
    for connection in connections:
        with contextlib.suppress(OSError):
            while connection.recv(1 << 16):
                continue
        connection.close()


@contextlib.contextmanager
def relay(port: int, faults: Faults, host: str = "127.0.0.1") -> Iterator[Relay]:
    """A relay to a port of the loopback, at one of its addresses."""
    running = Relay(port, faults, host)
    try:
        yield running
    finally:
        running.close()
