"""What the verbs do with libvirt's domains: parsed values become calls of libvirt/, outcomes become messages."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from statepipe.cli.messages import say, warn
from statepipe.cli.onfiles import called
from statepipe.cli.verb import Values, is_given
from statepipe.errors import StatepipeError, UsageError
from statepipe.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from statepipe.ends.rehearsal import Replaceable
    from statepipe.pipeline.pipeline import NamedStage
    from statepipe.stages.packing import Packing
    from statepipe.state.file import Keys
    from statepipe.state.saving import Saved
    from statepipe.telling import Tell

_STOPPED = "libvirt stops the guest before it saves its memory"

_SAVE_STRAYS = {
    "then": "libvirt ends the guest once the file is safe",
    "offline": _STOPPED,
    "auto_converge": _STOPPED,
}
"""Why save --domain does not take another way of saving."""


def save_by_libvirt(
    values: Values,
    what: tuple[str, Packing, Sequence[NamedStage], Sequence[NamedStage]],
    replaceable: Replaceable | None,
    tell: Tell,
) -> Saved:
    """Save a domain. `what` are the path, the compression, and the stages of the stream and of the file. `tell` hears
    how an upload goes."""
    from statepipe.cli.report import domain_saved
    from statepipe.libvirt.save import DomainRequest, save_domain
    from statepipe.pipeline.deadline import within
    from statepipe.recovery.program import guard_words

    if values["live"]:
        hint = "libvirt's own live save: virsh snapshot-create-as NAME --live --memspec FILE --diskspec DISK,…"
        raise UsageError(f"--live and --domain exclude each other: {_STOPPED}", hint=hint)
    if values["qmp"] is not None:
        raise UsageError("--qmp and --domain exclude each other", hint="leave one of them out")
    for key, why in _SAVE_STRAYS.items():
        if is_given(values[key]):
            option = f"--{key.replace('_', '-')}"
            hint = f"leave {option} out"
            if values[key] in ("cont", "stay"):
                hint += f"; to have the domain again after the save: statepipe load --domain {shlex.quote(what[0])}"
            raise UsageError(f"{option} and --domain exclude each other: {why}", hint=hint)
    if values["on_timeout"] == "suspend":
        raise UsageError(f"--on-timeout suspend and --domain exclude each other: {_STOPPED}", hint="leave it out")
    with within(values["timeout"], f"the domain {values['domain']} was not saved") as in_time:
        request = DomainRequest(*what, values["domain"], values["connect"], replaceable, in_time, tell)
        outcome = save_domain(request, guard_words("save", "domain"))
    say(domain_saved(what[0], outcome))
    return outcome.saved


_AT_ONCE = "libvirt loads all memory before the domain runs"

_STRAYS = {
    "command": "libvirt starts QEMU itself, as the domain's XML says",
    "qmp": "libvirt starts QEMU, and is the only one at its monitor",
    "detach": "libvirt starts QEMU, which goes on without us in any case",
    "lazy": _AT_ONCE,
    "resume": _AT_ONCE,
    "verify_first": _AT_ONCE,
    "throttle": _AT_ONCE,
    "learn": _AT_ONCE,
    "clone": "two domains cannot have one UUID, and the guest's disks are those of its XML",
}
"""Why load --domain does not take another way of loading."""


def _refuse_strays(values: Values) -> None:
    """Raises UsageError for options that load does not take with --domain."""
    from statepipe.qemu.guest import PARTS

    for key, why in _STRAYS.items():
        if is_given(values[key]):
            option = "a QEMU command" if key == "command" else f"--{key.replace('_', '-')}"
            raise UsageError(f"--domain and {option} exclude each other: {why}", hint=f"leave {option} out")
    if values["running"] and values["paused"]:
        raise UsageError("--running and --paused exclude each other", hint="leave one of them out")
    if parts := [name for name in values["force"] if name in PARTS]:
        what = f"--force {parts[0]} has no effect with --domain: libvirt makes the machine as the XML says"
        raise UsageError(what, hint="--force names disks here")


def _demand_file(path: str) -> None:
    """Raises StatepipeError for what is no file, but may be the name of a domain."""
    if path != "-" and "/" not in path and not os.path.lexists(path):
        hint = "name the file of the state: it holds the domain, whose name is not given"
        raise StatepipeError(f"there is no file {path}", hint=hint)


def load_by_libvirt(values: Values, keys: Keys) -> None:
    """Have libvirt restore the domain in a state file."""
    from statepipe.libvirt.load import Telling, Wish, load_domain
    from statepipe.pipeline.deadline import within
    from statepipe.qemu.guard import Said
    from statepipe.recovery.program import guard_words

    _refuse_strays(values)
    _demand_file(values["file"])
    if values["status_fd"] is not None:
        from statepipe.pipeline.job import report_to

        report_to(values["status_fd"])
    path = called(values["file"])

    def warn_load(text: str) -> None:
        warn("load", text)

    def loaded(name: str, state: str) -> None:
        say(f"statepipe: load: {path} is loaded and verified; the domain {name} is {state}")

    runs = True if values["running"] else False if values["paused"] else None
    wish = Wish(values["connect"], values["xml"], runs)
    with within(values["timeout"], f"{path} was not loaded") as in_time:
        tell = Telling(warn_load, in_time, loaded)
        said = Said(values["disk"], values["force"])
        load_domain(values["file"], wish, keys, said, tell, guard_words("load", "offer"))
