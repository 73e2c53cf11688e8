"""Certificates: an authority, what it signs for hosts, and its list of what it revoked.

What is made here loads in QEMU (GnuTLS), libvirt and OpenSSL alike. QEMU's checks are the strictest and shape it
(crypto/tlscredsx509.c): an authority is one by its basicConstraints and may sign certificates and lists; a host's
certificate is none, and says for which end it is good. The extensions follow RFC 5280, 4.2.

Keys are P-256. Ed25519 loads in QEMU 7.2 as well, but not in FIPS mode, nor in some of the middle boxes and older
libraries that a certificate meets in its life; signing costs nothing either way next to the bytes of a guest.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
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
"""A certificate is good from a day before it was made: hosts' clocks differ, by 14 hours where one keeps local time for
UTC, and a new one is used at once."""

NAME_LIMIT = 64
"""Characters in a common name: RFC 5280, ub-common-name."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_DNS = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that may sign others, and its key."""

    certificate: x509.Certificate
    key: Key


@dataclass(frozen=True, slots=True)
class Facts:
    """What a certificate says. `serial` is in hexadecimal."""

    name: str
    names: tuple[str, ...]
    use: str
    serial: str
    begins: datetime
    ends: datetime


def new_key() -> Key:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def make_authority(name: str, now: datetime, days: int) -> Authority:
    """A self-signed authority that signs hosts only (no further authorities). Raises UsageError for a bad name."""
    key = new_key()
    public = key.public_key()
    usage = _usage(digital_signature=False, key_cert_sign=True, crl_sign=True)
    builder = _builder(_subject(name), _subject(name), now, now + timedelta(days=days)).public_key(public)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issue(authority: Authority, key: Key, names: Sequence[str], use: str, ends: datetime, now: datetime) -> bytes:
    """A certificate in PEM for a host of these names (DNS names or addresses; the first is its subject).

    It ends with its authority at the latest. Raises UsageError for a name that is none.

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
    """The authority's list in PEM: what stood on the older one, and these serials.

    It is good for as long as its authority. Lists are carried to hosts by hand, and GnuTLS and OpenSSL refuse every
    peer once one is overdue: a list with a date of its own would stop all migrations on a day nobody knows.
    """
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.certificate.subject)
    builder = builder.last_update(now - SKEW).next_update(authority.certificate.not_valid_after_utc)
    builder = builder.add_extension(x509.CRLNumber(_number(older) + 1), critical=False)
    builder = builder.add_extension(_issuer(authority), critical=False)
    for entry in older or ():
        builder = builder.add_revoked_certificate(entry)
    for serial in serials:
        row = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        builder = builder.add_revoked_certificate(row.build())
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _number(crl: x509.CertificateRevocationList | None) -> int:
    """A list's number, which grows with each."""
    return 0 if crl is None else crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def make_self(name: str) -> tuple[bytes, bytes]:
    """A certificate that vouches for its own key, and the key, in PEM: for peers who pin it.

    It does not end (RFC 5280, 4.1.2.5, has this date for that): a pin ends when it is taken away. A random part makes
    its subject the only one of its kind: what looks for an issuer by its subject finds this host's, and no clone's.
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
    """Of a PEM certificate's public key, for people to compare, as ssh writes it. Raises IntegrityError."""
    public = read_certificate(certificate, "the certificate").public_key()
    spki = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"SHA256:{b64encode(sha256(spki).digest()).decode().rstrip('=')}"


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def pem_key(key: Key) -> bytes:
    """A private key in PKCS #8 PEM, not encrypted: QEMU reads it without asking anyone."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


_UNREADABLE = (
    *(ValueError, UnsupportedAlgorithm),
    *(x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)
"""What cryptography says of a certificate, or of a field of it, that it cannot read."""


def read_certificate(data: bytes, place: str) -> x509.Certificate:
    """The first certificate of a PEM file. Raises IntegrityError naming `place`."""
    try:
        certificate = x509.load_pem_x509_certificate(data)
        facts(certificate)  # its fields are parsed only when asked for, and wrong ones raise
        certificate.public_key()  # and so is this
    except _UNREADABLE as error:
        raise IntegrityError(f"{place} is not a certificate in PEM") from error
    return certificate


def read_crl(data: bytes, issuer: x509.Certificate, place: str) -> x509.CertificateRevocationList:
    """A PEM list, if `issuer` signed it. Raises IntegrityError naming `place`."""
    try:
        crl = x509.load_pem_x509_crl(data)
        signed = crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]  # a key that cannot sign says no
    except (*_UNREADABLE, TypeError) as error:
        raise IntegrityError(f"{place} is not a revocation list in PEM") from error
    if not signed:
        raise IntegrityError(f"{place} was not signed by the authority beside it")
    return crl


def read_authority(certificate: bytes, key: bytes, place: str) -> Authority:
    """An authority from its two PEM files. Raises IntegrityError naming `place` where they are not a pair."""
    signing = read_certificate(certificate, f"{place}/ca-cert.pem")
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IntegrityError(f"{place}/ca-key.pem is not a private key in PEM without a password") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != signing.public_key():
        raise IntegrityError(f"{place}/ca-key.pem is not the key of {place}/ca-cert.pem")
    return Authority(signing, private)


def facts(certificate: x509.Certificate) -> Facts:
    """What a certificate says of itself; fields it lacks are empty."""
    common = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    names = _names(certificate)
    return Facts(
        (common or list(names) or [""])[0],
        names,
        _use(certificate),
        f"{certificate.serial_number:x}",
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return (*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress)))


def _use(certificate: x509.Certificate) -> str:
    try:
        if certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return "authority"
        usages = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return "any"
    return "+".join(name for name, usage in USES.items() if usage in usages) or "other"


def _builder(subject: x509.Name, issuer: x509.Name, now: datetime, ends: datetime) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - SKEW).not_valid_after(ends)


def _issuer(authority: Authority) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())


def _subject(name: str) -> x509.Name:
    if not 0 < len(name) <= NAME_LIMIT or not name.isprintable():
        raise UsageError(f"'{name}' cannot be a certificate's name", hint=f"1 to {NAME_LIMIT} printable characters")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not _DNS.fullmatch(name) or name.rpartition(".")[2].isdigit():
            raise UsageError(
                f"'{name}' is neither a host's name nor an address",
                hint="give what the other hosts call it: node1.example.org, 192.0.2.7, 2001:db8::7",
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
