"""Compare the facts of two hosts, to predict whether a migration would work.

Each row is `ok`, `warn` (it may work, but a person should know) or `fail` (QEMU would refuse, or the guest would be
harmed), with the reason in words. A row that cannot be decided is `warn`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from statepipe.qemu.commandline import is_monitor
from statepipe.qemu.facts import Facts
from statepipe.qemu.guest import bits, lost, processors
from statepipe.qemu.places import clashes
from statepipe.typed import Any
from statepipe.units import format_size

OK, WARN, FAIL = "ok", "warn", "fail"

CLOCK_SKEW = 2.0
"""Seconds that a guest which uses the host's clock notices; NTP keeps hosts within milliseconds."""

TSC_TOLERANCE = 250e-6
"""The relative difference up to which two TSCs count as equal: KVM's own tsc_tolerance_ppm."""

NEEDED = ("return-path", "pause-before-switchover", "events")

LATE_DISKS = "late-block-activate"
"""A destination's disks stay unlocked until its guest is to run. QEMU 10.0 and later always does so, and may come to
lack the capability."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: what was compared, its level, and the reason."""

    what: str
    level: str
    reason: str


def compare(source: Facts, destination: Facts) -> list[Finding]:
    """Return all rows, in the order in which a migration would fail."""
    return [finding for check in CHECKS for finding in check(source, destination)]


def as_rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return the rows as JSON."""
    return [asdict(finding) for finding in findings]


def worst(findings: Sequence[Finding]) -> str:
    """Return `fail` if any row is, else `warn` if any is, else `ok`."""
    levels = {finding.level for finding in findings}
    return next((level for level in (FAIL, WARN) if level in levels), OK)


Rows = Iterator[Finding]


def _versions(source: Facts, destination: Facts) -> Rows:
    here, there = source["guest"]["qemu"], destination["guest"]["qemu"]
    old, new = _version(source), _version(destination)
    if old == new:
        yield Finding("QEMU", OK, f"{here} on both")
    elif old < new:
        yield Finding("QEMU", OK, f"from {here} to the newer {there}")
    else:
        yield Finding("QEMU", WARN, f"from {here} to the older {there}: QEMU supports only the way to a newer version")


def _version(facts: Facts) -> tuple[int, ...]:
    return tuple(int(part) for part in facts["guest"]["qemu"].split()[0].split("."))


def _machine(source: Facts, destination: Facts) -> Rows:
    here, there = source["guest"]["machine"], destination["guest"]["machine"]
    if here == there:
        yield Finding("machine type", OK, here)
    else:
        yield Finding("machine type", FAIL, f"{here} here, {there} there: start the destination with -machine {here}")


def _architecture(source: Facts, destination: Facts) -> Rows:
    if source["arch"] != destination["arch"]:
        yield Finding("architecture", FAIL, f"a guest for {source['arch']}, a QEMU for {destination['arch']}")
    elif source["arch"] == "x86_64" and destination["machine"] not in ("x86_64", "amd64"):
        yield Finding("architecture", WARN, f"a 64-bit guest on a host that is {destination['machine']}")
    else:
        yield Finding("architecture", OK, f"{source['arch']} on {destination['machine']}")
    if source["accelerator"] != destination["accelerator"]:
        reason = f"{source['accelerator']} here, {destination['accelerator']} there: their CPU states differ"
        yield Finding("accelerator", WARN, reason)


def _processor(source: Facts, destination: Facts) -> Rows:
    here, there = source["cpu"], destination["cpu"]
    if here["type"] != there["type"]:
        yield Finding("CPU", FAIL, f"{here['type']} here, {there['type']} there: give both the same -cpu")
        return
    if lost := list(bits(here["features"], there["features"])):
        yield Finding("CPU", FAIL, f"the destination's CPU lacks {', '.join(lost)}, which the guest has and may use")
        return
    if lacking := list(bits(there["missing"], {})):
        reason = f"the destination's host does not support {', '.join(lacking)}: a guest started there would lack it"
        yield Finding("CPU", WARN, reason)
    yield Finding("CPU", OK, f"{here['type']}, with all of its features on both")


_PLACES = (*("-incoming", "-chardev", "-pidfile", "-D", "-name", "-display", "-vnc"),)
"""Options that, as monitors do, may differ between two hosts without any effect on the guest."""

_SWITCHES = ("-S", "-daemonize", "-no-user-config")

_DEVICES = ("-serial", "-parallel")
"""Options that add a device to the guest; the value, unless it is `none`, only says what it is connected to."""


def _command_line(source: Facts, destination: Facts) -> Rows:
    if source["command"] is None or destination["command"] is None:
        yield Finding("command line", WARN, "statepipe may not read that of one QEMU: they cannot be compared")
        return
    here, there = ([" ".join(option) for option in visible(side["command"])] for side in (source, destination))
    lacking, extra = lost(here, there), lost(there, here)
    if lacking or extra:
        told = [*(f"only here: {option}" for option in lacking), *(f"only there: {option}" for option in extra)]
        yield Finding("command line", WARN, "; ".join(told))
    else:
        yield Finding("command line", OK, "the same, except for monitors and other options of the host")


def visible(command: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the options that determine the guest, each with its value, sorted."""
    options: list[tuple[str, ...]] = []
    for word in command[1:]:
        if word.startswith("-") and len(word) > 1:
            options.append(("-" + word.lstrip("-"),))
        elif options:
            options[-1] = (*options[-1], word)
    return sorted(
        option[:1] if option[0] in _DEVICES and option[1:] != ("none",) else option
        for option in options
        if option[0] not in _PLACES + _SWITCHES and not is_monitor(option[0][1:], option)
    )


def _disks(source: Facts, destination: Facts) -> Rows:
    if source["temporary"]:
        yield Finding("disks", FAIL, "-snapshot is in use: what the guest wrote is in a file that only this host has")
    for here in source["disks"]:
        there = [disk for disk in destination["disks"] if disk["path"] == here["path"]]
        if not there and "driver" in here:  # not a file: each host may use another name for it
            there = [disk for disk in destination["disks"] if "driver" in disk]
            there = [disk for disk in there if disk.get("devices") == here.get("devices")]
        yield Finding(f"disk {here['path']}", *_disk(here, there[0] if there else None))
    if not source["disks"]:
        yield Finding("disks", OK, "the guest has none")


def _disk(here: Facts, there: Facts | None) -> tuple[str, str]:
    """Return the level and the reason: it must be the same file, not just one of the same name. For a disk in use, only
    QEMU's locks prove that: its content changes meanwhile."""
    if there is None:
        return FAIL, "not available on the destination: QEMU there has no such disk"
    places, others = here.get("devices"), there.get("devices")
    if places is not None and others is not None and places != others:
        where = [" and ".join(each) or "below another image" for each in (places, others)]
        return FAIL, f"the guest has it at {where[0]} here, and at {where[1]} there: name the disks in the same order"
    sizes = {disk["size"] for disk in (here, there) if disk.get("size") is not None}
    if len(sizes) == 2:
        return FAIL, "another disk: its size differs there"
    if "driver" in here and "driver" in there:
        other = "" if here["path"] == there["path"] else f", and is {there['path']} there"
        reason = f"{here['driver']} provides it{other}: statepipe cannot tell whether both hosts use the same disk"
        return WARN, reason
    if "unknown" in there:
        return FAIL, f"not available on the destination: {there['unknown']}"
    if "unknown" in here:
        return WARN, f"cannot be read here ({here['unknown']}): whether it is shared is unknown"
    if here["format"] != there["format"]:
        return FAIL, f"another disk under the same path: {here['format']} here, {there['format']} there"
    if "samples_blake3" in here and "samples_blake3" in there:  # nothing writes to it
        if here["samples_blake3"] == there["samples_blake3"]:
            return OK, "the same content on both"
        return FAIL, "another disk under the same path: its content differs"
    unlike = "inode" in here and "inode" in there and here["inode"] != there["inode"]
    if here["locked"] and there["locked"]:
        if unlike:
            return WARN, "locked on both hosts, but with another inode there: it may be two files, each in use"
        return OK, "the same on both: QEMU's lock on it here is seen from there"
    if here["locked"] and there["locked"] is False:
        return FAIL, "a copy, not shared: QEMU's lock on it here is not seen from there"
    inode = " but another inode" if unlike else ""
    reason = f"the same size and format{inode}, and no lock on it that shows whether it is one disk or two"
    return WARN, f"{reason}; the content was not compared, because the guest may write to it"


def _capabilities(source: Facts, destination: Facts) -> Rows:
    for side, facts in (("source", source), ("destination", destination)):
        needed = NEEDED if _version(facts)[0] >= 10 else (*NEEDED, LATE_DISKS)
        if lacking := [name for name in needed if name not in facts["capabilities"]]:
            yield Finding("capabilities", FAIL, f"the {side}'s QEMU has no {', '.join(lacking)}: it needs 3.0 or newer")
            return
    yield Finding("capabilities", OK, f"both have {', '.join(NEEDED)}")


def _memory(source: Facts, destination: Facts) -> Rows:
    needed, free = source["guest"]["ram"], destination["memory_free"]
    if needed != (there := destination["guest"]["ram"]):
        reason = f"the guest has {format_size(needed)} of RAM, QEMU there {format_size(there)}: give both the same -m"
        yield Finding("memory", FAIL, reason)
        return
    if free is None:
        yield Finding("memory", WARN, "how much memory the destination has free is unknown")
    else:
        reason = f"the guest has {format_size(needed)}, the destination has {format_size(free)} free"
        yield Finding("memory", OK if free > needed else FAIL, reason)


def _devices(source: Facts, destination: Facts) -> Rows:
    """QEMU refuses a stream with a device that it lacks, and loads one without a device that it has."""
    for reason in source["blocked"]:
        yield Finding("devices", FAIL, f"QEMU cannot migrate this guest: {reason}")
    here, there = source.get("devices"), destination.get("devices")
    if here is None or there is None:
        yield Finding("devices", WARN, "one QEMU does not report its devices: they cannot be compared")
        return
    if lacking := lost(here, there):
        reason = f"QEMU there would refuse the guest, because it lacks {', '.join(lacking)}"
        yield Finding("devices", FAIL, f"{reason}; a device that was plugged in later is on no command line")
    if extra := lost(there, here):
        yield Finding(
            "devices", WARN, f"only there: {', '.join(extra)}: the guest would find devices that it never had"
        )
    if not (source["blocked"] or lacking or extra):
        yield Finding("devices", OK, f"the same {len(here)} on both, and none that QEMU could not migrate")


def _processors(source: Facts, destination: Facts) -> Rows:
    here, there = source.get("cpus"), destination.get("cpus")
    if here and there and here != there:
        difference = processors(here, there, "the source has", "the destination has")
        yield Finding("processors", FAIL, f"{difference}: give both the same -smp")
    elif here and there:
        yield Finding("processors", OK, f"{len(here)} on both")


def _clock(source: Facts, destination: Facts) -> Rows:
    """The destination's clock was read when the source's facts arrived: their way limits the precision."""
    skew = destination["clock"] - source["clock"]
    level = OK if abs(skew) <= CLOCK_SKEW else WARN
    yield Finding("clock", level, f"the destination's clock is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}")
    here, there = source["clocksource"], destination["clocksource"]
    if here != there:
        yield Finding("clock source", WARN, f"{here} here, {there} there: a guest that reads the TSC may see a jump")


def _tsc(source: Facts, destination: Facts) -> Rows:
    """If QEMU cannot give the guest its counter's frequency, it only warns (kvm_arch_set_tsc_khz)."""
    here, there = source["cpu"].get("tsc"), destination["cpu"].get("tsc")
    if here is None and there is None:
        return
    level, reason = WARN, f"{_hertz(here)} here, {_hertz(there)} there"
    if here is None or there is None:
        reason += ": they cannot be compared"
    elif abs(here - there) <= TSC_TOLERANCE * here:
        level, reason = OK, f"{_hertz(here)} on both"
    elif destination.get("tsc_scales"):
        level, reason = OK, f"{reason}: the destination's processor scales it"
    else:
        known = destination.get("tsc_scales") is False
        reason += (
            ", and its processor cannot scale it" if known else ", and whether its processor scales it is not known"
        )
        reason += ": the clock of a guest that uses it may run wrong"
    yield Finding("TSC", level, reason)


def _hertz(frequency: int | None) -> str:
    return "unknown" if frequency is None else f"{frequency / 1e6:.1f} MHz"


def _places(source: Facts, destination: Facts) -> Rows:
    """QEMU truncates or replaces the files and sockets that it creates, also those of another QEMU."""
    for row, why in clashes(source.get("places", []), destination.get("places", [])):
        held = row.get("held")
        harm = "QEMU there has it too" if held else "QEMU there would empty or replace it: give it another name"
        yield Finding(f"{row['option']} {row['path']}", WARN if held else FAIL, f"{why}; {harm}")


def _networks(source: Facts, destination: Facts) -> Rows:
    for tap, subnets in source["taps"].items():
        there = destination["taps"].get(tap)
        if there is None:
            yield Finding(f"network {tap}", WARN, "the destination's QEMU has no tap of this name")
        elif set(subnets) & set(there):
            yield Finding(f"network {tap}", OK, f"in {', '.join(sorted(set(subnets) & set(there)))} on both")
        else:
            reason = f"in {', '.join(subnets) or 'no network'} here, in {', '.join(there) or 'none'} there"
            yield Finding(f"network {tap}", WARN, f"{reason}: the guest's addresses may not be reached there")


CHECKS: tuple[Callable[[Facts, Facts], Rows], ...] = (
    _versions,
    _machine,
    _architecture,
    _processor,
    _processors,
    _command_line,
    _capabilities,
    _devices,
    _disks,
    _memory,
    _clock,
    _tsc,
    _places,
    _networks,
)
