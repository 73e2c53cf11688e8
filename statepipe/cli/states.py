"""The verbs about saved guests: parsed values become calls of state/, outcomes become messages."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from statepipe.cli.config import load_config
from statepipe.cli.filters import build_words
from statepipe.cli.grammar import parse_word, refuse_word
from statepipe.cli.keys import keys_of, seals
from statepipe.cli.messages import say, show, warn
from statepipe.cli.onfiles import called, for_each_file
from statepipe.descriptors import named_by
from statepipe.errors import UsageError
from statepipe.pipeline.pipeline import NamedStage

if TYPE_CHECKING:
    from statepipe.qemu.guard import Said
    from statepipe.stages.packing import Packing
    from statepipe.state.file import Keys
    from statepipe.state.rounds import Limits
    from statepipe.state.saving import Saved

Values = dict[str, Any]

BY_MONITOR = ("then", "live", "offline", "auto_converge", "timeout", "on_timeout")
"""Options of save that need QEMU's monitor."""

AT_ONE_LEVEL: Values = {"adapt": False, "min": None, "max": None, "one_frame": False}
"""compress without its options."""


def run_save(name: str, values: Values) -> int:
    """save, as a filter or with --qmp."""
    if values["file"] == "-":
        values = values | {"file": "/dev/stdout"}
    elif not os.path.lexists(values["file"]):
        refuse_word(values["file"], "FILE", f"./{values['file']}")
    _demand_keeper(values)
    words = _save_words(values["words"])
    seal = seals(values, words.encrypt)
    if values["qmp"] is None:
        if stray := [name for name in BY_MONITOR if values[name]]:
            what = stray[0].replace("_", "-")
            raise UsageError(f"--{what} steers QEMU through its monitor", hint="add --qmp SOCKET")
        from statepipe.state.save import save_from_stdin

        replaceable = _replaceable(values)
        saved = save_from_stdin(values["file"], words.packing, words.plain, seal, replaceable, _warn_save)
        _warn_of_disks(saved)
        return 0
    return _save_by_qmp(values, words, seal)


def _demand_keeper(values: Values) -> None:
    """Raises UsageError where FILE is a descriptor behind which nothing keeps a state, or not for certain."""
    fd = named_by(values["file"])
    if fd is None:
        return
    if os.isatty(fd):
        raise UsageError(f"{values['file']} is a terminal, and a state is no text", hint="use > FILE, or a pipe")
    if values["then"] == "quit" and (why := _why_unproved(fd)):
        what = f"--then quit would end the guest, and {why}"
        raise UsageError(what, hint="name a FILE; or leave the guest paused, and end its QEMU once its state is kept")


def _why_unproved(fd: int) -> str | None:
    """Why a state written to this descriptor might not be there, or not be loadable, once QEMU has ended; or None."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return "whether what is behind a pipe or device has kept its state is not known here"
    if not status.st_nlink:
        return f"descriptor {fd} is a file without a name: its state would be gone with the last who has it open"
    if status.st_size:
        return f"the file of descriptor {fd} is not empty: a state among other bytes cannot be loaded"
    return None


def _replaceable(values: Values) -> Callable[[bytes], bool] | None:
    """Which files that are there a save may replace: those that begin as a save's do; any with --overwrite."""
    from statepipe.state.file import looks_saved

    return None if values["overwrite"] else looks_saved


def part_from_qemu() -> None:
    """A save that QEMU has started by exec: is over before it has begun."""
    from statepipe.pipeline.signals import ignore
    from statepipe.qemu.snapshot import part

    part(_warn_save, ignore)


def _save_by_qmp(values: Values, words: _Words, seal: Sequence[NamedStage]) -> int:
    from statepipe.cli.report import saved
    from statepipe.recovery.program import guard_words
    from statepipe.state.save_qmp import SaveRequest, save_by_qmp

    if values["live"] and values["then"]:
        raise UsageError("a guest saved with --live runs on: --then has no place there")
    then = "live" if values["live"] else values["then"] or "stay"
    converging = ("auto-converge",) if values["auto_converge"] else ()
    limits, replaceable = _limits(values), _replaceable(values)
    request = SaveRequest(values["file"], words.packing, words.plain, seal, then, limits, converging, replaceable)
    outcome = save_by_qmp(values["qmp"], request, _warn_save, guard_words("save", "sender"))
    say(saved(values["file"], outcome))
    _warn_of_disks(outcome.saved)
    if outcome.doubts:
        warn("save", outcome.doubts)
    return 0


def _limits(values: Values) -> Limits:
    """Raises UsageError."""
    from statepipe.cli.network import seconds_of
    from statepipe.state.rounds import Limits

    if values["on_timeout"] and not values["timeout"]:
        raise UsageError("--on-timeout says what happens at a time that --timeout SECONDS has to name")
    suspends = values["on_timeout"] == "suspend"
    if values["live"] and (values["offline"] or values["auto_converge"] or suspends):
        raise UsageError("a guest saved with --live runs on: it is neither stopped nor slowed down")
    return Limits(values["offline"], seconds_of(values["timeout"]), suspends)


def _warn_save(text: str) -> None:
    warn("save", text)


def _warn_of_disks(saved: Saved) -> None:
    from statepipe.qemu.guard import unknown

    if doubts := unknown(saved.disks):
        warn("save", doubts)


@dataclass(frozen=True, slots=True)
class _Words:
    """What the words of a save come to: stages for the plain stream, how the file is compressed, who may open it."""

    plain: list[NamedStage]
    packing: Packing
    encrypt: list[Values]


def _save_words(words: Sequence[str]) -> _Words:
    """Raises UsageError for a word that has no place in a save."""
    from statepipe.stages.packing import choose

    chosen: Values = AT_ONE_LEVEL | {"codec": load_config().codec}
    plain: list[str] = []
    encrypt: list[Values] = []
    for word in words:
        row, parsed = parse_word(word)
        if row.name == "compress":
            chosen = parsed if parsed["codec"] or parsed["adapt"] else parsed | {"codec": chosen["codec"]}
        elif row.name == "encrypt":
            encrypt.append(parsed)
        elif row.keeps_bytes:
            plain.append(word)
        else:
            raise UsageError(f"'{row.name}' has no place in save", hint="a state file holds the stream unchanged")
    return _Words(build_words(plain), choose(**chosen).packing(time.monotonic), encrypt)


def run_load(name: str, values: Values) -> int:
    """load, as a filter, into a QEMU of our own, or into one that waits."""
    if values["command"] and values["qmp"]:
        raise UsageError("either a QEMU command or --qmp SOCKET, not both")
    if values["detach"] and not values["command"]:
        raise UsageError("--detach is for a QEMU that load starts", hint="give its command line after --")
    from statepipe.cli.network import seconds_of
    from statepipe.pipeline.deadline import within

    seconds = seconds_of(values["timeout"])
    with within(seconds, f"{called(values['file'])} was not loaded") as in_time:
        if values["command"] or values["qmp"]:
            return _load_by_qmp(values, in_time)
        from statepipe.state.load import load_to_stdout

        load_to_stdout(values["file"], _keys_of(values), _said_of_disks(values), _warn_load)
        return 0


def _load_by_qmp(values: Values, in_time: Callable[[], None]) -> int:
    from statepipe.state.load_qmp import Telling, load_into_new, load_into_waiting

    path, keys, said = values["file"], _keys_of(values), _said_of_disks(values)

    def loaded(state: str) -> None:
        say(f"statepipe: load: {called(path)} is loaded and verified; the guest is {state}")

    tell = Telling(_warn_load, loaded, in_time)
    if values["qmp"]:
        load_into_waiting(path, values["qmp"], keys, said, tell)
        return 0
    return load_into_new(path, values["command"], keys, said, tell, detach=values["detach"])


def _keys_of(values: Values) -> Keys:
    return keys_of(values | {"file": called(values["file"])})


def _said_of_disks(values: Values) -> Said:
    """What --disk and --force say. Raises UsageError."""
    from statepipe.qemu.guard import Said

    for text in values["disk"]:
        if "=" not in text.strip("="):
            raise UsageError(f"'{text}' does not say which disk is where now", hint="write --disk OLD=NEW")
    return Said(values["disk"], values["force"])


def _warn_load(text: str) -> None:
    warn("load", text)


def run_inspect(name: str, values: Values) -> int:
    """inspect: both ends of a state file, or a foreign stream read through."""
    from statepipe.cli.report import inspected
    from statepipe.state.inspect import inspect

    if values["file"] is None and not _is_given():
        raise UsageError("inspect needs a file", hint="as in: statepipe inspect vm1.state")
    values = values | {"file": values["file"] or "-"}
    facts = inspect(values["file"], _keys_of(values))
    show(json.dumps(facts, indent=2) if values["json"] else inspected(facts))
    return 0


def run_verify(name: str, values: Values) -> int:
    """verify-state: whole files, each by itself. The exit code of the first that failed; those behind it are read."""
    paths = values["file"]
    if not paths and _is_given():
        paths = ["-"]
    if not paths:
        raise UsageError("verify-state needs a file", hint="as in: statepipe verify-state vm1.state")
    return for_each_file(name, paths, lambda path: _verify(path, values))


def _is_given() -> bool:
    """Whether standard input is a pipe or a file, and so meant to be read."""
    mode = os.fstat(0).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _verify(path: str, values: Values) -> None:
    from statepipe.cli.report import verified
    from statepipe.state.verify import verify_state

    facts = verify_state(path, _keys_of(values | {"file": path}))
    show(json.dumps(facts, indent=2) if values["json"] else verified(facts))
