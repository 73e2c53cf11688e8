"""send and recv over tls:// where an end fails: both sides end with the same status and one line, and no file is left.

What a killed sender and a file that grows too large come to is in tests/conformance/test_tls.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conformance.running import PATIENCE, STREAM, run, started, wait, waiting
from tests.conformance.test_plain import NOISE
from tests.conformance.test_tls import Process, receiving, sender
from tests.disks import tmpfs
from tests.net.crossing import arrived
from tests.net.test_session_tls import folder

__all__ = ["folder"]

Said = tuple[int, str]

AILING = "external:sh -c 'head -c 100000; exit 3'"
"""A stage that passes on a little, and fails."""


def one_line(process: Process, verb: str) -> Said:
    """Its status, and its one error line behind the verb, which at most a hint follows."""
    status, lines = process.wait(PATIENCE), process.stderr.read().decode().splitlines()
    start = f"statepipe: {verb}: error: "
    assert lines and lines[0].startswith(start), lines
    assert all(line.startswith("statepipe: hint: ") for line in lines[1:]) and len(lines) <= 2, lines
    return status, lines[0].removeprefix(start)


def feed(process: Process, data: bytes, *, keep_open: bool = False) -> threading.Thread:
    """Write to it all that it takes, in a thread; then close, unless it is kept open."""

    def write() -> None:
        try:
            process.stdin.write(data)
        except BrokenPipeError:
            return
        finally:
            if not keep_open:
                process.stdin.close()

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def fail(
    folder: str,
    send: list[object],
    recv: list[object],
    verbs: tuple[str, str],
    data: bytes,
    before: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> tuple[Said, Said]:
    """What the two say of a stream that fails; `before` stands before their command lines."""
    creds = ["--tls-creds", folder]
    with (
        receiving(*creds, *recv, before=before[1]) as (receiver, port),
        started([*before[0], *sender(port, *creds, *send)]) as sending,
    ):
        thread = feed(sending, data)
        ours = one_line(sending, verbs[0])
        thread.join()
        return ours, one_line(receiver, verbs[1])


def test_a_full_disk(folder: str) -> None:
    with tmpfs(2 << 20) as disk:
        ours, theirs = fail(folder, [], ["-o", disk / "out"], ("send", "recv"), NOISE)
        assert os.listdir(disk) == []
    assert (ours[0], theirs[0]) == (1, 1)
    assert "No space left on device" in ours[1] and "No space left on device" in theirs[1]
    assert f"{disk}/out" in ours[1] and theirs[1].startswith(f"cannot write {disk}/out")


def test_a_wrong_digest_at_the_receiver(folder: str, tmp_path: Path) -> None:
    words = [f"verify:{'0' * 64}", "-o", tmp_path / "out"]
    ours, theirs = fail(folder, [], words, ("send", "recv: verify"), NOISE)
    assert (ours[0], theirs[0]) == (3, 3)
    assert "failed: sha256 is " in ours[1] and theirs[1].startswith("sha256 is ")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["container", "migration"])
def test_a_producer_that_dies_without_an_end_mark(folder: str, tmp_path: Path, kind: str) -> None:
    """A state, or a migration's stream, that was cut is no whole one, although both connections end in peace."""
    data = STREAM if kind == "migration" else run("compress", data=NOISE).stdout
    words = ["-o", tmp_path / "out"]
    ours, theirs = fail(folder, [], words, ("send", "recv"), data[: len(data) // 2])
    assert (ours[0], theirs[0]) == (3, 3)
    cause = re.split(r" \((?:at byte \d|\d+ bytes out)", ours[1])[0]  # where either was, it says behind that
    assert theirs[1].startswith(f"localhost failed: {cause}")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_a_stage_that_fails(folder: str, tmp_path: Path, side: str) -> None:
    output = ["-o", tmp_path / "out"]
    if side == "sender":
        ours, theirs = fail(folder, [AILING], output, ("send: external", "recv"), NOISE)
    else:
        ours, theirs = fail(folder, [], [AILING, *output], ("send", "recv: external"), NOISE)
    assert (ours[0], theirs[0]) == (1, 1)
    assert "failed with exit status 3" in ours[1] and "failed with exit status 3" in theirs[1]
    assert os.listdir(tmp_path) == []


def test_a_reader_that_dies(folder: str) -> None:
    """The receiver ends as any program whose reader is gone, and its sender says so."""
    creds = ["--tls-creds", folder]
    with receiving(*creds) as (receiver, port), started(sender(port, *creds)) as sending:
        thread = feed(sending, NOISE)
        with subprocess.Popen(["cat"], stdin=receiver.stdout, stdout=subprocess.PIPE) as reader:
            assert reader.stdout and reader.stdout.read(100_000)
            receiver.stdout.close()
            receiver.stdout = None
            reader.kill()
        status, said = one_line(sending, "send")
        thread.join()
        assert (receiver.wait(PATIENCE), receiver.stderr.read()) == (141, b"")
    assert status == 5 and "failed: the reader of standard output has closed it" in said


def test_a_receiver_that_is_killed(folder: str, tmp_path: Path) -> None:
    """Nobody is left to say why: the sender goes on for as long as it was told to."""
    creds, data = ["--tls-creds", folder], NOISE * 20
    with (
        receiving(*creds, "-o", tmp_path / "out") as (receiver, port),
        started(sender(port, *creds, "--retry", "0.3")) as sending,
    ):
        sending.stdin.write(NOISE)  # it takes a first byte only once the session is open
        wait(sending, lambda: waiting(sending.stdin) == 0)
        receiver.kill()
        thread = feed(sending, data)
        status, said = one_line(sending, "send")
        thread.join()
    assert status == 5
    assert said.startswith(f"no link to tls://127.0.0.1:{port} for 0.3 s: cannot connect to "), said
    assert said.endswith("Connection refused")
    assert os.listdir(tmp_path) == []


def test_a_receiver_that_is_stopped_is_heard_of_while_nothing_is_sent(folder: str, tmp_path: Path) -> None:
    words, out = ["--tls-creds", folder], tmp_path / "out"
    with receiving(*words, "-o", out) as (receiver, port), started(sender(port, *words)) as sending:
        sending.stdin.write(NOISE)
        wait(receiver, lambda: arrived(receiver, out) == len(NOISE))
        receiver.terminate()
        status, said = one_line(sending, "send")
        assert (status, receiver.wait(PATIENCE)) == (5, 143) and "failed: stopped by SIGTERM" in said
    assert os.listdir(tmp_path) == []
