"""The return path: what the destination of a migration tells its source, on the way back.

    be16 type, be16 length, payload

SHUT ends it, with 0 if the destination has everything: then the source completes, else it takes the guest back and
fails the migration. PONG answers a PING. The other types belong to postcopy, and nothing here writes or reads them.

Sources: QEMU migration/migration.c, rp_cmd_args and source_return_path_thread.
"""

from __future__ import annotations

from struct import Struct, error

SHUT, PONG = 1, 2

_MESSAGE = Struct(">HHI")


def shut(value: int) -> bytes:
    """The last message: 0 says that the destination has everything, anything else that it failed.

    Raises ValueError unless `value` fits 32 bits.
    """
    return _with_value(SHUT, value)


def pong(value: int) -> bytes:
    """The answer to PING `value`. Raises ValueError unless `value` fits 32 bits."""
    return _with_value(PONG, value)


def _with_value(kind: int, value: int) -> bytes:
    try:
        return _MESSAGE.pack(kind, 4, value)
    except error:
        raise ValueError(f"{value} does not fit 32 bits") from None
