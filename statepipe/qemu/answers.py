"""The shapes of QEMU's answers (docs/interop/qmp-spec and QEMU's QAPI schema), checked when they arrive.

The program at a QMP socket may be an unknown version of QEMU, a relay, no QEMU at all, or a QEMU that its guest has
taken over. Only fields that statepipe reads are checked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from statepipe.shapes import Misshapen, Shape, anything, check, either, fields, flag, many, maybe, table, text, whole
from statepipe.typed import Any

LONGEST = 4 << 20
"""Bytes of one message at most. For a guest of a hundred disks QEMU sends 200 KB. Parsed JSON takes up to thirty times
the memory of its text."""

NAME, WORDS, PATH = 256, 4096, 4096
"""Characters of a name, of an error message, of a path (PATH_MAX)."""

SOME, MANY = 4096, 65536
"""Rows of a list at most; of a list with a row for each processor or device."""

_ANY_OBJECT = table(anything, MANY)

GREETING = fields({"QMP": fields({"version": _ANY_OBJECT, "capabilities": many(anything, SOME)})})
"""QEMU's first message."""

_EVENT = fields({"event": text(NAME)})

FIRST = either(_EVENT, GREETING)
"""A message before the first command: the greeting, or an event that was meant for the client before us."""

_ERROR = fields({"class": text(NAME), "desc": text(WORDS)})

MESSAGE = fields({}, {"event": text(NAME), "id": maybe(text(NAME)), "error": _ERROR})
"""Any message after the greeting: an event, or the answer to a command."""

_COUNT = whole(-(1 << 63))
"""A figure of QEMU's: a few can be negative while nothing is known yet."""

_MIGRATION = fields(
    {},
    {
        "status": text(NAME),
        "error-desc": text(WORDS),
        "blocked-reasons": many(text(WORDS), SOME),
        "total-time": _COUNT,
        "downtime": _COUNT,
        "expected-downtime": _COUNT,
        "ram": fields(
            dict.fromkeys(("transferred", "total", "remaining", "dirty-sync-count"), _COUNT),
            dict.fromkeys(("dirty-pages-rate", "page-size"), _COUNT),
        ),
    },
)
"""query-migrate's answer. Its other fields are only displayed."""

_WORD = fields(
    {"cpuid-input-eax": whole(), "cpuid-register": text(NAME), "features": whole()}, {"cpuid-input-ecx": whole()}
)

_NODE = fields(
    {"drv": text(NAME), "file": text(MANY)},
    {"node-name": text(NAME), "ro": flag, "image": fields({}, {"virtual-size": whole()})},
)
_CARD = fields({"slot": whole(), "function": whole(), "id": fields({"vendor": whole(), "device": whole()})})
_DRIVE = fields({}, {"qdev": text(PATH), "inserted": fields({}, {"node-name": text(NAME)})})
_VERTEX = fields({"id": whole(), "type": text(NAME), "name": text(PATH)})
_EDGE = fields({"parent": whole(), "child": whole(), "name": text(NAME)})

ANSWERS: Mapping[str, Shape] = {
    "query-status": fields({"status": text(NAME)}),
    "query-migrate": _MIGRATION,
    "query-migrate-capabilities": many(fields({"capability": text(NAME), "state": flag}), SOME),
    "query-migrate-parameters": fields({}, {"max-bandwidth": whole(), "downtime-limit": whole()}),
    "query-version": fields(
        {"qemu": fields({"major": whole(), "minor": whole(), "micro": whole()}), "package": text(NAME)}
    ),
    "query-memory-size-summary": fields({"base-memory": whole()}, {"plugged-memory": whole()}),
    "query-name": fields({}, {"name": text(WORDS)}),
    "query-uuid": fields({"UUID": text(NAME)}),
    "query-target": fields({"arch": text(NAME)}),
    "human-monitor-command": text(1 << 20),
    "query-kvm": fields({"enabled": flag}),
    "query-accelerators": fields({"enabled": text(NAME)}),
    "query-cpus-fast": many(fields({"qom-path": text(PATH)}, {"props": table(whole(), 64)}), MANY, least=1),
    "query-pci": many(fields({"bus": whole(), "devices": many(_CARD, SOME)}), SOME),
    "query-named-block-nodes": many(_NODE, MANY),
    "query-block": many(_DRIVE, MANY),
    "x-debug-query-block-graph": fields({"nodes": many(_VERTEX, MANY), "edges": many(_EDGE, MANY)}),
    "qom-list": many(fields({"name": text(WORDS), "type": text(WORDS)}), MANY),
    "qom-get parent_bus": text(PATH),
    "qom-get chardev": text(WORDS),
    "qom-get mem-path": text(PATH),
    "qom-get type": text(NAME),
    "qom-get feature-words": many(_WORD, SOME),
    "qom-get filtered-features": many(_WORD, SOME),
    "qom-get tsc-frequency": whole(),
}
"""The shape of each answer that is read, by command; for qom-get, by command and property."""


def judge(command: str, arguments: Mapping[str, object], answer: Any) -> Any:
    """Return the answer after checking it against the command's shape. Raises Misshapen."""
    key = f"{command} {arguments['property']}" if command == "qom-get" else command
    return check(answer, ANSWERS.get(key, anything))


def file_name(value: str) -> str:
    """Return a file name from QEMU after checking that a file can have it. Raises Misshapen."""
    try:
        named = os.fsencode(value)
    except UnicodeEncodeError:
        named = b""
    if not named or b"\0" in named or len(named) > PATH:
        raise Misshapen(f"no file can have the name {value[:80]!r}")
    return value
