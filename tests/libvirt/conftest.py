"""The libvirtds to test with, and domains that were saved."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.libvirt.harness import MODES, ROOT, Domain, Libvirt, missing, started
from tests.libvirt.states import Kept, saved_domain


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing here can run without libvirt."""
    if lacking := missing():
        for item in items:
            if "tests/libvirt" in str(item.path):
                item.add_marker(pytest.mark.skip(f"{lacking} is not installed: tools/setup test"))


@pytest.fixture(scope="package")
def shared() -> Iterator[Libvirt]:
    """A user's libvirtd for all tests of a process."""
    with started("session") as libvirt:
        yield libvirt


@pytest.fixture
def session(shared: Libvirt) -> Iterator[Libvirt]:
    """The same for a test that may end it and start it again, and that has any domains."""
    yield shared
    shared.clear()


@pytest.fixture
def domain(shared: Libvirt) -> Iterator[Domain]:
    """A small domain of the test's own, at the shared libvirtd."""
    yield shared.domain(memory=32, fill=2, dirty=1)
    shared.clear()


@pytest.fixture(scope="module")
def saved() -> Iterator[Kept]:
    """A small domain that was saved, for all tests of a module."""
    with saved_domain("session", memory=32, fill=2, dirty=1) as kept:
        yield kept


@pytest.fixture
def kept(saved: Kept) -> Iterator[Kept]:
    """The same for one test, which leaves it shut off."""
    yield saved
    saved.end()


@pytest.fixture
def system() -> Iterator[Libvirt]:
    """The system's libvirtd."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a system's libvirtd")
    with started("system") as libvirt:
        yield libvirt


@pytest.fixture
def newer() -> Iterator[Libvirt]:
    """The system's libvirtd of a version that opens an image twice to restore it."""
    with started("system", libvirtd=newer_libvirtd()) as libvirt:
        yield libvirt


def newer_libvirtd() -> str:
    """The program of a newer libvirtd, which tools/libvirt fetches once. Only the system's can be started."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a system's libvirtd")
    done = subprocess.run([ROOT / "tools" / "libvirt"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    return done.stdout.strip()


@pytest.fixture(params=MODES)
def libvirt(request: pytest.FixtureRequest) -> Libvirt:
    """Each of them in turn."""
    found: Libvirt = request.getfixturevalue(request.param)
    return found
