"""tls://: who may come in, who may not and why, and that a byte of no stranger's reaches a stage."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtensionOID, NameOID

from statepipe.trust.certificates import SKEW, issue, make_self, new_key, pem, pem_key, read_authority
from tests import warm
from tests.conformance.running import PATIENCE, STATEPIPE, beside_news, started, wait_until_read
from tests.conformance.test_plain import NOISE, both, collect
from tests.net.relay import Faults, relay

Process = subprocess.Popen[bytes]


def pki(*words: object) -> None:
    warm.run([*STATEPIPE, "pki", *map(str, words)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and beside it folders for every kind of host."""
    base = tmp_path_factory.mktemp("pki")
    pki("init", "--ca", base / "ca")
    pki("init", "--ca", base / "other-ca")
    pki("issue", "localhost", "127.0.0.1", "--ca", base / "ca", "--dir", base / "good")
    pki("issue", "localhost", "127.0.0.1", "--ca", base / "other-ca", "--dir", base / "stranger")
    shutil.copy(base / "ca" / "ca-cert.pem", base / "stranger")
    pki("issue", "elsewhere.example", "--ca", base / "ca", "--dir", base / "wrong-host")
    pki("issue", "revoked.example", "localhost", "127.0.0.1", "--ca", base / "ca", "--dir", base / "revoked")
    pki("revoke", "revoked.example", "--ca", base / "ca", "--dir", base / "good")
    valid(datetime.now(UTC) - timedelta(days=30), base / "ca", base / "good", base / "expired")
    valid(datetime.now(UTC) + timedelta(days=30), base / "ca", base / "good", base / "future")
    self_signed(base / "good", base / "self-signed")
    crossed(base / "good", base / "crossed")
    odd(base / "ca", base / "good", base / "odd")
    return base


def valid(begins: datetime, ca: Path, good: Path, folder: Path) -> None:
    """Certificates for two days from then on."""
    shutil.copytree(good, folder)
    authority = read_authority((ca / "ca-cert.pem").read_bytes(), (ca / "ca-key.pem").read_bytes(), str(ca))
    made_at = begins + SKEW
    for use in ("server", "client"):
        key = new_key()
        made = issue(authority, key, ["localhost", "127.0.0.1"], use, begins + timedelta(days=2), made_at)
        (folder / f"{use}-cert.pem").write_bytes(made)
        (folder / f"{use}-key.pem").write_bytes(pem_key(key))


def self_signed(good: Path, folder: Path) -> None:
    shutil.copytree(good, folder)
    certificate, key = make_self("localhost")
    for use in ("server", "client"):
        (folder / f"{use}-cert.pem").write_bytes(certificate)
        (folder / f"{use}-key.pem").write_bytes(key)


def crossed(good: Path, folder: Path) -> None:
    """The server's certificate for a client, and the other way round."""
    shutil.copytree(good, folder)
    for kind in ("cert", "key"):
        shutil.copy(good / f"server-{kind}.pem", folder / f"client-{kind}.pem")
        shutil.copy(good / f"client-{kind}.pem", folder / f"server-{kind}.pem")


def odd(ca: Path, good: Path, folder: Path) -> None:
    """A client's of the right authority, whose other name is no text, which OpenSSL does not look at."""
    shutil.copytree(good, folder)
    authority = read_authority((ca / "ca-cert.pem").read_bytes(), (ca / "ca-key.pem").read_bytes(), str(ca))
    key, now = new_key(), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd.example")])
    builder = x509.CertificateBuilder(authority.certificate.subject, subject, key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - timedelta(hours=1))
    builder = builder.not_valid_after(now + timedelta(days=1))
    name = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x30\x04\x82\x02\xffa")
    made = builder.add_extension(name, critical=False).sign(authority.key, hashes.SHA256())
    (folder / "client-cert.pem").write_bytes(pem(made))
    (folder / "client-key.pem").write_bytes(pem_key(key))


@contextmanager
def receiving(
    *words: object, timeout: str = "30", before: Sequence[str] = (), **options: object
) -> Iterator[tuple[Process, int]]:
    """A recv at a free port of the loopback; `before` stands before its command line."""
    command = [*before, *STATEPIPE, "recv", "tls://127.0.0.1:0", "--timeout", timeout, *map(str, words)]
    with started(command, stdin=subprocess.DEVNULL, **options) as receiver:
        line = receiver.stderr.readline()
        assert b"listening at port" in line, line + receiver.stderr.read()
        yield receiver, int(line.split()[-1])


def sender(port: int, *words: object, host: str = "127.0.0.1") -> list[str]:
    return [*STATEPIPE, "send", "--timeout", "30", *map(str, words), f"tls://{host}:{port}"]


def send(port: int, *words: object, host: str = "127.0.0.1", data: bytes = NOISE, **more: object) -> tuple[int, bytes]:
    done = warm.run(sender(port, *words, host=host), input=data, capture_output=True, timeout=PATIENCE, **more)
    return done.returncode, done.stderr


# --- those who may


@pytest.mark.parametrize("size", [0, 1, 100_000, len(NOISE)])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_it_arrives(ca: Path, size: int, host: str) -> None:
    with receiving("--tls-creds", ca / "good") as (receiver, port):
        ours, theirs = both(receiver, sender(port, "--tls-creds", ca / "good", host=host), NOISE[:size])
    assert (ours, theirs) == ((0, b"", b""), (0, NOISE[:size], b""))


def test_into_a_file_with_stages(ca: Path, tmp_path: Path) -> None:
    with receiving("--tls-creds", ca / "good", "decompress", "-o", tmp_path / "out") as (receiver, port):
        assert send(port, "--tls-creds", ca / "good", "compress") == (0, b"")
        assert collect(receiver) == (0, b"", b"")
    assert (tmp_path / "out").read_bytes() == NOISE


def needs_socat() -> None:
    if shutil.which("socat") is None:
        pytest.skip("socat is not installed: tools/setup test")


def socat(port: int, folder: Path, *options: str) -> list[str]:
    needs_socat()
    files = f"cafile={folder}/ca-cert.pem,cert={folder}/client-cert.pem,key={folder}/client-key.pem"
    return ["socat", "-u", "-", ",".join([f"OPENSSL:localhost:{port},pf=ip4", files, *options])]


def test_who_speaks_no_session_is_turned_away(ca: Path) -> None:
    """Also with good certificates: none of its bytes is taken for a stream."""
    with receiving("--tls-creds", ca / "good") as (receiver, port):
        subprocess.run(socat(port, ca / "good"), input=NOISE, capture_output=True, timeout=PATIENCE)
        assert send(port, "--tls-creds", ca / "good", data=b"all") == (0, b"")
        status, got, said = collect(receiver)
    assert (status, got) == (0, b"all") and b"the other side is not a statepipe session" in said


# --- those who may not: a client at our gate


FAULTS = {
    "stranger": "",
    "expired": "certificate has expired",
    "future": "not yet valid: is this host's clock behind?",
    "revoked": "certificate revoked",
    "self-signed": "self-signed certificate",
    "crossed": "certificate purpose",
}


@pytest.mark.parametrize("fault", [*FAULTS, "odd"])
def test_a_client_is_turned_away_and_the_next_let_in(ca: Path, fault: str) -> None:
    with receiving("--tls-creds", ca / "good") as (receiver, port):
        status, said = send(port, "--tls-creds", ca / fault)
        assert status == 5 and b"statepipe: send: error: " in said
        assert (b"compare the clocks: type date -u on both hosts" in said) is (fault in ("expired", "future")), said
        assert b"alert" not in said and b"sslv3" not in said
        (ours, theirs) = both(receiver, sender(port, "--tls-creds", ca / "good"), NOISE)
    assert (ours[0], theirs[:2]) == (0, (0, NOISE))
    why = FAULTS.get(fault, "its certificate cannot be read")
    assert b"turned away 127.0.0.1: " in theirs[2] and why.encode() in theirs[2]


@pytest.mark.parametrize("fault", [*FAULTS, "wrong-host"])
def test_a_server_is_refused_before_a_byte_is_sent(ca: Path, fault: str) -> None:
    with receiving("--tls-creds", ca / fault, timeout="2") as (receiver, port):
        status, said = send(port, "--tls-creds", ca / "good")
        assert status == 5
        assert (FAULTS.get(fault) or "").encode() in said
        assert (b"date -u" in said) is (fault in ("expired", "future")), said
        assert collect(receiver)[:2] == (5, b"")


def speak(port: int, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(data)
        connection.settimeout(PATIENCE)
        try:
            while connection.recv(4096):
                continue
        except ConnectionResetError:
            return


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x40\x00" + bytes(9), NOISE[:70000]])
def test_who_speaks_no_tls_is_turned_away(ca: Path, data: bytes) -> None:
    with receiving("--tls-creds", ca / "good") as (receiver, port):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(data)
        ours, theirs = both(receiver, sender(port, "--tls-creds", ca / "good"), NOISE)
    assert (ours[0], theirs[:2]) == (0, (0, NOISE))


def client_context(ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca / "good" / "ca-cert.pem")
    return context


def greet(context: ssl.SSLContext, port: int) -> bytes:
    """What comes after the handshake, if that succeeds."""
    with socket.create_connection(("127.0.0.1", port)) as plain:
        plain.settimeout(PATIENCE)
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
            secure.sendall(b"a byte of a stranger's")
            return secure.recv(1)


def test_an_anonymous_client_is_turned_away(ca: Path) -> None:
    with receiving("--tls-creds", ca / "good") as (receiver, port):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            greet(client_context(ca), port)
        ours, theirs = both(receiver, sender(port, "--tls-creds", ca / "good"), NOISE)
    assert (ours[0], theirs[:2]) == (0, (0, NOISE))
    assert b"it has no certificate" in theirs[2]


def test_tls_1_2_is_turned_away(ca: Path) -> None:
    context = client_context(ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(ca / "good" / "client-cert.pem", ca / "good" / "client-key.pem")
    with receiving("--tls-creds", ca / "good", timeout="2") as (receiver, port):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            greet(context, port)
        status, out, said = collect(receiver)
    assert (status, out) == (5, b"") and b"it does not speak TLS 1.3" in said


def test_a_slow_one_does_not_hold_up_the_next(ca: Path) -> None:
    with receiving("--tls-creds", ca / "good") as (receiver, port):
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]  # more than may be at the gate
        try:
            for connection in slow[::3]:
                connection.sendall(b"\x16\x03")
            ours, theirs = both(receiver, sender(port, "--tls-creds", ca / "good"), NOISE)
        finally:
            for connection in slow:
                connection.close()
    assert (ours[0], theirs[:2]) == (0, (0, NOISE))


# --- servers that are none


@contextmanager
def server(speech: bytes) -> Iterator[int]:
    """Something that listens and says this, whatever it hears."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pid = os.fork()
        if not pid:
            connection, _ = listener.accept()
            connection.sendall(speech)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                continue
            os._exit(0)
        try:
            yield listener.getsockname()[1]
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize("speech", [b"", b"SSH-2.0-x\r\n", NOISE[:200_000]])
def test_a_server_that_speaks_no_tls(ca: Path, speech: bytes) -> None:
    with server(speech) as port:
        status, said = send(port, "--tls-creds", ca / "good")
    assert status == 5 and b"statepipe: send: error: " in said


# --- the end of the stream


@pytest.mark.parametrize("links", [1, 3])
def test_cut_connections_are_made_anew(ca: Path, tmp_path: Path, links: int) -> None:
    data, faults = NOISE * 6, Faults(cut_after=lambda: 3 << 20)
    with receiving("--tls-creds", ca / "good", "-o", tmp_path / "out") as (receiver, port), relay(port, faults) as at:
        status, said = send(at.port, "--tls-creds", ca / "good", "--links", links, data=data)
        assert (status, beside_news(said)) == (0, b"")
        status, out, said = collect(receiver)
        assert (status, out, beside_news(said)) == (0, b"", b"")
        assert at.cuts >= 8
    assert (tmp_path / "out").read_bytes() == data


def test_a_sender_that_is_killed_is_no_end(ca: Path, tmp_path: Path) -> None:
    words = ["--retry", "1", "--tls-creds", ca / "good", "-o", tmp_path / "out"]
    with receiving(*words) as (receiver, port):
        with started(sender(port, "--tls-creds", ca / "good")) as process:
            process.stdin.write(NOISE[:1000])
            wait_until_read(process)  # so that the two have met
            process.kill()
        assert collect(receiver)[0] == 5
    assert not list(tmp_path.iterdir())


def test_a_receiver_that_fails_is_the_senders_failure(ca: Path, tmp_path: Path) -> None:
    limited = ["sh", "-c", 'ulimit -f 2048; exec "$@"', "sh", *STATEPIPE, "recv", "tls://127.0.0.1:0"]
    words = ["--tls-creds", str(ca / "good"), "-o", str(tmp_path / "out")]
    with started([*limited, *words], stdin=subprocess.DEVNULL) as receiver:
        port = int(receiver.stderr.readline().split()[-1])
        status, said = send(port, "--tls-creds", ca / "good")
        assert status == 1 and b"File too large" in said
        status, _, said = collect(receiver)
        assert status == 1 and b"File too large" in said
    assert not list(tmp_path.iterdir())


def test_a_key_that_others_can_read_is_not_used(ca: Path, tmp_path: Path) -> None:
    shutil.copytree(ca / "good", tmp_path / "open")
    (tmp_path / "open" / "client-key.pem").chmod(0o644)
    status, said = send(1, "--tls-creds", tmp_path / "open")
    assert status == 1 and b"can be read or written by others" in said


def test_missing_files_are_named(tmp_path: Path) -> None:
    status, said = send(1, "--tls-creds", tmp_path)
    assert status == 1 and b"client-key.pem" in said
