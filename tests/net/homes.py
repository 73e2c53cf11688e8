"""Hosts with keys of their own and each other's pins, a receiver on one of them, and how strangers come to it."""

from __future__ import annotations

import os
import random
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from statepipe.session.protocol.frames import GREETING_SIZE, Greeting, decode_greeting
from statepipe.trust.certificates import USES, make_self, new_key, pem, pem_key
from tests.conformance.running import PATIENCE, STATEPIPE, beside_news, started, wait_until_read

MIB = 1 << 20
DATA = random.Random(7).randbytes(32 * MIB)

MEMORY = 100 * MIB
"""Bytes that strangers may cost: 128 unfinished handshakes take 7 MB, and the transfer's own window is 64 MiB."""


Identity = tuple[bytes, bytes]
FOREVER = datetime(9999, 12, 31, tzinfo=UTC)


def clone(
    serial: int | None = None, mark: bytes | None = None, ends: datetime = FOREVER, begins: datetime | None = None
) -> Identity:
    """A host whose name others have, too; `mark` is its key's identifier, and its issuer's."""
    key, name = new_key(), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "debian")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(serial or x509.random_serial_number())
    builder = builder.not_valid_before(begins or datetime.now(UTC) - timedelta(days=90)).not_valid_after(ends)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(list(USES.values())), critical=False)
    if mark is not None:
        builder = builder.add_extension(x509.SubjectKeyIdentifier(mark), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier(mark, None, None), critical=False)
    return pem(builder.sign(key, hashes.SHA256())), pem_key(key)


class Home:
    """A host's settings: its key, and whom it has pinned."""

    def __init__(self, base: Path, name: str) -> None:
        self.name, self.base = name, base / name
        self._folder = self.base / "statepipe"
        (self._folder / "peers").mkdir(parents=True)
        self.become(*make_self(name))

    def become(self, certificate: bytes, key: bytes) -> None:
        """Have this key; who has pinned another knows this host no more."""
        self.certificate = certificate
        for file, data in (("own-cert.pem", self.certificate), ("own-key.pem", key)):
            (self._folder / file).write_bytes(data)
            (self._folder / file).chmod(0o600)

    def pin(self, other: Home, name: str = "") -> None:
        """Believe the other, under that name or its own."""
        (self._folder / "peers" / f"{name or other.name}.pem").write_bytes(other.certificate)

    def unpin(self, other: Home) -> None:
        """Believe the other no more."""
        (self._folder / "peers" / f"{other.name}.pem").unlink()

    @property
    def env(self) -> dict[str, str]:
        """The environment of a program on this host."""
        return {**os.environ, "XDG_CONFIG_HOME": str(self.base)}

    def context(self, *, server: bool = False) -> ssl.SSLContext:
        """One that shows this host's certificate and believes anybody."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(self._folder / "own-cert.pem", self._folder / "own-key.pem")
        return context


@dataclass(frozen=True)
class World:
    """Four hosts. `here` receives and has pinned `friend` and `mallory`; nobody knows the stranger."""

    here: Home
    friend: Home
    mallory: Home
    stranger: Home


def world_in(base: Path) -> World:
    """Such a one, with its files in a folder."""
    it = World(*(Home(base, name) for name in ("here", "friend", "mallory", "stranger")))
    it.here.pin(it.friend)
    it.here.pin(it.mallory)
    it.friend.pin(it.here, "127.0.0.1")
    return it


# --- a transfer


class Receiver:
    """A `recv` into a file, at a port of its own."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path) -> None:
        self.process, self.out = process, out
        self.port = int(process.stderr.readline().split()[-1])
        self._base = memory(process.pid, "VmRSS")

    def grown(self) -> int:
        """How many bytes its memory has grown at the most."""
        return memory(self.process.pid, "VmHWM") - self._base

    def ended(self) -> tuple[int, str]:
        """Its status, and what it said."""
        said = self.process.communicate(timeout=PATIENCE)[1]
        return self.process.returncode, said.decode()


def memory(pid: int, field: str) -> int:
    """A number from its status in bytes: VmRSS now, VmHWM at the most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) << 10


@contextmanager
def receiving(world: World, out: Path, *before: str, at: Home | None = None) -> Iterator[Receiver]:
    """A receiver, here or elsewhere, that waits for the first who may come; `before` stands before its command line."""
    command = [*before, *STATEPIPE, "recv", "tls://127.0.0.1:0", "--timeout", str(PATIENCE), "-o", str(out)]
    with started(command, stdin=subprocess.DEVNULL, env=(at or world.here).env) as process:
        yield Receiver(process, out)


@contextmanager
def sending(world: World, port: int, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """The friend's sender to that port."""
    command = [*STATEPIPE, "send", "--timeout", str(PATIENCE), *words, f"127.0.0.1:{port}"]
    with started(command, env=world.friend.env) as sender:
        yield sender


def finish(sender: subprocess.Popen[bytes], data: bytes) -> None:
    """Give it what is left; it ends well."""
    out, said = sender.communicate(data, PATIENCE)
    assert (sender.returncode, out, beside_news(said)) == (0, b"", b"")


@contextmanager
def transfer(world: World, out: Path, *before: str) -> Iterator[Receiver]:
    """A transfer that is half done within, and goes on to a good end: both sides say so, and every byte is there."""
    with receiving(world, out, *before) as receiver:
        with sending(world, receiver.port) as sender:
            sender.stdin.write(DATA[: len(DATA) // 2])  # more than the pipe holds: they have met
            wait_until_read(sender)
            yield receiver
            assert not out.exists()
            assert receiver.grown() < MEMORY
            finish(sender, DATA[len(DATA) // 2 :])
        status, said = receiver.ended()
        assert status == 0, said
    assert out.read_bytes() == DATA


# --- who comes


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    """A connection to a port of the loopback, from one of its addresses."""
    return socket.create_connection(("127.0.0.1", port), PATIENCE, (source, 0))


def rest(connection: socket.socket) -> bytes:
    """What comes until the other side hangs up, in whatever way. Raises TimeoutError if it does not."""
    said = b""
    try:
        while data := connection.recv(1 << 16):
            said += data
    except (ConnectionResetError, ssl.SSLError):
        return said
    return said


def hello(context: ssl.SSLContext) -> tuple[bytes, ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A ClientHello, and what goes on with the handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read(), tls, incoming, outgoing
    raise AssertionError("a handshake without a peer")


def answered(secure: ssl.SSLSocket, greeting: bytes) -> Greeting:
    """The receiver's answer to a greeting over an authenticated connection."""
    secure.sendall(greeting)
    return decode_greeting(read_exactly(secure, GREETING_SIZE))


def read_exactly(secure: ssl.SSLSocket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = secure.recv(count - len(data))
        assert piece, f"it hung up after {data!r}"
        data += piece
    return data
