"""save, as a filter: `migrate "exec:exec statepipe save FILE"` at QEMU's monitor.

Standard input is the stream. Standard output is QEMU's return path: nothing but return-path messages is ever
written there, and only if the stream opened one. QEMU ignores our exit status, so without a return path the file's
existence is the truth, and with one QEMU itself reports what became of the file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from statepipe.commands.outgoing import IDLE, Plan, Saved, save_stream
from statepipe.ends.fd import FdSource, failure, write_all
from statepipe.engine.pipeline import NamedStage
from statepipe.errors import UsageError
from statepipe.qemu.disks import fingerprints
from statepipe.qemu.process import parent_qemu
from statepipe.stages.packing import Packing


def save_from_stdin(path: str, packing: Packing, words: Sequence[NamedStage], seal: Sequence[NamedStage]) -> Saved:
    """Save the stream on standard input to `path`, encrypted by `seal`. Returns what it was; raises StatepipeError."""
    if os.isatty(0):
        raise UsageError(
            "standard input is a terminal, not a migration stream",
            hint=f'at the monitor: migrate "exec:exec statepipe save {path}"; from a shell: add --qmp SOCKET',
        )
    with FdSource(0, "standard input", IDLE) as source:
        return save_stream(_plan(path, packing, words, seal), source, _answer, _approve)


def _plan(path: str, packing: Packing, words: Sequence[NamedStage], seal: Sequence[NamedStage]) -> Plan:
    """If a QEMU has started us, its process tells what the stream does not: the guest's name and its disks."""
    qemu = parent_qemu()
    if qemu is None:
        return Plan(path, packing, words, seal)
    guest = {"name": qemu.name, "uuid": qemu.option("-uuid"), "command": list(qemu.command)}
    return Plan(path, packing, words, seal, guest, lambda: fingerprints(qemu.disks))


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
