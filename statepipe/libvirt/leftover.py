"""What a save or a load leaves behind whose statepipe and guardian were killed together: a folder with FIFOs, and
perhaps a libvirt that waits in an open for the other end of one, with the domain locked, and would wait for ever.

What a sweep does about it depends on the FIFO:

- The first one of a save: its folder is hidden, so that an open that comes late finds nothing, not even a place for a
  regular file. Then a reader comes and goes. A libvirt that waited writes to nobody (EPIPE) and lets the domain run on.
  If it writes while the reader is there, that is no save either: the pipe is too small for an image.
- The second one of a save: its folder is hidden and removed, but no reader comes. libvirt wants to write 92 bytes. They
  fit into the pipe, so libvirt would end the guest, which is saved nowhere, if the reader stayed for an instant too
  long. What waits there already waits until libvirtd is restarted.
- That of a load: its name is removed, and a writer comes and goes. libvirt reads no image, and restores nothing.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from contextlib import suppress

from statepipe.libvirt.intake import FINAL, REFUSED, hide, knock, remove
from statepipe.libvirt.offer import IMAGE, wake
from statepipe.pipeline.runtimefolder import open_runtime_folder

_NAME = re.compile(rf"(save|load)-[0-9a-f]{{16}}({re.escape(REFUSED)})?")


def sweep() -> None:
    """Let libvirt go on where it waits for a statepipe that was killed with its guardian, and remove what both left."""
    with suppress(OSError):  # there is no such folder, or another process sweeps it
        top, place = open_runtime_folder()
        try:
            fcntl.flock(top, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in filter(_NAME.fullmatch, os.listdir(top)):
                _sweep(os.path.join(place, name))
        finally:
            os.close(top)


def _sweep(path: str) -> None:
    """Remove a folder that nobody has locked."""
    with suppress(OSError):  # it is in use, or has just been removed
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _end_load(path) if os.path.basename(path).startswith("load-") else _end_save(path.removesuffix(REFUSED))
        finally:
            os.close(fd)


def _end_save(folder: str) -> None:
    hide(folder)
    if os.path.lexists(os.path.join(folder + REFUSED, FINAL)):  # the second FIFO has not taken the first one's place
        knock(folder)
    remove(folder)


def _end_load(folder: str) -> None:
    with suppress(OSError):  # it was withdrawn
        path = os.path.join(folder, IMAGE)
        reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.unlink(path)
            wake(reading)
        finally:
            os.close(reading)
    shutil.rmtree(folder, ignore_errors=True)
