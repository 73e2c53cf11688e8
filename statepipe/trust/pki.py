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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cryptography import x509

from statepipe.ends.fd import failure, write_all
from statepipe.ends.file import sync_folder, write_private
from statepipe.errors import IntegrityError, StatepipeError
from statepipe.private import read_private
from statepipe.trust.certificates import (
    Authority,
    CertificateFields,
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
from statepipe.typed import Any

CA_CERT, CA_KEY, CA_CRL = "ca-cert.pem", "ca-key.pem", "ca-crl.pem"
ISSUED = "issued"

CA_DAYS = 3650
"""Days that an authority is valid: ten years, the life of its hosts."""

HOST_DAYS = 397
"""Days that a host's certificate is valid: a year and a month to renew it (as the CA/Browser Forum had it)."""

FILE_LIMIT = 1 << 20
"""Bytes of a file at most: enough for a list of 20,000 revoked certificates."""


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """A certificate in a file, and its state: valid, expired, not yet valid, or revoked."""

    file: str
    facts: CertificateFields
    state: str


def init(folder: str, name: str | None, days: int | None) -> CertificateStatus:
    """Create an authority in a new folder. Raises StatepipeError if the folder is in use, and UsageError."""
    now = datetime.now(UTC)
    authority = make_authority(name or f"statepipe CA {secrets.token_hex(4)}", now, days or CA_DAYS)
    files = {
        CA_CERT: pem(authority.certificate),
        CA_KEY: pem_key(authority.key),
        CA_CRL: revoke(authority, None, (), now),
    }
    _make_folder(folder, files, (ISSUED,))
    return _status_of(os.path.join(folder, CA_CERT), authority.certificate, None, now)


def issue_folder(
    ca: str, names: Sequence[str], folder: str, uses: Sequence[str], days: int | None
) -> list[CertificateStatus]:
    """Create a host's folder, with a certificate for each use. Raises StatepipeError, UsageError for a bad name."""
    _refuse_taken(folder)  # before a certificate is signed for it
    now = datetime.now(UTC)
    with _open_authority(ca) as authority:
        if now > authority.certificate.not_valid_after_utc:
            raise IntegrityError(f"the authority in {ca} has expired", hint="make a new one: statepipe pki init")
        files = {CA_CERT: pem(authority.certificate), CA_CRL: _read(ca, CA_CRL)}
        for use in uses:
            key = new_key()
            files[f"{use}-key.pem"] = pem_key(key)
            files[f"{use}-cert.pem"] = issue(authority, key, names, use, now + timedelta(days=days or HOST_DAYS), now)
        made = {f"{use}-cert.pem": read_certificate(files[f"{use}-cert.pem"], "the new certificate") for use in uses}
        for name, certificate in made.items():  # before the host gets it: an unknown certificate could not be revoked
            write_private(os.path.join(ca, ISSUED, f"{certificate.serial_number:x}.pem"), files[name])
        _make_folder(folder, files)
    return [_status_of(os.path.join(folder, name), certificate, None, now) for name, certificate in made.items()]


def revoke_certificates(ca: str, wanted: Sequence[str], folder: str | None) -> list[CertificateStatus]:
    """Add the certificates with these names or serials to the revocation list; copy it to a host's folder if given.

    Raises StatepipeError for a name without a certificate, before anything is revoked, and for a folder that belongs to
    another authority.
    """
    now = datetime.now(UTC)
    with _open_authority(ca) as authority:
        older = read_crl(_read(ca, CA_CRL), authority.certificate, os.path.join(ca, CA_CRL))
        issued = _statuses(ca, older, now)
        chosen: dict[str, CertificateStatus] = {}
        for word in wanted:
            asked = word.lower()
            found = [row for row in issued if asked in (row.facts.serial, row.facts.name.lower(), *row.facts.names)]
            if not found:
                hint = "list them with: statepipe pki show"
                raise StatepipeError(f"no certificate was issued for '{word}'", hint=hint)
            chosen |= {row.facts.serial: row for row in found}
        fresh = [int(serial, 16) for serial, row in chosen.items() if row.state != "revoked"]
        newer = revoke(authority, older, fresh, now)
        write_private(os.path.join(ca, CA_CRL), newer)
        if folder is not None:
            theirs = read_certificate(_read(folder, CA_CERT), os.path.join(folder, CA_CERT))
            if theirs != authority.certificate:
                raise StatepipeError(f"{folder} belongs to another authority; its revocation list was not changed")
            write_private(os.path.join(folder, CA_CRL), newer)
    return [replace(row, state="revoked") for row in chosen.values()]


def show(folder: str) -> list[CertificateStatus]:
    """Return every certificate in an authority's or a host's folder, the authority's first. Raises StatepipeError."""
    now = datetime.now(UTC)
    certificate = read_certificate(_read(folder, CA_CERT), os.path.join(folder, CA_CERT))
    crl = None
    if os.path.exists(os.path.join(folder, CA_CRL)):
        crl = read_crl(_read(folder, CA_CRL), certificate, os.path.join(folder, CA_CRL))
    return [_status_of(os.path.join(folder, CA_CERT), certificate, None, now), *_statuses(folder, crl, now)]


def as_json(row: CertificateStatus) -> dict[str, Any]:
    """Return a row for JSON; times are in ISO 8601, UTC."""
    it = row.facts
    times = {"not_before": it.begins.isoformat(), "not_after": it.ends.isoformat()}
    known = {"name": it.name, "names": list(it.names), "use": it.use, "serial": it.serial}
    return {"file": row.file, **known, **times, "state": row.state}


def _statuses(folder: str, crl: x509.CertificateRevocationList | None, now: datetime) -> list[CertificateStatus]:
    """Return the hosts' certificates in an authority's folder, or those in a host's folder."""
    issued = os.path.join(folder, ISSUED)
    places = sorted(os.listdir(issued)) if os.path.isdir(issued) else ["server-cert.pem", "client-cert.pem"]
    base = issued if os.path.isdir(issued) else folder
    present = [name for name in places if name.endswith(".pem") and os.path.exists(os.path.join(base, name))]
    rows = [
        _status_of(os.path.join(base, name), read_certificate(_read(base, name), name), crl, now) for name in present
    ]
    return sorted(rows, key=lambda row: (row.facts.name, row.facts.use, row.facts.begins))


def _status_of(
    file: str, certificate: x509.Certificate, crl: x509.CertificateRevocationList | None, now: datetime
) -> CertificateStatus:
    it = facts(certificate)
    state = "valid"
    if crl is not None and crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        state = "revoked"
    elif now > it.ends:
        state = "expired"
    elif now < it.begins:
        state = "not yet valid"
    return CertificateStatus(file, it, state)


# --- files and folders


@contextmanager
def _open_authority(ca: str) -> Iterator[Authority]:
    """Yield the authority under a lock: two lists written at once would lose the entries of one."""
    try:
        lock = os.open(ca, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        what = f"cannot read an authority in {ca}: {os.strerror(error.errno or 0)}"
        hint = "make one with 'statepipe pki init', or name its folder with --ca DIR"
        raise StatepipeError(what, hint=hint) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield read_authority(_read(ca, CA_CERT), _read(ca, CA_KEY, secret=True), ca)
    finally:
        os.close(lock)


def _read(folder: str, name: str, *, secret: bool = False) -> bytes:
    path = os.path.join(folder, name)
    try:
        data = read_private(path, FILE_LIMIT, lambda data: secret)
    except OSError as error:
        raise failure(f"read {path}", error) from error
    if len(data) > FILE_LIMIT:
        raise IntegrityError(f"{path} is too large for such a file")
    return data


def _refuse_taken(folder: str) -> None:
    """Raise StatepipeError unless the folder does not exist or is empty."""
    if os.path.lexists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
        raise StatepipeError(f"{folder} exists already", hint="name another folder, or remove it")


def _make_folder(folder: str, files: Mapping[str, bytes], folders: Sequence[str] = ()) -> None:
    """Create a folder with these files in one step. Raises StatepipeError if it exists and is not empty."""
    _refuse_taken(folder)
    target = os.path.abspath(folder)
    part = f"{target}.{secrets.token_hex(6)}.part"
    try:
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        os.mkdir(part, 0o700)
        try:
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
            os.rename(part, target)  # replaces an empty folder; fails for a file or a folder that is not empty
        except BaseException:
            with suppress(OSError):  # the first failure is the one to report
                shutil.rmtree(part)
            raise
        sync_folder(os.path.dirname(target))
    except OSError as error:
        _refuse_taken(folder)
        raise failure(f"make {folder}", error) from error
