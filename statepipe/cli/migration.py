"""The verbs that move guests between hosts: parsed values become calls of migration/, outcomes become messages."""

from __future__ import annotations

import json
import os
import re
import shlex
import traceback
from collections.abc import Callable, Sequence

from statepipe.cli.filters import build_words
from statepipe.cli.grammar import parse, parse_word, refuse_strays
from statepipe.cli.messages import clean, say, show, warn
from statepipe.cli.network import plan_of
from statepipe.cli.options import TWO_PHASES
from statepipe.cli.verb import Values, is_given
from statepipe.cli.verbs import find_verb
from statepipe.errors import StatepipeError, UsageError
from statepipe.pipeline.job import report_to, teller
from statepipe.qemu.runstates import RUNNING
from statepipe.shapes import told
from statepipe.typed import TYPE_CHECKING, Any
from statepipe.units import format_size

if TYPE_CHECKING:
    from statepipe.migration.migrate import MigrateRequest, Report
    from statepipe.recovery.resolve import Situation
    from statepipe.session.options import ConnectionPlan
    from statepipe.telling import Tell


def run_migrate(name: str, values: Values) -> int:
    """Move a guest to another host, or to wherever else its URI leads."""
    kind, _, rest = values["uri"].partition(":")
    if kind == "file":
        return _save(values)
    if kind in ("exec", "tcp"):
        hint = "with tls://, ssh:// and unix:// a statepipe there takes the guest in two phases"
        refuse_strays(name, values, "tcp://" if kind == "tcp" else "exec:", hint)
    if values["detach"]:
        from statepipe.cli.detached import run_detached

        return run_detached(values, values["qmp"])
    from statepipe.migration.migrate import migrate
    from statepipe.migration.singlephase import migrate_directly, migrate_plainly, to_address, to_program
    from statepipe.recovery.program import guard_words

    guard = guard_words(name, "sender")
    if kind == "exec":
        if re.search(r"\bstatepipe\s+save\b", rest):
            what = "a program that saves a state is not a QEMU, which could confirm that it has the guest"
            raise UsageError(what, hint="to save the guest: statepipe save --qmp SOCKET FILE")
        request = _request(values, plan_of(name, "unix:///", values["words"], values, None))
        say(_told(migrate_plainly(request, to_program(rest), values["uri"], _warning(name), guard)))
        return 0
    if kind == "tcp":
        plan, is_ours = plan_of(name, values["uri"], values["words"], values, None), False
    else:
        plan, is_ours = _destination(name, values, values["words"]), True
    two_phased = [param for param in find_verb(name).params if param.only == TWO_PHASES and is_given(values[param.key])]
    if kind == "unix" and not two_phased:  # a statepipe or a QEMU
        from statepipe.session.overunix import find_out

        ready, is_ours = find_out(plan)
        plan = plan._replace(ready=ready)
    request = _request(values, plan)
    if is_ours:
        report = migrate(request, _warning(name), guard_words(name, "source"), status_listeners(values))
    elif plan.words:
        report = migrate_plainly(request, to_address(request), values["uri"], _warning(name), guard)
    else:
        report = migrate_directly(request, _warning(name), guard)
    say(_told(report))
    return 0


def _save(values: Values) -> int:
    """Save the guest to file:///PATH, with the options of migrate that save has, too."""
    from statepipe.cli.states import run_save

    path, save = values["uri"].removeprefix("file://"), find_verb("save")
    shared = {param.key for param in save.params}
    stray = [
        param.written
        for param in find_verb("migrate").params
        if is_given(values[param.key]) and param.key not in shared
    ]
    if not path.startswith("/"):
        raise UsageError(f"'{values['uri']}' is not a file", hint="write file:///PATH; PATH is absolute")
    if stray != ["URI"]:
        what = f"{next(each for each in stray if each != 'URI')} has no effect with file:///PATH"
        raise UsageError(what, hint="leave it out; all options of a save: statepipe save --help")
    given = {key: value for key, value in values.items() if key in shared}
    return run_save("save", parse(save, ["--qmp", values["qmp"], path]) | given)


def _request(values: Values, plan: ConnectionPlan) -> MigrateRequest:
    """Raises UsageError, also for a word that the other side cannot undo."""
    from statepipe.migration.migrate import MigrateRequest
    from statepipe.migration.negotiation import STAGES, UNDOING
    from statepipe.migration.source import MigrateLimits

    undo = []
    for word in reversed(values["words"]):
        row, _ = parse_word(word)
        if row.inverse in UNDOING:
            undo.append(row.inverse)
        elif not row.keeps_bytes:
            raise UsageError(f"migrate does not take the filter '{row.name}'", hint="the other side cannot undo it")
    if len(undo) > STAGES:
        hint = "leave some out"
        raise UsageError(
            f"migrate takes at most {STAGES} filters that the other side has to undo, not {len(undo)}", hint=hint
        )
    parameters = {"max-bandwidth": values["rate"] or 0}
    if (limit := values["downtime_limit"]) is not None:
        parameters["downtime-limit"] = limit
    # The guest may be stopped for as long as QEMU may take for the last bytes, and so long until the other host has it.
    wait = SWITCHOVER if values["switchover_timeout"] is None else values["switchover_timeout"]
    switchover = wait + (limit or 0) / 1000 if wait else None
    return MigrateRequest(
        values["qmp"],
        plan,
        tuple(undo),
        offline=values["offline"],
        quits=values["quit_source"],
        force=values["force"],
        limits=MigrateLimits(values["timeout"], values["on_timeout"] or "cancel", switchover),
        parameters=parameters,
        capabilities=("auto-converge",) if values["auto_converge"] else (),
        journal=values["journal"],
        remote_qemu=_remote_qemu(values["remote_qemu"]),
    )


SWITCHOVER = 10
"""Default seconds; a switchover takes some 30 ms beside what --downtime-limit allows."""

COMMAND_SIZE = 128 << 10
"""Most bytes of a command line: those of large guests have ten thousand."""


def _remote_qemu(path: str | None) -> tuple[str, ...] | None:
    """Return the command line in a file, split as a shell does; it can have several lines and comments.

    Raises UsageError, StatepipeError if it cannot be read or others can write it: it decides what runs on the other
    host.
    """
    if path is None:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, errors="surrogateescape") as file:
            status = os.fstat(fd)
            text = file.read(COMMAND_SIZE + 1)
    except OSError as error:
        raise StatepipeError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        hint = f"the other host runs what is in it: chown it to yourself, and chmod go-w {shlex.quote(path)}"
        raise StatepipeError(f"others can write {path}", hint=hint)
    if len(text) > COMMAND_SIZE:
        raise StatepipeError(f"{path} is larger than {COMMAND_SIZE >> 10} KiB: it is not a QEMU command line")
    try:
        words = tuple(shlex.split(text, comments=True))
    except ValueError as error:
        raise UsageError(f"{path} is not a command line: {str(error).lower()}", hint="check its quotes") from error
    if not words:
        raise UsageError(f"{path} contains no command line", hint="write the QEMU command line into it")
    return words


def _destination(name: str, values: Values, words: Sequence[str]) -> ConnectionPlan:
    """Return where the guest is to go. Raises UsageError."""
    plan = plan_of(name, values["uri"], words, values, None)
    scheme, path = plan.address.scheme, plan.address.path
    if scheme not in ("tls", "ssh", "unix") or (scheme == "ssh" and path not in ("", "/")):
        hint = "write tls://HOST:PORT, ssh://USER@HOST, or on the same host unix:///PATH"
        raise UsageError(f"a guest cannot go to '{values['uri']}'", hint=hint)
    return plan


def _told(report: Report) -> str:
    ram = report.figures.get("ram", {})
    again = f", {format_size(report.resent)} of them twice" if report.resent else ""
    where = {
        RUNNING: f"the guest runs at {report.peer}",
        None: f"QEMU reports that the guest has gone to {report.peer}",
    }.get(report.state, f"the guest is at {report.peer}, {report.state} as it was")
    return (
        f"statepipe: migrate: {where}: {report.figures.get('total-time', 0) / 1000:.1f} s, "
        f"it was stopped for {report.downtime * 1000:.0f} ms; {format_size(report.sent)} sent{again}, "
        f"{ram.get('dirty-sync-count', 0)} rounds over {format_size(ram.get('total', 0))} of memory"
    )


def run_receive(name: str, values: Values) -> int:
    """Receive a guest from another host."""
    from statepipe.migration.receive import ReceiveRequest, receive
    from statepipe.recovery.program import guard_words

    inside = values["session_stdio"]
    if bool(values["command"]) == bool(values["qmp"]):
        raise UsageError("receive needs a QEMU", hint="give its command line after --, or --qmp SOCKET")
    if values["serve"] and (values["qmp"] or values["detach"] or inside):
        hint = "give its command line after --, without --detach"
        raise UsageError("--serve starts a QEMU for each guest", hint=hint)
    if inside == (values["address"] is not None):
        hint = "for example: statepipe receive tls://:20490 -- qemu-system-x86_64 …"
        raise UsageError("receive needs an address to listen at, unless ssh:// has started it", hint=hint)
    plan = plan_of(name, values["address"] or "ssh://there", [], values, values["timeout"])
    if not inside and plan.address.scheme not in ("tls", "unix"):
        hint = "write tls://:PORT, or on the same host unix:///PATH"
        raise UsageError(f"receive listens at tls:// and unix:// only, not at {plan.address}", hint=hint)
    request = ReceiveRequest(
        plan,
        build_words,
        values["qmp"],
        values["command"],
        detach=values["detach"] or inside,
        guests=values["serve"],
        journal=values["journal"],
        folder=values["chdir"],
        log=_log() if inside else None,
    )
    return receive(request, saying(name), _refused(name), guard_words(name, "destination"), status_listeners(values))


def _log() -> str:
    """Return a file for QEMU's messages after the ssh that started us has ended. Raises StatepipeError."""
    from statepipe.pipeline.runtimefolder import open_runtime_folder, runtime_folder

    try:
        opened, folder = open_runtime_folder()
    except OSError as error:
        place, why = runtime_folder(), os.strerror(error.errno or 0)
        raise StatepipeError(f"cannot keep QEMU's messages in {place}: {why}") from error
    os.close(opened)
    return f"{folder}/qemu-{os.getpid()}.log"


def run_check(name: str, values: Values) -> int:
    """Print a table of comparisons; 1 if a row fails."""
    from statepipe.migration.migrate import check
    from statepipe.pipeline.deadline import within
    from statepipe.qemu.compare import FAIL, as_rows, worst

    with within(values["timeout"], "the check was not complete"):
        plan = _destination(name, values, [])
        findings = check(values["qmp"], plan, _remote_qemu(values["remote_qemu"]), _warning(name))
    width = max(len(finding.what) for finding in findings)
    lines = [f"{finding.level:4}  {finding.what:{width}}  {finding.reason}" for finding in findings]
    show(json.dumps(as_rows(findings), indent=2) if values["json"] else "\n".join(map(clean, lines)))
    return 1 if worst(findings) == FAIL else 0


def run_resolve(name: str, values: Values) -> int:
    """Show what a QEMU says of a migration, or carry out what a person decided."""
    from statepipe.recovery.resolve import decide, look

    if values["where"] is not None:
        say(f"statepipe: resolve: {decide(values['qmp'], values['where'], _warning(name))}")
    else:
        show(_found(look(values["qmp"], values["journal"], _warning(name)), values["qmp"]))
    return 0


def _found(finding: Situation, qmp: str) -> str:
    rows = [("QEMU", f"{finding.run_state}: {finding.meaning}"), ("migration", finding.migration)]
    rows += [("journal", finding.step)] if finding.step else []
    lines = [f"{name + ':':12}{clean(value)}" for name, value in rows]
    command = f"    statepipe resolve --qmp {shlex.quote(qmp)}"
    if finding.lacking:
        lines += ["", f"Not all of the guest's memory is here: {clean(finding.lacking)}"]
    elif finding.run_state == "paused" and finding.migration == "none" and not finding.step:
        lines += ["", "QEMU has no migration. If no other QEMU is to run the guest, run it in this one:"]
        lines += [f"{command} here"]
    elif finding.run_state != "running":
        lines += ["", "If the guest was saved to a file, there is no other QEMU: run the guest here, after which its"]
        lines += ["disks no longer match the file; or end this QEMU (elsewhere), and load the file."]
        lines += ["", "If it was sent to another QEMU, check that one, too. First end the QEMU that is not to run"]
        lines += ["the guest, and make sure that it has ended, as it may be about to run it; then run the guest in"]
        lines += ["the other one:", f"{command} elsewhere", f"{command} here"]
    return "\n".join(lines)


def _warning(name: str) -> Tell:
    return lambda text: warn(name, text)


def saying(name: str) -> Tell:
    """Return what prints a line of the verb `name`."""
    return lambda text: say(f"statepipe: {name}: {text}")


def _refused(name: str) -> Callable[[Exception], None]:
    """Return what reports that a visitor gave no guest; of an unforeseen error also where in the code it arose."""
    from statepipe.migration.peer import mistake

    def speak(error: Exception) -> None:
        if isinstance(error, StatepipeError):
            say(f"statepipe: {name}: no guest was taken: {error}")
            return
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}: {told(error, 200)}"
        say(f"statepipe: {name}: no guest was taken: {mistake(error)}, at {where}")
        say("statepipe: hint: please report this; the service goes on")

    return speak


def status_listeners(values: Values) -> list[Callable[[dict[str, Any]], None]]:
    """Return who gets each step of a migration, beside the journal and the guardian. Raises UsageError."""
    if values["status_fd"] is None:
        return []
    report_to(values["status_fd"])
    return [teller()]
