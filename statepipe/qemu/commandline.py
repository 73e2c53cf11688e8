"""QEMU's command line: its options one by one, what one says, and how another such QEMU is started."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from statepipe.errors import UsageError

_FLAGS = """
S s async-teardown audio-help alt-grab ctrl-grab curses daemonize enable-fips enable-hax enable-kvm enable-sync-profile
full-screen h help jitdump localtime mem-prealloc no-acpi no-fd-bootchk no-frame no-hpet no-kvm no-kvm-irqchip
no-kvm-pit no-kvm-pit-reinjection no-quit no-reboot no-shutdown no-user-config nodefaults nodefconfig nographic
old-param one-insn-per-tb only-migratable perfmap portrait preconfig rtc-td-hack sdl semihosting show-cursor singlestep
snapshot tdf usb version win2k-hack xen-attach xen-create xen-domid-restrict
"""
_WITHOUT_VALUE = frozenset(_FLAGS.split())
"""The options that take none (QEMU 2.12 to 10.0, qemu-options.hx); every other has one, which may begin with a dash."""

TAKE_JSON = ("audiodev", "blockdev", "chardev", "device", "display", "machine", "netdev", "object")
"""Options whose value may be JSON. That of another, as -append, may begin like it, and is none."""

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


_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'', re.DOTALL)
_ESCAPED = re.compile(r'\\.|"', re.DOTALL)


def json_of(text: str) -> Any:
    """What an option's value says that is written in JSON, as QEMU reads it (qobject/json-lexer.c): strings stand in
    single quotes, too. Raises ValueError for what is none, or nested deeper than Python goes."""

    def quoted(found: re.Match[str]) -> str:
        within = found[1] if found[1] is not None else found[2]
        return '"' + _ESCAPED.sub(lambda each: {"\\'": "'", '"': '\\"'}.get(each[0], each[0]), within) + '"'

    try:
        return json.loads(_STRING.sub(quoted, text))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value of JSON comes to, each by its name as it would stand in words: `file.filename`, `server.0.host`."""
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
    """An option's value as it would stand in words, where it is JSON; else as it is. Raises ValueError for JSON that is
    not understood."""
    if not value.startswith("{"):
        return value
    return ",".join(f"{name}={_word(each)}".replace(",", ",,") for name, each in leaves(json_of(value)))


def _word(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def split(value: str) -> list[str]:
    """The words of an option's value; a comma within one is written twice."""
    return [word.replace("\0", ",") for word in value.replace(",,", "\0").split(",")]


def texts(value: str) -> Iterator[str]:
    """Whatever an option's value may name, in words or in JSON: all of it, each of its words, and what each is set to.
    JSON that is not understood, which QEMU does not take either, names nothing."""
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
    """The value of the first option `flag` (also in its --flag spelling) on the command line; None without one."""
    return next((words[1] for name, words in parted(command) if f"-{name}" == flag and len(words) > 1), None)


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
        with open(os.open(program, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False
