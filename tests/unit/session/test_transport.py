"""Connections that do not take all at once: what is left is sent first, and in order."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepipe.session.pipelink import PipeTransport
from statepipe.session.transport import IOV_MAX, SocketTransport, Transport, after

PIECES = [bytes([number]) * 300_000 for number in range(20)]

Link = tuple[Transport, Callable[[int], bytes]]
"""A connection, and what reads at its other end."""


@given(st.lists(st.binary(max_size=5), max_size=5), st.data())
def test_after_a_part_was_sent_the_rest_follows(buffers: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(buffers)
    count = data.draw(st.integers(0, len(whole)))
    assert b"".join(after([memoryview(buffer) for buffer in buffers], count)) == whole[count:]


@pytest.fixture(params=["socket", "pipe"])
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    if request.param == "socket":
        ours, theirs = socket.socketpair()
        with closing(SocketTransport(ours, "it", "somebody")) as transport, theirs:
            yield transport, theirs.recv
    else:
        (reading, theirs_to), (theirs_from, writing) = os.pipe(), os.pipe()
        try:
            with closing(PipeTransport(reading, writing, "it", "somebody")) as transport:
                yield transport, lambda size: os.read(theirs_from, size)
        finally:
            os.close(theirs_to)
            os.close(theirs_from)


def taken(read: Callable[[int], bytes], size: int) -> bytes:
    whole = b""
    while len(whole) < size:
        whole += read(size - len(whole))
    return whole


def test_what_is_not_taken_at_once_is_sent_first(link: Link) -> None:
    transport, read = link
    sent = 0
    while not transport.is_behind:
        transport.send_now([PIECES[sent]])
        sent += 1
    transport.send_now([PIECES[sent]])
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(transport.send, PIECES[sent + 1 :])
        assert taken(read, sum(map(len, PIECES))) == b"".join(PIECES)
        rest.result()
    assert not transport.is_behind
    transport.send_now([b"a", b"b"])
    assert taken(read, 2) == b"ab"


def test_many_small_pieces_are_taken_at_once(link: Link) -> None:
    """More than the system takes in one call, as after an outage of a link."""
    transport, read = link
    pieces = [bytes([number % 251]) for number in range(3 * IOV_MAX)]
    transport.send_now(pieces)
    assert not transport.is_behind
    assert taken(read, len(pieces)) == b"".join(pieces)


def test_a_connection_that_was_cut_takes_nothing(link: Link) -> None:
    transport, _ = link
    transport.cut()
    with pytest.raises(BrokenPipeError):
        transport.send_now([b"a"])
