"""What every test gets: a runtime folder of its own and nobody's settings. What it starts is not seen from outside."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qmpserver import QmpServer, qmp_server


def pytest_sessionstart() -> None:
    """What is collected stays: to look through it for garbage, again and again, costs seconds and finds none."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Nor is it looked through by a test that wants to see all garbage gone, which took a fifth of a second."""
    gc.collect()
    gc.freeze()
    gc.enable()


MAY_LACK = ("no Python 3.14", "no real streams", "the vectors are not in")
"""How a reason begins with which a test may be skipped in CI too: Debian 12 and 13 have no 3.14, and the recorded
streams of a real guest (160 MB) and age's public vectors are not part of the project."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """In CI (.ci/run sets STATEPIPE_CI) a skipped test fails: a missing peer, QEMU or right would go unseen there."""
    report = yield
    reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
    if report.skipped and os.environ.get("STATEPIPE_CI") and not reason.startswith(MAY_LACK):
        report.outcome, report.longrepr = "failed", f"skipped, and in CI nothing may be missing: {reason}"
    return report


@pytest.fixture
def qmp_folder() -> Iterator[Path]:
    """A folder whose name is short enough for a socket in it."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as name:
        yield Path(name)


@pytest.fixture
def server(qmp_folder: Path) -> Iterator[QmpServer]:
    """A QMP server that answers as a guest that stands still would."""
    with qmp_server(qmp_folder) as running:
        yield running


@pytest.fixture(scope="session")
def runtimes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session's runtime folders are."""
    return tmp_path_factory.mktemp("runtimes")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell has its background jobs ignore SIGINT, nohup SIGHUP, and a statepipe keeps to that: what tests start is
    to hear them."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def runtime(runtimes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime folder of this test, not made yet."""
    base = tempfile.mkdtemp(dir=runtimes)
    monkeypatch.setenv("XDG_RUNTIME_DIR", base)
    return Path(base) / "statepipe"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty configuration, and nothing in the environment in its place."""
    monkeypatch.setenv("STATEPIPE_CONFIG", "/dev/null")
    for name in ("CODEC", "RECIPIENTS", "IDENTITIES"):
        monkeypatch.delenv(f"STATEPIPE_{name}", raising=False)
