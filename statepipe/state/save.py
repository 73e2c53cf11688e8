"""save, as a filter: `migrate "exec:exec statepipe save FILE"` at QEMU's monitor.

Standard input is the stream. Standard output is QEMU's return path: only return-path messages are ever written there,
and only if the stream opened one. QEMU ignores our exit status: without a return path, only the existence of the file
shows the result; with one, QEMU itself reports what became of the file.

A stream that is saved a second time (`zstd -d < FILE | statepipe save ANOTHER`) opens a return path at which nobody
waits. It ends with its input, while a QEMU would wait in silence. So if standard output cannot be a return path, the
end of the input is waited for.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Sequence

from statepipe.descriptors import demand_readable, named_by
from statepipe.ends.fd import FdSource, failure, write_all
from statepipe.ends.output import new_output
from statepipe.ends.rehearsal import Replaceable
from statepipe.errors import StatepipeError, TruncatedError, UsageError
from statepipe.formats.qemu.stream import QemuStream
from statepipe.objectstore.scheme import is_address
from statepipe.pipeline.pipeline import NamedStage
from statepipe.pipeline.signals import ignore
from statepipe.qemu.guard import look_from_outside
from statepipe.qemu.process import has_open, parent_pid, parent_qemu
from statepipe.qemu.snapshot import part
from statepipe.stages.packing import Packing
from statepipe.stages.watch import LATE
from statepipe.state.older import refuse_other_guest
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
    """Save the stream on standard input to `path`, encrypted by `seal`.

    `replaceable` says which files the new one may replace, as for `new_output`, and None that an object may replace
    another one; `tell` hears warnings. Raises StatepipeError, once QEMU is left as its guest needs it.
    """
    stream = QemuStream()
    try:
        if os.isatty(0):
            raise UsageError(
                "standard input is a terminal, not a migration stream",
                hint=f"at the monitor: {_at_monitor(path)}; from a shell: add --qmp SOCKET, or --domain NAME",
            )
        demand_readable(0, "standard input")
        _refuse_qemu_as_reader(path)
        if stat.S_ISCHR(os.fstat(0).st_mode):  # as cron and systemd give it
            raise UsageError("standard input is a device, not a migration stream", hint=_BY_MONITOR)
        new = new_output(path, replaceable=replaceable, overwrite=replaceable is None, tell=tell)
        with new as sink, FdSource(0, "standard input", IDLE) as source:
            answer = _answer if _may_be_return_path(path) else None
            plan = Plan(packing, words, seal)
            if (qemu := parent_qemu()) is not None:  # its process tells what the stream does not: name and disks
                refuse_other_guest(sink, qemu.name, qemu.option("-uuid"))
                demand_lasting(qemu.temporary)
                guest = {"name": qemu.name, "uuid": qemu.option("-uuid"), "command": list(qemu.command)}
                plan = Plan(packing, words, seal, guest, lambda: look_from_outside(qemu.disks, qemu.command))
            try:
                with followed(stream, tell):  # nothing to approve: a pipe carries no report of QEMU's to us
                    return save_stream(plan, source, sink, answer, lambda: None, stream=stream)
            except TruncatedError as error:
                if error.offset == 0:
                    error.hint = f"no bytes arrived: QEMU has not begun; {_BY_MONITOR}"
                raise
    except BaseException as error:
        # Once all memory has left QEMU, and without a return path, it may report completed though the save has failed.
        is_late = not stream.return_path and stream.phase in LATE
        if isinstance(error, StatepipeError) and is_late and parent_pid() is not None:
            error.advise(_IF_COMPLETED)
        part(tell, ignore, stream)
        raise


def _at_monitor(path: str) -> str:
    """Return what to type at QEMU's monitor, which may run in another folder. A shell reads the inner command."""
    command = f"exec:exec statepipe save {shlex.quote(path if is_address(path) else os.path.abspath(path))}"
    return 'migrate "{}"'.format(command.replace("\\", r"\\").replace('"', r"\""))


_BY_MONITOR = "to save a running guest from a script or a shell, add --qmp SOCKET, or for libvirt's --domain NAME"

_IF_COMPLETED = (
    "without the capability return-path, QEMU may report this save as completed: if 'info status' at its monitor shows "
    "postmigrate, the guest is stopped; type: cont"
)


def _may_be_return_path(path: str) -> bool:
    """Whether standard output may be QEMU's return path: QEMU gives us two pipes, or a socket, perhaps by way of
    another program or another host's ssh.

    It is not if it is the same as standard error (a service's log), or the file for the state.
    """
    file = named_by(path)
    return _is_stream(0) and _is_stream(1) and not _is_same(1, 2) and not (file is not None and _is_same(1, file))


def _refuse_qemu_as_reader(path: str) -> None:
    """Raises UsageError if the state would be written to the QEMU that started us, which would not read it."""
    fd, qemu = named_by(path), parent_pid()
    if fd is not None and qemu is not None and has_open(qemu, fd):
        raise UsageError(
            "standard output is connected to QEMU, which does not store a state",
            hint='name a FILE, or a reader: migrate "exec:statepipe save - | …"',
        )


def _is_stream(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _is_same(fd: int, other: int) -> bool:
    return os.path.samestat(os.fstat(fd), os.fstat(other))


def _answer(message: bytes) -> bool:
    """Write to the return path; False if QEMU has closed it."""
    try:
        write_all(1, message)
    except BrokenPipeError:
        return False
    except OSError as error:
        raise failure("answer QEMU on standard output", error) from error
    return True
