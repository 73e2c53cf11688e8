"""The monitor's socket by which an interrupted lazy load is continued."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from blake3 import blake3

from statepipe.lazy.keeping import OwnMonitor, gone, interrupted, sweep


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


def test_sockets_without_an_owner_are_removed_and_no_other_is_connected_to(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    dead = [runtime / name for name in ("load-1.qmp", f"resume-{0:010}-{0:016}")]
    for path in dead:
        with socket.socket(socket.AF_UNIX) as owner:
            owner.bind(str(path))
    other, file = runtime / "17", runtime / "load-2.qmp"
    file.touch()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(other))
    with socket.socket(socket.AF_UNIX) as bound, socket.socket(socket.AF_UNIX) as listener:
        bound.bind(str(runtime / "load-3.qmp"))
        listener.bind(str(runtime / f"resume-{1:010}-{1:016}"))
        listener.listen()
        listener.setblocking(False)
        sweep()
        assert not any(path.exists() for path in dead)
        assert len(list(runtime.iterdir())) == 4
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_load_is_interrupted_where_qemu_listens(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    monitor = runtime / "load-1.qmp"
    mine = blake3(os.fsencode(monitor)).hexdigest()[:10]
    with ExitStack() as opened:
        for name in ("load-1.qmp", f"resume-{mine}-{1:016}", f"resume-{0:010}-{2:016}", "17"):
            opened.enter_context(socket.socket(socket.AF_UNIX)).bind(str(runtime / name))
        assert sorted(interrupted()) == sorted([(str(monitor), f"{1:016}"), ("SOCKET", f"{2:016}")])
    assert interrupted() == []


def test_a_monitor_whose_qemu_has_ended_is_told_from_one_that_it_still_has(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    own, left, kept = runtime / "load-1.qmp", runtime / "left", runtime / "kept"
    assert "removes this socket" in str(gone(str(own)))
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(str(left))
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(str(kept))
        owner.listen()
        assert "has ended" in str(gone(str(left)))
        assert [gone(place) for place in (str(kept), str(runtime), str(runtime / "none"), ("localhost", 1))] == [
            None
        ] * 4
