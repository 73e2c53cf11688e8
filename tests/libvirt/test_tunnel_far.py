"""The far end of a tunnel for libvirt, against a near end that knows nothing but docs/protocol.md."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.libvirt.harness import Libvirt
from tests.minipeer import Broken, Link, Near, write_all
from tests.qemu.harness import PATIENCE, statepipe_command, wait_for

IDENT = "0123abcd"
OPEN = {"tunnel": IDENT, "domain": "vm1"}

CALL = struct.pack(">7I", 28, 0x20008086, 1, 66, 0, 1, 0)
"""libvirt's own question how it wants us to authenticate (src/remote/remote_protocol.x), which anybody may ask."""


@contextmanager
def started(libvirt: Libvirt, *words: object) -> Iterator[tuple[subprocess.Popen[bytes], Link, str]]:
    """A statepipe as ssh starts it, its link, and the name of its session."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with libvirt.popen(*statepipe_command(), *words, **pipes) as process:
        try:
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None
            found = re.fullmatch(rb"statepipe session ([0-9a-f]{32})\n", process.stdout.readline())
            assert found is not None, process.stderr.read()
            reading, writing = process.stdout.fileno(), process.stdin.fileno()
            link = Link(lambda size: os.read(reading, size), lambda data: write_all(writing, data))
            yield process, link, found[1].decode()
        finally:
            process.kill()


@pytest.fixture
def folder(libvirt: Libvirt) -> Path:
    """Where tunnels have their folders; short, for paths in it."""
    return libvirt.folder / "t"


@contextmanager
def far_end(libvirt: Libvirt, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Link, str]]:
    with started(libvirt, "tunnel", "--libvirt", "--retry", "2", "--folder", folder, "-") as it:
        yield it


def test_a_tunnel_is_opened_used_and_closed(libvirt: Libvirt, folder: Path) -> None:
    with far_end(libvirt, folder) as (process, link, name):
        tunnel = Near(link)
        tunnel.tell(OPEN)
        answer = tunnel.hear()
        assert answer is not None and answer["daemon"].endswith("/libvirt-sock")
        assert answer["memory"] == f"{folder}/{IDENT}/memory.tunnelmigrate.dest.vm1"
        assert answer["disks"] == f"{folder}/{IDENT}/disks.tunnelmigrate.dest.vm1"
        with started(libvirt, "recv", "--attach", name) as (_, second, again):
            assert again == name
            connection = Near(second)
            connection.write(CALL)  # before the far end is connected
            connection.tell({"tunnel": IDENT, "to": "libvirtd"})
            connection.end(1)
            assert connection.hear() is None
            length, *_, serial, status = struct.unpack(">7I", connection.read(28))
            assert length > 28 and (serial, status) == (1, 0)
        tunnel.end(1)
        assert tunnel.hear() is None
        assert os.listdir(folder) == []
        tunnel.close()
        assert process.wait(PATIENCE) in (0, 5), process.stderr  # 5 if it has noticed that we hung up


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"tunnel": "../../..", "domain": "vm1"}, "a tunnel without a proper name"),
        ({"tunnel": IDENT, "domain": "../vm1"}, "cannot be a guest's name"),
        ({"tunnel": IDENT, "domain": "x" * 100}, "paths would have"),
        ({"tunnel": IDENT, "to": "memory"}, "this tunnel is not open here"),
        ({"tunnel": IDENT, "to": "/etc/passwd"}, "no target of a tunnel"),
        ({"tunnel": IDENT}, "no target of a tunnel"),
        ({"domain": "vm1"}, "a message of another form"),
        ({"tunnel": [IDENT], "domain": "vm1"}, "a message of another form"),
    ],
)
def test_what_the_document_forbids_is_refused(session: Libvirt, message: dict[str, Any], reason: str) -> None:
    folder = session.folder / "t"
    with far_end(session, folder) as (_, link, _name):
        near = Near(link)
        near.tell(message)
        near.end(1)
        with pytest.raises(Broken, match=f"aborted with [0-9]+: .*{reason}"):
            near.hear()
        assert not folder.exists() or os.listdir(folder) == []


def test_a_tunnel_whose_near_end_is_gone_is_closed(libvirt: Libvirt, folder: Path) -> None:
    with far_end(libvirt, folder) as (process, link, _):
        tunnel = Near(link)
        tunnel.tell(OPEN)
        assert tunnel.hear() is not None and os.listdir(folder) == [IDENT]
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        wait_for("its end", lambda: process.poll() is not None)
        assert process.poll() == 5 and os.listdir(folder) == []
