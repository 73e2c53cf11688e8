"""What the tests of this folder share."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.net.homes import World, world_in
from tests.sshd import Host, sshd


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Hosts that have pinned each other, and some that have not."""
    return world_in(tmp_path_factory.mktemp("homes"))


@pytest.fixture
def full() -> Iterator[socket.socket]:
    """A listener that has no room for another: the kernel drops what asks for it, without a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, socket.socket() as visitor:
        visitor.connect(listener.getsockname())
        yield listener


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A running sshd."""
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running
