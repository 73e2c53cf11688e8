"""Bech32 (BIP 173), the notation of age's keys: a name, a 1, the data in 32 letters, and six letters of checksum.

age does not limit the length. A text is either all lower case or all upper case.
"""

from __future__ import annotations

from collections.abc import Iterable

ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def encode(name: str, data: bytes) -> str:
    """Return `data` encoded under `name`, in the case of `name`."""
    low = name.lower()
    values = _regroup(data, 8, 5)
    checked = _polymod([*_spread(low), *values, *[0] * 6]) ^ 1
    values += [checked >> 5 * (5 - at) & 31 for at in range(6)]
    text = f"{low}1{''.join(ALPHABET[value] for value in values)}"
    return text if low == name else text.upper()


def decode(text: str) -> tuple[str, bytes]:
    """Return the name, in the case in which it was written, and the bytes. Raises ValueError."""
    low = text.lower()
    if text not in (low, text.upper()):
        raise ValueError("upper and lower case are mixed")
    name, separator, letters = low.rpartition("1")
    if not (separator and name and all("!" <= letter <= "~" for letter in name)) or len(letters) < 6:
        raise ValueError("not a bech32 text")
    if not set(letters) <= set(ALPHABET):
        raise ValueError("it contains characters that bech32 does not use")
    values = [ALPHABET.index(letter) for letter in letters]
    if _polymod([*_spread(name), *values]) != 1:
        raise ValueError("its checksum is wrong: a letter was lost or mistyped")
    whole, left = divmod((len(values) - 6) * 5, 8)
    groups = _regroup(values[:-6], 5, 8)
    if left >= 5 or any(groups[whole:]):
        raise ValueError("it has extra bits at its end")
    return text[: len(name)], bytes(groups[:whole])


def _polymod(values: Iterable[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for at, factor in enumerate(_GENERATOR):
            check ^= factor if top >> at & 1 else 0
    return check


def _spread(name: str) -> list[int]:
    codes = name.encode()
    return [*(code >> 5 for code in codes), 0, *(code & 31 for code in codes)]


def _regroup(values: Iterable[int], width: int, to: int) -> list[int]:
    """Regroup bits from groups of `width` into groups of `to`; zeros fill the last one."""
    held = bits = 0
    groups = []
    for value in values:
        held, bits = (held << width | value) & 0xFFFF, bits + width
        while bits >= to:
            bits -= to
            groups.append(held >> bits & (1 << to) - 1)
    return [*groups, held << to - bits & (1 << to) - 1] if bits else groups
