"""pki: what it makes is what OpenSSL and GnuTLS call right, and nothing of it is lost, overwritten or handed out."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.running import assert_one_error, run

HOST = {"ca-cert.pem", "ca-crl.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem"}


def pki(*words: object) -> Any:
    """What a `pki` command that succeeds prints."""
    done = run("pki", "--json", *map(str, words))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(status: int, *words: object, saying: str) -> None:
    done = run("pki", *map(str, words))
    assert (done.returncode, done.stdout) == (status, b"")
    assert_one_error(done.stderr, "pki", saying)


def tool(*command: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed: tools/setup test")
    return subprocess.run(words, capture_output=True, text=True)


def openssl(folder: Path, certificate: str, *options: object) -> subprocess.CompletedProcess[str]:
    """OpenSSL's judgement of a certificate in a host's folder, as strict as it can be."""
    trust = ["-x509_strict", "-CAfile", folder / "ca-cert.pem", "-CRLfile", folder / "ca-crl.pem", "-crl_check"]
    return tool("openssl", "verify", *trust, *options, folder / certificate)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    pki("init", "--ca", tmp_path / "ca")
    return tmp_path / "ca"


@pytest.fixture
def node(ca: Path, tmp_path: Path) -> Path:
    pki("issue", "node1.example.org", "192.0.2.1", "::1", "--ca", ca, "--dir", tmp_path / "node1")
    return tmp_path / "node1"


def test_a_hosts_folder_has_qemus_names_and_not_the_authoritys_key(ca: Path, node: Path) -> None:
    assert {path.name for path in node.iterdir()} == HOST
    assert {path.name for path in ca.iterdir()} == {"ca-cert.pem", "ca-key.pem", "ca-crl.pem", "issued"}


def test_only_the_owner_can_look(ca: Path, node: Path) -> None:
    for path in [ca, node, *ca.rglob("*"), *node.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("server", ["-verify_hostname", "node1.example.org"]),
        ("server", ["-verify_ip", "192.0.2.1"]),
        ("server", ["-verify_ip", "::1"]),
        ("client", []),
    ],
)
def test_openssl_finds_it_right(node: Path, use: str, options: list[str]) -> None:
    done = openssl(node, f"{use}-cert.pem", "-purpose", f"ssl{use}", *options)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("use", "options", "reason"),
    [
        ("client", ["-purpose", "sslserver"], "purpose"),
        ("server", ["-purpose", "sslclient"], "purpose"),
        ("server", ["-verify_hostname", "node2.example.org"], "hostname mismatch"),
        ("server", ["-verify_ip", "192.0.2.2"], "IP address mismatch"),
    ],
)
def test_openssl_takes_it_for_nothing_else(node: Path, use: str, options: list[str], reason: str) -> None:
    done = openssl(node, f"{use}-cert.pem", *options)
    assert done.returncode and reason in done.stderr


@pytest.mark.parametrize("use", ["server", "client"])
def test_gnutls_finds_it_right(node: Path, use: str) -> None:
    trust = ["--load-ca-certificate", node / "ca-cert.pem", "--load-crl", node / "ca-crl.pem"]
    done = tool("certtool", "--verify", "--verify-profile", "medium", *trust, "--infile", node / f"{use}-cert.pem")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_key_is_its_certificates(node: Path) -> None:
    for use in ("server", "client"):
        from_key = tool("openssl", "pkey", "-pubout", "-in", node / f"{use}-key.pem").stdout
        from_certificate = tool("openssl", "x509", "-pubkey", "-noout", "-in", node / f"{use}-cert.pem").stdout
        assert from_key == from_certificate != ""


def test_a_revoked_one_is_refused_and_others_are_not(ca: Path, node: Path, tmp_path: Path) -> None:
    pki("issue", "node2", "--ca", ca, "--dir", tmp_path / "node2")
    revoked = pki("revoke", "node1.example.org", "--ca", ca, "--dir", node)
    assert [(row["use"], row["state"]) for row in revoked] == [("client", "revoked"), ("server", "revoked")]
    shutil.copy(ca / "ca-crl.pem", tmp_path / "node2")
    assert "certificate revoked" in openssl(node, "client-cert.pem").stderr
    assert openssl(tmp_path / "node2", "client-cert.pem").returncode == 0
    assert {row["name"]: row["state"] for row in pki("show", "--ca", ca)[1:]} == {
        "node1.example.org": "revoked",
        "node2": "valid",
    }
    assert {row["state"] for row in pki("show", "--dir", node)[1:]} == {"revoked"}


def test_one_serial_alone_can_be_revoked_and_a_second_time_changes_nothing(ca: Path, node: Path) -> None:
    server = next(row for row in pki("show", "--ca", ca) if row["use"] == "server")
    for _ in range(2):
        pki("revoke", server["serial"], "--ca", ca)
    assert {row["use"]: row["state"] for row in pki("show", "--ca", ca)} == {
        "authority": "valid",
        "client": "valid",
        "server": "revoked",
    }


def test_lists_are_numbered_and_keep_what_they_had(ca: Path, node: Path) -> None:
    for row in pki("show", "--ca", ca)[1:]:
        pki("revoke", row["serial"], "--ca", ca)
    text = tool("openssl", "crl", "-text", "-noout", "-in", ca / "ca-crl.pem").stdout
    assert text.count("Revocation Date") == 2 and text.split("X509v3 CRL Number:")[1].split()[0] == "3"


def test_the_table_for_people(ca: Path, node: Path) -> None:
    lines = run("pki", "show", "--ca", str(ca)).stdout.decode().splitlines()
    assert lines[0].split() == ["NAME", "USE", "SERIAL", "UNTIL", "STATE"]
    assert [line.split()[-1] for line in lines[1:]] == ["valid"] * 3


def test_days_are_kept_and_never_longer_than_the_authoritys(ca: Path, tmp_path: Path) -> None:
    (authority,) = pki("init", "--ca", tmp_path / "short", "--days", 5)
    rows = pki("issue", "a", "--ca", tmp_path / "short", "--dir", tmp_path / "a", "--for", "client", "--days", 9)
    assert [row["not_after"] for row in rows] == [authority["not_after"]]
    assert {path.name for path in (tmp_path / "a").iterdir()} == HOST - {"server-cert.pem", "server-key.pem"}


def test_without_ca_it_is_among_the_settings(tmp_path: Path) -> None:
    env = {"XDG_CONFIG_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    assert run("pki", "init", "Our hosts", env=env).returncode == 0
    assert b"Our hosts" in run("pki", "show", env=env).stdout
    assert (tmp_path / "statepipe" / "ca" / "ca-key.pem").exists()


# --- refusals


def test_nothing_is_overwritten(ca: Path, node: Path) -> None:
    before = snapshot(ca), snapshot(node)
    refused(1, "init", "--ca", ca, saying="exists already")
    refused(1, "issue", "node1.example.org", "--ca", ca, "--dir", node, saying="exists already")
    assert (snapshot(ca), snapshot(node)) == before


@pytest.mark.parametrize("name", ["", "a b", "-a", "a..b", "1.2.3.256", "x" * 65, "naïve.example", "*.example.org"])
def test_a_name_that_is_none_leaves_nothing(ca: Path, tmp_path: Path, name: str) -> None:
    before = snapshot(ca)
    done = run("pki", "issue", "--ca", str(ca), "--dir", str(tmp_path / "new"), "--", name)
    assert done.returncode == 2, done.stderr
    assert snapshot(ca) == before and {path.name for path in tmp_path.iterdir()} == {"ca"}


def test_a_key_of_another_authority_is_noticed(ca: Path, tmp_path: Path) -> None:
    pki("init", "--ca", tmp_path / "other")
    shutil.copy(tmp_path / "other" / "ca-key.pem", ca)
    refused(3, "issue", "a", "--ca", ca, "--dir", tmp_path / "a", saying="is not the key of")


def test_a_list_of_another_authority_is_not_believed(ca: Path, node: Path, tmp_path: Path) -> None:
    pki("init", "--ca", tmp_path / "other")
    shutil.copy(tmp_path / "other" / "ca-crl.pem", ca)
    refused(3, "revoke", "node1.example.org", "--ca", ca, saying="was not signed by the authority")
    refused(3, "show", "--ca", ca, saying="was not signed by the authority")


def test_a_list_is_not_given_to_a_stranger(ca: Path, node: Path, tmp_path: Path) -> None:
    pki("init", "--ca", tmp_path / "other")
    pki("issue", "b", "--ca", tmp_path / "other", "--dir", tmp_path / "b")
    before = snapshot(tmp_path / "b")
    refused(1, "revoke", "node1.example.org", "--ca", ca, "--dir", tmp_path / "b", saying="another authority")
    assert snapshot(tmp_path / "b") == before


@pytest.mark.parametrize("name", ["ca-cert.pem", "ca-key.pem", "ca-crl.pem"])
@pytest.mark.parametrize("damage", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_damaged_files_are_named(ca: Path, node: Path, name: str, damage: bytes) -> None:
    (ca / name).write_bytes(damage)
    refused(3, "revoke", "node1.example.org", "--ca", ca, saying=name)


def test_what_is_missing_is_named(ca: Path, tmp_path: Path) -> None:
    refused(1, "show", "--ca", tmp_path / "none", saying="cannot read")
    refused(1, "issue", "a", "--ca", tmp_path / "none", "--dir", tmp_path / "a", saying="cannot read an authority in")
    refused(1, "revoke", "nobody", "--ca", ca, saying="no certificate was issued for 'nobody'")


@pytest.mark.parametrize(
    "words",
    [
        ["issue", "a"],
        ["issue", "--dir", "x"],
        ["revoke"],
        ["init", "a", "b"],
        ["show", "a"],
        ["show", "--days", "3"],
        ["init", "--dir", "x"],
        ["init", "--days", "0"],
        ["init", "--days", "ten"],
        ["sign"],
        [],
    ],
)
def test_slips_of_the_command_line(words: list[str], tmp_path: Path) -> None:
    done = run("pki", *words, cwd=tmp_path, env={"XDG_CONFIG_HOME": str(tmp_path), "PYTHONPATH": str(Path.cwd())})
    assert done.returncode == 2 and not list(tmp_path.iterdir()), done.stderr


def test_a_full_disk_leaves_no_folder(ca: Path, tmp_path: Path) -> None:
    limited = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh"]
    command = [*limited, sys.executable, "-m", "statepipe", "pki", "issue", "a", "--ca", ca, "--dir", tmp_path / "a"]
    done = subprocess.run([str(word) for word in command], capture_output=True)
    assert done.returncode == 1, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"ca"} and not list((ca / "issued").iterdir())
