"""What we need to know of OpenPGP: is this a message, and what does GnuPG say became of it.

Packets begin with an octet whose top bit is set (RFC 9580, 4.2); an encrypted message begins with a packet that
holds its session key, or its data. The status lines are those of GnuPG's doc/DETAILS: `[GNUPG:] KEYWORD ARGUMENTS`.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from statepipe.errors import IntegrityError, NoKeyError, StatepipeError, UsageError
from statepipe.shapes import told

PREFIX = "gpg:"
"""What a recipient of OpenPGP is told by, among those of age."""

BEGIN = b"-----BEGIN PGP "

HEAD = 4096
"""Bytes within which armor's headers must have ended: GnuPG writes a comment or two at most."""

LINES = 2000
"""Status lines that are kept. A message for 500 recipients makes some 1500."""

LINE = 4096
"""Bytes of one."""

ENCRYPTED = {1, 3, 9, 18, 20}
"""Tags of the packets that an encrypted message begins with: session keys by public key and by passphrase; data
without, with, and with GnuPG's authentication."""

MARKER = 10
"""The tag of a packet that means nothing, and may stand first (RFC 9580, 5.8)."""

LITERAL = 11
"""The tag of the packet that holds the data themselves (RFC 9580, 5.9)."""

TAGS = ENCRYPTED | {2, 4, 8, MARKER, LITERAL}
"""And those that others begin with: signature, one-pass signature, compressed, marker, literal."""


def is_told(head: bytes) -> bool:
    """Whether `head` is enough of a stream to tell if it is OpenPGP, and which packet comes first."""
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
    """The tag of the first packet, in either of the headers' two forms; None if that is no packet."""
    if head.lstrip().startswith(BEGIN):
        head = _first_of_armor(head.lstrip())
    if not head or not head[0] & 0x80:
        return None
    return head[0] & 0x3F if head[0] & 0x40 else head[0] >> 2 & 0x0F


def _first_of_armor(text: bytes) -> bytes:
    """The first octets in armor: behind its headers and an empty line."""
    _, _, rest = text.partition(b"\n")
    lines = iter(rest.split(b"\n"))
    for line in lines:
        if not line.strip():
            break
    letters = next(lines, b"").strip()[:4]
    try:
        return binascii.a2b_base64(letters) if len(letters) == 4 else b""
    except binascii.Error:
        return b""


def literal(packet: bytes) -> tuple[bytes, bytes] | None:
    """The format letter and the data of a literal packet that has its length at its head; None if it is not that."""
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
"""What the lines that we read begin with, word for word (doc/DETAILS)."""


class Status:
    """What gpg says on its status descriptor, as it comes.

    `odd` is the first line that is not what doc/DETAILS has of it, or what there is too much of: then nothing that
    was said counts, for what is not understood may be that all is bad.
    """

    def __init__(self) -> None:
        self.lines: list[list[str]] = []
        self.odd: str | None = None
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Some more of it."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[: LINE + 1]
        for line in whole:
            words = line[: LINE + 1].decode(errors="replace").split()
            if words[:1] == ["[GNUPG:]"] and len(words) > 1:
                self._take(words[1:], is_whole=len(line) <= LINE)

    def _take(self, words: list[str], *, is_whole: bool) -> None:
        wanted = ARGUMENTS.get(words[0], ())
        given = words[1 : 1 + len(wanted)]
        fits = len(given) == len(wanted) and all(map(re.fullmatch, wanted, given))
        if not fits or len(self.lines) >= LINES or not (is_whole or words[0] not in ARGUMENTS):
            self.odd = self.odd or told(" ".join(words), 80)
        else:
            self.lines.append(words)

    def check(self) -> None:
        """Raises StatepipeError if not all of it was understood."""
        if self.odd is not None:
            what = f"gpg says what is not understood: {self.odd!r}"
            raise StatepipeError(
                what, hint=f"of a message, {LINES} lines are read; look with: gpg --status-fd 2 --decrypt"
            )

    def said(self, keyword: str) -> list[list[str]]:
        """The arguments of every line with this keyword."""
        return [words[1:] for words in self.lines if words[0] == keyword]

    @property
    def is_of_no_message(self) -> bool:
        """gpg has not come to look at any, as what it was told or its settings do not suit it."""
        return all(words[0] == "FAILURE" for words in self.lines)

    @property
    def is_excused(self) -> bool:
        """An exit status other than 0 says no more than that a signature could not be checked."""
        return bool(self.said("DECRYPTION_OKAY")) and bool(self.said("ERRSIG")) and not self.is_aead

    @property
    def is_aead(self) -> bool:
        """Of AEAD the status lines prove nothing: gpg 2.2 says DECRYPTION_OKAY and GOODMDC of a chunk that is bad.

        Then its exit status alone tells (2.2.40, measured). It names no MDC there, nor does 2.2 name the mode.
        """
        return any(words[:1] == ["0"] for words in self.said("DECRYPTION_INFO"))


# --- encrypting

_UNKNOWN = ("is not in GnuPG's keyring", "look with: gpg --list-keys; and bring it in with: gpg --import FILE")
_REVOKED = ("is revoked", "ask its owner for the new one")
_EXPIRED = ("has expired", "ask its owner for a new date, and bring it in with: gpg --import FILE")
_DISABLED = ("is disabled", "enable it with: gpg --edit-key KEY enable")
_SECRET = ("has no secret part here", "sign with a key of yours: gpg --list-secret-keys")
_UNFIT = ("cannot be used for that", "it needs a subkey of that use: gpg --edit-key KEY addkey")

_REASONS = {
    "2": ("is not the only one of that name", "give its fingerprint: gpg --list-keys"),
    "3": _UNFIT,
    "4": _REVOKED,
    "5": _EXPIRED,
    "10": ("is not trusted", "compare its fingerprint with the owner's, then: gpg --quick-lsign-key FINGERPRINT"),
    "13": _DISABLED,
}
"""doc/DETAILS, INV_RECP and INV_SGNR: what it means, and what to do. GnuPG 2.2 gives most keys that it cannot use as
1, not found, or 0, without a reason."""

_VALIDITY = {"e": _EXPIRED, "r": _REVOKED, "d": _DISABLED, "i": _UNFIT}
"""doc/DETAILS, field 2 of a listing."""

UNUSABLE = frozenset(_VALIDITY)
"""The letters of keys that are of no use."""


def judge_encryption(status: Status, validity: Callable[[str], set[str]]) -> None:
    """Raise StatepipeError for what gpg could not do, if it says so.

    `validity` looks a key up in GnuPG's listing: the letters of all that fit the name.
    """
    status.check()
    for keyword, role in (("INV_RECP", "recipient"), ("INV_SGNR", "signing key")):
        for reason, *name in status.said(keyword):
            found = validity(" ".join(name))
            said, hint = _REASONS.get(reason) or _unusable(found, _SECRET if keyword == "INV_SGNR" else _UNFIT)
            raise StatepipeError(f"the {role} {' '.join(name)} {said}", hint=hint)
    _raise_agent(status)
    if any(words[0] == "0" and len(words) < 3 for words in status.said("BEGIN_ENCRYPTION")):  # neither MDC nor AEAD
        what = "gpg would write a message that nobody can prove whole: decrypt would refuse it"
        raise StatepipeError(what, hint="take rfc2440, or another old way of writing, out of gpg.conf")


def _unusable(found: set[str], other: tuple[str, str]) -> tuple[str, str]:
    if not found:
        return _UNKNOWN
    return next((_VALIDITY[each] for each in sorted(found) if each in _VALIDITY), other)


_AGENT = {
    11: ("the passphrase is wrong", "try again"),
    77: ("GnuPG's agent does not answer", "start it with: gpgconf --launch gpg-agent"),
    85: ("GnuPG's agent has no pinentry to ask with", "install pinentry-curses, or give --passphrase-file FILE"),
    86: ("the pinentry of GnuPG's agent failed", "look at pinentry-program in gpg-agent.conf"),
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
    """Raise what gpg's words mean; yields warnings. Raises IntegrityError, NoKeyError, StatepipeError.

    Good is only what was decrypted once, whole, and proved so.
    """
    status.check()
    if status.said("NODATA") and not status.said("BEGIN_DECRYPTION"):
        raise IntegrityError("this is no OpenPGP message, or what is left of one")
    if not status.said("DECRYPTION_INFO"):
        _raise_unopened(status)
    if not status.said("PLAINTEXT"):
        _raise_agent(status)  # a wrong passphrase may open something that is none
    if status.is_aead and not status.said("GOODMDC"):
        raise IntegrityError("the message bears no proof that it is whole: anyone on its way could have changed it")
    order = [words[0] for words in status.lines if words[0] in _FRAME]
    if status.said("BADMDC") or order != list(_FRAME):
        raise IntegrityError(CHANGED)
    if bytes.fromhex(status.said("PLAINTEXT")[0][0]) in _TEXTS:
        yield "the message says of itself that it is text: gpg has made its line ends those of this host"
    yield from _judge_signatures(status, signed_by)


CHANGED = "the message was changed, or cut, after it was encrypted"

_TEXTS = (b"t", b"u", b"m")
"""Letters of literal packets whose line ends are not kept (RFC 9580, 5.9; m is GnuPG's own, for mail)."""

_FRAME = ("BEGIN_DECRYPTION", "PLAINTEXT", "DECRYPTION_OKAY", "GOODMDC", "END_DECRYPTION")
"""What gpg says of a message that is good, in this order and once: plaintext outside of it was not encrypted.

GOODMDC stands for AEAD, too. DECRYPTION_INFO does not tell: of OCB, gpg 2.2 says there what it says of no proof.
"""


def _raise_unopened(status: Status) -> None:
    """Nothing could be decrypted: why?"""
    if not status.said("BEGIN_DECRYPTION"):
        if status.said("ENC_TO") or status.said("DECRYPTION_FAILED"):
            raise IntegrityError("the message was cut")
        raise IntegrityError("the message is not encrypted", hint="to read it all the same: gpg --decrypt")
    _raise_agent(status)
    keys = sorted({words[0] for words in status.said("ENC_TO")})
    if _CIPHER_ALGO in _codes(status):
        what = "gpg does not know the cipher of the message, or is told not to use it"
        raise StatepipeError(what, hint="look for disable-cipher-algo in gpg.conf")
    if _is_damaged(status, keys):
        raise IntegrityError("what the message holds for a key of ours is damaged")
    if keys:
        hint = "look with: gpg --list-secret-keys; and bring the key in with: gpg --import FILE"
        raise NoKeyError(f"no secret key here opens this message; it is for {', '.join(keys[:5])}", hint=hint)
    raise NoKeyError("the passphrase does not open this message", hint="give it with --passphrase-file FILE")


_CIPHER_ALGO, _NO_SECKEY = 12, 17
"""libgpg-error's GPG_ERR_CIPHER_ALGO and GPG_ERR_NO_SECKEY."""

_ANYBODY = "0" * 16
"""The id of a recipient who is not told: every key is tried, and most fail."""


def _is_damaged(status: Status, keys: Sequence[str]) -> bool:
    """Whether a key that the message names is here, and yet gives nothing."""
    others = [code for code in _codes(status) if code != _NO_SECKEY]
    return bool(others) and _ANYBODY not in keys


def _codes(status: Status) -> list[int]:
    """Why the keys that are here have not opened it, by libgpg-error's numbers."""
    said = [re.match(_NUMBER, code) for place, code, *_ in status.said("ERROR") if place == "pkdecrypt_failed"]
    return [int(code[0]) & 0xFFFF for code in said if code]


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
    """A whole fingerprint, of a key or of the subkey that signs, as gpg prints it. Raises UsageError."""
    if not is_fingerprint(text):
        what = f"'{text}' is no whole fingerprint of a key: that has 40 hexadecimal digits, or 64"
        raise UsageError(what, hint="look with: gpg --list-keys --with-subkey-fingerprint KEY")
    return _digits(text)


def is_fingerprint(text: str) -> bool:
    """Whether it names one key alone. The 16 last digits do not: who wants to, makes a key that has the same."""
    digits = _digits(text)
    return len(digits) in (40, 64) and not set(digits) - set("0123456789ABCDEF")


def _digits(text: str) -> str:
    return text.replace(" ", "").upper().removeprefix("0X")
