"""QEMU's command line: its options one by one, what one says, and how another such QEMU is started."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

from statepipe.errors import UsageError

_FLAGS = """
S s async-teardown audio-help alt-grab ctrl-grab curses daemonize enable-fips enable-kvm enable-sync-profile full-screen
h help jitdump mem-prealloc no-acpi no-fd-bootchk no-frame no-hpet no-kvm no-quit no-reboot no-shutdown no-user-config
nodefaults nographic old-param one-insn-per-tb only-migratable perfmap portrait preconfig sdl semihosting singlestep
snapshot usb version win2k-hack xen-attach xen-domid-restrict
"""
_WITHOUT_VALUE = frozenset(_FLAGS.split())
"""The options of QEMU 2.12 to 10.0 that take none; every other has one, which may begin with a dash."""

MONITOR = "statepipe-monitor"
"""What the names of the monitors begin with that statepipe gives a QEMU."""


def parted(command: Sequence[str]) -> Iterator[tuple[str | None, list[str]]]:
    """Each option's name, without dashes, and its words as they are; QEMU takes it with one dash or two.

    The name of an image, which has no option, comes with None.
    """
    rest = iter(command[1:])
    for word in rest:
        name = word[1:].removeprefix("-") if word.startswith("-") else None
        yield name, [word, *([] if name is None or name in _WITHOUT_VALUE else islice(rest, 1))]


def option_of(command: Sequence[str], flag: str) -> str | None:
    """What follows `flag` (also in its --flag spelling) on the command line."""
    for word, value in pairwise(command):
        if word in (flag, "-" + flag):
            return value
    return None


def anew(command: Sequence[str]) -> list[str]:
    """The command line that starts another such QEMU, to wait for this one's guest.

    Without how this one got its own guest, the monitors that statepipe gave it, and what would hide it from us.
    """
    kept = list(command[:1])
    for name, words in parted(command):
        ours = name in ("chardev", "mon") and any(f"={MONITOR}-" in each for each in words[1:])
        if name not in ("S", "daemonize", "incoming") and not ours:
            kept += words
    return kept


def refuse_daemon(command: Sequence[str]) -> None:
    """Raises UsageError for a QEMU that would leave its first process behind: nobody could see that it has ended."""
    if any(name == "daemonize" for name, _ in parted(command)):
        raise UsageError(
            "the QEMU command has -daemonize: whether such a QEMU has ended cannot be seen, and its guest might run on",
            hint="leave it out; with --detach or --serve QEMU is left to itself as well, once it has its guest",
        )


def starts_qemu(command: Sequence[str]) -> bool:
    """Whether it starts QEMU itself, in our own view of the host: no wrapper, and no script."""
    program = shutil.which(command[0]) if command else None
    if program is None or not os.path.basename(program).lstrip(".").startswith("qemu"):
        return False
    try:
        with open(program, "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False
