"""The configuration at the start of a migration stream: machine type, and what both sides must agree on.

    07 be32 len, machine
    05 len "configuration/target-page-bits" be32 version, be32 bits
    05 len "configuration/capabilities"     be32 version, be32 n, n times (u8 len, name)
    05 len "configuration/uuid"             be32 version, 16 bytes

Source: QEMU migration/savevm.c, vmstate_configuration.
"""

from __future__ import annotations

from struct import Struct

from statepipe.errors import IntegrityError
from statepipe.stage import Buffer

SUBSECTION = 5
MAX_MACHINE = 255  # "pc-i440fx-7.2" and its like; QEMU itself sets no limit
MAX_CAPABILITIES = 32  # QEMU 10.0 validates two of them, and has 25 in all
PAGE_BITS = range(10, 21)  # the RAM flags need ten bits

LARGE_PAGES = dict.fromkeys(("sun4u", "sun4v", "niagara", "clipper", "or1k-sim", "axis-dev88"), 8192) | dict.fromkeys(
    ("tricore_testboard", "KIT_AURIX_TC277_TRB"), 16384
)
"""Page size in bytes of the machines whose pages are always larger than 4096, and whose stream does not give it:
sparc64, alpha, openrisc, cris, tricore (QEMU target/*/cpu-param.h; seen with 10.0). openrisc's `virt` is not listed,
because other targets have a machine of that name."""

_PREFIX = "configuration/"
_BE32 = Struct(">I")


class Configuration:
    """The facts in the configuration, or implied by the machine type; None or empty if unknown."""

    def __init__(self) -> None:
        self.machine: str | None = None
        self.uuid: str | None = None
        self.page_size: int | None = None
        self.capabilities: tuple[str, ...] = ()

    def machine_at(self, data: Buffer, at: int, end: int) -> int:
        """Read the configuration section at `at`; return the position after it, or `at` if it is incomplete at `end`.

        Raises IntegrityError with an offset relative to `data`.
        """
        if at + 5 > end:
            return at
        length = _BE32.unpack_from(data, at + 1)[0]
        if not 0 < length <= MAX_MACHINE:
            raise IntegrityError(f"a machine name of {length} bytes, expected 1 to {MAX_MACHINE}", offset=at + 1)
        after: int = at + 5 + length
        if after > end:
            return at
        self.machine = bytes(data[at + 5 : after]).decode("utf-8", "replace")
        self.page_size = LARGE_PAGES.get(self.machine)
        return after

    def subsection_at(self, data: Buffer, at: int, end: int) -> int:
        """Read the subsection at `at`; returns and raises as `machine_at`."""
        name, body = name_at(data, at + 1, end)
        if not body or body + 4 + 16 > end:  # 16: the longest fixed payload; more follows any of them
            return at
        body += 4
        number = _BE32.unpack_from(data, body)[0]
        if name == _PREFIX + "target-page-bits":
            if number not in PAGE_BITS:
                raise IntegrityError(f"a page of 2^{number} bytes", offset=body)
            self.page_size = 1 << number
            return body + 4
        if name == _PREFIX + "uuid":
            digits = bytes(data[body : body + 16]).hex()
            self.uuid = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
            return body + 16
        if name != _PREFIX + "capabilities":
            raise IntegrityError(f"unknown subsection of the configuration: {name!r}", offset=at)
        if number > MAX_CAPABILITIES:
            raise IntegrityError(f"{number} capabilities, expected {MAX_CAPABILITIES} at most", offset=body)
        names, after = list[str](), body + 4
        for _ in range(number):
            name, after = name_at(data, after, end)
            if not after:
                return at
            names.append(name)
        self.capabilities = tuple(names)
        if "mapped-ram" in names:
            raise IntegrityError(
                "a mapped-ram stream, which needs a file: its pages have fixed offsets and cannot pass through a pipe",
                offset=body,
                hint="turn the capability mapped-ram off and migrate again",
            )
        return after


def name_at(data: Buffer, at: int, end: int) -> tuple[str, int]:
    """Read a length byte and a name of that length; return the name and the position after it, 0 if incomplete."""
    if at >= end or at + 1 + data[at] > end:
        return "", 0
    after = at + 1 + data[at]
    return bytes(data[at + 1 : after]).decode("latin-1"), after
