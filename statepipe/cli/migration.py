"""The verbs that move guests between hosts: parsed values become calls of migration/, outcomes become messages."""

from __future__ import annotations

import json
import os
import re
import shlex
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from statepipe.cli.filters import build_words
from statepipe.cli.grammar import parse, parse_word
from statepipe.cli.messages import clean, say, show, warn
from statepipe.cli.network import plan_of, seconds_of
from statepipe.errors import StatepipeError, UsageError
from statepipe.pipeline.job import report_to, teller
from statepipe.qemu.runstates import RUNNING
from statepipe.shapes import told
from statepipe.units import format_size, number_in, parse_rate

if TYPE_CHECKING:
    from statepipe.migration.migrate import MigrateRequest, Report
    from statepipe.recovery.resolve import Situation
    from statepipe.session.options import ConnectionPlan
    from statepipe.telling import Tell

Values = dict[str, Any]


def run_migrate(name: str, values: Values) -> int:
    """migrate: a guest to another host, or where else its URI says."""
    uri, _, rest = values["uri"].partition(":")
    if uri == "file":
        return _save(values)
    if uri in ("tcp", "exec"):
        return _migrate_plainly(values, rest if uri == "exec" else None)
    if values["detach"]:
        from statepipe.cli.detached import run_detached

        return run_detached(values, _monitor(values))
    plan = _there(name, values, values["words"])
    if uri == "unix" and not any(values[option] for option in TWO_PHASED if option != PEER):
        from statepipe.session.overunix import find_out

        ready, is_ours = find_out(plan)
        plan = replace(plan, ready=ready)
        if not is_ours:
            return _migrate_plainly(values, None, plan)
    from statepipe.migration.migrate import migrate
    from statepipe.recovery.program import guard_words

    say(_told(migrate(_request(values, plan), _warning(name), guard_words(name, "source"), _listeners(values))))
    return 0


PEER = "peer"

TWO_PHASED = (
    *("detach", "journal", "status_fd", "force", "links", "tls_creds", PEER),
    *("timeout", "on_timeout", "switchover_timeout"),
)
"""Options that mean a statepipe over there; at a unix socket a QEMU, too, has a user who may be named."""


def _save(values: Values) -> int:
    """file:///PATH is what save does."""
    from statepipe.cli.main import find_verb
    from statepipe.cli.states import run_save

    path = values["uri"].removeprefix("file://")
    if not path.startswith("/") or _given(values, but=("words", "uri", "qmp", *AS_SAVE)):
        what = f"file:///PATH takes WORDs, --qmp and {', '.join(f'--{name}' for name in AS_SAVE)} alone"
        raise UsageError(what.replace("_", "-"), hint="for all that save can: statepipe save --help")
    saving = parse(find_verb("save"), [*values["words"], "--qmp", _monitor(values), path])
    return run_save("save", saving | {name: values[name] for name in AS_SAVE})


AS_SAVE = ("offline", "auto_converge", "timeout", "on_timeout")
"""Options of migrate that a save has too."""


def _migrate_plainly(values: Values, command: str | None, plan: ConnectionPlan | None = None) -> int:
    """To a QEMU that waits, or through a program: nobody over there speaks with us."""
    from statepipe.migration.singlephase import migrate_directly, migrate_plainly, to_address, to_program
    from statepipe.recovery.program import guard_words

    if stray := [name for name in TWO_PHASED if values[name] and not (plan and name == PEER)]:
        what = stray[0].replace("_", "-")
        raise UsageError(f"--{what} is for tls:// and ssh://", hint="there a statepipe takes the guest in two phases")
    plan = plan or plan_of(
        "migrate", "unix:///" if command is not None else values["uri"], values["words"], values, None
    )
    if command is not None and _SAVES.search(command):
        what = "a state that a program saves is no QEMU which could answer that it has the guest"
        raise UsageError(what, hint="to save the guest: statepipe save --qmp SOCKET FILE")
    request = _request(values, plan)
    warn, guard = _warning("migrate"), guard_words("migrate", "sender")
    if command is None and not plan.words:
        say(_told(migrate_directly(request, warn, guard)))
        return 0
    far = to_address(request) if command is None else to_program(command)
    say(_told(migrate_plainly(request, far, values["uri"], warn, guard)))
    return 0


_SAVES = re.compile(r"\bstatepipe\s+save\b")


def _given(values: Values, but: Sequence[str]) -> bool:
    return any(value for name, value in values.items() if name not in but)


def _request(values: Values, plan: ConnectionPlan) -> MigrateRequest:
    """Raises UsageError."""
    from statepipe.migration.migrate import MigrateRequest
    from statepipe.migration.source import MigrateLimits

    if values["on_timeout"] and not values["timeout"]:
        raise UsageError("--on-timeout says what happens at a time that --timeout SECONDS has to name")
    parameters = _parameters(values)
    seconds, then = seconds_of(values["timeout"]), values["on_timeout"] or "cancel"
    return MigrateRequest(
        _monitor(values),
        plan,
        _undoing(values["words"]),
        offline=values["offline"],
        quits=values["quit_source"],
        force=values["force"],
        limits=MigrateLimits(seconds, then, _switchover(values, parameters)),
        parameters=parameters,
        capabilities=("auto-converge",) if values["auto_converge"] else (),
        journal=values["journal"],
        remote_qemu=_remote_qemu(values),
    )


def _remote_qemu(values: Values) -> tuple[str, ...] | None:
    """The command line in the file that is named, in a shell's words, on as many lines as one likes.

    Raises UsageError, StatepipeError where it cannot be read or is not only ours to write.
    """
    if (path := values["remote_qemu"]) is None:
        return None
    if not values["uri"].startswith("ssh:"):
        raise UsageError("--remote-qemu says what ssh:// starts", hint="elsewhere receive is given QEMU's command line")
    try:
        words = tuple(shlex.split(_own_text(path), comments=True))
    except ValueError as error:
        raise UsageError(f"{path} is no command line: {str(error).lower()}") from error
    if not words:
        raise UsageError(f"{path} holds no command line")
    return words


COMMAND_SIZE = 128 << 10
"""Bytes that a command line may have: those of large guests have ten thousand."""


def _own_text(path: str) -> str:
    """What is in a file that decides what runs on another host. Raises StatepipeError, also where others may write."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, errors="surrogateescape") as file:
            status = os.fstat(fd)
            text = file.read(COMMAND_SIZE + 1)
    except OSError as error:
        raise StatepipeError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        hint = f"what is in it is started on the other host: chown it to yourself, and chmod go-w {shlex.quote(path)}"
        raise StatepipeError(f"others may write {path}", hint=hint)
    if len(text) > COMMAND_SIZE:
        raise StatepipeError(f"{path} has more than {COMMAND_SIZE >> 10} KiB, which no command line of QEMU's needs")
    return text


def _there(name: str, values: Values, words: Sequence[str]) -> ConnectionPlan:
    """Where the guest is to go. Raises UsageError."""
    plan = plan_of(name, values["uri"], words, values, None)
    scheme, path = plan.address.scheme, plan.address.path
    if scheme not in ("tls", "ssh", "unix") or (scheme == "ssh" and path not in ("", "/")):
        hint = "tls://HOST:PORT, ssh://USER@HOST, or unix:///PATH on this host"
        raise UsageError(f"'{values['uri']}' is no place where a guest could go", hint=hint)
    return plan


def _undoing(words: Sequence[str]) -> tuple[str, ...]:
    """The stages that undo those words, last first. Raises UsageError for a word that the other side cannot undo."""
    from statepipe.migration.negotiation import STAGES, UNDOING

    undo = []
    for word in reversed(words):
        row, _ = parse_word(word)
        if row.inverse in UNDOING:
            undo.append(row.inverse)
        elif not row.keeps_bytes:
            raise UsageError(f"'{row.name}' has no place in migrate", hint="the other side could not undo it")
    if len(undo) > STAGES:
        raise UsageError(f"migrate takes {STAGES} words that the other side has to undo, not {len(undo)}")
    return tuple(undo)


SWITCHOVER = "10"
"""Seconds, unless otherwise asked for: a switchover takes some 30 ms beside what --downtime-limit allows."""


def _switchover(values: Values, parameters: dict[str, int]) -> float | None:
    """Seconds that a guest may stand still until the other host has it, with what QEMU may take for the last bytes."""
    seconds = seconds_of(values["switchover_timeout"] or SWITCHOVER)
    return seconds + parameters.get("downtime-limit", 0) / 1000 if seconds else None


DOWNTIME = 2_000_000
"""Milliseconds: QEMU's own limit of it (migration/options.c)."""


def _parameters(values: Values) -> dict[str, int]:
    parameters = {"max-bandwidth": (parse_rate(values["rate"]) if values["rate"] else None) or 0}
    if (limit := values["downtime_limit"]) is not None:
        if (milliseconds := number_in(limit, 0, DOWNTIME)) is None:
            raise UsageError(f"'{limit[:40]}' is no number of milliseconds", hint=f"give one up to {DOWNTIME}")
        parameters["downtime-limit"] = milliseconds
    return parameters


def _told(report: Report) -> str:
    ram = report.figures.get("ram", {})
    again = f", {format_size(report.resent)} of them twice" if report.resent else ""
    where = {
        RUNNING: f"the guest runs at {report.peer}",
        None: f"the guest has gone to {report.peer}, by QEMU's word",
    }.get(report.state, f"the guest is at {report.peer}, {report.state} as it was")
    return (
        f"statepipe: migrate: {where}: {report.figures.get('total-time', 0) / 1000:.1f} s, "
        f"it stood still for {report.downtime * 1000:.0f} ms; {format_size(report.sent)} sent{again}, "
        f"{ram.get('dirty-sync-count', 0)} rounds over {format_size(ram.get('total', 0))} of memory"
    )


def run_receive(name: str, values: Values) -> int:
    """receive: a guest from another host."""
    from statepipe.migration.receive import ReceiveRequest, receive
    from statepipe.recovery.program import guard_words

    if bool(values["command"]) == bool(values["qmp"]):
        raise UsageError("receive takes a guest into a QEMU", hint="give its command line after --, or --qmp SOCKET")
    if values["serve"] and (values["qmp"] or values["detach"]):
        raise UsageError(
            "--serve starts a QEMU for each guest", hint="give its command line after --, without --detach"
        )
    inside = values["session_stdio"]
    request = ReceiveRequest(
        _meeting(values),
        build_words,
        values["qmp"],
        values["command"],
        detach=values["detach"] or inside,
        guests=_guests(values["serve"]),
        journal=values["journal"],
        folder=values["chdir"],
        log=_log() if inside else None,
    )
    return receive(request, _saying(name), _refused(name), guard_words(name, "destination"), _listeners(values))


def _meeting(values: Values) -> ConnectionPlan:
    """Where who gives a guest away is met. Raises UsageError."""
    if values["session_stdio"] != (values["address"] is None) or (values["session_stdio"] and values["serve"]):
        raise UsageError(
            "receive listens at an ADDRESS, unless ssh:// has started it", hint="see: statepipe receive --help"
        )
    plan = plan_of("receive", values["address"] or "ssh://there", [], values, seconds_of(values["timeout"]))
    if values["address"] and plan.address.scheme not in ("tls", "unix"):
        raise UsageError(f"a guest is received at tls:// or unix:// alone, not at {plan.address}")
    return plan


def _log() -> str:
    """A file for what QEMU has to say once the ssh that started us has ended. Raises StatepipeError."""
    from statepipe.pipeline.runtimefolder import open_runtime_folder, runtime_folder

    try:
        opened, folder = open_runtime_folder()
    except OSError as error:
        place, why = runtime_folder(), os.strerror(error.errno or 0)
        raise StatepipeError(f"cannot keep QEMU's messages in {place}: {why}") from error
    os.close(opened)
    return f"{folder}/qemu-{os.getpid()}.log"


def _guests(text: str | None) -> int | None:
    if text is None:
        return None
    if (number := number_in(text, 1, GUESTS)) is None:
        raise UsageError(f"'{text[:40]}' is no number of guests", hint=f"give one from 1 to {GUESTS}")
    return number


GUESTS = 1000
"""As many as anybody runs on one host."""


def run_check(name: str, values: Values) -> int:
    """check: a table; 1 where a row fails."""
    from statepipe.migration.migrate import check
    from statepipe.pipeline.deadline import within
    from statepipe.qemu.compare import FAIL, as_rows, worst

    with within(seconds_of(values["timeout"]), "it was not known whether the guest would get there"):
        findings = check(_monitor(values), _there(name, values, []), _remote_qemu(values), _warning(name))
    width = max(len(finding.what) for finding in findings)
    lines = [f"{finding.level:4}  {finding.what:{width}}  {finding.reason}" for finding in findings]
    show(json.dumps(as_rows(findings), indent=2) if values["json"] else "\n".join(map(clean, lines)))
    return 1 if worst(findings) == FAIL else 0


def run_tunnel(name: str, values: Values) -> int:
    """tunnel: connections from here to there."""
    from statepipe.tunnel.tunnel import STDIO, TunnelRequest, run_tunnel

    inside = values["come"] == STDIO
    texts = ["ssh://there" if inside else values["come"], values["go"]]
    bare = values | dict.fromkeys(("tls_creds", "peer", "links", "ssh", "remote_command")) | {"also": []}
    come, go = (plan_of("tunnel", text, [], bare if text.startswith("unix:") else values, None) for text in texts)
    ways = [("unix", "tls"), ("unix", "ssh"), ("ssh" if inside else "tls", "unix")]
    if (come.address.scheme, go.address.scheme) not in ways:
        hint = "here: statepipe tunnel unix:///PATH tls://HOST:PORT; there: statepipe tunnel tls://:PORT unix:///PATH"
        raise UsageError("a tunnel leads from unix:// to tls:// or ssh://, or from tls:// to unix://", hint=hint)
    if go.address.scheme == "ssh" and go.address.path in ("", "/"):
        raise UsageError(f"'{go.address}' names no socket", hint="write ssh://HOST/PATH, with the socket's path there")
    if come.address.scheme == "tls" and values["also"]:
        raise UsageError("--also is for the tunnel that connects, not for the one that listens")
    _listeners(values)
    run_tunnel(TunnelRequest(come, go, once=values["once"] or inside), _saying(name))
    return 0


def run_resolve(name: str, values: Values) -> int:
    """resolve: what a QEMU is at, or what a person decided."""
    from statepipe.recovery.resolve import decide, look

    if values["where"] is not None:
        say(f"statepipe: resolve: {decide(_monitor(values), values['where'], _warning(name))}")
    else:
        show(_found(look(_monitor(values), values["journal"], _warning(name)), values["qmp"]))
    return 0


def _found(finding: Situation, qmp: str) -> str:
    rows = [("QEMU", f"{finding.run_state}: {finding.meaning}"), ("migration", finding.migration)]
    rows += [("journal", finding.step)] if finding.step else []
    lines = [f"{name + ':':12}{clean(value)}" for name, value in rows]
    if finding.run_state == "paused" and finding.migration == "none" and not finding.step:
        lines += ["", "QEMU knows of no migration. If no other QEMU is to run the guest, have this one run it:"]
        lines += [f"    statepipe resolve --qmp {shlex.quote(qmp)} here"]
    elif finding.run_state != "running":
        command = f"statepipe resolve --qmp {shlex.quote(qmp)}"
        lines += ["", "If the guest was saved to a file, there is no other QEMU: have it run on here, after which its"]
        lines += ["disks are no longer those of the file; or end this QEMU (elsewhere), and load the file."]
        lines += [
            "",
            "If it was sent to another QEMU, look there too. Of the two QEMUs, end the one that is not to run",
        ]
        lines += ["it, and see that it has ended, for it may be about to run it; only then have the other one run it:"]
        lines += [f"    {command} elsewhere", f"    {command} here"]
    return "\n".join(lines)


def _monitor(values: Values) -> str:
    """Raises UsageError."""
    if (path := values["qmp"]) is None:
        raise UsageError("which QEMU?", hint="name its monitor's socket, with --qmp SOCKET")
    return str(path)


def _warning(name: str) -> Tell:
    return lambda text: warn(name, text)


def _saying(name: str) -> Tell:
    return lambda text: say(f"statepipe: {name}: {text}")


def _refused(name: str) -> Callable[[Exception], None]:
    """How it is said that a visitor gave no guest; of an error that nobody foresaw also where it arose."""
    from statepipe.migration.peer import mistake

    def speak(error: Exception) -> None:
        if isinstance(error, StatepipeError):
            say(f"statepipe: {name}: no guest was taken: {error}")
            return
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}: {told(error, 200)}"
        say(f"statepipe: {name}: no guest was taken: {mistake(error)}, at {where}")
        say("statepipe: hint: please report it; the service goes on")

    return speak


def _listeners(values: Values) -> list[Callable[[dict[str, Any]], None]]:
    """Who hears each step of a migration, beside the journal and the guardian. Raises UsageError."""
    if (text := values["status_fd"]) is None:
        return []
    if not text.isdecimal():
        raise UsageError(f"'{text}' is not the number of a descriptor")
    report_to(int(text))
    return [teller()]
