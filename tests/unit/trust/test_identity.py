"""Whom we believe: each pinned certificate by itself, and all of it as the files say when a handshake begins."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from statepipe.errors import PeerError, StatepipeError
from statepipe.trust.certificates import make_self, new_key, pem, read_certificate
from statepipe.trust.identity import Kept, by_folder, by_pins, own_certificate, own_identity, write_private
from statepipe.trust.pins import alone
from statepipe.trust.pki import init, issue_folder, revoke_certificates
from tests.net.homes import FOREVER, Identity, clone


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this host's pins; its own key is there."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "statepipe" / "peers"
    folder.mkdir(parents=True)
    for name, data in zip(("own-cert.pem", "own-key.pem"), make_self("here"), strict=True):
        (folder.parent / name).write_bytes(data)
        (folder.parent / name).chmod(0o600)
    return folder


def test_two_that_make_this_host_s_key_at_once_agree_on_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of one and the certificate of the other were no pair."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "statepipe"
    folder.mkdir()
    other = threading.Thread(target=own_identity)
    with alone(str(folder)):
        other.start()
        other.join(0.1)
        assert other.is_alive() and not os.listdir(folder)
        certificate, key = make_self("here")
        write_private(str(folder / "own-key.pem"), key)
        write_private(str(folder / "own-cert.pem"), certificate)
    other.join()
    assert own_certificate() == certificate.decode() and (folder / "own-key.pem").read_bytes() == key


def comes(who: Identity, trusted: Kept, folder: Path) -> str:
    """Who shakes hands with a server that trusts so: the name that it has there. Raises SSLError, PeerError."""
    (folder / "cert").write_bytes(who[0])
    (folder / "key").write_bytes(who[1])
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.load_cert_chain(folder / "cert", folder / "key")
    trust = trusted()
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    there, here = client.wrap_bio(one, other), trust.context.wrap_bio(other, one, server_side=True)
    for side in (there, here, there, here):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return trust.identify(here.getpeercert(binary_form=True) or b"", here.getpeercert)


CLONES: dict[str, Callable[[], Identity]] = {
    "a subject": clone,
    "a subject and a serial number": lambda: clone(serial=7),
    "a subject and a key's identifier": lambda: clone(mark=bytes(20)),
}


@pytest.mark.parametrize("what", CLONES)
def test_pinned_peers_that_share_it_are_all_let_in(peers: Path, tmp_path: Path, what: str) -> None:
    them = {name: CLONES[what]() for name in ("a", "b", "c")}
    (peers / "0.pem").write_bytes(clone(ends=datetime.now(UTC) - timedelta(days=1))[0])  # its time is over
    for name, (certificate, _) in them.items():
        (peers / f"{name}.pem").write_bytes(certificate)
    trusted = by_pins(None, server=True)
    assert [comes(who, trusted, tmp_path) for who in them.values()] == list(them)
    with pytest.raises(ssl.SSLError, match="self-signed certificate"):
        comes(CLONES[what](), trusted, tmp_path)


@pytest.mark.parametrize("hours", [-48, 2, 24 * 400])
def test_a_pin_has_no_time(peers: Path, tmp_path: Path, hours: int) -> None:
    """A host whose clock is behind, or ahead, believes a peer that was pinned here all the same."""
    now = datetime.now(UTC) + timedelta(hours=hours)
    host = clone(begins=now, ends=now + timedelta(days=1))
    (peers / "a.pem").write_bytes(host[0])
    assert comes(host, by_pins(None, server=True), tmp_path) == "a"


def test_one_among_a_thousand_of_a_name_is_let_in(peers: Path, tmp_path: Path) -> None:
    key, name = new_key(), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "debian")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.not_valid_before(datetime.now(UTC) - timedelta(days=90)).not_valid_after(FOREVER)
    for serial in range(1, 1000):
        (peers / f"p{serial}.pem").write_bytes(pem(builder.serial_number(serial).sign(key, hashes.SHA256())))
    who = clone()
    (peers / "p1000.pem").write_bytes(who[0])
    assert comes(who, by_pins(None, server=True), tmp_path) == "p1000"


def test_hosts_of_one_name_make_certificates_of_different_subjects() -> None:
    assert len({read_certificate(make_self("debian")[0], "it").subject for _ in range(20)}) == 20


def test_a_peer_is_believed_from_its_pin_to_the_end_of_it(peers: Path, tmp_path: Path) -> None:
    who, other = make_self("a"), make_self("b")
    (peers / "other.pem").write_bytes(other[0])
    trusted = by_pins(None, server=True)
    for _ in range(3):
        with pytest.raises(ssl.SSLError):
            comes(who, trusted, tmp_path)
        (peers / "a.pem").write_bytes(who[0])
        assert comes(who, trusted, tmp_path) == "a"
        (peers / "a.pem").unlink()


@pytest.mark.parametrize("peer", [None, "nobody"])
def test_who_knows_nobody_is_given_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: str | None) -> None:
    """A slip in a name leaves nothing behind."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(StatepipeError, match="no peer is pinned here"):
        by_pins(peer, server=False)
    assert not list(tmp_path.iterdir())


def test_where_the_last_pin_is_gone_nobody_is_believed(peers: Path, tmp_path: Path) -> None:
    who = make_self("a")
    (peers / "a.pem").write_bytes(who[0])
    for trusted in (by_pins(None, server=True), by_pins("a", server=True)):
        assert comes(who, trusted, tmp_path) == "a"
        (peers / "a.pem").unlink()
        with pytest.raises(PeerError, match="no peer is trusted at present: no peer is pinned here"):
            comes(who, trusted, tmp_path)
        (peers / "a.pem").write_bytes(who[0])
        assert comes(who, trusted, tmp_path) == "a"


@pytest.mark.parametrize("half", [b"", b"garbage", make_self("x")[0][:300]])
def test_a_pin_that_is_half_written_shuts_out_nobody_else(peers: Path, tmp_path: Path, half: bytes) -> None:
    who, told = make_self("a"), list[str]()
    (peers / "a.pem").write_bytes(who[0])
    trusted = by_pins(None, server=True, tell=told.append)
    (peers / "b.pem").write_bytes(half)
    assert [comes(who, trusted, tmp_path) for _ in range(3)] == ["a"] * 3
    assert told == ["the pinned certificate of b cannot be read: this peer is not trusted"]


def test_a_file_that_changes_back_and_forth_within_a_tick_is_seen(peers: Path, tmp_path: Path) -> None:
    """In its place, with its size and its times."""
    one, other = (clone() for _ in range(2))
    while len(one[0]) != len(other[0]):
        other = clone()
    (peers / "a.pem").write_bytes(one[0])
    trusted = by_pins(None, server=True)
    for _ in range(20):
        for who in (other, one):
            (peers / "a.pem").write_bytes(who[0])
            assert comes(who, trusted, tmp_path) == "a"


# --- a folder of certificates


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """This host's folder; beside it the authority's, and node1's and node2's."""
    init(str(tmp_path / "ca"), None, None)
    for name in ("here", "node1", "node2"):
        names = [f"{name}.example", "192.0.2.1"] if name == "node1" else [name]
        issue_folder(str(tmp_path / "ca"), names, str(tmp_path / name), ("server", "client"), None)
    return tmp_path / "here"


def client(folder: Path) -> Identity:
    return (folder / "client-cert.pem").read_bytes(), (folder / "client-key.pem").read_bytes()


def test_a_revocation_counts_from_the_next_handshake_on(folder: Path, tmp_path: Path) -> None:
    trusted, who = by_folder(str(folder), server=True), client(tmp_path / "node1")
    assert comes(who, trusted, tmp_path) == "node1.example"
    revoke_certificates(str(tmp_path / "ca"), ["node1.example"], str(folder))
    with pytest.raises(ssl.SSLError, match="revoked"):
        comes(who, trusted, tmp_path)
    assert comes(client(tmp_path / "node2"), trusted, tmp_path) == "node2"


def test_a_folder_without_a_list_is_told_of_once_and_one_that_comes_counts(folder: Path, tmp_path: Path) -> None:
    revoke_certificates(str(tmp_path / "ca"), ["node1.example"], None)
    (folder / "ca-crl.pem").unlink()
    told = list[str]()
    trusted, who = by_folder(str(folder), server=True, tell=told.append), client(tmp_path / "node1")
    for _ in range(3):
        (folder / "ca-cert.pem").touch()
        assert comes(who, trusted, tmp_path) == "node1.example"
    assert told == [f"{folder}/ca-crl.pem does not exist: revoked certificates are trusted"]
    (folder / "ca-crl.pem").write_bytes((tmp_path / "ca" / "ca-crl.pem").read_bytes())
    with pytest.raises(ssl.SSLError, match="revoked"):
        comes(who, trusted, tmp_path)


@pytest.mark.parametrize("name", ["ca-crl.pem", "ca-cert.pem", "server-cert.pem", "server-key.pem"])
@pytest.mark.parametrize("fate", ["gone", "empty", "half"])
def test_what_can_no_longer_be_read_is_not_believed_until_it_can(
    folder: Path, tmp_path: Path, name: str, fate: str
) -> None:
    trusted, who = by_folder(str(folder), server=True), client(tmp_path / "node1")
    assert comes(who, trusted, tmp_path) == "node1.example"
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    if fate != "gone":
        (folder / name).write_bytes(b"" if fate == "empty" else whole[: len(whole) // 2])
        (folder / name).chmod(0o600)
    for _ in range(2):
        with pytest.raises(PeerError, match="no peer is trusted at present"):
            comes(who, trusted, tmp_path)
    (folder / name).write_bytes(whole)
    (folder / name).chmod(0o600)
    assert comes(who, trusted, tmp_path) == "node1.example"


@pytest.mark.parametrize("peer", ["node1.example", "NODE1.example", "192.0.2.1"])
def test_a_name_singles_out_one_certificate(folder: Path, tmp_path: Path, peer: str) -> None:
    trusted = by_folder(str(folder), server=True, peer=peer)
    assert comes(client(tmp_path / "node1"), trusted, tmp_path) == "node1.example"
    with pytest.raises(PeerError, match=f"its certificate is for node2, not for {peer}"):
        comes(client(tmp_path / "node2"), trusted, tmp_path)


def vouched(folder: Path, alternative: bytes | None, *common: str) -> Identity:
    """A host's certificate that the authority has signed, with these common names and this subjectAltName in DER."""
    key = new_key()
    signing = load_pem_private_key((folder.parent / "ca" / "ca-key.pem").read_bytes(), None)
    assert isinstance(signing, EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate((folder / "ca-cert.pem").read_bytes()).subject
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each, _validate=bool(each)) for each in common])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.not_valid_before(datetime.now(UTC) - timedelta(days=1)).not_valid_after(FOREVER)
    if alternative is not None:
        names = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, alternative)
        builder = builder.add_extension(names, critical=not common)
    made = builder.serial_number(x509.random_serial_number()).sign(signing, hashes.SHA256())
    return pem(made), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def general(tag: int, content: bytes) -> bytes:
    """One name of a subjectAltName in DER (RFC 5280, 4.2.1.6)."""
    return bytes([tag, len(content)]) + content


def sequence(*names: bytes) -> bytes:
    return general(0x30, b"".join(names))


DNS, ADDRESS, MAIL = 0x82, 0x87, 0x81


@pytest.mark.parametrize(
    ("alternative", "common", "name", "others"),
    [
        (None, ["node9"], "node9", []),
        (sequence(general(DNS, b"a.example")), [], "a.example", []),
        (sequence(general(DNS, b"a.example"), general(ADDRESS, bytes(15) + b"\1")), ["node9"], "node9", ["::1"]),
        (sequence(general(MAIL, b"root@b"), general(ADDRESS, bytes((192, 0, 2, 7)))), [], "192.0.2.7", []),
        (sequence(general(DNS, b"a.example\0.evil")), [], "a.example\0.evil", []),
        (sequence(general(DNS, b"a")), ["node9", "node8"], "node9", ["a"]),
    ],
)
def test_names_are_those_that_the_authority_has_signed(
    folder: Path, tmp_path: Path, alternative: bytes | None, common: list[str], name: str, others: list[str]
) -> None:
    who = vouched(folder, alternative, *common)
    assert comes(who, by_folder(str(folder), server=True), tmp_path) == name
    for peer in (name, *others):
        assert comes(who, by_folder(str(folder), server=True, peer=peer), tmp_path) == name
    with pytest.raises(PeerError, match=r"its certificate is for .*, not for node8$"):
        comes(who, by_folder(str(folder), server=True, peer="node8"), tmp_path)


@pytest.mark.parametrize("bad", [general(DNS, b"\xff.example"), general(ADDRESS, bytes(5))])
def test_names_that_are_no_text_belong_to_nobody(folder: Path, tmp_path: Path, bad: bytes) -> None:
    with pytest.raises(PeerError, match="its certificate cannot be read"):
        comes(vouched(folder, sequence(bad), "node9"), by_folder(str(folder), server=True), tmp_path)


def test_what_is_empty_is_no_name(folder: Path, tmp_path: Path) -> None:
    """Not even for a user whose variable is empty: --peer "$PEER"."""
    with pytest.warns(UserWarning, match="length must be"):
        who = vouched(folder, sequence(general(DNS, b""), general(DNS, b"a.example")), "")
        nameless = vouched(folder, None, "")
    for certificate, name, told in ((who, "a.example", "a.example"), (nameless, "", "nobody")):
        assert comes(certificate, by_folder(str(folder), server=True), tmp_path) == name
        with pytest.raises(PeerError, match=f"its certificate is for {told}, not for $"):
            comes(certificate, by_folder(str(folder), server=True, peer=""), tmp_path)


def test_where_a_file_is_missing_at_the_start_that_is_the_error(folder: Path) -> None:
    os.unlink(folder / "ca-cert.pem")
    with pytest.raises(StatepipeError, match="cannot read the certificates"):
        by_folder(str(folder), server=True)
