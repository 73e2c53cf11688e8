"""Certificates: an authority, the certificates that it signs for hosts, and its revocation list.

QEMU (GnuTLS), libvirt and OpenSSL all load these certificates. QEMU's checks are the strictest and determine the form
(crypto/tlscredsx509.c): basicConstraints marks an authority, which may sign certificates and lists; a host's
certificate is not an authority and says which end it is for. The extensions follow RFC 5280, 4.2.

Keys are P-256. QEMU 7.2 loads Ed25519 too, but not in FIPS mode, and some older libraries and middleboxes do not.
The cost of signing does not matter compared with the transfer of a guest.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from statepipe.errors import IntegrityError, UsageError

Key = ec.EllipticCurvePrivateKey

SERVER = "server"
CLIENT = "client"
USES = {SERVER: ExtendedKeyUsageOID.SERVER_AUTH, CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH}

SKEW = timedelta(days=1)
"""A certificate is valid from a day before it was made, because it is used at once and hosts' clocks differ: by up to
14 hours if one takes local time for UTC."""

NAME_LIMIT = 64
"""Characters in a common name: RFC 5280, ub-common-name."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_DNS = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that can sign others, and its key."""

    certificate: x509.Certificate
    key: Key


@dataclass(frozen=True, slots=True)
class CertificateFields:
    """The fields of a certificate. `serial` is in hexadecimal."""

    name: str
    names: tuple[str, ...]
    use: str
    serial: str
    begins: datetime
    ends: datetime


def new_key() -> Key:
    """Return a new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def make_authority(name: str, now: datetime, days: int) -> Authority:
    """Return a self-signed authority that signs only hosts, not other authorities. Raises UsageError for a bad name."""
    key = new_key()
    public = key.public_key()
    usage = _usage(digital_signature=False, key_cert_sign=True, crl_sign=True)
    builder = _builder(_subject(name), _subject(name), now, now + timedelta(days=days)).public_key(public)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issue(authority: Authority, key: Key, names: Sequence[str], use: str, ends: datetime, now: datetime) -> bytes:
    """Return a certificate in PEM for a host with these names (DNS names or addresses; the first is its subject).

    It expires no later than its authority. Raises UsageError for an invalid name.

    keyUsage is not critical: older QEMUs refuse a critical one without keyEncipherment, which RFC 8813 forbids for
    such keys.
    """
    ends = min(ends, authority.certificate.not_valid_after_utc)
    public = key.public_key()
    builder = _builder(_subject(names[0]), authority.certificate.subject, now, ends).public_key(public)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(digital_signature=True), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([USES[use]]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    builder = builder.add_extension(_issuer(authority), critical=False)
    return pem(builder.sign(authority.key, hashes.SHA256()))


def revoke(
    authority: Authority, older: x509.CertificateRevocationList | None, serials: Iterable[int], now: datetime
) -> bytes:
    """Return the authority's revocation list in PEM: the entries of the previous list, and these serials.

    It is valid as long as its authority. Lists are copied to hosts by hand, and GnuTLS and OpenSSL refuse every peer
    after a list has expired: a list with an earlier date would stop all migrations without warning.
    """
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.certificate.subject)
    builder = builder.last_update(now - SKEW).next_update(authority.certificate.not_valid_after_utc)
    number = 0 if older is None else older.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    builder = builder.add_extension(x509.CRLNumber(number + 1), critical=False)
    builder = builder.add_extension(_issuer(authority), critical=False)
    for entry in older or ():
        builder = builder.add_revoked_certificate(entry)
    for serial in serials:
        row = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        builder = builder.add_revoked_certificate(row.build())
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def make_self(name: str) -> tuple[bytes, bytes]:
    """Return a self-signed certificate and its key, in PEM, for peers to pin.

    It does not expire (RFC 5280, 4.1.2.5, reserves this date for that): a pin is valid until it is removed. A random
    part makes its subject unique, so that a search for an issuer by subject finds this host's certificate and not
    that of a clone.
    """
    key = new_key()
    unique = x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{x509.random_serial_number():040x}")
    subject = x509.Name([*_subject(name[:NAME_LIMIT]), unique])
    builder = _builder(subject, subject, datetime.now(UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
    builder = builder.public_key(key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(list(USES.values())), critical=False)
    return pem(builder.sign(key, hashes.SHA256())), pem_key(key)


def fingerprint(certificate: bytes) -> str:
    """Return the fingerprint of a PEM certificate's public key, in ssh's notation. Raises IntegrityError."""
    public = read_certificate(certificate, "the certificate").public_key()
    spki = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"SHA256:{b64encode(sha256(spki).digest()).decode().rstrip('=')}"


def pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def pem_key(key: Key) -> bytes:
    """Return a private key in PKCS #8 PEM, not encrypted, so that QEMU can read it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


_UNREADABLE = (
    *(ValueError, UnsupportedAlgorithm),
    *(x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)
"""The exceptions that cryptography raises for a certificate, or a field of one, that it cannot read."""


def read_certificate(data: bytes, place: str) -> x509.Certificate:
    """Return the first certificate of a PEM file. Raises IntegrityError that names `place`."""
    try:
        certificate = x509.load_pem_x509_certificate(data)
        facts(certificate)  # fields are parsed only on access, and invalid ones raise
        certificate.public_key()  # the same
    except _UNREADABLE as error:
        raise IntegrityError(f"{place} is not a certificate in PEM") from error
    return certificate


def read_crl(data: bytes, issuer: x509.Certificate, place: str) -> x509.CertificateRevocationList:
    """Return a PEM list that `issuer` signed. Raises IntegrityError that names `place`."""
    try:
        crl = x509.load_pem_x509_crl(data)
        signed = crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]  # a key that cannot sign returns False
    except (*_UNREADABLE, TypeError) as error:
        raise IntegrityError(f"{place} is not a revocation list in PEM") from error
    if not signed:
        raise IntegrityError(f"{place} was not signed by the authority in the same folder")
    return crl


def read_authority(certificate: bytes, key: bytes, place: str) -> Authority:
    """Return an authority from its two PEM files. Raises IntegrityError that names `place` unless they match."""
    signing = read_certificate(certificate, f"{place}/ca-cert.pem")
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IntegrityError(f"{place}/ca-key.pem is not a private key in PEM without a password") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != signing.public_key():
        raise IntegrityError(f"{place}/ca-key.pem is not the key of {place}/ca-cert.pem")
    return Authority(signing, private)


def facts(certificate: x509.Certificate) -> CertificateFields:
    """Return the fields of a certificate; missing ones are empty."""
    common = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    names: tuple[str, ...] = ()
    with suppress(x509.ExtensionNotFound):
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = (*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress)))
    use = "any"
    with suppress(x509.ExtensionNotFound):
        if certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            use = "authority"
        else:
            usages = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
            use = "+".join(name for name, usage in USES.items() if usage in usages) or "other"
    return CertificateFields(
        (common or list(names) or [""])[0],
        names,
        use,
        f"{certificate.serial_number:x}",
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def _builder(subject: x509.Name, issuer: x509.Name, now: datetime, ends: datetime) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - SKEW).not_valid_after(ends)


def _issuer(authority: Authority) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())


def _subject(name: str) -> x509.Name:
    if not 0 < len(name) <= NAME_LIMIT or not name.isprintable():
        raise UsageError(f"'{name}' cannot be a certificate's name", hint=f"use 1 to {NAME_LIMIT} printable characters")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not _DNS.fullmatch(name) or name.rpartition(".")[2].isdigit():
            raise UsageError(
                f"'{name}' is neither a host name nor an address",
                hint="give the name that other hosts use for it: node1.example.org, 192.0.2.7, 2001:db8::7",
            ) from None
        return x509.DNSName(name.lower())


def _usage(*, digital_signature: bool, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
