"""Which peers we trust: a folder of certificates in QEMU's layout, or our own key and pinned peers.

A pinned peer's certificate is self-signed and stored as `peers/NAME.pem`. A connection to NAME trusts only this
certificate, like ssh's known hosts; an incoming connection may use any pinned one, like ssh's authorized keys. In both
cases OpenSSL refuses all others during the handshake. There is no option to turn that off.

OpenSSL searches for an issuer by subject, and subjects repeat: cloned hosts have the same name. So each pinned
certificate is a trust anchor of its own (X509_V_FLAG_PARTIAL_CHAIN), and OpenSSL compares it whole.

The files are read when a handshake begins, not only when the process starts (`Kept`). What cannot be read is not
trusted, so that a damaged file cannot delay a revocation or the removal of a pin.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from statepipe.ends.config import config_folder
from statepipe.ends.fd import failure
from statepipe.ends.file import write_private
from statepipe.errors import InterruptedBySignal, PeerError, StatepipeError
from statepipe.private import forbid_dumps, refuse_open
from statepipe.telling import Tell, nobody
from statepipe.trust.pins import alone, make_folder, name_of, pin_files, pin_of, read, read_pem, shown
from statepipe.typed import Any, NamedTuple

SETTLED = 100_000_000
"""Nanoseconds after which another change to a file gives it another time: the kernel's clock for files ticks at least
every 4 ms. (With a file server whose clock differs, the files are read for each handshake, or its times are trusted.)
"""

CRL = "ca-crl.pem"

_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME (x509_vfy.h; Python has no name for it). A pin is valid from when it is made until it is
removed, whatever the clock says: a host without a clock battery starts with a wrong time."""

FileState = tuple[str, int, int, int, int]
"""A file's path, inode number, times in nanoseconds and size, to detect changes; zeros if it does not exist."""


class Trust(NamedTuple):
    """A TLS context for one end, and the names of the peers that it accepts.

    `pinned` maps pinned certificates (DER) to names; None if an authority vouches for the peers, of which `peer`
    selects one. `seen` is the state of the files when they were read.
    """

    context: ssl.SSLContext
    check_host: bool
    pinned: Mapping[bytes, str] | None = None
    peer: str | None = None
    seen: tuple[FileState, ...] = ()

    def identify(self, certificate: bytes, fields: Callable[[], Mapping[str, Any] | None]) -> str:
        """Return the peer's name: the pinned one of its certificate (DER), or one that an authority vouches for.

        `fields` returns what OpenSSL reads in the certificate that it has verified, as `SSLObject.getpeercert` does:
        to read it with the library that makes certificates would take 33 ms of processor time.

        Raises PeerError if the peer is unknown here, or not the one that the user named.
        """
        if self.pinned is not None:
            name = self.pinned.get(certificate)
            if name is None:
                raise PeerError("its certificate is not pinned here", hint="pair the two hosts: statepipe pair")
            return name
        try:
            names = _names(fields() or {})
        except (ValueError, OSError) as error:  # OpenSSL accepted it, but its names are no text
            raise PeerError("its certificate cannot be read", hint="issue a new one: statepipe pki issue") from error
        if self.peer is not None and self.peer.lower() not in {name.lower() for name in names}:
            hint = "give one of the names in its certificate with --peer; list them with: statepipe pki show"
            raise PeerError(f"its certificate is for {', '.join(names) or 'nobody'}, not for {self.peer}", hint=hint)
        return names[0] if names else ""


def _names(fields: Mapping[str, Any]) -> list[str]:
    """Return the names in a certificate, each once, as ssl.SSLSocket.getpeercert gives it: the common name first. What
    is empty is no name. Raises OSError for an address that is none."""
    common = [value for row in fields.get("subject", ()) for kind, value in row if kind == "commonName"]
    others = [(kind, value) for kind, value in fields.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    alternative = [_shortest(value) if kind == "IP Address" else value for kind, value in others]
    return list(dict.fromkeys(filter(None, (*common[:1], *alternative))))


def _shortest(address: str) -> str:
    """Return an IP address as people write it: OpenSSL tells all digits of an IPv6 one. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_ntop(family, socket.inet_pton(family, address.strip()))


class Kept:
    """Trust according to the current files: call it for each handshake, from any thread.

    `load` reads the files, `files` returns their paths, whether they exist or not. The constructor raises what `load`
    raises; a later call raises PeerError while the files cannot be read.
    """

    def __init__(self, load: Callable[[], Trust], files: Callable[[], Iterable[str]]) -> None:
        self._load, self._files = load, files
        self._lock = threading.Lock()
        self._is_settled = False
        self._seen = self._look()
        self._trust = self._read()

    def __call__(self) -> Trust:
        """Return the current trust. Raises PeerError while the files cannot be read."""
        with self._lock:
            try:
                if (seen := self._look()) != self._seen or not self._is_settled:
                    self._seen = seen
                    self._trust = self._read()
            except InterruptedBySignal:  # it belongs to no peer
                raise
            except StatepipeError as error:
                self._is_settled = False
                raise PeerError(f"no peer is trusted at present: {error}", hint=error.hint) from error
            return self._trust

    def _read(self) -> Trust:
        """Load the files. Raises StatepipeError. A file that has just changed can change again without a new time."""
        self._is_settled = all(time.time_ns() - changed >= SETTLED for _, _, changed, _, _ in self._seen)
        return self._load()._replace(seen=self._seen)

    def _look(self) -> tuple[FileState, ...]:
        states: list[FileState] = []
        for path in self._files():
            try:
                it = os.stat(path)
            except OSError:
                states.append((path, 0, 0, 0, 0))
            else:
                states.append((path, it.st_ino, it.st_ctime_ns, it.st_mtime_ns, it.st_size))
        return tuple(states)


def by_folder(
    folder: str, *, server: bool, peer: str | None = None, tell: Tell = nobody, protocols: Sequence[str] = ()
) -> Kept:
    """Trust the authority of a tls-creds-x509 folder, except for certificates on its revocation list.

    With `peer`, trust only certificates with this name. A folder without a list is reported; a folder whose list has
    disappeared is no longer trusted. `protocols` is what ALPN offers (RFC 7301), the best first. Raises StatepipeError
    if a file is missing, or others can read a key.
    """
    end = "server" if server else "client"
    names = [f"{end}-cert.pem", f"{end}-key.pem", "ca-cert.pem", CRL]
    revocations = _Revocations(os.path.join(folder, CRL), tell)

    def load() -> Trust:
        context = _context(protocols, server=server)
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
    """The revocation list of a folder. It is optional, as in QEMU, and its absence is reported; but a list that has
    been seen must stay."""

    def __init__(self, path: str, tell: Tell) -> None:
        self._path, self._tell, self._was_there = path, tell, False

    def load(self, context: ssl.SSLContext) -> None:
        """Raises StatepipeError, OSError, ssl.SSLError."""
        if os.path.exists(self._path):
            context.load_verify_locations(self._path)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
            self._was_there = True
        elif self._was_there:
            hint = "put the list back, or restart statepipe to work without it"
            raise StatepipeError(f"the revocation list {self._path} has disappeared", hint=hint)
        else:
            self._tell(f"{self._path} does not exist: revoked certificates are trusted")
            self._tell = nobody


def by_pins(peer: str | None, *, server: bool, tell: Tell = nobody, protocols: Sequence[str] = ()) -> Kept:
    """Trust the peers pinned here, or only `peer` if it is given. Raises StatepipeError if no peer is pinned.

    A peer whose file cannot be read is reported and not trusted; the others are. `protocols` is what ALPN offers.
    """
    folder, pins = config_folder(), _Pins(peer, tell)
    pins.demand()  # first: without pinned peers, no key of our own is needed
    own_identity()

    def load() -> Trust:
        context = _context(protocols, server=server)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
        _load_own(context, folder, "own-cert.pem", "own-key.pem")
        return Trust(context, False, pins.load(context))

    return Kept(
        load, lambda: [os.path.join(folder, "own-cert.pem"), os.path.join(folder, "own-key.pem"), *pins.files()]
    )


class _Pins:
    """The pinned peers, or one of them. An unreadable file does not affect the other peers."""

    def __init__(self, peer: str | None, tell: Tell) -> None:
        self._peer, self._tell, self._told = peer, tell, set[str]()

    def files(self) -> list[str]:
        """Return the paths of the pins. Raises StatepipeError, and UsageError for an invalid peer name."""
        return pin_files() if self._peer is None else [pin_of(self._peer)]

    def demand(self) -> None:
        """Raises StatepipeError if no peer is pinned."""
        if any(map(os.path.exists, self.files())):
            return
        if self._peer is not None:
            hint = f"use: statepipe pair {self._peer}, or --tls-creds DIR"
            if others := [name_of(path) for path in pin_files()]:
                hint = f"if it is pinned under another name, give that with --peer NAME: {shown(others)}; else {hint}"
            raise PeerError(f"no peer is pinned here as '{self._peer}'", hint=hint)
        raise StatepipeError("no peer is pinned here", hint="use: statepipe pair, or --tls-creds DIR")

    def load(self, context: ssl.SSLContext) -> dict[bytes, str]:
        """Make the context trust the peers; return their names by certificate.

        An unreadable pin is reported. Raises StatepipeError if it is the pin of the only peer wanted, or if none can be
        read.
        """
        self.demand()
        known = {}
        for path in self.files():
            name = name_of(path)
            try:
                certificate = ssl.PEM_cert_to_DER_cert(read_pem(path))
                context.load_verify_locations(cadata=certificate)
                known[certificate] = name
            except (OSError, ValueError) as error:
                text = f"the pinned certificate of {name} cannot be read"
                if self._peer is not None:
                    hint = f"copy its certificate again, or remove it and pair again: statepipe pair --remove {name}"
                    raise StatepipeError(text, hint=hint) from error
                if name not in self._told:
                    self._told.add(name)
                    self._tell(f"{text}: this peer is not trusted")
        if not known:
            raise StatepipeError("no pinned certificate can be read", hint="pair again, or use --tls-creds DIR")
        return known


def _context(protocols: Sequence[str], *, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if protocols:
        context.set_alpn_protocols(protocols)
    if server:
        context.num_tickets = 0  # unread tickets would turn a client's close into a reset
    return context


def _load_own(context: ssl.SSLContext, folder: str, certificate: str, key: str) -> None:
    path = os.path.join(folder, key)
    try:
        refuse_open(path, os.stat(path))
        forbid_dumps()
        context.load_cert_chain(os.path.join(folder, certificate), path, lambda: "")
    except ssl.SSLError as error:
        raise StatepipeError(f"the key {path} does not belong to the certificate {certificate}") from error
    except OSError as error:
        raise failure(f"read {path} and {certificate}", error) from error


# --- our own key


def own_identity() -> str:
    """Return the folder with our own certificate and key; create them the first time. Raises StatepipeError."""
    folder = config_folder()
    certificate, key = (os.path.join(folder, name) for name in ("own-cert.pem", "own-key.pem"))
    if not os.path.exists(certificate):
        from statepipe.trust.certificates import make_self

        make_folder(folder)
        with alone(folder):  # two that make it at once would leave the key of one and the certificate of the other
            if not os.path.exists(certificate):
                own_certificate, own_key = make_self(os.uname().nodename)
                write_private(key, own_key)
                write_private(certificate, own_certificate)
    return folder


def own_certificate() -> str:
    """Return our own certificate in PEM, for peers to pin. Raises StatepipeError."""
    return read(os.path.join(own_identity(), "own-cert.pem"))
