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
from statepipe.units import format_size

OK, WARN, FAIL = "ok", "warn", "fail"

CLOCK_SKEW = 2.0
"""Seconds: what a guest notices that goes by the host's clock; NTP keeps hosts within milliseconds."""

TSC_TOLERANCE = 250e-6
"""By which two TSCs may differ and be called the same: KVM's own tsc_tolerance_ppm."""

NAMED_BITS = {
    "0x80000001:EDX": {11: "syscall", 20: "nx", 26: "pdpe1gb", 27: "rdtscp", 29: "lm"},
    "0x80000001:ECX": {2: "svm", 5: "abm", 6: "sse4a"},
    "0x1:EDX": {25: "sse", 26: "sse2"},
    "0x1:ECX": {0: "sse3", 1: "pclmulqdq", 5: "vmx", 9: "ssse3", 12: "fma", 13: "cx16", 19: "sse4.1", 20: "sse4.2"}
    | {21: "x2apic", 22: "movbe", 23: "popcnt", 24: "tsc-deadline", 25: "aes", 26: "xsave", 28: "avx", 29: "f16c"},
    "0x7:EBX": {0: "fsgsbase", 3: "bmi1", 5: "avx2", 7: "smep", 8: "bmi2", 16: "avx512f", 18: "rdseed", 20: "smap"},
}
"""Names of the CPUID bits that people know (Intel SDM volume 2A, CPUID); the others are told by leaf and number."""

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


def bits(wanted: dict[str, int], there: dict[str, int]) -> Iterator[str]:
    """The names of the CPUID bits that `wanted` has and `there` has not."""
    for word, value in wanted.items():
        left = value & ~there.get(word, 0)
        for number in range(left.bit_length()):
            if left >> number & 1:
                yield NAMED_BITS.get(word, {}).get(number, f"CPUID {word} bit {number}")


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
        yield _disk(disk, there.get(disk["path"]))
    if not source["disks"]:
        yield Finding("disks", OK, "the guest has none")


def _disk(here: Facts, there: Facts | None) -> Finding:
    """The same file, not merely one of the same name: QEMU's locks of the source must be seen from there."""
    name = f"disk {here['path']}"
    if there is None or "unknown" in there:
        reason = there["unknown"] if there else "QEMU there has no such disk"
        return Finding(name, FAIL, f"not to be had on the destination: {reason}")
    if "unknown" in here:
        return Finding(name, WARN, f"cannot be read here ({here['unknown']}): nobody can tell whether it is shared")
    if here["size"] != there["size"] or here["samples_blake3"] != there["samples_blake3"]:
        return Finding(name, FAIL, "another disk under the same path: its size or content differs there")
    if here["locked"] and there["locked"]:
        return Finding(name, OK, "the same on both: QEMU's lock on it here is seen from there")
    if here["locked"]:
        return Finding(name, FAIL, "a copy, not shared: QEMU's lock on it here is not seen from there")
    return Finding(name, WARN, "the same content, but no lock on it to tell whether it is one disk or two")


def _capabilities(source: Facts, destination: Facts) -> Rows:
    for side, facts in (("source", source), ("destination", destination)):
        if lacking := [name for name in NEEDED if name not in facts["capabilities"]]:
            yield Finding("capabilities", FAIL, f"the {side}'s QEMU has no {', '.join(lacking)}: it needs 3.0 or newer")
            return
    yield Finding("capabilities", OK, f"both have {', '.join(NEEDED)}")


def _memory(source: Facts, destination: Facts) -> Rows:
    needed, free = source["guest"]["ram"], destination["memory_free"]
    if free is None:
        yield Finding("memory", WARN, "how much the destination has free cannot be told")
    else:
        reason = f"the guest has {format_size(needed)}, the destination {format_size(free)} free"
        yield Finding("memory", OK if free > needed else FAIL, reason)


def _blocked(source: Facts, destination: Facts) -> Rows:
    for reason in source["blocked"]:
        yield Finding("devices", FAIL, f"QEMU cannot migrate this guest: {reason}")
    if not source["blocked"]:
        yield Finding("devices", OK, "none that QEMU could not migrate")


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
    _command_line,
    _capabilities,
    _blocked,
    _disks,
    _memory,
    _clock,
    _tsc,
    _networks,
)
