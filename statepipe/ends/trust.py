"""Whom we believe: a folder of certificates as QEMU has it, or a key of our own and the peers pinned to theirs.

A pinned peer's certificate is its own signature under its own key, kept here as `peers/NAME.pem`; it is the only one
that a connection to NAME believes, as with ssh's known hosts, and any of them may come in, as with authorized keys.
Either way OpenSSL itself refuses the others, inside the handshake. There is no way to turn that off.
"""

from __future__ import annotations

import os
import re
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from statepipe.ends.config import config_folder
from statepipe.ends.fd import failure
from statepipe.ends.file import FileSink
from statepipe.errors import IntegrityError, PeerError, StatepipeError, UsageError

PEM_LIMIT = 64 << 10
"""Bytes of a pinned certificate's file."""

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.:-]{0,126}[A-Za-z0-9_])?")


@dataclass(frozen=True, slots=True)
class Trust:
    """A context for one end, and what tells who a peer is from its certificate in DER: None for nobody we know."""

    context: ssl.SSLContext
    check_host: bool
    pinned: Mapping[bytes, str] | None = None

    def identify(self, certificate: bytes) -> str:
        """The peer's name. Raises PeerError if it has none here."""
        if self.pinned is None:
            return _subject(certificate)
        name = self.pinned.get(certificate)
        if name is None:
            raise PeerError("its certificate is not one of those pinned here", hint="statepipe pair")
        return name


def by_folder(folder: str, *, server: bool) -> Trust:
    """Trust in the authority of a tls-creds-x509 folder, and its list of revocations if there is one.

    Raises StatepipeError where a file is missing, or a key is not its owner's alone.
    """
    end = "server" if server else "client"
    context = _context(server=server)
    _load_own(context, folder, f"{end}-cert.pem", f"{end}-key.pem")
    crl = os.path.join(folder, "ca-crl.pem")
    try:
        context.load_verify_locations(os.path.join(folder, "ca-cert.pem"))
        if os.path.exists(crl):
            context.load_verify_locations(crl)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    except ssl.SSLError as error:
        raise StatepipeError(f"the certificates in {folder} cannot be read: {error.reason}") from error
    except OSError as error:
        raise failure(f"read the certificates in {folder}", error) from error
    context.check_hostname = not server
    return Trust(context, not server)


def by_pins(peer: str | None, *, server: bool) -> Trust:
    """Trust in the peers pinned here; only in `peer`, if one is named. Raises StatepipeError where there is none."""
    known = pinned() if peer is None else {check_name(peer): _read_pin(peer)}
    if not known:
        raise StatepipeError("no peer is pinned here", hint="statepipe pair, or --tls-creds DIR")
    context = _context(server=server)
    folder = own_identity()
    _load_own(context, folder, "own-cert.pem", "own-key.pem")
    certificates = {}
    for name, text in known.items():
        try:
            context.load_verify_locations(cadata=text)
            certificates[ssl.PEM_cert_to_DER_cert(text)] = name
        except (ssl.SSLError, ValueError) as error:
            raise StatepipeError(f"the pinned certificate of {name} cannot be read") from error
    return Trust(context, False, certificates)


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
        mode = os.stat(path).st_mode
        if stat.S_IMODE(mode) & 0o077:
            raise StatepipeError(f"{path} can be read by others", hint=f"chmod 600 {path}")
        context.load_cert_chain(os.path.join(folder, certificate), path, lambda: "")
    except ssl.SSLError as error:
        raise StatepipeError(f"{path} and {certificate} are no pair of certificate and key") from error
    except OSError as error:
        raise failure(f"read {path} and {certificate}", error) from error


def _subject(certificate: bytes) -> str:
    """Raises PeerError for one that OpenSSL has taken, and whose fields are not what RFC 5280 says."""
    from statepipe.formats.certificates import facts, read_certificate

    try:
        return facts(read_certificate(ssl.DER_cert_to_PEM_cert(certificate).encode(), "the peer's certificate")).name
    except IntegrityError as error:
        raise PeerError("its certificate cannot be read", hint="issue it another: statepipe pki issue") from error


# --- our own key, and the pins


def own_identity() -> str:
    """The folder with our own certificate and key, made the first time. Raises StatepipeError."""
    folder = config_folder()
    certificate, key = (os.path.join(folder, name) for name in ("own-cert.pem", "own-key.pem"))
    if not os.path.exists(certificate):
        from statepipe.formats.certificates import make_self

        _make_folder(folder)
        own_certificate, own_key = make_self(os.uname().nodename)
        write_private(key, own_key)
        write_private(certificate, own_certificate)
    return folder


def own_certificate() -> str:
    """Our own certificate in PEM, for peers to pin. Raises StatepipeError."""
    return _read(os.path.join(own_identity(), "own-cert.pem"))


def pinned() -> dict[str, str]:
    """The pinned peers: their names and certificates in PEM. Raises StatepipeError."""
    folder = os.path.join(config_folder(), "peers")
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise failure(f"read {folder}", error) from error
    return {name[:-4]: _read(os.path.join(folder, name)) for name in names if name.endswith(".pem") and name[0] != "."}


def pin(name: str, certificate: str) -> None:
    """Pin a peer's certificate under a name. Raises UsageError, and StatepipeError where another's is pinned so."""
    path = os.path.join(config_folder(), "peers", f"{check_name(name)}.pem")
    if os.path.exists(path) and _read(path) != certificate:
        hint = f"if its key has changed indeed, remove {path} and pair again; else give another name with --name"
        raise StatepipeError(f"another key is pinned here as '{check_name(name)}'", hint=hint)
    _make_folder(os.path.dirname(path))
    write_private(path, certificate.encode())


def check_name(name: str) -> str:
    """The name, if it can be a peer's (it names a file). Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot be a peer's name", hint="letters, digits, '.', ':', '_' and '-'")
    return name.lower()


def _read_pin(peer: str) -> str:
    path = os.path.join(config_folder(), "peers", f"{check_name(peer)}.pem")
    if not os.path.exists(path):
        raise PeerError(f"no peer is pinned here as '{peer}'", hint=f"statepipe pair {peer}, or --tls-creds DIR")
    return _read(path)


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(PEM_LIMIT).decode("ascii", "replace")
    except OSError as error:
        raise failure(f"read {path}", error) from error


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise failure(f"make {folder}", error) from error


def write_private(path: str, data: bytes) -> None:
    """A file for its owner's eyes only, there whole or not at all. Raises StatepipeError."""
    with FileSink(path) as sink:
        sink.write(data)
        sink.commit()
