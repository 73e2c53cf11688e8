"""Bounds for what a store sends, at the socket: so they hold whatever its HTTP, its chunks or its XML say.

botocore reads the answers to small requests whole, lines of chunks and of `100 Continue` without a limit, and waits
anew for each byte. So each thread says with `bounded` how many bytes may come, and how many seconds it may wait for
them in all, and the sockets of our connections keep to that. What is read of an object is asked for piece by piece,
each with a bound of its own.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from statepipe.errors import StatepipeError
from statepipe.extras import extra
from statepipe.typed import Any

SMALL = 2 << 20
"""Bytes of an answer to anything but a read, headers included: a list of 1,000 parts has half a megabyte, one of 200
uploads with the longest keys a whole one."""

SLOWEST = 2048
"""Bytes a second at least, over several times the silence that is allowed. Eight requests at once on the slowest links
that people use have more each."""

SILENCES = 3
"""Times the seconds of silence that are waited for one answer, or one piece of an object, in all."""

COMPLETING = 1800.0
"""Seconds in which an upload is completed: a store may send blanks for minutes, until all parts are joined."""


class Bound:
    """What may come: bytes, and the seconds of waiting for them. `broken` says what the store did against it."""

    def __init__(self, size: int, seconds: float) -> None:
        self.size, self.seconds = size, seconds
        self._bytes, self._waited = 0, 0.0
        self.broken: str | None = None

    def receive(self, receive: Callable[[], int]) -> int:
        """Receive, and count what comes. Raises OSError for what is too much, or too slow."""
        began = time.monotonic()
        count = receive()
        self._waited += time.monotonic() - began
        self._bytes += count
        if self._bytes > self.size:
            self.broken = f"sent more than the {self.size} bytes that are expected at most"
        elif self._waited > self.seconds + self._bytes / SLOWEST:
            self.broken = f"sent {self._bytes} bytes in {self._waited:.0f} s, and no end"
        if self.broken is not None:
            raise OSError(self.broken)
        return count


_OF_THREAD = threading.local()


@contextmanager
def bounded(size: int, seconds: float) -> Iterator[Bound]:
    """Within it, what this thread receives from a store is bounded."""
    bound = _OF_THREAD.bound = Bound(size, seconds)
    try:
        yield bound
    finally:
        _OF_THREAD.bound = None


def _received(receive: Callable[[], int]) -> int:
    bound: Bound | None = getattr(_OF_THREAD, "bound", None)
    return receive() if bound is None else bound.receive(receive)


class _Socket(socket.socket):
    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        return _received(lambda: super(_Socket, self).recv_into(buffer, nbytes, flags))


class _TLSSocket(ssl.SSLSocket):
    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        return _received(lambda: super(_TLSSocket, self).recv_into(buffer, nbytes, flags))


def keep_bounds(client: Any) -> None:
    """Have all connections of a client of botocore's keep to the bounds. Raises StatepipeError if it has no place for
    that."""
    with extra("object"):
        import botocore.awsrequest

    def bounding(kind: Any) -> Any:
        class Bounding(kind):  # type: ignore[misc]
            def _new_conn(self) -> socket.socket:
                made = super()._new_conn()
                timeout = made.gettimeout()
                sock = _Socket(fileno=made.detach())
                sock.settimeout(timeout)
                return sock

            def connect(self) -> None:
                if getattr(self, "ssl_context", None) is not None:
                    self.ssl_context.sslsocket_class = _TLSSocket
                super().connect()

        return Bounding

    try:
        pools = client._endpoint.http_session._pool_classes_by_scheme
        for scheme in ("http", "https"):
            pool = pools[scheme]
            assert issubclass(pool.ConnectionCls, botocore.awsrequest.AWSConnection)
            pools[scheme] = type(pool.__name__, (pool,), {"ConnectionCls": bounding(pool.ConnectionCls)})
    except (AttributeError, KeyError, AssertionError) as error:
        what = f"this version of botocore ({botocore.__version__}) has no place for bounds to what a store sends"
        raise StatepipeError(what, hint="install botocore==1.44.*, and report this") from error
