"""The hardware that a guest sees: what a QEMU that is to have the guest must have too.

Most of it is in no migration stream: QEMU takes a state into a machine with another processor without a word, and the
guest's next instruction may be one that is not there any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from statepipe.errors import QemuError
from statepipe.formats.hardware import HARDWARE
from statepipe.qemu.commandline import option_of
from statepipe.qemu.devices import ask, plugged
from statepipe.shapes import LARGEST, Misshapen, check
from statepipe.units import number_in

if TYPE_CHECKING:  # asyncio takes 60 ms, which a filter need not pay
    from statepipe.qemu.monitor import Monitor

Facts = dict[str, Any]

NAMED_BITS = {
    "0x80000001:EDX": {11: "syscall", 20: "nx", 26: "pdpe1gb", 27: "rdtscp", 29: "lm"},
    "0x80000001:ECX": {2: "svm", 5: "abm", 6: "sse4a"},
    "0x1:EDX": {25: "sse", 26: "sse2"},
    "0x1:ECX": {0: "sse3", 1: "pclmulqdq", 5: "vmx", 9: "ssse3", 12: "fma", 13: "cx16", 19: "sse4.1", 20: "sse4.2"}
    | {21: "x2apic", 22: "movbe", 23: "popcnt", 24: "tsc-deadline", 25: "aes", 26: "xsave", 28: "avx", 29: "f16c"},
    "0x7:EBX": {0: "fsgsbase", 3: "bmi1", 5: "avx2", 7: "smep", 8: "bmi2", 16: "avx512f", 18: "rdseed", 20: "smap"},
}
"""Names of the CPUID bits that people know (Intel SDM volume 2A, CPUID); the others are told by leaf and number."""


PARTS = ("cpu", "smp", "ram", "devices")
"""What of it may differ, and be taken as it is by --force."""


def hardware(monitor: Monitor) -> Facts:
    """Accelerator, processors and devices, ready for JSON. Raises QemuError."""
    rows = monitor.execute("query-cpus-fast")
    found = {
        "accelerator": "kvm" if monitor.execute("query-kvm")["enabled"] else "tcg",
        "cpu": _cpu(monitor, rows[0]["qom-path"]),
        "cpus": sorted(_socket(row.get("props", {})) for row in rows),
        "devices": plugged(monitor),
    }
    try:
        return check(found, HARDWARE)  # type: ignore[no-any-return]
    except Misshapen as error:
        raise QemuError(f"what QEMU at {monitor.place} says of its hardware is not understood: {error}") from error


def _cpu(monitor: Monitor, first: str) -> Facts:
    """The first CPU's type and CPUID bits: what the guest has, and what it was to have and this host lacks."""
    return {
        "type": monitor.execute("qom-get", path=first, property="type"),
        "features": _words(monitor, first, "feature-words"),
        "missing": _words(monitor, first, "filtered-features"),
        "tsc": ask(monitor, "qom-get", path=first, property="tsc-frequency") or None,  # TCG makes it of the clock
    }


def _words(monitor: Monitor, path: str, name: str) -> dict[str, int]:
    """`{"0x80000001:EDX": bits}`; nothing on other processors than x86."""
    return {
        f"{row['cpuid-input-eax']:#x}{'.' + str(leaf) if (leaf := row.get('cpuid-input-ecx', 0)) else ''}:"
        f"{row['cpuid-register']}": row["features"]
        for row in ask(monitor, "qom-get", path=path, property=name) or []
        if row["features"]
    }


def _socket(ids: Mapping[str, int]) -> str:
    """Where a processor sits, as `core 1 socket 0`: what is 0 everywhere, a later QEMU may leave out."""
    return " ".join(f"{name.removesuffix('-id')} {number}" for name, number in sorted(ids.items()) if number) or "first"


def bits(wanted: dict[str, int], there: dict[str, int]) -> Iterator[str]:
    """The names of the CPUID bits that `wanted` has and `there` has not."""
    for word, value in wanted.items():
        left = value & ~there.get(word, 0)
        for number in range(left.bit_length()):
            if left >> number & 1:
                yield NAMED_BITS.get(word, {}).get(number, f"CPUID {word} bit {number}")


def lost(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """What is in the first list and not, or not as often, in the second."""
    return sorted((Counter(before) - Counter(after)).elements())


def changes(saved: Facts, now: Facts) -> Iterator[tuple[str, str]]:
    """What a guest would miss, of all that is told of both: `cpu`, `smp`, `ram` or `devices`, and how."""
    if "cpu" in saved and "cpu" in now:
        here, there = saved["cpu"], now["cpu"]
        if here["type"] != there["type"]:
            yield "cpu", f"its processor was {here['type']}, and is {there['type']}"
        elif gone := list(bits(here["features"], there["features"])):
            yield "cpu", f"its processor lacks {', '.join(gone)}, which the guest had and may use"
    before, after = saved.get("cpus"), now.get("cpus")
    if before and after and before != after:
        yield "smp", _processors(before, after, "it had", "and has")
    if (ram := saved.get("ram")) and now.get("ram", ram) != ram:
        yield "ram", f"it had {ram >> 20} MiB of memory, and has {now['ram'] >> 20}"
    if missing := lost(saved.get("devices") or [], now.get("devices") or []):
        yield "devices", f"it lacks {', '.join(missing)}"


def changed_words(saved: Sequence[str], now: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The same of two command lines, where that is all that is known: another model, another number of processors."""
    before, after = (option_of(command, "-cpu") for command in (saved, now))
    models = [value.partition(",")[0] if value else "the machine's own" for value in (before, after)]
    if models[0] != models[1]:
        yield "cpu", f"its processor was {models[0]}, and is {models[1]} (-cpu)"
    numbers = [_count(option_of(command, "-smp")) for command in (saved, now)]
    if None not in numbers and numbers[0] != numbers[1]:
        yield "smp", f"it had {numbers[0]} processors, and has {numbers[1]} (-smp)"


def _count(value: str | None) -> int | None:
    """How many processors -smp asks for; None where that follows from its other words."""
    if value is None:
        return 1
    first = value.partition(",")[0].removeprefix("cpus=")
    return number_in(first, 0, LARGEST)


def _processors(before: Sequence[str], after: Sequence[str], had: str, has: str) -> str:
    if len(before) != len(after):
        return f"{had} {len(before)} processors, {has} {len(after)}"
    return f"{had} processors at {'; '.join(lost(before, after))}, {has} them at {'; '.join(lost(after, before))}"


def processors(here: Sequence[str], there: Sequence[str]) -> str:
    """How the processors of two hosts' QEMUs differ."""
    return _processors(here, there, "here there are", "on the destination")
