"""A long way between two test hosts: packets that pass through our hands, late, and some of them never.

What tc's netem does where a kernel has it. Each host gets a tun device of its own, so that TCP itself has the round
trip and the losses; a relay between two connections would keep both from it.
"""

from __future__ import annotations

import fcntl
import os
import queue
import random
import select
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.net.hosts import Host, run

IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
TUNSETIFF = 0x400454CA

ADDRESSES = "198.51.100.1", "198.51.100.2"
"""Of a range kept for documentation (RFC 5737)."""

QUEUE = 20_000
"""Packets that wait in a device: bursts are no losses here."""


@contextmanager
def far_apart(
    hosts: tuple[Host, Host], delay: float, loss: float, seed: int = 1, *, mtu: int = 1500, rate: str | None = None
) -> Iterator[tuple[str, str]]:
    """Addresses at which the two reach each other with `delay` seconds each way; `loss` is the share that is lost.

    Packets have `mtu` bytes at most: the longer, the more we can pass on. They leave at `rate`, in tc's words.
    """
    with ExitStack() as stack:
        ends = [_device(stack, host, address, mtu, rate) for host, address in zip(hosts, ADDRESSES, strict=True)]
        over = stack.enter_context(_event())
        for number, (here, there) in enumerate((ends, ends[::-1])):
            way = queue.SimpleQueue[tuple[float, bytes]]()
            chance = random.Random(seed + number)
            for work in (
                threading.Thread(target=_take, args=(here, way, delay, loss, chance, over)),
                threading.Thread(target=_give, args=(there, way)),
            ):
                work.start()
                stack.callback(work.join)
        stack.callback(os.write, over[1], b"x")
        yield ADDRESSES


@contextmanager
def _event() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for each in ends:
            os.close(each)


def _device(stack: ExitStack, host: Host, address: str, mtu: int, rate: str | None) -> int:
    """A tun device on that host, with its only end here."""
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"no tun devices here: {error}")
    stack.callback(os.close, fd)
    name = f"far{os.getpid() % 1_000_000}{host.name[-1]}"
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    run(["ip", "link", "set", name, "netns", host.name])
    host.run("ip", "address", "add", f"{address}/24", "dev", name)
    host.run("ip", "link", "set", name, "up", "txqueuelen", str(QUEUE), "mtu", str(mtu))
    if rate is not None:
        host.run("tc", "qdisc", "replace", "dev", name, "root", "tbf", "rate", rate, "burst", "1mb", "latency", "500ms")
    return fd


def _take(
    fd: int,
    way: queue.SimpleQueue[tuple[float, bytes]],
    delay: float,
    loss: float,
    chance: random.Random,
    over: tuple[int, int],
) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.register(over[0], select.POLLIN)
    while not any(ready == over[0] for ready, _ in poll.poll()):
        packet = os.read(fd, 1 << 16)
        if chance.random() >= loss:
            way.put((time.monotonic() + delay, packet))
    way.put((0.0, b""))


def _give(fd: int, way: queue.SimpleQueue[tuple[float, bytes]]) -> None:
    while True:
        due, packet = way.get()
        if not packet:
            return
        if (early := due - time.monotonic()) > 0:
            time.sleep(early)
        os.write(fd, packet)
