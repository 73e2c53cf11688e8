"""load, as a filter: `qemu-system-x86_64 … -incoming "exec:exec statepipe load FILE"`.

QEMU starts the guest when it has read the end of the stream, and never looks at our exit status: so the end is written
only once everything is verified. A QEMU that gets no byte at all waits for ever, at full load: so after a failure
before the first byte we write one that is no migration stream, and it exits.
"""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import stat
from collections.abc import Callable
from contextlib import suppress

from statepipe.descriptors import named_by
from statepipe.ends.fd import FdSink
from statepipe.errors import UsageError
from statepipe.pipeline.pipeline import Pipeline
from statepipe.qemu.guard import Said
from statepipe.qemu.images import Image, Images
from statepipe.qemu.process import has_open, open_images, parent_pid, parent_qemu
from statepipe.state.file import STDIN, Keys, open_state
from statepipe.state.loading import prepare
from statepipe.state.source import damage_named

POISON = b"!"
"""QEMU reports "Not a migration stream" and exits."""


def load_to_stdout(path: str, keys: Keys, said: Said, warn: Callable[[str], None]) -> None:
    """Verify the state in `path` and write its stream to standard output. `said` is what the user says of the disks,
    `warn` hears what is not proved.

    Raises StatepipeError, and then QEMU does not run the guest.
    """
    _refuse_other_reader(path)
    fd, qemu = 0 if path == STDIN else named_by(path), parent_pid()
    if fd is not None and qemu is not None and has_open(qemu, fd):
        what = "standard input is connected to QEMU, which itself waits for the state"
        raise UsageError(what, hint='name a FILE, or a writer: -incoming "exec:… | statepipe load -"')
    sink = FdSink(1, "standard output")
    try:
        with open_state(path, keys) as source:
            state = prepare(source)
            paths = open_images()  # by QEMU's open files alone: we have no monitor to ask
            its = None if paths is None else Images(tuple(Image(each, "file") for each in paths), complete=False)
            state.refuse_changed_disks(its, said, warn)
            running = parent_qemu()
            state.refuse_other_hardware(None, running.command if running else None, said, warn)
            if state.doubts:
                warn(state.doubts)
            with damage_named(source.name):
                Pipeline(source, state.stages(), sink).run()
    except BaseException:  # also a signal, or a bug: QEMU waits all the same
        poison(sink)
        raise


def _refuse_other_reader(path: str) -> None:
    """Raises UsageError if standard output is read by people, and not by a QEMU or kept in a file."""
    out = os.fstat(1)
    if os.isatty(1):
        what = "standard output is a terminal"
    elif stat.S_ISREG(out.st_mode) and fcntl.fcntl(1, fcntl.F_GETFL) & os.O_APPEND:
        what = "standard output is appended to a file, perhaps a log"
    elif not stat.S_ISCHR(out.st_mode) and _is_standard_error(out):
        what = "standard output is the same as standard error, perhaps a log"
    else:
        return
    command = f"statepipe load {shlex.quote(path)}"
    raise UsageError(
        f"{what}, but QEMU should read the guest from it",
        hint=f"to start QEMU: {command} -- qemu-system-…; from QEMU: -incoming {shlex.quote(f'exec:exec {command}')}; "
        "by libvirt: add --domain; for a file: > FILE",
    )


def _is_standard_error(status: os.stat_result) -> bool:
    try:
        return os.path.samestat(status, os.fstat(2))
    except OSError:  # it is closed
        return False


def poison(sink: FdSink) -> None:
    """Make a QEMU give up that may wait behind `sink` and has got nothing yet."""
    mode = os.fstat(sink.fd).st_mode
    waiting = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)  # a file keeps what it has
    poll = select.poll()
    poll.register(sink.fd, select.POLLOUT)
    if waiting and not sink.bytes and poll.poll(0):  # a full pipe has bytes already, and its reader may never come
        with suppress(OSError):  # nobody waits there any more; the failure that led here is the one to report
            os.write(sink.fd, POISON)
