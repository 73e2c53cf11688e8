"""A stream that crosses from one test host to the other by the real program: fed, cut, watched at its sink, judged."""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from tests.conformance.running import PATIENCE, started, wait
from tests.net.hosts import Host
from tests.openfiles import open_files

MIB = 1 << 20
BLOCK = 256 << 10

MOVING = 12 * MIB
"""Bytes after a mend that cannot all have been on their way before it: more than what buffers in between hold."""

BIN = str(Path(__file__).parents[2] / "bin" / "statepipe")

Process = subprocess.Popen[bytes]
Keys = tuple[Path, Path]
"""Where the sender's host and the receiver's keep their settings; they are paired (tests/conformance/test_pair.py)."""


class Feed:
    """Incompressible bytes, no two blocks of them alike, into a program's standard input. `digest` once `join`ed."""

    def __init__(self, process: Process, size: int) -> None:
        self._pipe, self._size, self._hash = process.stdin, size, blake3()
        self._noise = random.Random(size).randbytes(BLOCK)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with suppress(BrokenPipeError), self._pipe:
            for place in range(0, self._size, BLOCK):
                block = place.to_bytes(8) + self._noise[8 : self._size - place]
                self._hash.update(block)
                self._pipe.write(block)

    def join(self) -> bytes:
        """Once all is fed, or the program wants no more: the digest of it."""
        self._thread.join()
        return self._hash.digest()


@dataclass
class Crossing:
    """One stream on its way. `resumed` has the seconds from each mend to the first new byte at the sink."""

    hosts: tuple[Host, Host]
    port: int
    size: int
    sender: Process
    receiver: Process
    path: Path
    status: Path
    feed: Feed
    resumed: list[float] = field(default_factory=list)

    def arrived(self) -> int:
        """Bytes in the receiver's file."""
        return arrived(self.receiver, self.path)

    def reach(self, count: int) -> None:
        """Wait until so many bytes are at the sink."""
        wait(self.receiver, lambda: self.arrived() >= count)

    def lasts(self, seconds: float) -> None:
        """Neither side ends for so long."""
        with ExitStack() as stack:
            pidfds = [os.pidfd_open(each.pid) for each in (self.sender, self.receiver)]
            for each in pidfds:
                stack.callback(os.close, each)
            ended = select.select(pidfds, [], [], seconds)[0]
        assert not ended, self.last_words()

    def last_words(self) -> tuple[bytes, bytes]:
        """What the two have said, where one of them has ended and should not have."""
        self.sender.kill()
        self.receiver.kill()
        return self.said()

    def resume(self, mend: Callable[[], object]) -> float:
        """Mend it; the longest time without a new byte at the sink until it flows, counted from the mend on.

        Bytes that were on their way already may come first: so it flows once MOVING more are there.
        """
        before = count = self.arrived()
        mend()
        last, longest = time.monotonic(), 0.0

        def flows() -> bool:
            nonlocal count, last, longest
            now, there = time.monotonic(), self.arrived()
            longest = max(longest, now - last)
            if there > count:
                count, last = there, now
            return count >= min(before + MOVING, self.size)

        wait(self.receiver, flows)
        self.resumed.append(longest)
        return longest

    def told(self) -> dict[str, Any]:
        """The sender's last line of status."""
        last: dict[str, Any] = json.loads(self.status.read_bytes().splitlines()[-1])
        return last

    def succeed(self) -> int:
        """Both end with success, and every byte is there; how many were sent twice."""
        digest = self.feed.join()
        assert (self.sender.wait(PATIENCE), self.receiver.wait(PATIENCE)) == (0, 0), self.said()
        assert digest_of(self.path) == digest
        assert self.told()["verdict"] == "done"
        return int(self.told()["resent"])

    def said(self) -> tuple[bytes, bytes]:
        """What the two have said, once they have ended."""
        return self.sender.stderr.read(), self.receiver.stderr.read()


def arrived(receiver: Process, path: Path) -> int:
    """Bytes in the receiver's file, which has no name yet; all of them once it has."""
    with suppress(OSError):
        for fd, target in open_files(receiver.pid).items():
            if target.startswith(f"{path.parent}/"):
                return os.stat(f"/proc/{receiver.pid}/fd/{fd}").st_size
    return path.stat().st_size if path.exists() else 0


def digest_of(path: Path) -> bytes:
    """BLAKE3 of a file."""
    digest = blake3()
    digest.update_mmap(path)
    return digest.digest()


def environment(settings: Path) -> dict[str, str]:
    """What a host's programs find around them."""
    return {**os.environ, "XDG_CONFIG_HOME": str(settings), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


@contextmanager
def listening(host: Host, settings: Path, *words: object) -> Iterator[tuple[Process, int]]:
    """A recv on that host, and its port."""
    command = host.command(BIN, "recv", "tls://:0", *map(str, words))
    with started(command, stdin=subprocess.DEVNULL, env=environment(settings)) as receiver:
        line = receiver.stderr.readline()
        assert b"listening at port" in line, line + receiver.stderr.read()
        yield receiver, int(line.split()[-1])


@contextmanager
def sending(
    host: Host, settings: Path, port: int, to: str, status: Path, words: Sequence[object] = ()
) -> Iterator[Process]:
    """A send from that host, which writes its status to a file."""
    with open(status, "wb") as file:
        fd = file.fileno()
        options = ["send", f"progress:status-fd={fd}", "--peer", "127.0.0.1", *map(str, words)]
        command = host.command(BIN, *options, f"tls://{to}:{port}")
        with started(command, env=environment(settings), pass_fds=[fd]) as sender:
            yield sender


@contextmanager
def crossing(
    hosts: tuple[Host, Host],
    keys: Keys,
    folder: Path,
    size: int,
    *,
    words: Sequence[object] = (),
    send: Sequence[object] = (),
    to: str | None = None,
) -> Iterator[Crossing]:
    """A stream of `size` bytes from the first host into a file on the second.

    `words` are options for both sides, `send` for the sender; `to` is another address of the receiver's.
    """
    path = folder / "sink" / "out"
    path.parent.mkdir()
    with listening(hosts[1], keys[1], "--output", path, *words) as (receiver, port):
        where = to or hosts[1].ip4
        with sending(hosts[0], keys[0], port, where, folder / "status", [*words, *send]) as sender:
            it = Crossing(hosts, port, size, sender, receiver, path, folder / "status", Feed(sender, size))
            try:
                yield it
            finally:
                for process in (sender, receiver):
                    process.kill()
                it.feed.join()
