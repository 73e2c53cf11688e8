"""Parse sizes and rates as people write them, and format them."""

from __future__ import annotations

import re

from statepipe.errors import UsageError

_NUMBER = re.compile("-?[0-9]{1,18}")
"""Longer numbers make no sense, and int() raises ValueError for those of 4301 digits."""


def number_in(text: str, least: int, most: int) -> int | None:
    """Return the number in `text` if it has ASCII digits and is from `least` to `most`, else None."""
    number = int(text) if _NUMBER.fullmatch(text) else None
    return number if number is not None and least <= number <= most else None


_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,18}))?\s*(?:([kmgtp])i?)?b?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes in `4096`, `64K`, `1.5GiB` or `2g`. Letters are powers of 1024, as in QEMU and zstd.

    Raises UsageError for anything else.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not a size", hint="write a number and K, M, G or T, for example 64M")
    return _amount(match, 1024)


def _amount(match: re.Match[str], base: int) -> int:
    """Return the number that matched: its digits, those after the point, and a letter for a power of `base`."""
    whole, part, letter = (group or "" for group in match.groups())
    unit = int(base ** _POWERS[letter.lower()])
    return int(whole) * unit + int(part or 0) * unit // int("1" + "0" * len(part))


_BITS = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,18}))?\s*([kmgt]?)bit", re.IGNORECASE)


def parse_rate(text: str) -> int | None:
    """Return the bytes a second in `100M`, `1.5GiB/s` or `80Mbit`; None (no limit) for `unlimited` or 0, as in pv.

    Bytes use powers of 1024, as sizes do; bits use powers of 1000, as networks do. Raises UsageError.
    """
    amount = re.sub(r"/s$", "", text.strip(), flags=re.IGNORECASE)
    if amount == "unlimited":
        return None
    bits = _BITS.fullmatch(amount)
    try:
        rate = parse_size(amount) if bits is None else _amount(bits, 1000) // 8
    except UsageError as error:
        hint = "write bytes or bits a second, for example 100M or 80Mbit, or unlimited"
        raise UsageError(f"'{text}' is not a rate", hint=hint) from error
    if not rate and set(amount) & set("123456789"):
        raise UsageError(f"'{text}' is less than a byte a second")
    return rate or None


def rate_word(rate: int) -> str:
    """Return the shortest word that parse_rate understands as `rate` bytes a second: `100M`."""
    power = next(power for power in range(4, -1, -1) if rate % 1024**power == 0)
    return f"{rate // 1024**power}{' KMGT'[power].strip()}"


def format_rate(rate: float | None) -> str:
    """Format a rate in bytes a second: `3.4 MiB/s`; `unlimited` for None."""
    return "unlimited" if rate is None else f"{format_size(rate)}/s"


def format_size(count: float) -> str:
    """Format a size: `812 B`, `3.4 MiB`, `12 GiB`; powers of 1024, three significant digits."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            break
        count /= 1024
    digits = 0 if unit == "B" or count >= 100 else 1
    return f"{count:.{digits}f} {unit}"
