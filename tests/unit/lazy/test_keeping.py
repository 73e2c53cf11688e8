"""The monitor's socket by which an interrupted lazy load is continued."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from statepipe.lazy.keeping import OwnMonitor


def test_no_load_takes_the_socket_of_another_that_had_its_process_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU replaces a socket that exists, and the earlier QEMU may still wait there for its guest's memory."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    first = OwnMonitor(pytest.fail)
    assert Path(first.address).name == f"load-{os.getpid()}.qmp"
    Path(first.address).touch()
    second = OwnMonitor(pytest.fail)
    assert second.address != first.address and f"path={second.address}," in second.words[1]
    second.remove()
    assert Path(first.address).exists()
