"""load, as a filter: `qemu-system-x86_64 … -incoming "exec:exec statepipe load FILE"`.

QEMU starts the guest when it has read the end of the stream, and never looks at our exit status: so the end leaves
only when the whole is verified. A QEMU that gets no byte at all waits for ever at full load: so a failure before
the first byte sends it one that is no migration stream, and it ends.
"""

from __future__ import annotations

import fcntl
import os
import select
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

POISON = b"!"
"""QEMU says "Not a migration stream" and exits."""


def load_to_stdout(path: str, keys: Keys, said: Said, warn: Callable[[str], None]) -> None:
    """Verify the state in `path` and write its stream to standard output; `said` is what a person says of the
    disks, `warn` hears what is not proved.

    Raises StatepipeError; QEMU then does not run the guest.
    """
    _refuse_other_reader(path)
    _refuse_qemu_as_writer(path)
    sink = FdSink(1, "standard output")
    try:
        with open_state(path, keys) as source:
            state = prepare(source)
            state.refuse_changed_disks(_open_images(), said, warn)
            qemu = parent_qemu()
            state.refuse_other_hardware(None, qemu.command if qemu else None, said, warn)
            if state.doubts:
                warn(state.doubts)
            Pipeline(source, state.stages, sink).run()
    except BaseException:  # a signal too, and what nobody foresaw: QEMU waits all the same
        poison(sink)
        raise


def _refuse_other_reader(path: str) -> None:
    """Raises UsageError where standard output leads to people, and not to a QEMU or a file for the stream."""
    out = os.fstat(1)
    if os.isatty(1):
        what = "standard output is a terminal"
    elif stat.S_ISREG(out.st_mode) and fcntl.fcntl(1, fcntl.F_GETFL) & os.O_APPEND:
        what = "standard output is appended to a file, perhaps a log"
    elif not stat.S_ISCHR(out.st_mode) and _is_standard_error(out):
        what = "standard output is the same as standard error, perhaps a log"
    else:
        return
    raise UsageError(
        f"{what}, and a QEMU should read the guest there",
        hint=f"to start QEMU: statepipe load {path} -- qemu-system-…; from QEMU: "
        f'-incoming "exec:exec statepipe load {path}"; for a file: > FILE',
    )


def _is_standard_error(status: os.stat_result) -> bool:
    try:
        return os.path.samestat(status, os.fstat(2))
    except OSError:  # it is closed
        return False


def _refuse_qemu_as_writer(path: str) -> None:
    """Raises UsageError where the state would come from the QEMU whose filter we are: it writes nothing, and waits."""
    fd, qemu = 0 if path == STDIN else named_by(path), parent_pid()
    if fd is not None and qemu is not None and has_open(qemu, fd):
        what = "standard input leads back to QEMU, which waits for the state itself"
        raise UsageError(what, hint='name a FILE, or a writer: -incoming "exec:… | statepipe load -"')


def _open_images() -> Images | None:
    """Those of the QEMU that started us: its open files alone, as nobody asks its monitor."""
    paths = open_images()
    return None if paths is None else Images(tuple(Image(path, "file") for path in paths), complete=False)


def poison(sink: FdSink) -> None:
    """Have a QEMU that may wait behind `sink`, and has got nothing yet, give up."""
    mode = os.fstat(sink.fd).st_mode
    waiting = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)  # a file keeps what it has
    if waiting and not sink.bytes and _has_room(sink.fd):
        with suppress(OSError):  # nobody waits there any more; the failure that led here is the one to tell
            os.write(sink.fd, POISON)


def _has_room(fd: int) -> bool:
    """One that is full holds bytes already, and waiting for its reader could take for ever."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
