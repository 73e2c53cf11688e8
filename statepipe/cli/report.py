"""Results in words and figures for people."""

from __future__ import annotations

import shlex
import time

from statepipe.cli.messages import clean
from statepipe.typed import TYPE_CHECKING, Any
from statepipe.units import format_size

if TYPE_CHECKING:
    from statepipe.lazy.telling import Summary
    from statepipe.libvirt.convert import Converted
    from statepipe.libvirt.save import DomainSaved
    from statepipe.state.save_qmp import Outcome


def saved(path: str, outcome: Outcome) -> str:
    """Return a line on a save that succeeded."""
    state, size = format_size(outcome.saved.stream.offset), format_size(outcome.saved.size)
    now = "paused (postmigrate)" if outcome.run_state == "postmigrate" else outcome.run_state
    total, down = outcome.migration.get("total-time", 0), outcome.downtime * 1000
    return (
        f"statepipe: save: {path}: {state} of state in {size}, {total / 1000:.1f} s, "
        f"the guest was stopped for {down:.0f} ms at the end; it is now {now}"
    )


def converted(path: str, done: Converted) -> str:
    """Return a line on a conversion that succeeded."""
    from statepipe.formats.domainxml import identity

    who = identity(done.domain.xml).name or "without a name"
    state, size = format_size(done.bytes), format_size(done.size)
    return f"statepipe: convert: {path}: {state} of state in {size}; the domain {who}"


def domain_saved(path: str, outcome: DomainSaved) -> str:
    """Return a line on a domain that was saved."""
    state, size = format_size(outcome.saved.stream.offset), format_size(outcome.saved.size)
    became = f"the domain {outcome.name} is now {outcome.state}"
    if outcome.is_transient:
        load = shlex.join(["statepipe", "load", "--domain", path])
        became = f"the domain {outcome.name} was transient, and libvirt has forgotten it: {load} brings it back"
    return f"statepipe: save: {path}: {state} of state in {size}; {became}"


def lazily_loaded(done: Summary) -> str:
    """Return a line on a lazy load that is complete."""
    waits = f"{done.median * 1000:.1f} ms (median) and {done.longest * 1000:.1f} ms at most"
    asked = f"; the guest waited {done.asked} times for a page, {waits}" if done.asked else ""
    first = f", {format_size(done.first)} of it before the guest ran" if done.first else ""
    return f"all memory is loaded: {format_size(done.bytes)} in {done.seconds:.1f} s{first}{asked}"


def learned_set(path: str, size: int, is_full: bool) -> str:
    """Return a line on a working set that was learned."""
    limit = "; it touched more, which is too much to send first" if is_full else ""
    return f"{path}: the guest touched {format_size(size)} first; the next lazy load sends that before it runs{limit}"


def verified(facts: dict[str, Any]) -> str:
    """Return a line on a file that is whole."""
    proof = "the stream is complete; it carries no digest"
    if facts["raw"]:
        proof += ", and nothing shows a changed bit in the guest's memory"
    if facts["digest"]:
        proof = "digests, frames, index and stream agree" if facts["index"] else "digests, frames and stream agree"
    return f"{clean(facts['file'])}: whole: {facts['format']}, {format_size(facts['bytes'])} of state; {proof}"


def inspected(facts: dict[str, Any]) -> str:
    """Return several lines on what a file contains."""
    header, trailer = facts.get("header") or {}, facts.get("trailer") or facts.get("stream") or {}
    rows: list[tuple[str, Any]] = [("file", facts["file"]), ("format", facts["format"])]
    if "time" in header:
        when = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(header["time"]))
        rows.append(("saved", f"{when} by {header.get('writer', 'an unknown program')}"))
    rows += [("guest", header.get("name")), ("uuid", trailer.get("uuid") or header.get("uuid"))]
    if "domain" in facts:
        rows.append(("domain", _domain(facts["domain"])))
    rows += [("qemu", header.get("qemu")), ("machine", trailer.get("machine"))]
    if "ram_bytes" in trailer:
        rows.append(("ram", format_size(trailer["ram_bytes"])))
    if "run_state" in trailer:
        stopped = ", stopped for the save: it runs after a load" if trailer.get("stopped_for_it") else ""
        rows.append(("run state", f"{trailer['run_state']}{stopped}"))
    ratio = trailer["bytes"] / max(facts["size"], 1)
    rows.append(
        ("stream", f"{format_size(trailer['bytes'])} in a file of {format_size(facts['size'])} ({ratio:.1f} : 1)")
    )
    kinds = [f"{count} {kind}" for kind, count in trailer.get("pages", {}).items() if count]
    if kinds and "rounds" in trailer:
        rows.append(("pages", f"{', '.join(kinds)}; {trailer['rounds']} rounds"))
    if "index" in trailer:
        rows.append(("index", _index(trailer["index"])))
    rows.append(("devices", len(trailer.get("devices", ())) or None))
    if proof := trailer.get("proof"):  # a damaged frame is not seen here: what is shown must not read as if it were
        rows.append(("proof", f"complete when it was saved, by its {proof}; verify-state checks the data"))
    rows.append(("blake3", trailer.get("blake3")))
    for disk in trailer.get("disks") or []:
        what = (
            f"not compared: {disk['unknown']}"
            if "unknown" in disk
            else f"{disk['format']}, {format_size(disk['size'])}"
        )
        rows.append(("disk", f"{disk['path']} ({what})"))
    if trailer.get("disks", []) is None:
        rows.append(("disks", "not known"))
    return "\n".join(f"{name + ':':12}{clean(str(value))}" for name, value in rows if value is not None)


def _domain(domain: dict[str, Any]) -> str:
    """Return what libvirt knows of the guest."""
    who = " ".join(filter(None, (domain["name"], domain["uuid"]))) or "its XML tells no name"
    ran = "running" if domain["was_running"] else "paused"
    sizes = f"{len(domain['xml'])} characters of XML, {len(domain['cookie'] or '')} of libvirt's cookie"
    return f"{who}: {ran} before the save; {sizes}"


def _index(index: dict[str, Any]) -> str:
    """Return what an index of pages contains, or why there is none."""
    if "frames" not in index:
        return f"none: {index.get('unserved', 'no reason is given')}"
    pages, size = f"{index.get('stored')} pages stored, {index.get('zero')} zero", format_size(index.get("size", 0))
    return f"{pages}, in {index.get('runs')} runs; {size}"
