"""The QEMUs to test with, and disks that fail."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.disks import loop_disk, tmpfs
from tests.qemu.harness import Guest
from tests.qemu.lazily import noise
from tests.qemu.loading import Saved, save_guest
from tests.qemu.moving import Credentials
from tests.qemu.saving import Save

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def qemu72() -> str:
    """The QEMU that is installed: 7.2 on Debian 12, where most was measured."""
    found = shutil.which("qemu-system-x86_64")
    if found is None:
        pytest.skip("qemu-system-x86_64 is not installed: tools/setup qemu")
    return found


def fetched(series: int) -> str:
    """A QEMU of this series; skip the test if none can be had."""
    done = subprocess.run([ROOT / "tools" / "qemu", str(series)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no QEMU {series}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout.strip()


@pytest.fixture(scope="session")
def qemu10() -> str:
    """A QEMU of the 10.x series (tools/qemu fetches it once)."""
    return fetched(10)


@pytest.fixture(scope="session")
def qemu11() -> str:
    """A QEMU of the 11.x series (tools/qemu fetches it once)."""
    return fetched(11)


@pytest.fixture(params=["qemu10", "qemu11"])
def newer(request: pytest.FixtureRequest) -> str:
    """Each but the oldest."""
    path: str = request.getfixturevalue(request.param)
    return path


@pytest.fixture(params=["qemu72", "qemu10", "qemu11"])
def qemu(request: pytest.FixtureRequest) -> str:
    """Each of them in turn."""
    path: str = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], Path]]:
    """`small_disk(size)`: a folder on a file system of its own of `size` bytes."""
    with ExitStack() as stack:
        yield lambda size: stack.enter_context(tmpfs(size))


@pytest.fixture(name="loop_disk")
def loop_disk_fixture() -> Iterator[Path]:
    """An ext4 whose writes succeed, and whose fsync says "no space left"."""
    with loop_disk() as folder:
        yield folder


@pytest.fixture
def guest(tmp_path: Path, qemu72: str) -> Iterator[Guest]:
    """A guest that counts and keeps dirtying 16 MB."""
    with Guest(tmp_path, qemu=qemu72) as running:
        running.wait_ticks(2)
        yield running


@pytest.fixture
def calm_guest(tmp_path: Path, qemu72: str) -> Iterator[Guest]:
    """A guest that counts and dirties next to nothing: its stream comes to its end however slow the way is."""
    with Guest(tmp_path, qemu=qemu72, dirty=0) as running:
        running.wait_ticks(2)
        yield running


@pytest.fixture
def states(tmp_path: Path) -> Path:
    """An empty folder to save into."""
    folder = tmp_path / "states"
    folder.mkdir()
    return folder


@pytest.fixture
def start_save() -> Iterator[Callable[..., Save]]:
    """Starts saves as Save does, and ends what is left of them."""
    started: list[Save] = []

    def start(*arguments: Any, **more: Any) -> Save:
        started.append(Save(*arguments, **more))
        return started[-1]

    yield start
    for save in started:
        save.end()


@pytest.fixture(scope="session")
def state72(tmp_path_factory: pytest.TempPathFactory, qemu72: str) -> Saved:
    """A guest saved by QEMU 7.2 while it ran."""
    return save_guest(tmp_path_factory.mktemp("state72"), qemu72)


@pytest.fixture(scope="session")
def state10(tmp_path_factory: pytest.TempPathFactory, qemu10: str) -> Saved:
    """A guest saved by QEMU 10 while it ran."""
    return save_guest(tmp_path_factory.mktemp("state10"), qemu10)


@pytest.fixture(scope="session")
def state11(tmp_path_factory: pytest.TempPathFactory, qemu11: str) -> Saved:
    """A guest saved by QEMU 11 while it ran."""
    return save_guest(tmp_path_factory.mktemp("state11"), qemu11)


@pytest.fixture(scope="session")
def paused72(tmp_path_factory: pytest.TempPathFactory, qemu72: str) -> Saved:
    """A guest saved by QEMU 7.2 while it was paused."""
    return save_guest(tmp_path_factory.mktemp("paused72"), qemu72, paused=True)


@pytest.fixture(scope="session")
def noisy72(tmp_path_factory: pytest.TempPathFactory, qemu72: str) -> Saved:
    """A guest with noise, saved by QEMU 7.2 while it ran."""
    folder = tmp_path_factory.mktemp("noisy72")
    return save_guest(folder, qemu72, args=noise(folder))


@pytest.fixture(scope="session")
def noisy10(tmp_path_factory: pytest.TempPathFactory, qemu10: str) -> Saved:
    """The same by QEMU 10."""
    folder = tmp_path_factory.mktemp("noisy10")
    return save_guest(folder, qemu10, args=noise(folder))


@pytest.fixture(scope="session")
def noisy11(tmp_path_factory: pytest.TempPathFactory, qemu11: str) -> Saved:
    """The same by QEMU 11."""
    folder = tmp_path_factory.mktemp("noisy11")
    return save_guest(folder, qemu11, args=noise(folder))


@pytest.fixture(params=["noisy72", "noisy10", "noisy11"])
def noisy(request: pytest.FixtureRequest) -> Saved:
    """Each of them in turn."""
    saved: Saved = request.getfixturevalue(request.param)
    return saved


@pytest.fixture(params=["state72", "state10", "state11"])
def state(request: pytest.FixtureRequest) -> Saved:
    """Each of the running ones in turn."""
    saved: Saved = request.getfixturevalue(request.param)
    return saved


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """Certificates for two hosts."""
    return Credentials(tmp_path_factory.mktemp("credentials"))
