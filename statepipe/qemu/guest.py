"""What a running QEMU reports about its guest: who it is, and the hardware that it sees.

A migration stream has little about the hardware: QEMU loads a state into a machine with another processor without a
warning, and the guest's next instruction may be one that the new processor lacks. So the hardware is compared here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from statepipe.errors import QemuError
from statepipe.formats.hardware import HARDWARE
from statepipe.qemu.commandline import option_of
from statepipe.qemu.devices import ask, plugged
from statepipe.qemu.runstates import SUSPENDED
from statepipe.shapes import LARGEST, Misshapen, check
from statepipe.typed import TYPE_CHECKING, Any
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
"""Well-known CPUID bits by leaf and register (Intel SDM volume 2A, CPUID)."""

PARTS = ("cpu", "smp", "ram", "devices")
"""Parts of the hardware, as --force names them."""


def describe_guest(monitor: Monitor) -> Facts:
    """Return name, UUID, machine type, QEMU version and RAM (bytes), as JSON. Raises QemuError."""
    version = monitor.execute("query-version")
    memory = monitor.execute("query-memory-size-summary")
    uuid = monitor.execute("query-uuid")["UUID"]
    return {
        "name": monitor.execute("query-name").get("name"),
        "uuid": uuid if uuid.strip("0-") else None,  # all zeros: QEMU was started without -uuid
        "machine": str(monitor.execute("qom-get", path="/machine", property="type")).removesuffix("-machine"),
        "qemu": "{major}.{minor}.{micro} ".format(**version["qemu"]) + f"({version['package']})",
        "ram": memory["base-memory"] + memory.get("plugged-memory", 0),
    }


def demand_cont(monitor: Monitor, was: str) -> None:
    """Raises QemuError if `cont` after a migration would end QEMU. From 9.0 on, it aborts for a guest that `was`
    suspended: "invalid runstate transition: 'postmigrate' -> 'suspended'"."""
    if was == SUSPENDED and monitor.execute("query-version")["qemu"]["major"] >= 9:
        what = "this QEMU would end if it resumed a guest that was suspended before it was saved or sent"
        raise QemuError(what, hint="wake the guest first (system_wakeup at QEMU's monitor), or load it elsewhere")


def hardware(monitor: Monitor) -> Facts:
    """Return accelerator, processors and devices, as JSON. Raises QemuError.

    `cpu` has the CPUID bits that the first processor has, and those that it should have but this host lacks; none on
    processors other than x86.
    """
    rows = monitor.execute("query-cpus-fast")
    first = rows[0]["qom-path"]
    bits_of = {
        name: {
            f"{row['cpuid-input-eax']:#x}{'.' + str(leaf) if (leaf := row.get('cpuid-input-ecx', 0)) else ''}:"
            f"{row['cpuid-register']}": row["features"]
            for row in ask(monitor, "qom-get", path=first, property=name) or []
            if row["features"]
        }
        for name in ("feature-words", "filtered-features")
    }
    sockets = []  # "core 1 socket 0": without the ids that are 0, which a later QEMU may leave out
    for row in rows:
        ids = sorted(row.get("props", {}).items())
        sockets.append(" ".join(f"{name.removesuffix('-id')} {number}" for name, number in ids if number) or "first")
    found = {
        "accelerator": _accelerator(monitor),
        "cpu": {
            "type": monitor.execute("qom-get", path=first, property="type"),
            "features": bits_of["feature-words"],
            "missing": bits_of["filtered-features"],
            "tsc": ask(monitor, "qom-get", path=first, property="tsc-frequency") or None,  # TCG derives it from a clock
        },
        "cpus": sorted(sockets),
        "devices": plugged(monitor),
    }
    try:
        return check(found, HARDWARE)  # type: ignore[no-any-return]
    except Misshapen as error:
        raise QemuError(f"unexpected hardware reported by {monitor.place}: {error}") from error


def _accelerator(monitor: Monitor) -> str:
    """Return `kvm` or `tcg`. Raises QemuError.

    QEMU 11.0 deprecates query-kvm, and 10.2 is the first with the other command: so whichever is there is asked.
    """
    if (kvm := ask(monitor, "query-kvm")) is not None:
        is_kvm = kvm["enabled"]
    else:
        is_kvm = monitor.execute("query-accelerators")["enabled"] == "kvm"
    return "kvm" if is_kvm else "tcg"


def bits(wanted: dict[str, int], there: dict[str, int]) -> Iterator[str]:
    """Yield the names of the CPUID bits that `wanted` has and `there` lacks."""
    for word, value in wanted.items():
        left = value & ~there.get(word, 0)
        for number in range(left.bit_length()):
            if left >> number & 1:
                yield NAMED_BITS.get(word, {}).get(number, f"CPUID {word} bit {number}")


def lost(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Return the items of the first list that the second lacks, or has less often."""
    return sorted((Counter(before) - Counter(after)).elements())


def changes(saved: Facts, now: Facts) -> Iterator[tuple[str, str]]:
    """Yield what the guest would miss, of the facts that both have: a part (PARTS), and the difference."""
    if "cpu" in saved and "cpu" in now:
        here, there = saved["cpu"], now["cpu"]
        if here["type"] != there["type"]:
            yield "cpu", f"its processor was {here['type']}, and is {there['type']}"
        elif gone := list(bits(here["features"], there["features"])):
            yield "cpu", f"its processor lacks {', '.join(gone)}, which the guest had and may use"
    before, after = saved.get("cpus"), now.get("cpus")
    if before and after and before != after:
        yield "smp", processors(before, after, "it had", "and has")
    if (ram := saved.get("ram")) and now.get("ram", ram) != ram:
        yield "ram", f"it had {ram >> 20} MiB of memory, and has {now['ram'] >> 20}"
    if missing := lost(saved.get("devices") or [], now.get("devices") or []):
        yield "devices", f"it lacks {', '.join(missing)}"


def changed_words(saved: Sequence[str], now: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Do the same for two command lines, if nothing else is known: another model, another number of processors."""
    before, after = (option_of(command, "-cpu") for command in (saved, now))
    models = [value.partition(",")[0] if value else "the machine's own" for value in (before, after)]
    if models[0] != models[1]:
        yield "cpu", f"its processor was {models[0]}, and is {models[1]} (-cpu)"
    counts = []  # None if the number follows from the other words of -smp
    for value in (option_of(command, "-smp") for command in (saved, now)):
        counts.append(1 if value is None else number_in(value.partition(",")[0].removeprefix("cpus="), 0, LARGEST))
    if None not in counts and counts[0] != counts[1]:
        yield "smp", f"it had {counts[0]} processors, and has {counts[1]} (-smp)"


def processors(before: Sequence[str], after: Sequence[str], had: str, has: str) -> str:
    """Return how two lists of processors differ; `had` and `has` introduce each."""
    if len(before) != len(after):
        return f"{had} {len(before)} processors, {has} {len(after)}"
    return f"{had} processors at {'; '.join(lost(before, after))}, {has} them at {'; '.join(lost(after, before))}"
