"""What was done or found, in words and figures for people."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from statepipe.cli.messages import clean
from statepipe.units import format_size

if TYPE_CHECKING:
    from statepipe.state.save_qmp import Outcome


def saved(path: str, outcome: Outcome) -> str:
    """One line on a save that succeeded."""
    state, size = format_size(outcome.saved.stream.offset), format_size(outcome.saved.size)
    total, down = outcome.migration.get("total-time", 0), outcome.downtime * 1000
    return (
        f"statepipe: save: {path}: {state} of state in {size}, {total / 1000:.1f} s, "
        f"the guest stood still for {down:.0f} ms at the end; it is now {outcome.run_state}"
    )


def verified(facts: dict[str, Any]) -> str:
    """One line on a file that is whole."""
    proof = "digests, frames and stream agree" if facts["digest"] else "the stream is complete; it carries no digest"
    return f"{clean(facts['file'])}: whole: {facts['format']}, {format_size(facts['bytes'])} of state; {proof}"


def inspected(facts: dict[str, Any]) -> str:
    """Several lines on what is in a file."""
    header, trailer = facts.get("header") or {}, facts.get("trailer") or facts.get("stream") or {}
    rows = [("file", facts["file"]), ("format", facts["format"]), *_guest(header, trailer), *_stream(facts, trailer)]
    rows += [("disk", _disk(disk)) for disk in trailer.get("disks") or []]
    if trailer.get("disks", []) is None:
        rows.append(("disks", "not known"))
    return "\n".join(f"{name + ':':12}{clean(str(value))}" for name, value in rows if value is not None)


def _guest(header: dict[str, Any], trailer: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if "time" in header:
        yield "saved", f"{_when(header['time'])} by {header.get('writer', 'an unknown program')}"
    yield "guest", header.get("name")
    yield "uuid", trailer.get("uuid") or header.get("uuid")
    yield "qemu", header.get("qemu")
    yield "machine", trailer.get("machine")
    yield "ram", format_size(trailer["ram_bytes"]) if "ram_bytes" in trailer else None
    waits = ", stopped for the save: it runs when it is loaded" if trailer.get("stopped_for_it") else ""
    yield "run state", f"{trailer['run_state']}{waits}" if "run_state" in trailer else None


def _stream(facts: dict[str, Any], trailer: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    ratio = trailer["bytes"] / max(facts["size"], 1)
    yield "stream", f"{format_size(trailer['bytes'])} in a file of {format_size(facts['size'])} ({ratio:.1f} : 1)"
    kinds = [f"{count} {kind}" for kind, count in trailer.get("pages", {}).items() if count]
    yield "pages", f"{', '.join(kinds)}; {trailer['rounds']} rounds" if kinds and "rounds" in trailer else None
    yield "devices", len(trailer.get("devices", ())) or None
    yield "proof", f"complete by its {trailer['proof']}" if trailer.get("proof") else None
    yield "blake3", trailer.get("blake3")


def _when(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))


def _disk(disk: dict[str, Any]) -> str:
    if "unknown" in disk:
        return f"{disk['path']} (not compared: {disk['unknown']})"
    return f"{disk['path']} ({disk['format']}, {format_size(disk['size'])})"
