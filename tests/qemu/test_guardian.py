"""What becomes of the guest where statepipe breaks off over a mistake of its own: the same as where it was killed."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from statepipe.wakeups import polled
from tests.guest import parse_ticks
from tests.qemu.harness import Guest, assert_runs_on, assert_unbroken, wait_for
from tests.qemu.moving import LISTENING, Credentials, Running, child_of, mover, receiver
from tests.qemu.test_visitors import visiting
from tests.unit.migration.test_negotiation import THING

ROOT = Path(__file__).parents[2]


BROKE_OFF = "statepipe: guardian: warning: statepipe ended unexpectedly:"
KILLED = "statepipe: receive: warning: statepipe ended unexpectedly:"

BROKEN_OFF = (1, 5)
"""The other host's exit status: it hears of the failure first, or first that nobody is there any more."""


def breaking(*words: object) -> Running:
    return Running(*words, program=[sys.executable, "-m", "tests.qemu.breaking"], cwd=ROOT)


def test_the_source_keeps_its_guest(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    with (
        Guest(tmp_path, qemu=qemu72, dirty=2) as source,
        Guest(tmp_path, qemu=qemu72, image=source.image, incoming="defer", args=["-S"]) as target,
    ):
        source.wait_ticks(2)
        before = source.settings()
        receiving, port = receiver(credentials, "--qmp", target.socket)
        creds = credentials.folder / "source"
        with receiving, breaking("migrate", "HANDING", creds, f"tls://127.0.0.1:{port}", source.socket) as moving:
            assert moving.wait() == 1
            assert "RuntimeError: nobody has foreseen this" in moving.said
            assert f"{BROKE_OFF} the migration is undone, the guest here is running" in moving.said
            assert receiving.wait() in BROKEN_OFF, receiving.said
        assert_runs_on(source)
        assert source.settings() == before
        assert target.wait() is not None and target.ticks() == []


def test_before_go_the_destination_is_ended(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    with (
        Guest(tmp_path, qemu=qemu72, dirty=2) as source,
        Guest(tmp_path, qemu=qemu72, image=source.image, incoming="defer", args=["-S"]) as target,
    ):
        source.wait_ticks(2)
        words = ("receive", "WAITING", credentials.folder / "destination", "tls://127.0.0.1:0", target.socket)
        with breaking(*words) as receiving:
            port = int(receiving.wait_said(LISTENING.pattern)[1])
            with mover(credentials, source, port) as moving:
                assert receiving.wait() == 1, receiving.said
                assert moving.wait() in BROKEN_OFF, moving.said
            assert f"{BROKE_OFF} the QEMU that waited here for the guest is ended" in receiving.said
        assert_runs_on(source)
        assert target.wait() is not None and target.ticks() == []


def test_after_go_the_destination_runs(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    """In a QEMU of its own, which then is nobody's child."""
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source:
        source.wait_ticks(2)
        target = Guest(tmp_path, qemu=qemu72, image=source.image)
        words = ("receive", "STARTING", credentials.folder / "destination", "tls://127.0.0.1:0", *target.command)
        with breaking(*words, "-pidfile", tmp_path / "pid") as receiving:
            port = int(receiving.wait_said(LISTENING.pattern)[1])
            try:
                with mover(credentials, source, port) as moving:
                    assert moving.wait() == 6, moving.said
                wait_for("ticks", lambda: len(target.ticks()) > 3)
            finally:
                kill_if_it_lives(tmp_path / "pid")
            assert receiving.wait() == 1
            assert f"{BROKE_OFF} the guest runs here" in receiving.said
        assert_unbroken(parse_ticks(source.serial() + target.serial()))


def test_a_qemu_that_has_been_offered_a_guest_and_no_more_is_ended(qemu72: str, credentials: Credentials) -> None:
    """Also where statepipe is killed before the guest has begun to move: nobody else knows of that QEMU."""
    receiving, port = receiver(credentials, "--", qemu72, "-accel", "tcg", "-display", "none", "-nodefaults")
    with receiving, visiting(credentials, port) as peer:
        peer.tell(THING)
        assert peer.hear() is not None, "QEMU was started, and has said what it is"
        qemu = os.pidfd_open(child_of(receiving.pid))
        try:
            receiving.send(signal.SIGKILL)
            assert polled(qemu).poll(60_000), "it lives on"
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(qemu, signal.SIGKILL)
            os.close(qemu)
        assert receiving.wait() == -signal.SIGKILL
        ended = f"{KILLED} the QEMU that waited here for the guest is ended"
        assert ended in receiving.said


def kill_if_it_lives(path: Path) -> None:
    """The QEMU whose pid file this is; it holds what `receive` has for standard error."""
    if path.exists() and str(path) in Path(f"/proc/{path.read_text().strip()}/cmdline").read_text():
        os.kill(int(path.read_text()), signal.SIGKILL)
