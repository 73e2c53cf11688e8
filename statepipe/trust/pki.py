"""pki: a small certificate authority in a folder, and folders for hosts that QEMU itself can load.

The authority's folder holds `ca-cert.pem`, `ca-key.pem`, `ca-crl.pem` and a copy of each certificate it issued. A
host's folder is QEMU's tls-creds-x509 layout: `ca-cert.pem`, `ca-crl.pem`, and certificate and key for the server's
and the client's end. The authority's key is in no host's folder.

A folder is filled under another name and then renamed, so it exists whole or not at all, and never replaces a folder
that is not empty. Folders have mode 0700, files 0600.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509

from statepipe.ends.fd import failure, write_all
from statepipe.ends.file import FileSink, sync_folder
from statepipe.errors import IntegrityError, StatepipeError
from statepipe.private import read_private
from statepipe.trust.certificates import (
    Authority,
    facts,
    issue,
    make_authority,
    new_key,
    pem,
    pem_key,
    read_authority,
    read_certificate,
    read_crl,
    revoke,
)

CA_CERT, CA_KEY, CA_CRL = "ca-cert.pem", "ca-key.pem", "ca-crl.pem"
ISSUED = "issued"

CA_DAYS = 3650
"""Days that an authority is valid: ten years, the life of its hosts."""

HOST_DAYS = 397
"""Days that a host's certificate is valid: a year and a month to renew it (as the CA/Browser Forum had it)."""

FILE_LIMIT = 1 << 20
"""Bytes of a file at most: enough for a list of 20,000 revoked certificates."""


@dataclass(frozen=True, slots=True)
class Row:
    """A certificate and its state: valid, expired, not yet valid, or revoked. `file` is its path."""

    file: str
    name: str
    names: tuple[str, ...]
    use: str
    serial: str
    begins: datetime
    ends: datetime
    state: str


def init(folder: str, name: str | None, days: int | None) -> Row:
    """Create an authority in a new folder. Raises StatepipeError if the folder is in use, and UsageError."""
    now = datetime.now(UTC)
    authority = make_authority(name or f"statepipe CA {secrets.token_hex(4)}", now, days or CA_DAYS)
    files = {
        CA_CERT: pem(authority.certificate),
        CA_KEY: pem_key(authority.key),
        CA_CRL: revoke(authority, None, (), now),
    }
    _make_folder(folder, files, (ISSUED,))
    return _row(os.path.join(folder, CA_CERT), authority.certificate, None, now)


def issue_folder(ca: str, names: Sequence[str], folder: str, uses: Sequence[str], days: int | None) -> list[Row]:
    """Create a host's folder, with a certificate for each use. Raises StatepipeError, UsageError for a bad name."""
    _refuse_taken(folder)  # before a certificate is signed for it
    now = datetime.now(UTC)
    with _open_authority(ca) as authority:
        _refuse_expired(authority, ca, now)
        files = {CA_CERT: pem(authority.certificate), CA_CRL: _read(ca, CA_CRL)}
        for use in uses:
            key = new_key()
            files[f"{use}-key.pem"] = pem_key(key)
            files[f"{use}-cert.pem"] = issue(authority, key, names, use, now + timedelta(days=days or HOST_DAYS), now)
        _record(ca, [files[f"{use}-cert.pem"] for use in uses])
        _make_folder(folder, files)
    made = [(name, read_certificate(files[name], name)) for name in files if name.endswith("-cert.pem")]
    return [_row(os.path.join(folder, name), made_one, None, now) for name, made_one in made if name != CA_CERT]


def revoke_certificates(ca: str, wanted: Sequence[str], folder: str | None) -> list[Row]:
    """Add the certificates with these names or serials to the revocation list; copy it to a host's folder if given.

    Raises StatepipeError for a name without a certificate, before anything is revoked.
    """
    now = datetime.now(UTC)
    with _open_authority(ca) as authority:
        older = read_crl(_read(ca, CA_CRL), authority.certificate, os.path.join(ca, CA_CRL))
        chosen = {row.serial: row for word in wanted for row in _matching(ca, word, older, now)}
        fresh = [int(serial, 16) for serial, row in chosen.items() if row.state != "revoked"]
        newer = revoke(authority, older, fresh, now)
        _replace(os.path.join(ca, CA_CRL), newer)
        if folder is not None:
            _give_list(folder, newer, authority)
    return [replace(row, state="revoked") for row in chosen.values()]


def _give_list(folder: str, crl: bytes, authority: Authority) -> None:
    """Write the list to a host's folder. Raises StatepipeError if the folder belongs to another authority."""
    theirs = read_certificate(_read(folder, CA_CERT), os.path.join(folder, CA_CERT))
    if theirs != authority.certificate:
        raise StatepipeError(f"{folder} belongs to another authority; its revocation list was not changed")
    _replace(os.path.join(folder, CA_CRL), crl)


def show(folder: str) -> list[Row]:
    """Return every certificate in an authority's or a host's folder, the authority's first. Raises StatepipeError."""
    now = datetime.now(UTC)
    certificate = read_certificate(_read(folder, CA_CERT), os.path.join(folder, CA_CERT))
    crl = None
    if os.path.exists(os.path.join(folder, CA_CRL)):
        crl = read_crl(_read(folder, CA_CRL), certificate, os.path.join(folder, CA_CRL))
    return [_row(os.path.join(folder, CA_CERT), certificate, None, now), *_rows(folder, crl, now)]


def as_json(row: Row) -> dict[str, Any]:
    """Return a row for JSON; times are in ISO 8601, UTC."""
    return {
        "file": row.file,
        "name": row.name,
        "names": list(row.names),
        "use": row.use,
        "serial": row.serial,
        "not_before": row.begins.isoformat(),
        "not_after": row.ends.isoformat(),
        "state": row.state,
    }


def _matching(ca: str, word: str, crl: x509.CertificateRevocationList, now: datetime) -> list[Row]:
    found = [row for row in _rows(ca, crl, now) if word.lower() in (row.serial, row.name.lower(), *row.names)]
    if not found:
        raise StatepipeError(f"no certificate was issued for '{word}'", hint="list them with: statepipe pki show")
    return found


def _rows(folder: str, crl: x509.CertificateRevocationList | None, now: datetime) -> list[Row]:
    """Return the hosts' certificates in an authority's folder, or those in a host's folder."""
    issued = os.path.join(folder, ISSUED)
    places = sorted(os.listdir(issued)) if os.path.isdir(issued) else ["server-cert.pem", "client-cert.pem"]
    base = issued if os.path.isdir(issued) else folder
    present = [name for name in places if name.endswith(".pem") and os.path.exists(os.path.join(base, name))]
    rows = [_row(os.path.join(base, name), read_certificate(_read(base, name), name), crl, now) for name in present]
    return sorted(rows, key=lambda row: (row.name, row.use, row.begins))


def _row(file: str, certificate: x509.Certificate, crl: x509.CertificateRevocationList | None, now: datetime) -> Row:
    it = facts(certificate)
    state = "valid"
    if crl is not None and crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        state = "revoked"
    elif now > it.ends:
        state = "expired"
    elif now < it.begins:
        state = "not yet valid"
    return Row(file, it.name, it.names, it.use, it.serial, it.begins, it.ends, state)


def _refuse_expired(authority: Authority, ca: str, now: datetime) -> None:
    if now > authority.certificate.not_valid_after_utc:
        raise IntegrityError(f"the authority in {ca} has expired", hint="make a new one: statepipe pki init")


def _record(ca: str, certificates: Sequence[bytes]) -> None:
    """Keep a copy of each certificate, before the host receives it: an unknown certificate could not be revoked."""
    for data in certificates:
        serial = read_certificate(data, "the new certificate").serial_number
        _replace(os.path.join(ca, ISSUED, f"{serial:x}.pem"), data)


# --- files and folders


@contextmanager
def _open_authority(ca: str) -> Iterator[Authority]:
    """Yield the authority under a lock: two lists written at once would lose the entries of one."""
    try:
        lock = os.open(ca, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _no_authority(ca, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield read_authority(_read(ca, CA_CERT), _read(ca, CA_KEY, read_private), ca)
    finally:
        os.close(lock)


def _no_authority(ca: str, error: OSError) -> StatepipeError:
    return StatepipeError(
        f"cannot read an authority in {ca}: {os.strerror(error.errno or 0)}",
        hint="make one with 'statepipe pki init', or name its folder with --ca DIR",
    )


def _public(path: str, limit: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(limit + 1)


def _read(folder: str, name: str, read: Callable[[str, int], bytes] = _public) -> bytes:
    path = os.path.join(folder, name)
    try:
        data = read(path, FILE_LIMIT)
    except OSError as error:
        raise failure(f"read {path}", error) from error
    if len(data) > FILE_LIMIT:
        raise IntegrityError(f"{path} is too large for such a file")
    return data


def _refuse_taken(folder: str) -> None:
    """Raise StatepipeError unless the folder does not exist or is empty."""
    if os.path.lexists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
        raise StatepipeError(f"{folder} exists already", hint="name another folder, or remove it")


def _replace(path: str, data: bytes) -> None:
    with FileSink(path) as sink:
        sink.write(data)
        sink.commit()


def _make_folder(folder: str, files: Mapping[str, bytes], folders: Sequence[str] = ()) -> None:
    """Create a folder with these files in one step. Raises StatepipeError if it exists and is not empty."""
    _refuse_taken(folder)
    target = os.path.abspath(folder)
    part = f"{target}.{secrets.token_hex(6)}.part"
    try:
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        os.mkdir(part, 0o700)
        try:
            _fill(part, files, folders)
            os.rename(part, target)  # replaces an empty folder; fails for a file or a folder that is not empty
        except BaseException:
            with suppress(OSError):  # the first failure is the one to report
                shutil.rmtree(part)
            raise
        sync_folder(os.path.dirname(target))
    except OSError as error:
        _refuse_taken(folder)
        raise failure(f"make {folder}", error) from error


def _fill(part: str, files: Mapping[str, bytes], folders: Sequence[str]) -> None:
    for name in folders:
        os.mkdir(os.path.join(part, name), 0o700)
    for name, data in files.items():
        fd = os.open(os.path.join(part, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
    sync_folder(part)
