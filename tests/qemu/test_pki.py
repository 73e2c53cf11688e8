"""The folders that pki makes, loaded by real QEMUs: a guest moves over their own TLS, and nobody else gets in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from statepipe.trust.certificates import issue, new_key, pem_key, read_authority
from tests.qemu.harness import Guest, QmpError, assert_continues, run_statepipe, wait_for

FINISHED = ("completed", "failed")


def pki(*words: object) -> None:
    done = run_statepipe("pki", *words)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    pki("init", "--ca", tmp_path / "ca")
    for node in ("source", "destination"):
        pki("issue", f"{node}.example.org", "localhost", "127.0.0.1", "--ca", tmp_path / "ca", "--dir", tmp_path / node)
    return tmp_path / "ca"


@contextmanager
def guest(folder: Path, qemu: str, creds: Path, endpoint: str, **more: Any) -> Iterator[Guest]:
    args = ["-object", f"tls-creds-x509,id=tls0,dir={creds},endpoint={endpoint}"]
    with Guest(folder, qemu=qemu, args=args, dirty=0, **more) as running:
        yield running


@contextmanager
def pair(folder: Path, qemu: str, source: Path, destination: Path) -> Iterator[tuple[Guest, Guest]]:
    """A running guest, and a QEMU that waits for it; TLS set on both."""
    with guest(folder, qemu, source, "client") as one:
        one.wait_ticks(2)
        with guest(folder, qemu, destination, "server", incoming="defer", image=one.image) as other:
            one.qmp("migrate-set-parameters", tls_creds="tls0")
            other.qmp("migrate-set-parameters", tls_creds="tls0")
            other.qmp("migrate-incoming", uri="tcp:127.0.0.1:0")
            yield one, other


def migrate(one: Guest, other: Guest, host: str = "127.0.0.1") -> str:
    port = other.migration()["socket-address"][0]["port"]
    one.qmp("migrate", uri=f"tcp:{host}:{port}")
    return str(one.wait_status("completed", "failed")["status"])


def assert_refused(one: Guest, other: Guest) -> None:
    """The source's guest runs on; the destination never had one."""
    assert migrate(one, other) == "failed"
    one.wait_run_state("running")
    assert not other.ticks()


def test_a_guest_moves(tmp_path: Path, qemu: str, ca: Path) -> None:
    with pair(tmp_path, qemu, tmp_path / "source", tmp_path / "destination") as (one, other):
        assert migrate(one, other) == "completed"
        wait_for("the guest to go on", lambda: other.ticks())
        assert_continues(one.serial(), other.serial())


def test_one_folder_serves_both_ends(tmp_path: Path, qemu72: str, ca: Path) -> None:
    with pair(tmp_path, qemu72, tmp_path / "source", tmp_path / "source") as (one, other):
        assert migrate(one, other) == "completed"


def test_a_host_of_another_name_is_refused(tmp_path: Path, qemu72: str, ca: Path) -> None:
    pki("issue", "elsewhere.example.org", "--ca", ca, "--dir", tmp_path / "elsewhere")
    with pair(tmp_path, qemu72, tmp_path / "source", tmp_path / "elsewhere") as (one, other):
        assert_refused(one, other)


def test_a_revoked_host_is_refused(tmp_path: Path, qemu72: str, ca: Path) -> None:
    pki("revoke", "source.example.org", "--ca", ca, "--dir", tmp_path / "destination")
    with pair(tmp_path, qemu72, tmp_path / "source", tmp_path / "destination") as (one, other):
        assert_refused(one, other)


def test_a_host_of_another_authority_is_refused(tmp_path: Path, qemu72: str, ca: Path) -> None:
    pki("init", "--ca", tmp_path / "other")
    pki("issue", "source.example.org", "--ca", tmp_path / "other", "--dir", tmp_path / "stranger")
    with pair(tmp_path, qemu72, tmp_path / "stranger", tmp_path / "destination") as (one, other):
        assert_refused(one, other)


def test_an_expired_one_is_refused(tmp_path: Path, qemu72: str, ca: Path) -> None:
    """QEMU looks at its own as it starts: it would not even come so far as to be refused."""
    authority = read_authority((ca / "ca-cert.pem").read_bytes(), (ca / "ca-key.pem").read_bytes(), str(ca))
    key, then = new_key(), datetime.now(UTC) - timedelta(days=30)
    folder = tmp_path / "source"
    ends = then + timedelta(days=1)
    (folder / "client-cert.pem").write_bytes(issue(authority, key, ["source"], "client", ends, then))
    (folder / "client-key.pem").write_bytes(pem_key(key))
    with (
        pytest.raises((AssertionError, QmpError), match="expired"),
        pair(tmp_path, qemu72, folder, tmp_path / "destination") as (one, other),
    ):
        migrate(one, other)
