"""The return path: the messages from the destination of a migration back to its source.

    be16 type, be16 length, payload

SHUT ends it. With 0, the destination has everything and the source completes; with another value the source fails
the migration and keeps the guest. PONG answers a PING. The other types belong to
postcopy (postcopy.py).

Sources: QEMU migration/migration.c, rp_cmd_args and source_return_path_thread.
"""

from __future__ import annotations

from struct import Struct, error

SHUT, PONG = 1, 2

_MESSAGE = Struct(">HHI")


def shut(value: int) -> bytes:
    """Return the last message: 0 means that the destination has everything, any other value that it failed.

    Raises ValueError unless `value` fits 32 bits.
    """
    return _with_value(SHUT, value)


def pong(value: int) -> bytes:
    """Return the answer to PING `value`. Raises ValueError unless `value` fits 32 bits."""
    return _with_value(PONG, value)


def _with_value(kind: int, value: int) -> bytes:
    try:
        return _MESSAGE.pack(kind, 4, value)
    except error:
        raise ValueError(f"{value} does not fit 32 bits") from None
