"""Would this migration work: the facts of both hosts set side by side, before anything moves.

Each row is `ok`, `warn` (it may work, and a person should know) or `fail` (QEMU would refuse, or the guest would be
harmed), with the reason in words. A row that cannot be told is `warn`: what was not seen is not ok.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from statepipe.qemu.facts import Facts
from statepipe.qemu.hardware import bits, lost, processors
from statepipe.qemu.places import clashes
from statepipe.units import format_size

OK, WARN, FAIL = "ok", "warn", "fail"

CLOCK_SKEW = 2.0
"""Seconds: what a guest notices that goes by the host's clock; NTP keeps hosts within milliseconds."""

TSC_TOLERANCE = 250e-6
"""By which two TSCs may differ and be called the same: KVM's own tsc_tolerance_ppm."""

NEEDED = ("return-path", "late-block-activate", "pause-before-switchover", "events")


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: what was looked at, how it stands, and why."""

    what: str
    level: str
    reason: str


def compare(source: Facts, destination: Facts) -> list[Finding]:
    """Every row, in the order of what fails first when it is wrong."""
    return [finding for check in CHECKS for finding in check(source, destination)]


def as_rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Ready for JSON."""
    return [asdict(finding) for finding in findings]


def worst(findings: Sequence[Finding]) -> str:
    """`fail` if one row is, else `warn` if one is, else `ok`."""
    levels = {finding.level for finding in findings}
    return next((level for level in (FAIL, WARN) if level in levels), OK)


Rows = Iterator[Finding]


def _versions(source: Facts, destination: Facts) -> Rows:
    here, there = source["guest"]["qemu"], destination["guest"]["qemu"]
    if _number(here) == _number(there):
        yield Finding("QEMU", OK, f"{here} on both")
    elif _number(here) < _number(there):
        yield Finding("QEMU", OK, f"from {here} to the newer {there}")
    else:
        yield Finding("QEMU", WARN, f"from {here} to the older {there}: QEMU promises only the way to a newer one")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split()[0].split("."))


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
        reason = f"the destination's host cannot give {', '.join(lacking)}: another guest of this kind would lack it"
        yield Finding("CPU", WARN, reason)
    yield Finding("CPU", OK, f"{here['type']}, with all of its features on both")


_PLACES = (
    *("-incoming", "-qmp", "-monitor", "-mon", "-chardev", "-pidfile", "-D", "-name"),
    *("-display", "-vnc"),
)
"""Options that may differ between two hosts without the guest's noticing."""

_SWITCHES = ("-S", "-daemonize", "-no-user-config")

_DEVICES = ("-serial", "-parallel")
"""Options that add a device to the guest, whatever on the host their value connects it with; but `none` adds none."""


def _command_line(source: Facts, destination: Facts) -> Rows:
    if source["command"] is None or destination["command"] is None:
        yield Finding("command line", WARN, "that of one QEMU may not be looked at: they cannot be compared")
        return
    here, there = visible(source["command"]), visible(destination["command"])
    lacking = [" ".join(option) for option in (Counter(here) - Counter(there)).elements()]
    extra = [" ".join(option) for option in (Counter(there) - Counter(here)).elements()]
    if lacking or extra:
        told = [*(f"only here: {option}" for option in lacking), *(f"only there: {option}" for option in extra)]
        yield Finding("command line", WARN, "; ".join(told))
    else:
        yield Finding("command line", OK, "the same, but for monitors and other things of the host")


def visible(command: Sequence[str]) -> list[tuple[str, ...]]:
    """The options that make the guest what it is, each with its value, sorted."""
    options: list[tuple[str, ...]] = []
    for word in command[1:]:
        if word.startswith("-") and len(word) > 1:
            options.append(("-" + word.lstrip("-"),))
        elif options:
            options[-1] = (*options[-1], word)
    return sorted(_without_place(option) for option in options if option[0] not in _PLACES + _SWITCHES)


def _without_place(option: tuple[str, ...]) -> tuple[str, ...]:
    return option[:1] if option[0] in _DEVICES and option[1:] != ("none",) else option


def _disks(source: Facts, destination: Facts) -> Rows:
    if source["temporary"]:
        yield Finding("disks", FAIL, "-snapshot is in use: what the guest wrote is in a file that only this host has")
    there = {disk["path"]: disk for disk in destination["disks"]}
    for disk in source["disks"]:
        level, reason = _disk(disk, there.get(disk["path"]) or _in_its_place(disk, destination["disks"]))
        yield Finding(f"disk {disk['path']}", level, reason)
    if not source["disks"]:
        yield Finding("disks", OK, "the guest has none")


def _in_its_place(here: Facts, others: Sequence[Facts]) -> Facts | None:
    """What the destination's QEMU has where the guest sees a disk that is no file: each host may call it otherwise."""
    places = here.get("devices")
    return next(
        (disk for disk in others if "driver" in here and "driver" in disk and disk.get("devices") == places), None
    )


def _disk(here: Facts, there: Facts | None) -> tuple[str, str]:
    """The same file, not merely one of the same name: QEMU's locks of the source must be seen from there."""
    if there is None:
        return FAIL, "not to be had on the destination: QEMU there has no such disk"
    places, others = here.get("devices"), there.get("devices")
    if places is not None and others is not None and places != others:
        where = [" and ".join(each) or "below another image" for each in (places, others)]
        return FAIL, f"the guest has it at {where[0]} here, and at {where[1]} there: name the disks in the same order"
    sizes = {disk["size"] for disk in (here, there) if disk.get("size") is not None}
    if len(sizes) == 2:
        return FAIL, "another disk: its size differs there"
    if "driver" in here and "driver" in there:
        other = "" if here["path"] == there["path"] else f", and is {there['path']} there"
        return WARN, f"{here['driver']} keeps it{other}: that it is one disk, and not two, cannot be told from here"
    if "unknown" in there:
        return FAIL, f"not to be had on the destination: {there['unknown']}"
    if "unknown" in here:
        return WARN, f"cannot be read here ({here['unknown']}): nobody can tell whether it is shared"
    if here["format"] != there["format"]:
        return FAIL, f"another disk under the same path: {here['format']} here, {there['format']} there"
    if "samples_blake3" in here and "samples_blake3" in there:  # nobody writes to it
        same = here["samples_blake3"] == there["samples_blake3"]
        return (
            (OK, "the same content on both")
            if same
            else (FAIL, "another disk under the same path: its content differs")
        )
    return _is_one(here, there)


def _is_one(here: Facts, there: Facts) -> tuple[str, str]:
    """Whether a disk that is in use is one. What it holds is not compared: the guest writes to it meanwhile."""
    unlike = "inode" in here and "inode" in there and here["inode"] != there["inode"]
    if here["locked"] and there["locked"]:
        if unlike:
            return WARN, "locked on both, but under another number there: it may be two files, each in use"
        return OK, "the same on both: QEMU's lock on it here is seen from there"
    if here["locked"] and there["locked"] is False:
        return FAIL, "a copy, not shared: QEMU's lock on it here is not seen from there"
    number = ", and has another number" if unlike else ""
    reason = f"the same size and format{number}, but no lock on it to tell whether it is one disk or two"
    return WARN, f"{reason}; what it holds was not compared, as the guest may write to it"


def _capabilities(source: Facts, destination: Facts) -> Rows:
    for side, facts in (("source", source), ("destination", destination)):
        if lacking := [name for name in NEEDED if name not in facts["capabilities"]]:
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
        yield Finding("memory", WARN, "how much the destination has free cannot be told")
    else:
        reason = f"the guest has {format_size(needed)}, the destination {format_size(free)} free"
        yield Finding("memory", OK if free > needed else FAIL, reason)


def _devices(source: Facts, destination: Facts) -> Rows:
    """QEMU refuses a stream with a device that it has not, and takes one without a device that it has."""
    for reason in source["blocked"]:
        yield Finding("devices", FAIL, f"QEMU cannot migrate this guest: {reason}")
    here, there = source.get("devices"), destination.get("devices")
    if here is None or there is None:
        yield Finding("devices", WARN, "those of one QEMU are not told: they cannot be compared")
        return
    if lacking := lost(here, there):
        reason = f"QEMU there would refuse the guest, as it lacks {', '.join(lacking)}"
        yield Finding("devices", FAIL, f"{reason}; what was plugged in while the guest ran is on no command line")
    if extra := lost(there, here):
        yield Finding("devices", WARN, f"only there: {', '.join(extra)}: the guest would find what it never had")
    if not (source["blocked"] or lacking or extra):
        yield Finding("devices", OK, f"the same {len(here)} on both, and none that QEMU could not migrate")


def _processors(source: Facts, destination: Facts) -> Rows:
    here, there = source.get("cpus"), destination.get("cpus")
    if here and there and here != there:
        yield Finding("processors", FAIL, f"{processors(here, there)}: give both the same -smp")
    elif here and there:
        yield Finding("processors", OK, f"{len(here)} on both")


def _clock(source: Facts, destination: Facts) -> Rows:
    """The facts were gathered a round trip apart, so what is told is no more exact than that."""
    skew = destination["clock"] - source["clock"]
    level = OK if abs(skew) <= CLOCK_SKEW else WARN
    yield Finding("clock", level, f"the destination's is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}")
    here, there = source["clocksource"], destination["clocksource"]
    if here != there:
        yield Finding("clock source", WARN, f"{here} here, {there} there: a guest that reads the TSC may see a jump")


def _tsc(source: Facts, destination: Facts) -> Rows:
    """QEMU loads a guest whose counter it cannot keep up with a warning alone (kvm_arch_set_tsc_khz)."""
    here, there = source["cpu"].get("tsc"), destination["cpu"].get("tsc")
    if here is None and there is None:
        return
    if here is None or there is None:
        yield Finding("TSC", WARN, f"{_hertz(here)} here, {_hertz(there)} there: they cannot be compared")
    elif abs(here - there) <= TSC_TOLERANCE * here:
        yield Finding("TSC", OK, f"{_hertz(here)} on both")
    elif destination.get("tsc_scales"):
        yield Finding(
            "TSC", OK, f"{_hertz(here)} here; the destination's processor, of {_hertz(there)}, gives that too"
        )
    else:
        scaling = "whether its processor scales it is not known"
        if destination.get("tsc_scales") is False:
            scaling = "its processor cannot scale it"
        reason = f"{_hertz(here)} here, {_hertz(there)} there, and {scaling}"
        yield Finding("TSC", WARN, f"{reason}: else the clock of a guest that reads it goes wrong")


def _hertz(frequency: int | None) -> str:
    return "unknown" if frequency is None else f"{frequency / 1e6:.1f} MHz"


def _places(source: Facts, destination: Facts) -> Rows:
    """What QEMU makes for itself under a name of another's, it empties or takes away."""
    for row, why in clashes(source.get("places", []), destination.get("places", [])):
        held = row.get("held")
        harm = "QEMU there has it too" if held else "QEMU there would empty it or take it away: give it another name"
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
