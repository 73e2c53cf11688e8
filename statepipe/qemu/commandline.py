"""QEMU's command line: split it into options, read their values, and derive the command line of another such QEMU."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice

from statepipe.errors import UsageError
from statepipe.typed import Any

_FLAGS = """
S s async-teardown audio-help alt-grab ctrl-grab curses daemonize enable-fips enable-hax enable-kvm enable-sync-profile
full-screen h help jitdump localtime mem-prealloc no-acpi no-fd-bootchk no-frame no-hpet no-kvm no-kvm-irqchip
no-kvm-pit no-kvm-pit-reinjection no-quit no-reboot no-shutdown no-user-config nodefaults nodefconfig nographic
old-param one-insn-per-tb only-migratable perfmap portrait preconfig rtc-td-hack sdl semihosting show-cursor singlestep
snapshot tdf usb version win2k-hack xen-attach xen-create xen-domid-restrict
"""
_WITHOUT_VALUE = frozenset(_FLAGS.split())
"""Options without a value (QEMU 2.12 to 11.1, qemu-options.hx); any other has one, which may begin with a dash."""

TAKE_JSON = ("audiodev", "blockdev", "chardev", "device", "display", "machine", "netdev", "object")
"""Options whose value may be JSON. The value of another option, such as -append, only looks like JSON."""

MONITOR = "statepipe-monitor"
"""The prefix of the names of the monitors that statepipe adds to a QEMU."""

OWN_MONITOR = "statepipe-resume"
"""The id of the monitor that `load --lazy` gives a QEMU that it starts, for the statepipe that continues."""

_OURS = re.compile(f"[=:]({MONITOR}-|{OWN_MONITOR}(,|$))")
"""In `socket,id=NAME` and `chardev:NAME`."""

_MONITOR_OBJECT = re.compile(r"""(?:^|\bqom-type["']?\s*[=:]\s*["']?)monitor-(?:qmp|hmp)\b""")
"""The value of an `-object` that is a monitor (QEMU 11.1 and later), in words or JSON."""


def parted(command: Sequence[str]) -> Iterator[tuple[str | None, list[str]]]:
    """Yield each option's name, without its one or two dashes, and its words unchanged; None for an image's name, which
    needs no option."""
    rest = iter(command[1:])
    for word in rest:
        name = word[1:].removeprefix("-") if word.startswith("-") else None
        yield name, [word, *([] if name is None or name in _WITHOUT_VALUE else islice(rest, 1))]


_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'', re.DOTALL)
_ESCAPED = re.compile(r'\\.|"', re.DOTALL)


def json_of(text: str) -> Any:
    """Parse an option's value in JSON as QEMU does (qobject/json-lexer.c): strings may have single quotes. Raises
    ValueError for other text, or if it is nested too deeply for Python."""

    def quoted(found: re.Match[str]) -> str:
        within = found[1] if found[1] is not None else found[2]
        return '"' + _ESCAPED.sub(lambda each: {"\\'": "'", '"': '\\"'}.get(each[0], each[0]), within) + '"'

    try:
        return json.loads(_STRING.sub(quoted, text))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each value in JSON with its name as in an option without JSON: `file.filename`, `server.0.host`."""
    left = [("", value)]
    while left:
        name, each = left.pop()
        if isinstance(each, dict):
            inner = list(each.items())
        elif isinstance(each, list):
            inner = [(str(number), item) for number, item in enumerate(each)]
        else:
            yield name, each
            continue
        left += [(f"{name}.{key}" if name else key, item) for key, item in reversed(inner)]


def in_words(value: str) -> str:
    """Convert an option's value from JSON to words; return any other value unchanged. Raises ValueError for invalid
    JSON."""
    if not value.startswith("{"):
        return value
    rows = [(name, ("off", "on")[each] if isinstance(each, bool) else each) for name, each in leaves(json_of(value))]
    return ",".join(f"{name}={each}".replace(",", ",,") for name, each in rows)


def split(value: str) -> list[str]:
    """Return the words of an option's value; a doubled comma stands for a comma in a word."""
    return [word.replace("\0", ",") for word in value.replace(",,", "\0").split(",")]


def texts(value: str) -> Iterator[str]:
    """Yield whatever an option's value, in words or JSON, may name: the whole, each word, and the value of each word.
    Nothing for invalid JSON, which QEMU rejects too."""
    left = [value]
    while left:
        each = left.pop()
        if each.startswith(("{", "json:{")):
            with suppress(ValueError):
                left += [text for _, text in leaves(json_of(each.removeprefix("json:"))) if isinstance(text, str)]
            continue
        yield each
        for word in split(each):
            after = word.partition("=")[2]
            yield word
            left += [after] if after else []


def option_of(command: Sequence[str], flag: str) -> str | None:
    """Return the value of the first option `flag` (also spelled --flag) on the command line, or None."""
    return next((words[1] for name, words in parted(command) if f"-{name}" == flag and len(words) > 1), None)


def anew(command: Sequence[str]) -> list[str]:
    """Return the command line for another such QEMU that waits for this one's guest: without the way in which this one
    got its guest, the monitors that statepipe added, and -daemonize, which would hide the process from us."""
    kept = list(command[:1])
    for name, words in parted(command):
        ours = name in ("chardev", "qmp") and any(_OURS.search(each) for each in words[1:])
        if name not in ("S", "daemonize", "incoming") and not ours:
            kept += words
    return kept


def is_monitor(name: str | None, words: Sequence[str]) -> bool:
    """Return whether this option, as `parted` yields it, adds a monitor, of whatever kind. It adds nothing to the
    guest."""
    if name == "object" and len(words) > 1:
        return _MONITOR_OBJECT.search(words[1]) is not None
    return name in ("monitor", "qmp", "qmp-pretty", "mon")


def refuse_daemon(command: Sequence[str]) -> None:
    """Raises UsageError for a QEMU that would leave its first process: we could not see whether it has ended."""
    if any(name == "daemonize" for name, _ in parted(command)):
        raise UsageError(
            "the QEMU command has -daemonize: statepipe could not see whether such a QEMU has ended",
            hint="remove it; with --detach or --serve, QEMU also continues by itself once it has its guest",
        )


def program_of(command: Sequence[str]) -> str | None:
    """Return the program of a command if it is a QEMU by its name; perhaps a script that starts one."""
    program = shutil.which(command[0]) if command else None
    return program if program and os.path.basename(program).lstrip(".").startswith("qemu") else None


def starts_qemu(command: Sequence[str]) -> bool:
    """Return whether the command starts QEMU itself, not a wrapper or a script, in our own view of the host."""
    program = program_of(command)
    if program is None:
        return False
    try:
        with open(os.open(program, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False
