"""Whom we believe: a folder of certificates as QEMU has it, or a key of our own and the peers pinned to theirs.

A pinned peer's certificate is its own signature under its own key, kept here as `peers/NAME.pem`; it is the only one
that a connection to NAME believes, as with ssh's known hosts, and any of them may come in, as with authorized keys.
Either way OpenSSL itself refuses the others, inside the handshake. There is no way to turn that off.

OpenSSL looks for an issuer by its subject, and subjects repeat: cloned hosts have the same name. So each pinned
certificate is an anchor by itself (X509_V_FLAG_PARTIAL_CHAIN), for which OpenSSL compares it whole.

Trust is what the files say when a handshake begins, not what they said when the process did (`Kept`). What cannot be
read is not believed: neither a revocation nor the end of a pin may wait until somebody has mended a file.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from statepipe.ends.config import config_folder
from statepipe.ends.fd import failure
from statepipe.ends.file import FileSink
from statepipe.errors import IntegrityError, PeerError, StatepipeError
from statepipe.private import forbid_dumps, refuse_open
from statepipe.telling import Tell, nobody
from statepipe.trust.pins import make_folder, name_of, pin_files, pin_of, read, read_pem, shown

SETTLED = 100_000_000
"""Nanoseconds after which a file that has changed once more has another time: the kernel's clock for files ticks each
4 ms at the most. (Of a file server with another clock we read the files anew for each handshake, or believe its times.)
"""

CRL = "ca-crl.pem"

_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME (x509_vfy.h; Python has no name for it). A pin ends when it is taken away, and begins when
it is made: a host whose clock is behind, as one without a battery is when it starts, believes it all the same."""

State = tuple[str, int, int, int, int]
"""A file, and what changes with it: its number, its times in nanoseconds and its size; zeros for none."""


@dataclass(frozen=True, slots=True)
class Trust:
    """A context for one end, and what tells who a peer is from its certificate in DER.

    `pinned` gives the names of those we know; None where an authority vouches for them, of whom `peer` singles out one.
    `seen` is how its files stood.
    """

    context: ssl.SSLContext
    check_host: bool
    pinned: Mapping[bytes, str] | None = None
    peer: str | None = None
    seen: tuple[State, ...] = ()

    def identify(self, certificate: bytes) -> str:
        """The peer's name. Raises PeerError if it has none here, or is not the one that is meant."""
        if self.pinned is None:
            return _named(certificate, self.peer)
        name = self.pinned.get(certificate)
        if name is None:
            raise PeerError("its certificate is not one of those pinned here", hint="statepipe pair")
        return name


class Kept:
    """Trust as its files have it now: call it for each handshake, from any thread.

    `load` reads it, `files` names what it is read from, there or not. Made where the files cannot be read, it raises
    what `load` does; later it raises PeerError, until they can be.
    """

    def __init__(self, load: Callable[[], Trust], files: Callable[[], Iterable[str]]) -> None:
        self._load, self._files = load, files
        self._lock = threading.Lock()
        self._is_settled = False
        self._seen = self._look()
        self._trust = self._read()

    def __call__(self) -> Trust:
        """Raises PeerError where nobody can be believed now."""
        with self._lock:
            try:
                if (seen := self._look()) != self._seen or not self._is_settled:
                    self._seen = seen
                    self._trust = self._read()
            except StatepipeError as error:
                self._is_settled = False
                raise PeerError(f"nobody is believed: {error}", hint=error.hint) from error
            return self._trust

    def _read(self) -> Trust:
        """Raises StatepipeError. What has changed only now may change again in the same tick of its file's clock."""
        self._is_settled = all(time.time_ns() - changed >= SETTLED for _, _, changed, _, _ in self._seen)
        return replace(self._load(), seen=self._seen)

    def _look(self) -> tuple[State, ...]:
        return tuple(_state(path) for path in self._files())


def _state(path: str) -> State:
    try:
        it = os.stat(path)
    except OSError:
        return path, 0, 0, 0, 0
    return path, it.st_ino, it.st_ctime_ns, it.st_mtime_ns, it.st_size


def by_folder(folder: str, *, server: bool, peer: str | None = None, tell: Tell = nobody) -> Kept:
    """Trust in the authority of a tls-creds-x509 folder, less whom its list of revocations names.

    With `peer`, in the one certificate alone that has this name. A folder that has no list is told of; one that has
    lost it is trusted no more. Raises StatepipeError where a file is missing, or a key is not its owner's alone.
    """
    end = "server" if server else "client"
    names = [f"{end}-cert.pem", f"{end}-key.pem", "ca-cert.pem", CRL]
    revocations = _Revocations(os.path.join(folder, CRL), tell)

    def load() -> Trust:
        context = _context(server=server)
        _load_own(context, folder, names[0], names[1])
        try:
            context.load_verify_locations(os.path.join(folder, "ca-cert.pem"))
            revocations.load(context)
        except ssl.SSLError as error:
            raise StatepipeError(f"the certificates in {folder} cannot be read: {error.reason}") from error
        except OSError as error:
            raise failure(f"read the certificates in {folder}", error) from error
        context.check_hostname = not server and peer is None
        return Trust(context, context.check_hostname, peer=peer)

    return Kept(load, lambda: [os.path.join(folder, name) for name in names])


class _Revocations:
    """The list of a folder: QEMU does without one, so do we, and say so; but none that was there is forgotten."""

    def __init__(self, path: str, tell: Tell) -> None:
        self._path, self._tell, self._was_there = path, tell, False

    def load(self, context: ssl.SSLContext) -> None:
        """Raises StatepipeError, OSError, ssl.SSLError."""
        if os.path.exists(self._path):
            context.load_verify_locations(self._path)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
            self._was_there = True
        elif self._was_there:
            hint = "put the list back, or start anew to do without it"
            raise StatepipeError(f"{self._path}, the list of revocations, is gone", hint=hint)
        else:
            self._tell(f"there is no {self._path}: certificates that were revoked are believed")
            self._tell = nobody


def by_pins(peer: str | None, *, server: bool, tell: Tell = nobody) -> Kept:
    """Trust in the peers pinned here; only in `peer`, if one is named. Raises StatepipeError where there is none.

    One whose file cannot be read is told of and not believed; the others are.
    """
    folder, pins = config_folder(), _Pins(peer, tell)
    pins.demand()  # first: who knows nobody needs no key of its own
    own_identity()

    def load() -> Trust:
        context = _context(server=server)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
        _load_own(context, folder, "own-cert.pem", "own-key.pem")
        return Trust(context, False, pins.load(context))

    return Kept(
        load, lambda: [os.path.join(folder, "own-cert.pem"), os.path.join(folder, "own-key.pem"), *pins.files()]
    )


class _Pins:
    """The pinned peers, or the one that is meant. One that cannot be read does not keep out the others."""

    def __init__(self, peer: str | None, tell: Tell) -> None:
        self._peer, self._tell, self._told = peer, tell, set[str]()

    def files(self) -> list[str]:
        """Raises StatepipeError, UsageError for what cannot be a peer's name."""
        return pin_files() if self._peer is None else [pin_of(self._peer)]

    def demand(self) -> None:
        """Raises StatepipeError where there is none."""
        if any(map(os.path.exists, self.files())):
            return
        if self._peer is not None:
            hint = f"statepipe pair {self._peer}, or --tls-creds DIR"
            if others := [name_of(path) for path in pin_files()]:
                hint = f"if it is pinned under another name, say so with --peer NAME: {shown(others)}; else {hint}"
            raise PeerError(f"no peer is pinned here as '{self._peer}'", hint=hint)
        raise StatepipeError("no peer is pinned here", hint="statepipe pair, or --tls-creds DIR")

    def load(self, context: ssl.SSLContext) -> dict[bytes, str]:
        """Have the context believe them; who each is. Raises StatepipeError where there is none."""
        self.demand()
        known = {}
        for path in self.files():
            name = name_of(path)
            try:
                certificate = ssl.PEM_cert_to_DER_cert(read_pem(path))
                context.load_verify_locations(cadata=certificate)
                known[certificate] = name
            except (OSError, ValueError) as error:
                self._pass_over(name, error)
        if not known:
            raise StatepipeError("no pinned certificate can be read", hint="pair again, or --tls-creds DIR")
        return known

    def _pass_over(self, name: str, error: Exception) -> None:
        """Raises StatepipeError where it is the one that is meant."""
        text = f"the pinned certificate of {name} cannot be read"
        if self._peer is not None:
            hint = f"copy its certificate anew, or take it away and pair again: statepipe pair --remove {name}"
            raise StatepipeError(text, hint=hint) from error
        if name not in self._told:
            self._told.add(name)
            self._tell(f"{text}: this peer is not believed")


def _context(*, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if server:
        context.num_tickets = 0  # tickets that nobody reads turn a client's close into a reset
    return context


def _load_own(context: ssl.SSLContext, folder: str, certificate: str, key: str) -> None:
    path = os.path.join(folder, key)
    try:
        refuse_open(path, os.stat(path))
        forbid_dumps()
        context.load_cert_chain(os.path.join(folder, certificate), path, lambda: "")
    except ssl.SSLError as error:
        raise StatepipeError(f"{path} and {certificate} are no pair of certificate and key") from error
    except OSError as error:
        raise failure(f"read {path} and {certificate}", error) from error


def _named(certificate: bytes, peer: str | None) -> str:
    """The name of a certificate's subject. Raises PeerError where `peer` is none of its names, and for one that OpenSSL
    has taken, and whose fields are not what RFC 5280 says."""
    from statepipe.trust.certificates import facts, read_certificate

    try:
        it = facts(read_certificate(ssl.DER_cert_to_PEM_cert(certificate).encode(), "the peer's certificate"))
    except IntegrityError as error:
        raise PeerError("its certificate cannot be read", hint="issue it another: statepipe pki issue") from error
    names = dict.fromkeys((it.name, *it.names))
    if peer is not None and peer.lower() not in {name.lower() for name in names}:
        hint = "--peer takes one of the names in its certificate: statepipe pki show"
        raise PeerError(f"its certificate is for {', '.join(names)}, and {peer} alone is meant", hint=hint)
    return it.name


# --- our own key


def own_identity() -> str:
    """The folder with our own certificate and key, made the first time. Raises StatepipeError."""
    folder = config_folder()
    certificate, key = (os.path.join(folder, name) for name in ("own-cert.pem", "own-key.pem"))
    if not os.path.exists(certificate):
        from statepipe.trust.certificates import make_self

        make_folder(folder)
        own_certificate, own_key = make_self(os.uname().nodename)
        write_private(key, own_key)
        write_private(certificate, own_certificate)
    return folder


def own_certificate() -> str:
    """Our own certificate in PEM, for peers to pin. Raises StatepipeError."""
    return read(os.path.join(own_identity(), "own-cert.pem"))


def write_private(path: str, data: bytes) -> None:
    """A file for its owner's eyes only, there whole or not at all. Raises StatepipeError."""
    with FileSink(path) as sink:
        sink.write(data)
        sink.commit()
