"""The doors of the host: jobs and who asks them, journals, certificates and pins, pairing, what ssh says first."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from base64 import b64decode, encodebytes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any

from statepipe.cli.jobs import table
from statepipe.ends.address import SSH, Address
from statepipe.ends.config import config_folder
from statepipe.errors import StatepipeError
from statepipe.pipeline.jobs import find_jobs, set_rate
from statepipe.pipeline.jobsocket import answer
from statepipe.recovery.journal import read_journal
from statepipe.recovery.resolve import last_step
from statepipe.session.ssh import Ssh, first_line
from statepipe.trust import pki
from statepipe.trust.certificates import fingerprint, make_self
from statepipe.trust.identity import by_folder, by_pins, own_certificate
from statepipe.trust.pins import pinning
from statepipe.trust.spake import Pairing
from statepipe.wakeups import Bell
from tests.fuzz.harness import Door
from tests.fuzz.mutation import mutated, odd_json, odd_text

# --- jobs

STAGE = {"name": "compress", "in": 10, "out": 5}
STATUS = {
    "pid": 7,
    "verb": "send",
    "what": "tls://host:20490",
    "seconds": 3.5,
    "bytes_in": 10,
    "bytes_out": 5,
    "stages": [STAGE, STAGE | {"level": 3}],
    "phase": "moving",
    "links": 1,
    "migration": {"status": "active", "ram": {"remaining": 5, "total": 9, "dirty-sync-count": 2, "page-size": 4096}},
}
TUNNEL = {name: STATUS[name] for name in STATUS if name not in ("phase", "migration")} | {
    "connections": 2,
    "connections_total": 3,
}
REQUESTS = ({"do": "status"}, {"do": "rate", "rate": 7}, {"do": "cancel"})


class _Work:
    def status(self) -> dict[str, Any]:
        return STATUS

    def set_rate(self, rate: int | None) -> None:
        assert rate is None or 0 < rate < 1 << 63

    def cancel(self) -> None:
        """Not now."""


def ask(data: bytes) -> None:
    """What somebody asks of a job; there is always an answer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        answer(_Work(), data, ours)
        theirs.settimeout(30)
        assert json.loads(theirs.recv(1 << 20))


def make_request(random: Random) -> bytes:
    return odd_json(random, random.choice(REQUESTS))[:4096] + random.choice((b"\n", b"", b"\nx"))


def look_at_jobs(data: bytes) -> None:
    """A job of ours, as its file says, that answers so."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as base:
        folder = Path(base) / "statepipe"
        folder.mkdir(mode=0o700)
        os.environ["XDG_RUNTIME_DIR"] = base
        with _answering(folder / "7", data):
            jobs = find_jobs()
            assert table(jobs, jobs) and len(jobs) <= 1
            json.dumps([job.status for job in jobs])
            set_rate("7", 5)


@contextmanager
def _answering(path: Path, data: bytes) -> Iterator[None]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def work() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.recv(4096)
                    connection.sendall(data)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def make_job_answer(random: Random) -> bytes:
    said = random.choice(({"ok": STATUS}, {"ok": TUNNEL}, {"ok": None}, {"error": "no", "hint": "x"}))
    return odd_json(random, said) + random.choice((b"\n", b"\n", b""))


# --- journals

STEPS = [
    {"time": 1.5, "side": "source", "peer": "node2", "guest": {"name": "x"}},
    {"time": 2.5, "state": "MOVING", "meaning": "it moves", "event": None},
    {"time": 3.5, "state": "COMMITTED", "meaning": "GO was said", "event": "READY"},
]


def read_steps(data: bytes) -> None:
    """The file that `resolve --journal` is given."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        path = Path(folder) / "journal"
        path.write_bytes(data)
        step = last_step(read_journal(str(path)))
        assert step is None or isinstance(step, str)


def make_steps(random: Random) -> bytes:
    lines = [json.dumps(step).encode() if random.random() < 0.6 else odd_json(random, step) for step in STEPS]
    data = b"\n".join([*lines, b""])
    return mutated(random, data) if random.random() < 0.3 else data


# --- certificates


@lru_cache
def authority() -> dict[str, bytes]:
    """The files of an authority and of a host, by name."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as base:
        ca, host = os.path.join(base, "ca"), os.path.join(base, "host")
        pki.init(ca, None, None)
        pki.issue_folder(ca, ["node1", "192.0.2.1"], host, ("server", "client"), None)
        files = {path.name: path.read_bytes() for path in Path(host).iterdir()}
        return files | {"ca-key.pem": (Path(ca) / "ca-key.pem").read_bytes()}


def trust_folder(data: bytes) -> None:
    """A tls-creds-x509 folder with one file that is odd: the first byte says which."""
    names = sorted(authority())
    odd = names[data[0] % len(names)] if data else names[0]
    with tempfile.TemporaryDirectory(prefix="fuzz") as base:
        for name, text in authority().items():
            path = Path(base) / name
            path.touch(mode=0o600)
            path.write_bytes(data[1:] if name == odd else text)
        for look in (
            partial(by_folder, base, server=True),
            partial(by_folder, base, server=False),
            partial(pki.show, base),
            partial(pki.issue_folder, base, ["x"], os.path.join(base, "new"), ("server",), None),
        ):
            with suppress(StatepipeError):
                kept = look()
                if hasattr(kept, "now"):
                    kept.now()


def _odd_pem(random: Random, text: bytes, others: list[bytes]) -> bytes:
    """Its letters changed; or what they stand for."""
    if random.random() < 0.3:
        return mutated(random, text, others)
    head, inner, tail = text.partition(b"-----\n")[0], text.split(b"-----")[2], text.rpartition(b"-----END")[2]
    return head + b"-----\n" + encodebytes(mutated(random, b64decode(inner))) + b"-----END" + tail


def make_folder(random: Random) -> bytes:
    names = sorted(authority())
    which = random.randrange(len(names))
    return bytes([which]) + _odd_pem(random, authority()[names[which]], list(authority().values()))


def trust_pins(data: bytes) -> None:
    """A peer's certificate as it is pinned here, and our own."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as base:
        os.environ["XDG_CONFIG_HOME"] = base
        own_certificate()
        peers = Path(config_folder()) / "peers"
        peers.mkdir(mode=0o700)
        for name, text in (("odd", data), ("good", pinned()[0])):
            path = peers / f"{name}.pem"
            path.touch(mode=0o600)
            path.write_bytes(text)
        for peer in (None, "odd"):
            with suppress(StatepipeError):
                by_pins(peer, server=True)
        own = Path(config_folder()) / "own-cert.pem"
        own.write_bytes(data)
        by_pins(None, server=True)


@lru_cache
def pinned() -> list[bytes]:
    return list(make_self("node2"))


def _off_the_curve() -> bytes:
    """An authority whose key is no point of its curve."""
    text = authority()["ca-cert.pem"]
    body = bytearray(b64decode(text.split(b"-----")[2]))
    body[body.index(b"\x03\x42\x00\x04") + 10] ^= 1
    which = sorted(authority()).index("ca-cert.pem")
    pem = b"-----BEGIN CERTIFICATE-----\n" + encodebytes(bytes(body)) + b"-----END CERTIFICATE-----\n"
    return bytes([which]) + pem


def make_pin(random: Random) -> bytes:
    return _odd_pem(random, random.choice(pinned()), pinned())


# --- pairing


def pair(data: bytes) -> None:
    """The hello of whoever came, and its confirmation."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as base:
        os.environ["XDG_CONFIG_HOME"] = base
        pairing = Pairing("1234-5678", "us", "certificate", first=True)
        assert pairing.take_hello(data)
        said = json.loads(data)
        assert fingerprint(said["certificate"].encode())
        with pinning(said["name"], said["certificate"]) as keep:
            keep()


def make_hello(random: Random) -> bytes:
    hello = json.loads(Pairing("1234-5678", "them", pinned()[0].decode(), first=False).hello)
    if random.random() < 0.3:
        hello["spake2"] = mutated(random, bytes.fromhex(hello["spake2"])).hex()
    if random.random() < 0.3:
        hello["certificate"] = _odd_pem(random, pinned()[0], pinned()).decode("latin-1")
    return odd_json(random, hello) if random.random() < 0.6 else json.dumps(hello).encode()


def _odd_element() -> bytes:
    hello = json.loads(Pairing("1234-5678", "them", pinned()[0].decode(), first=False).hello)
    return json.dumps(hello | {"spake2": "42" + "01" * 32}).encode()


# --- ssh


def greet(data: bytes) -> None:
    """What comes out of ssh before a session does."""
    with tempfile.NamedTemporaryFile(prefix="fuzz") as file:
        file.write(data)
        file.flush()
        ssh = Ssh(["cat", file.name], Address(SSH, "host", path="/x"), asks=False)
        name, transport = ssh.greeted(60, Bell())
        transport.close()
        assert len(name) == 32


def make_line(random: Random) -> bytes:
    lines = (first_line("ab" * 16).decode(), "Welcome!\n", "")
    return odd_text(random, lines, ("statepipe session ", "a" * 32, "\n", "x" * 300)).encode(errors="surrogateescape")


JOBS = {
    "an answer of objects in objects": lambda: b'{"ok":' * 5000 + b"0" + b"}" * 5000 + b"\n",
    "a status that is none": lambda: b'{"ok": {"stages": 7}}\n',
}
JOURNALS = {
    "a state that is no word": lambda: b'{"side": "source"}\n{"state": {"x": []}}\n',
    "lists in lists": lambda: b"[" * 100_000 + b"\n",
}

DOORS = {
    "requests": Door(ask, make_request),
    "jobs": Door(look_at_jobs, make_job_answer, JOBS),
    "journals": Door(read_steps, make_steps, JOURNALS),
    "certificates": Door(trust_folder, make_folder, {"a key off its curve": _off_the_curve}),
    "pins": Door(trust_pins, make_pin),
    "pairing": Door(pair, make_hello, {"an element off the curve": _odd_element}),
    "ssh": Door(greet, make_line),
}
