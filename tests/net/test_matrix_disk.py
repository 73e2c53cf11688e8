"""send and recv over tls:// whose disk, input or output fails, is slow, or does things by halves.

Rows 1 to 10 of the fault matrix (tests/net/test_matrix.py says where each is tested). The same for both sides: one
line, the same status, and under the file's name what was there before.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from statepipe.session.protocol.channels import WINDOW
from tests import preload, streams, warm
from tests.conformance import test_plain as plain
from tests.conformance.running import PATIENCE, started, wait
from tests.conformance.test_plain import NOISE, collect
from tests.conformance.test_tls import Process, receiving, send, sender
from tests.disks import loop_disk, tmpfs
from tests.net.crossing import arrived
from tests.net.homes import MIB, memory
from tests.net.relay import Faults, relay
from tests.net.test_failed_ends import fail, one_line
from tests.net.test_session_tls import folder

__all__ = ["folder"]

OLDER = b"the older file"

WAITING = streams.whole()
"""The stream of a QEMU that waits for answers."""


def rare(*values: object) -> object:
    """A case for `make faults`."""
    return pytest.param(*values, marks=pytest.mark.faults)


@contextmanager
def receiving_over(
    scheme: str, folder: str, *words: object, before: Sequence[str] = ()
) -> Iterator[tuple[Process, list[str]]]:
    """A recv at a tls:// or tcp:// address, and the command line that sends to it."""
    if scheme == "tls":
        with receiving("--tls-creds", folder, *words, before=before) as (receiver, port):
            yield receiver, sender(port, "--tls-creds", folder)
    else:
        with plain.receiving(*map(str, words), before=before) as (receiver, port):
            yield receiver, plain.sending(port)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """System calls that fail."""
    return preload.library(tmp_path_factory.mktemp("preload"))


def fails(folder: str, path: Path, *before: str, why: str, action: str) -> None:
    """A receiver into a file that is there, whose disk fails: both say so, and the older file stays."""
    path.write_bytes(OLDER)
    ours, theirs = fail(folder, [], ["-o", path], ("send", "recv"), NOISE, ((), before))
    assert (ours[0], theirs[0]) == (1, 1)
    assert theirs[1].startswith(f"cannot {action} {path}") and theirs[1].endswith(why)
    assert f"failed: cannot {action} {path}" in ours[1] and ours[1].endswith(why)
    assert os.listdir(path.parent) == [path.name] and path.read_bytes() == OLDER


# --- 1 to 4, 6: the receiver's file


def test_no_room_for_the_first_byte(folder: str) -> None:
    with tmpfs(4096) as disk:
        fails(folder, disk / "out", why="No space left on device", action="write")


def test_no_room_at_fsync(folder: str) -> None:
    """Each write has succeeded."""
    with loop_disk() as disk:
        (disk / "lost+found").rmdir()
        ours, theirs = fail(folder, [], ["-o", disk / "out"], ("send", "recv"), NOISE)
        assert (ours[0], theirs[0], os.listdir(disk)) == (1, 1, [])
    for said in ours[1], theirs[1]:
        assert f"cannot complete {disk}/out: " in said


@pytest.mark.parametrize(
    ("call", "number"),
    [("write", 9), ("fsync", 1), ("linkat", 2), rare("write", 1), rare("fsync-folder", 1)],
)
def test_a_device_that_fails(folder: str, library: Path, tmp_path: Path, call: str, number: int) -> None:
    before = preload.failing(library, call, errno.EIO, number)
    action = "write" if call == "write" else "complete"
    fails(folder, tmp_path / "out", *before, why="Input/output error", action=action)


def test_an_error_of_close_says_nothing_of_what_is_on_the_disk(folder: str, library: Path, tmp_path: Path) -> None:
    """The file was synced, named, and its sender told so."""
    before = preload.failing(library, "close", errno.EIO)
    with receiving("--tls-creds", folder, "-o", tmp_path / "out", before=before) as (receiver, port):
        assert send(port, "--tls-creds", folder) == (0, b"")
        assert collect(receiver) == (0, b"", b"")
    assert (tmp_path / "out").read_bytes() == NOISE and os.listdir(tmp_path) == ["out"]


@pytest.mark.faults
def test_an_error_of_close_does_not_hide_what_failed_before(folder: str, library: Path) -> None:
    with tmpfs(2 << 20) as disk:
        before = preload.failing(library, "close", errno.EIO)
        ours, theirs = fail(folder, [], ["-o", disk / "out"], ("send", "recv"), NOISE, ((), before))
        assert (ours[0], theirs[0], os.listdir(disk)) == (1, 1, [])
    assert theirs[1].startswith(f"cannot write {disk}/out") and "No space left on device" in theirs[1]


# --- 5, 6: the sender's ends


@pytest.mark.parametrize("number", [9, rare(1)])
def test_an_input_that_fails(folder: str, library: Path, tmp_path: Path, number: int) -> None:
    before = preload.failing(library, "read", errno.EIO, number)
    ours, theirs = fail(folder, [], ["-o", tmp_path / "out"], ("send", "recv"), NOISE, (before, ()))
    assert (ours[0], theirs[0]) == (1, 1)
    assert ours[1].startswith("cannot read standard input: Input/output error")
    assert "failed: cannot read standard input: Input/output error" in theirs[1]
    assert os.listdir(tmp_path) == []


def test_a_socket_that_fails_is_made_anew(folder: str, library: Path, tmp_path: Path) -> None:
    before = preload.failing(library, "send", errno.EIO, 9, 9)
    with receiving("--tls-creds", folder, "-o", tmp_path / "out") as (receiver, port), relay(port, Faults()) as at:
        done = warm.run([*before, *sender(at.port, "--tls-creds", folder)], input=NOISE, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
        assert collect(receiver) == (0, b"", b"") and at.accepted == 2
    assert (tmp_path / "out").read_bytes() == NOISE


def test_a_socket_that_fails_for_good(folder: str, library: Path, tmp_path: Path) -> None:
    """Both give up in their time, and name the file that is not there, or the address."""
    before, patience = preload.failing(library, "send", errno.EIO, 9), ["--retry", "0.3"]
    words = [*patience, "-o", tmp_path / "out"]
    ours, theirs = fail(folder, patience, words, ("send", "recv"), NOISE, (before, ()))
    assert (ours[0], theirs[0]) == (5, 5)
    assert ours[1].startswith("no link to tls://127.0.0.1:") and "Input/output error" in ours[1], ours
    assert theirs[1].startswith("no link to localhost for 0.3 s"), theirs
    assert os.listdir(tmp_path) == []


def test_an_answer_that_nobody_takes_holds_nothing_up(folder: str, tmp_path: Path) -> None:
    """The receiver's answers to a QEMU go to standard output; whether the stream arrived is another thing."""
    with receiving("--tls-creds", folder, "-o", tmp_path / "out") as (receiver, port), open("/dev/full", "wb") as full:
        done = warm.run(sender(port, "--tls-creds", folder), input=WAITING, stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (0, b"")
        assert collect(receiver) == (0, b"", b"")
    assert (tmp_path / "out").read_bytes() == WAITING


# --- 7, 8: what is no fault


@pytest.mark.parametrize("setting", ["SHORT", "INTERRUPT"])
def test_calls_that_do_less_or_nothing(folder: str, library: Path, tmp_path: Path, setting: str) -> None:
    """Reads, writes, sends, receives and fsyncs, on both sides."""
    before = preload.under(library, **{setting: 1})
    with receiving("--tls-creds", folder, "-o", tmp_path / "out", before=before) as (receiver, port):
        done = warm.run([*before, *sender(port, "--tls-creds", folder)], input=NOISE, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
        assert collect(receiver) == (0, b"", b"")
    assert (tmp_path / "out").read_bytes() == NOISE


@pytest.mark.faults
@pytest.mark.parametrize("scheme", ["tls", "tcp"])
def test_a_slow_disk_is_waited_for_in_little_memory(folder: str, library: Path, tmp_path: Path, scheme: str) -> None:
    """40 ms for each write, for more than the window holds: the sender is held up, and neither keeps more."""
    source, out, data = tmp_path / "in", tmp_path / "sink" / "out", NOISE * 30
    source.write_bytes(data)
    out.parent.mkdir()
    before = preload.under(library, DELAY_MS=40)
    with (
        receiving_over(scheme, folder, "-o", out, before=before) as (receiver, command),
        open(source, "rb") as file,
        started(command, stdin=file) as sending,
    ):
        wait(receiver, lambda: arrived(receiver, out) > len(data) // 4)
        place = int(Path(f"/proc/{sending.pid}/fdinfo/0").read_text().split()[1])
        assert place < arrived(receiver, out) + WINDOW + 32 * MIB < len(data)
        wait(receiver, lambda: arrived(receiver, out) > len(data) - 16 * MIB)
        for each in (sending, receiver):
            assert memory(each.pid, "VmHWM") < WINDOW + 96 * MIB
        assert (sending.wait(PATIENCE), receiver.wait(PATIENCE)) == (0, 0)
    assert out.read_bytes() == data


# --- 10: the receiver's standard output


def test_an_output_that_is_full(folder: str) -> None:
    with open("/dev/full", "wb") as full, receiving("--tls-creds", folder, stdout=full) as (receiver, port):
        status, said = send(port, "--tls-creds", folder)
        assert status == 1 and b"cannot write standard output: No space left on device" in said
        assert one_line(receiver, "recv")[0] == 1


def test_an_output_that_is_closed_from_the_start(folder: str) -> None:
    before = ["sh", "-c", 'exec "$@" >&-', "sh"]
    ours, theirs = fail(folder, [], [], ("send", "recv"), NOISE, ((), before))
    assert (ours[0], theirs[0]) == (1, 1)
    assert theirs[1] == "cannot write standard output: Bad file descriptor" and theirs[1] in ours[1]
