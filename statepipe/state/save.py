"""save, as a filter: `migrate "exec:exec statepipe save FILE"` at QEMU's monitor.

Standard input is the stream. Standard output is QEMU's return path: nothing but return-path messages is ever
written there, and only if the stream opened one. QEMU ignores our exit status, so without a return path the file's
existence is the truth, and with one QEMU itself reports what became of the file.

A stream that is saved a second time (`zstd -d < FILE | statepipe save ANOTHER`) opened its return path long ago, and
nobody waits there. Such a one ends with its input, where a QEMU would wait in silence; so where standard output can be
no return path the end of the input is what is waited for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from statepipe.descriptors import demand_readable, named_by
from statepipe.ends.fd import FdSource, failure, write_all
from statepipe.ends.output import new_output
from statepipe.ends.rehearsal import Replaceable
from statepipe.errors import StatepipeError, TruncatedError, UsageError
from statepipe.formats.qemu.stream import QemuStream
from statepipe.pipeline.pipeline import NamedStage
from statepipe.pipeline.signals import ignore
from statepipe.qemu.guard import look_from_outside
from statepipe.qemu.process import has_open, parent_pid, parent_qemu
from statepipe.stages.packing import Packing
from statepipe.stages.watch import LATE
from statepipe.state.rounds import followed
from statepipe.state.saving import IDLE, Plan, Saved, demand_lasting, save_stream
from statepipe.telling import Tell


def save_from_stdin(
    path: str,
    packing: Packing,
    words: Sequence[NamedStage],
    seal: Sequence[NamedStage],
    replaceable: Replaceable | None,
    tell: Tell,
) -> Saved:
    """Save the stream on standard input to `path`, encrypted by `seal`. Returns what it was. Raises StatepipeError,
    once QEMU was left as its guest needs it.

    `replaceable` tells which files the new one may replace, as `new_output` has it; `tell` hears what is to be known
    meanwhile.
    """
    stream = QemuStream()
    try:
        return _save(path, _Chosen(packing, words, seal, replaceable), stream, tell)
    except BaseException as error:
        if isinstance(error, StatepipeError) and _may_be_completed(stream):
            error.advise(_IF_COMPLETED)
        from statepipe.qemu.snapshot import part

        part(tell, ignore, stream)
        raise


def _may_be_completed(stream: QemuStream) -> bool:
    """Whether QEMU may call a migration completed whose save has failed: all of the guest's memory has left it, and it
    has no return path to hear of that."""
    return not stream.return_path and stream.phase in LATE and parent_pid() is not None


_IF_COMPLETED = (
    "without the capability return-path QEMU may take this save for completed: if 'info status' at its monitor says "
    "postmigrate, its guest stands still; type: cont"
)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """How the file is made, as save_stream's Plan has it, and which files it may replace."""

    packing: Packing
    words: Sequence[NamedStage]
    seal: Sequence[NamedStage]
    replaceable: Replaceable | None


def _save(path: str, chosen: _Chosen, stream: QemuStream, tell: Tell) -> Saved:
    """Raises StatepipeError."""
    if os.isatty(0):
        raise UsageError(
            "standard input is a terminal, not a migration stream",
            hint=f'at the monitor: migrate "exec:exec statepipe save {path}"; from a shell: add --qmp SOCKET',
        )
    demand_readable(0, "standard input")
    _refuse_qemu_as_reader(path)
    if stat.S_ISCHR(os.fstat(0).st_mode):  # as cron and systemd give it
        raise UsageError("standard input is a device, not a migration stream", hint=_BY_MONITOR)
    with new_output(path, replaceable=chosen.replaceable) as sink, FdSource(0, "standard input", IDLE) as source:
        answer = _answer if _may_be_return_path(path) else None
        try:
            with followed(stream, tell):
                return save_stream(_plan(chosen), source, sink, answer, _approve, stream=stream)
        except TruncatedError as error:
            if error.offset == 0:
                error.hint = f"no byte came: QEMU has not begun; {_BY_MONITOR}"
            raise


_BY_MONITOR = "to save a guest that runs, from a script or a shell, add --qmp SOCKET"


def _may_be_return_path(path: str) -> bool:
    """QEMU hands over two pipes, or a socket, and perhaps by way of another program, or another host's ssh.

    Standard error is none of them: where it is the same as standard output (a service's log), that is for people. Nor
    is it where the state itself goes.
    """
    file = named_by(path)
    return _is_stream(0) and _is_stream(1) and not _is_same(1, 2) and not (file is not None and _is_same(1, file))


def _refuse_qemu_as_reader(path: str) -> None:
    """Raises UsageError where the state would go back to the QEMU whose filter we are: it reads nothing, and waits."""
    fd, qemu = named_by(path), parent_pid()
    if fd is not None and qemu is not None and has_open(qemu, fd):
        raise UsageError(
            "standard output leads back to QEMU, which keeps no state",
            hint='name a FILE, or a reader: migrate "exec:statepipe save - | …"',
        )


def _is_stream(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _is_same(fd: int, other: int) -> bool:
    return os.path.samestat(os.fstat(fd), os.fstat(other))


def _plan(chosen: _Chosen) -> Plan:
    """If a QEMU has started us, its process tells what the stream does not: the guest's name and its disks.

    Raises StatepipeError for a guest whose disks end with its QEMU.
    """
    qemu = parent_qemu()
    if qemu is None:
        return Plan(chosen.packing, chosen.words, chosen.seal)
    demand_lasting(qemu.temporary)
    guest = {"name": qemu.name, "uuid": qemu.option("-uuid"), "command": list(qemu.command)}
    return Plan(chosen.packing, chosen.words, chosen.seal, guest, lambda: look_from_outside(qemu.disks, qemu.command))


def _answer(message: bytes) -> bool:
    """Onto the return path; whether QEMU is still there to read it."""
    try:
        write_all(1, message)
    except BrokenPipeError:
        return False
    except OSError as error:
        raise failure("answer QEMU on standard output", error) from error
    return True


def _approve() -> None:
    """A pipe carries no verdict of QEMU's back to us: its own status tells what it made of ours."""
