"""The parts of OpenPGP that we need: whether this is a message, and what GnuPG reports about it.

Packets begin with an octet whose top bit is set (RFC 9580, 4.2); an encrypted message begins with a packet that
holds its session key, or its data. The status lines are those of GnuPG's doc/DETAILS: `[GNUPG:] KEYWORD ARGUMENTS`.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import dropwhile

from statepipe.errors import IntegrityError, NoKeyError, StatepipeError, UsageError
from statepipe.shapes import told

PREFIX = "gpg:"
"""The prefix that distinguishes an OpenPGP recipient from one of age."""

BEGIN = b"-----BEGIN PGP "

HEAD = 4096
"""Bytes within which the headers of armor must end. GnuPG writes one or two comments at most."""

LINES = 2000
"""Status lines that are kept. A message for 500 recipients causes about 1500."""

LINE = 4096
"""Bytes of a status line."""

ENCRYPTED = {1, 3, 9, 18, 20}
"""Tags of the packets that an encrypted message begins with: session keys by public key and by passphrase; data
without, with, and with GnuPG's authentication."""

MARKER = 10
"""The tag of a packet without meaning, which may come first (RFC 9580, 5.8)."""

LITERAL = 11
"""The tag of the packet that holds the data (RFC 9580, 5.9)."""

TAGS = ENCRYPTED | {2, 4, 8, MARKER, LITERAL}
"""Tags that any message can begin with: those above, signature, one-pass signature, compressed, marker, literal."""


def is_told(head: bytes) -> bool:
    """Return whether `head` is long enough to decide whether the stream is OpenPGP and which packet comes first."""
    text = head.lstrip()
    if not text or (len(text) < len(BEGIN) and BEGIN.startswith(text)):
        return len(head) > HEAD
    return not text.startswith(BEGIN) or first_tag(head) is not None or len(head) > HEAD


def looks_like_openpgp(head: bytes) -> bool:
    """Whether a stream that begins with `head` is OpenPGP, binary or armored."""
    return head.lstrip().startswith(BEGIN) or first_tag(head) in TAGS


def looks_encrypted(head: bytes) -> bool:
    """Whether OpenPGP that begins with `head` may be an encrypted message."""
    return first_tag(head) in ENCRYPTED | {MARKER}


def first_tag(head: bytes) -> int | None:
    """Return the tag of the first packet, in either form of header; None if `head` does not begin with a packet."""
    if head.lstrip().startswith(BEGIN):  # in armor, the packets follow the headers and an empty line
        lines = dropwhile(bytes.strip, head.lstrip().split(b"\n")[1:])
        next(lines, b"")
        letters = next(lines, b"").strip()[:4]
        try:
            head = binascii.a2b_base64(letters) if len(letters) == 4 else b""
        except binascii.Error:
            return None
    if not head or not head[0] & 0x80:
        return None
    return head[0] & 0x3F if head[0] & 0x40 else head[0] >> 2 & 0x0F


def literal(packet: bytes) -> tuple[bytes, bytes] | None:
    """Return the format letter and the data of a literal packet of known length; None for anything else."""
    if first_tag(packet) != LITERAL:
        return None
    if packet[0] & 0x40:
        first = packet[1] if len(packet) > 1 else 0
        octets = 1 if first < 192 else 2 if first < 224 else 5 if first == 255 else 0
    else:
        octets = (1, 2, 4, 0)[packet[0] & 3]
    body = packet[1 + octets :]
    length = body[1] if len(body) > 1 else 0
    return (body[:1], body[2 + length + 4 :]) if octets and len(body) >= 2 + length + 4 else None


_NUMBER = "[0-9]{1,10}"
_KEY = "[0-9A-Fa-f]{1,64}"

ARGUMENTS: Mapping[str, Sequence[str]] = {
    "INV_RECP": (_NUMBER,),
    "INV_SGNR": (_NUMBER,),
    "ERROR": ("[^ ]+", "[^ ]+"),
    "FAILURE": ("[^ ]+", "[^ ]+"),
    "ENC_TO": (_KEY,),
    "ERRSIG": (_KEY,),
    "BADSIG": (_KEY,),
    "VALIDSIG": (_KEY,),
    "GOODSIG": (_KEY,),
    "BEGIN_ENCRYPTION": (_NUMBER, _NUMBER),
    "DECRYPTION_INFO": (_NUMBER, _NUMBER),
    "PLAINTEXT": ("[0-9A-Fa-f]{2}",),
}
"""The arguments that the lines we read begin with, one pattern each (doc/DETAILS)."""


class Status:
    """The lines that gpg writes to its status descriptor, as they arrive.

    `odd` is the first line that doc/DETAILS does not describe, or the first above a limit. With such a line, none of
    the lines count: the one that was not understood may have reported a failure.
    """

    def __init__(self) -> None:
        self.lines: list[list[str]] = []
        self.odd: str | None = None
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[: LINE + 1]
        for line in whole:
            prefix, *words = line[: LINE + 1].decode(errors="replace").split() or [""]
            if prefix != "[GNUPG:]" or not words:
                continue
            wanted = ARGUMENTS.get(words[0], ())
            given = words[1 : 1 + len(wanted)]
            fits = len(given) == len(wanted) and all(map(re.fullmatch, wanted, given))
            if not fits or len(self.lines) >= LINES or (len(line) > LINE and words[0] in ARGUMENTS):
                self.odd = self.odd or told(" ".join(words), 80)
            else:
                self.lines.append(words)

    def check(self) -> None:
        """Raises StatepipeError if a line was not understood."""
        if self.odd is not None:
            what = f"gpg wrote a status line that statepipe does not understand: {self.odd!r}"
            raise StatepipeError(
                what, hint=f"statepipe reads at most {LINES} lines for a message; run: gpg --status-fd 2 --decrypt"
            )

    def said(self, keyword: str) -> list[list[str]]:
        """Return the arguments of every line with this keyword."""
        return [words[1:] for words in self.lines if words[0] == keyword]

    @property
    def is_of_no_message(self) -> bool:
        """Whether gpg did not look at any message, because it refused its arguments or its settings."""
        return all(words[0] == "FAILURE" for words in self.lines)

    @property
    def is_excused(self) -> bool:
        """Whether an exit status other than 0 only means that a signature could not be checked."""
        return bool(self.said("DECRYPTION_OKAY")) and bool(self.said("ERRSIG")) and not self.is_aead

    @property
    def is_aead(self) -> bool:
        """Whether the message uses AEAD, for which the status lines prove nothing.

        gpg 2.2 reports DECRYPTION_OKAY and GOODMDC for a damaged chunk, and only its exit status is right (2.2.40,
        measured). It names no MDC there, nor does 2.2 name the mode.
        """
        return any(words[:1] == ["0"] for words in self.said("DECRYPTION_INFO"))


# --- encrypting

_UNKNOWN = ("is not in GnuPG's keyring", "list the keys with: gpg --list-keys; import one with: gpg --import FILE")
_REVOKED = ("is revoked", "ask its owner for a new key")
_EXPIRED = ("has expired", "ask its owner to extend it, then import it with: gpg --import FILE")
_DISABLED = ("is disabled", "enable it with: gpg --edit-key KEY enable")
_SECRET = ("has no secret key here", "sign with one of your keys: gpg --list-secret-keys")
_UNFIT = ("cannot be used for that", "add a subkey for that use: gpg --edit-key KEY addkey")

_REASONS = {
    "2": ("is ambiguous: several keys have that name", "give its fingerprint: gpg --list-keys"),
    "3": _UNFIT,
    "4": _REVOKED,
    "5": _EXPIRED,
    "10": ("is not trusted", "compare its fingerprint with the owner's, then: gpg --quick-lsign-key FINGERPRINT"),
    "13": _DISABLED,
}
"""The reasons of INV_RECP and INV_SGNR in doc/DETAILS: what they mean, and what to do. GnuPG 2.2 reports most keys
that it cannot use as 1 (not found) or 0 (no reason)."""

_VALIDITY = {"e": _EXPIRED, "r": _REVOKED, "d": _DISABLED, "i": _UNFIT}
"""doc/DETAILS, field 2 of a listing."""

UNUSABLE = frozenset(_VALIDITY)
"""The letters of keys that cannot be used."""


def judge_encryption(status: Status, validity: Callable[[str], set[str]]) -> None:
    """Raise StatepipeError if gpg reports that it could not encrypt.

    `validity` returns the letters of all keys in GnuPG's listing that match a name.
    """
    status.check()
    for keyword, role in (("INV_RECP", "recipient"), ("INV_SGNR", "signing key")):
        for reason, *name in status.said(keyword):
            found = sorted(validity(" ".join(name)))
            other = _SECRET if keyword == "INV_SGNR" else _UNFIT
            unusable = next((_VALIDITY[each] for each in found if each in _VALIDITY), other if found else _UNKNOWN)
            said, hint = _REASONS.get(reason, unusable)
            raise StatepipeError(f"the {role} {' '.join(name)} {said}", hint=hint)
    _raise_agent(status)
    if any(words[0] == "0" and len(words) < 3 for words in status.said("BEGIN_ENCRYPTION")):  # neither MDC nor AEAD
        what = "gpg would write a message without integrity protection, which decrypt refuses"
        raise StatepipeError(what, hint="remove rfc2440, or another option for an old format, from gpg.conf")


_AGENT = {
    11: ("the passphrase is wrong", "try again"),
    77: ("GnuPG's agent does not answer", "start it with: gpgconf --launch gpg-agent"),
    85: (
        "GnuPG's agent has no pinentry to ask for the passphrase with",
        "install pinentry-curses, or give --passphrase-file FILE",
    ),
    86: ("the pinentry of GnuPG's agent failed", "check pinentry-program in gpg-agent.conf"),
    99: ("the passphrase was not given", "try again, or give --passphrase-file FILE"),
    177: ("a passphrase is needed", "give --passphrase-file FILE"),
}
"""Codes of libgpg-error: the lower 16 bits of the number in an ERROR or FAILURE line."""

_ASK = ("GnuPG's agent could not ask for the passphrase", "set GPG_TTY=$(tty), or give --passphrase-file FILE")


_PLACES = ("pkdecrypt_failed", "symkey_decrypt.maybe_error", "sign", "sign-encrypt")


def _raise_agent(status: Status) -> None:
    for keyword in ("ERROR", "FAILURE"):
        for place, code, *_ in status.said(keyword):
            if place in _PLACES and (digits := re.match(_NUMBER, code)):
                number = int(digits[0]) & 0xFFFF
                said, hint = _AGENT.get(number, _ASK if number & 0x8000 else ("", ""))
                if said:
                    raise (NoKeyError if number == 11 else StatepipeError)(said, hint=hint)


# --- decrypting


def judge_decryption(status: Status, signed_by: str | None) -> Iterator[str]:
    """Raise the error that gpg's lines report; yield warnings. Raises IntegrityError, NoKeyError, StatepipeError.

    A message passes only if it was decrypted once, whole, and its integrity was proved.
    """
    status.check()
    if status.said("NODATA") and not status.said("BEGIN_DECRYPTION"):
        raise IntegrityError("this is not an OpenPGP message, or it is damaged")
    if not status.said("DECRYPTION_INFO"):
        _raise_unopened(status)
    if not status.said("PLAINTEXT"):
        _raise_agent(status)  # a wrong passphrase can decrypt to something that is not a message
    if status.is_aead and not status.said("GOODMDC"):
        raise IntegrityError("the message has no integrity protection: anyone on its way could have changed it")
    order = [words[0] for words in status.lines if words[0] in _FRAME]
    if status.said("BADMDC") or order != list(_FRAME):
        raise IntegrityError(CHANGED)
    if bytes.fromhex(status.said("PLAINTEXT")[0][0]) in _TEXTS:
        yield "the message is marked as text: gpg converted its line ends to those of this host"
    yield from _judge_signatures(status, signed_by)


CHANGED = "the message was changed, or cut, after it was encrypted"

_TEXTS = (b"t", b"u", b"m")
"""Letters of literal packets whose line ends gpg converts (RFC 9580, 5.9; m is GnuPG's own, for mail)."""

_FRAME = ("BEGIN_DECRYPTION", "PLAINTEXT", "DECRYPTION_OKAY", "GOODMDC", "END_DECRYPTION")
"""The lines that gpg writes for a good message, once and in this order. Plaintext outside them was not encrypted.

GOODMDC also stands for AEAD. DECRYPTION_INFO does not help: gpg 2.2 writes the same there for OCB as for a message
without integrity protection.
"""


def _raise_unopened(status: Status) -> None:
    """Raise the reason why nothing could be decrypted."""
    if not status.said("BEGIN_DECRYPTION"):
        if status.said("ENC_TO") or status.said("DECRYPTION_FAILED"):
            raise IntegrityError("the message is cut short")
        raise IntegrityError("the message is not encrypted", hint="to read it anyway: gpg --decrypt")
    _raise_agent(status)
    keys = sorted({words[0] for words in status.said("ENC_TO")})
    failed = [re.match(_NUMBER, code) for place, code, *_ in status.said("ERROR") if place == "pkdecrypt_failed"]
    codes = [int(code[0]) & 0xFFFF for code in failed if code]  # why our keys did not open it (libgpg-error)
    if _CIPHER_ALGO in codes:
        what = "gpg does not support the cipher of the message, or its settings disable it"
        raise StatepipeError(what, hint="check disable-cipher-algo in gpg.conf")
    if set(codes) - {_NO_SECKEY} and _ANYBODY not in keys:
        raise IntegrityError("the session key that the message holds for a key of ours is damaged")
    if keys:
        hint = "list the keys with: gpg --list-secret-keys; import one with: gpg --import FILE"
        raise NoKeyError(f"no secret key here opens this message; it is for {', '.join(keys[:5])}", hint=hint)
    raise NoKeyError("the passphrase does not open this message", hint="give it with --passphrase-file FILE")


_CIPHER_ALGO, _NO_SECKEY = 12, 17
"""libgpg-error's GPG_ERR_CIPHER_ALGO and GPG_ERR_NO_SECKEY."""

_ANYBODY = "0" * 16
"""The id of a hidden recipient: gpg tries every key, and most fail."""


_WEAK = {"EXPSIG": "has expired", "EXPKEYSIG": "is by a key that has expired", "REVKEYSIG": "is by a revoked key"}


def _judge_signatures(status: Status, signed_by: str | None) -> Iterator[str]:
    if bad := status.said("BADSIG"):
        raise IntegrityError(f"the signature by {' '.join(bad[0])} is bad: the message is not what was signed")
    weak = [f"the signature {said}" for keyword, said in _WEAK.items() if status.said(keyword)]
    unknown = [f"the signature is by {words[0]}, which is not in GnuPG's keyring" for words in status.said("ERRSIG")]
    if signed_by is None:
        yield from [*weak, *(f"{each}: it was not checked" for each in unknown)]
        return
    if weak or unknown:
        raise IntegrityError([*weak, *unknown][0])
    signers = {each for words in status.said("VALIDSIG") for each in (words[0], words[-1])}
    if not signers:
        raise IntegrityError("the message is not signed", hint=f"it should be by {signed_by}")
    if not status.said("GOODSIG") or _digits(signed_by) not in signers:
        raise IntegrityError(f"the message is signed by {sorted(signers)[0]}, not by {signed_by}")


def fingerprint(text: str) -> str:
    """Return the whole fingerprint of a key, or of the subkey that signs, as gpg prints it. Raises UsageError."""
    if not is_fingerprint(text):
        what = f"'{text}' is not the whole fingerprint of a key, which has 40 or 64 hexadecimal digits"
        raise UsageError(what, hint="list fingerprints with: gpg --list-keys --with-subkey-fingerprint KEY")
    return _digits(text)


def is_fingerprint(text: str) -> bool:
    """Return whether `text` names exactly one key. The last 16 digits do not: a key with the same ones can be made."""
    digits = _digits(text)
    return len(digits) in (40, 64) and not set(digits) - set("0123456789ABCDEF")


def _digits(text: str) -> str:
    return text.replace(" ", "").upper().removeprefix("0X")
