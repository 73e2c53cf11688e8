"""The libvirtds to test with."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.libvirt.harness import MODES, Libvirt, missing, started


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing here can run without libvirt."""
    if lacking := missing():
        for item in items:
            if "tests/libvirt" in str(item.path):
                item.add_marker(pytest.mark.skip(f"{lacking} is not installed: tools/setup test"))


@pytest.fixture
def session() -> Iterator[Libvirt]:
    """A user's libvirtd."""
    with started("session") as libvirt:
        yield libvirt


@pytest.fixture
def system() -> Iterator[Libvirt]:
    """The system's libvirtd."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a system's libvirtd")
    with started("system") as libvirt:
        yield libvirt


@pytest.fixture(params=MODES)
def libvirt(request: pytest.FixtureRequest) -> Libvirt:
    """Each of them in turn."""
    found: Libvirt = request.getfixturevalue(request.param)
    return found
