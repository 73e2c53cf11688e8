"""The verbs about saved guests: parsed values become calls of state/, outcomes become messages."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import closing

from statepipe.cli.grammar import names_filter, parse_word, refuse_strays, refuse_word, similar_filter
from statepipe.cli.keys import keys_of, seals, words_of_keys
from statepipe.cli.messages import say, show, warn
from statepipe.cli.onfiles import called, for_each_file
from statepipe.cli.verb import Values
from statepipe.descriptors import named_by
from statepipe.ends.configfile import load_config
from statepipe.errors import UsageError
from statepipe.objectstore.scheme import is_address
from statepipe.typed import TYPE_CHECKING
from statepipe.units import rate_word

if TYPE_CHECKING:
    from statepipe.pipeline.pipeline import NamedStage
    from statepipe.qemu.guard import Said
    from statepipe.qemu.overlays import Clone
    from statepipe.stages.packing import Packing
    from statepipe.state.file import Keys


def run_save(name: str, values: Values) -> int:
    """Save a guest: a filter of QEMU's exec: migration, or with --qmp through its monitor."""
    from statepipe.state.file import looks_saved

    path = "/dev/stdout" if values["file"] == "-" else values["file"]
    if path != "/dev/stdout" and not os.path.lexists(path):
        refuse_word(path, "FILE", f"./{path}")
    if values["domain"] is None:
        refuse_strays("save", values, "--qmp" if values["qmp"] else "exec:", "add --qmp SOCKET")
    _demand_keeper(path, values["then"])
    if values["domain"] is None and values["qmp"] is None:
        _refuse_name(values["words"], path)
    packing, plain, sealing = save_words(values["words"])
    seal = seals(values, sealing)
    replaceable: Callable[[bytes], bool] | None = None if values["overwrite"] else looks_saved
    if values["domain"] is not None:
        from statepipe.cli.domains import save_by_libvirt

        saved = save_by_libvirt(values, (path, packing, plain, seal), replaceable, _warn_save)
    elif values["qmp"] is None:
        from statepipe.state.save import save_from_stdin

        saved = save_from_stdin(path, packing, plain, seal, replaceable, _warn_save)
    else:
        from statepipe.cli.report import saved as line_of
        from statepipe.recovery.program import guard_words
        from statepipe.state.rounds import Limits
        from statepipe.state.save_qmp import SaveRequest, save_by_qmp

        suspends = values["on_timeout"] == "suspend"
        if values["live"]:
            clashing = {"--then": values["then"], "--offline": values["offline"], "--on-timeout suspend": suspends}
            clashing["--auto-converge"] = values["auto_converge"]
            if stray := [option for option, given in clashing.items() if given]:
                hint = f"leave {stray[0]} out"
                raise UsageError(f"--live and {stray[0]} exclude each other: with --live the guest runs on", hint=hint)
        then = "live" if values["live"] else values["then"] or "stay"
        limits = Limits(values["offline"], values["timeout"], suspends)
        capabilities = ("auto-converge",) if values["auto_converge"] else ()
        request = SaveRequest(path, packing, plain, seal, then, limits, capabilities, replaceable)
        outcome = save_by_qmp(values["qmp"], request, _warn_save, guard_words("save", "sender"))
        say(line_of(path, outcome))
        saved = outcome.saved
        if outcome.doubts:
            warn("save", outcome.doubts)
    from statepipe.qemu.guard import unknown

    if doubts := unknown(saved.disks):
        warn("save", doubts)
    return 0


def _refuse_name(words: Sequence[str], path: str) -> None:
    """Raises UsageError for a word that is no filter, nor like one: a guest's name, say."""
    for word in words:
        if re.fullmatch(r"[^:,=/]+", word) and not names_filter(word) and not similar_filter(word):
            command = shlex.join(["statepipe", "save", "--domain", word, path])
            hint = f"if it is a domain of libvirt's: {command}; of another QEMU, name its monitor: --qmp SOCKET"
            raise UsageError(f"there is no filter '{word}'", hint=hint)


def _demand_keeper(path: str, then: str | None) -> None:
    """Raise UsageError if FILE is a descriptor that does not keep a state, or if that is unknown and QEMU would end."""
    fd = named_by(path)
    if fd is None:
        return
    if os.isatty(fd):
        raise UsageError(f"{path} is a terminal, and a state is not text", hint="use > FILE, or a pipe")
    if then != "quit":
        return
    status, why = os.fstat(fd), None
    if not stat.S_ISREG(status.st_mode):
        why = "nothing tells whether what reads the pipe or device has kept the state"
    elif not status.st_nlink:
        why = f"descriptor {fd} is a file without a name: the state would be gone with it"
    elif status.st_size:
        why = f"the file of descriptor {fd} is not empty: a state among other bytes cannot be loaded"
    if why:
        hint = "name a FILE; or leave the guest paused, and end its QEMU once the state is kept"
        raise UsageError(f"--then quit would end the guest, and {why}", hint=hint)


def part_from_qemu() -> None:
    """End a save that QEMU has started by exec: and whose command line is wrong."""
    from statepipe.pipeline.signals import ignore
    from statepipe.qemu.snapshot import part

    part(_warn_save, ignore)


def _warn_save(text: str) -> None:
    warn("save", text)


def save_words(words: Sequence[str], verb: str = "save") -> tuple[Packing, list[NamedStage], list[Values]]:
    """Return what the words of a verb that writes states mean: the compression, the stages for the plain stream, the
    values of encrypt.

    Raises UsageError for a word that it does not take.
    """
    from statepipe.cli.filters import build_words
    from statepipe.stages.packing import choose

    _, chosen = parse_word("compress")
    chosen["codec"] = load_config().codec
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
            hint = "a state file holds the stream unchanged"
            raise UsageError(f"{verb} does not take the filter '{row.name}'", hint=hint)
    return choose(**chosen).packing(time.monotonic), build_words(plain), encrypt


def run_load(name: str, values: Values) -> int:
    """Load a guest: a filter of QEMU's -incoming exec:, or into a QEMU that is started or that waits."""
    from statepipe.pipeline.deadline import within
    from statepipe.qemu.guard import Said
    from statepipe.qemu.overlays import Clone

    if values["command"] and values["qmp"]:
        hint = "leave one of them out"
        raise UsageError("a QEMU command and --qmp SOCKET exclude each other", hint=hint)
    if values["domain"]:
        from statepipe.cli.domains import load_by_libvirt

        load_by_libvirt(values, _keys_of(values))
        return 0
    _demand_lazy_options(values)
    if values["status_fd"] is not None:
        from statepipe.pipeline.job import report_to

        report_to(values["status_fd"])
    path, keys, said = values["file"], _keys_of(values), Said(values["disk"], values["force"])

    def loaded(state: str) -> None:
        say(f"statepipe: load: {called(path)} is loaded and verified; the guest is {state}")
        _say_where(clone)

    def warn_load(text: str) -> None:
        warn("load", text)

    deadline = within(values["timeout"], f"{called(path)} was not loaded")
    with closing(Clone(values["clone"])) as clone, deadline as in_time:
        if values["lazy"] or values["resume"]:
            status = _load_lazily(values, keys, said, in_time, clone)
            if status is not None:
                return status
        if not values["command"] and not values["qmp"]:
            from statepipe.state.load import load_to_stdout

            load_to_stdout(path, keys, said, warn_load)
            return 0
        from statepipe.state.load_qmp import Telling, load_into_new, load_into_waiting

        tell = Telling(warn_load, loaded, in_time)
        if values["command"]:
            return load_into_new(path, values["command"], keys, said, tell, clone, detach=values["detach"])
        load_into_waiting(path, values["qmp"], keys, said, tell)
        return 0


def _demand_lazy_options(values: Values) -> None:
    """Raises UsageError."""
    if values["lazy"] == "always" and not (values["command"] or values["qmp"]):
        raise UsageError(
            _ONE_WAY, hint="start QEMU with load --lazy FILE -- qemu-system-…, or name its monitor with --qmp SOCKET"
        )
    if values["lazy"] == "always" or values["resume"]:
        from statepipe.lazy.load import NAME_IT, unnamed

        if why := unnamed(values["file"]):
            raise UsageError(why, hint=NAME_IT)
    for name in ("verify_first", "throttle"):
        if values[name] and not (values["lazy"] or values["resume"]):
            raise UsageError(f"--{name.replace('_', '-')} is an option of a lazy load", hint="add --lazy")
    if values["learn"] is not None and is_address(values["file"]) and values["cache"] is None:
        raise UsageError("--learn has no place to keep what it learns of an object", hint="name one with --cache DIR")
    for name in ("lazy", "disk", "force"):
        if values[name] and values["resume"]:
            hint = f"leave --{name} out: QEMU has the guest already"
            raise UsageError(f"--{name} and --resume exclude each other", hint=hint)


_ONE_WAY = "--lazy needs a connection to QEMU in both directions, which exec: is not"


def _say_where(clone: Clone) -> None:
    if clone.where:
        say(f"statepipe: load: {clone.where}")


def _load_lazily(values: Values, keys: Keys, said: Said, in_time: Callable[[], None], clone: Clone) -> int | None:
    """Run load --lazy or load --resume; None if --lazy=auto has to load all memory first."""
    from statepipe.cli.report import lazily_loaded, learned_set
    from statepipe.lazy.load import load_lazily_into_new, load_lazily_into_waiting
    from statepipe.lazy.telling import LazyOptions, LazyTelling, Summary
    from statepipe.qemu.late_pages import NoLatePages

    path = values["file"]

    def warn_load(text: str) -> None:
        warn("load", text)

    def here(state: str, command: str) -> None:
        what = f"the guest is {state} while its memory is loaded"
        say(f"statepipe: load: {called(path)}: {what}; if this is interrupted, continue with: {command}")
        _say_where(clone)

    def complete(done: Summary) -> None:
        say(f"statepipe: load: {called(path)}: {lazily_loaded(done)}")

    def learned(written: str, size: int, is_full: bool) -> None:
        say(f"statepipe: load: {learned_set(written, size, is_full)}")

    def nothing_left(state: str) -> None:
        what = "nothing is left to continue: this QEMU has all of its guest's memory"
        say(f"statepipe: load: {called(path)}: {what}, and the guest is {state}")

    tell = LazyTelling(warn_load, here, complete, learned, nothing_left, in_time)
    rate = values["throttle"]
    words = [*words_of_keys(values), *(["--throttle", rate_word(rate)] if rate else [])]
    options = LazyOptions(values["verify_first"], rate, values["learn"], words)
    try:
        if values["resume"]:
            from statepipe.lazy.resume import resume_load

            resume_load(path, values["qmp"], keys, tell, options)
        elif not (values["command"] or values["qmp"]):
            raise NoLatePages(_ONE_WAY)
        elif values["qmp"]:
            load_lazily_into_waiting(path, values["qmp"], keys, said, tell, options)
        else:
            detach = values["detach"]
            return load_lazily_into_new(path, values["command"], keys, said, tell, options, clone, detach=detach)
        return 0
    except NoLatePages as error:
        if values["resume"]:
            error.hint = "name the file that the load began with"  # an ordinary load would put old memory on new disks
            raise
        if values["lazy"] != "auto":
            error.advise("or use --lazy=auto")
            raise
        warn_load(f"all memory is loaded first: {error}")
        return None


def _keys_of(values: Values) -> Keys:
    return keys_of(values | {"file": called(values["file"])})


def run_inspect(name: str, values: Values) -> int:
    """Show what a state file's two ends say, or a foreign stream's whole."""
    from statepipe.cli.report import inspected
    from statepipe.state.inspect import inspect

    if values["file"] is None and not _is_given():
        raise UsageError("inspect needs a file", hint="for example: statepipe inspect vm1.state")
    values = values | {"file": values["file"] or "-"}
    facts = inspect(values["file"], _keys_of(values))
    show(json.dumps(facts, indent=2) if values["json"] else inspected(facts))
    return 0


def run_verify(name: str, values: Values) -> int:
    """Verify files, each by itself. Return the exit code of the first that failed; those behind it are read, too."""
    from statepipe.cli.report import verified
    from statepipe.state.verify import verify_state

    def verify(path: str) -> None:
        facts = verify_state(path, _keys_of(values | {"file": path}))
        show(json.dumps(facts, indent=2) if values["json"] else verified(facts))

    paths = values["file"] or (["-"] if _is_given() else [])
    if not paths:
        raise UsageError("verify-state needs a file", hint="for example: statepipe verify-state vm1.state")
    return for_each_file(name, paths, verify)


def _is_given() -> bool:
    """Return whether standard input is a pipe or a file, and so meant to be read."""
    mode = os.fstat(0).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
