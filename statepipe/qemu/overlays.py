"""The overlays of a clone as files: qemu-img makes them, and they are removed again unless the guest may have run."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress

from statepipe.errors import StatepipeError, UsageError
from statepipe.imagelocks import deny_writing
from statepipe.processes import output_of
from statepipe.qemu.commandline import program_of
from statepipe.qemu.disks import NoImage, open_image
from statepipe.qemu.holders import holder_hint
from statepipe.telling import Tell
from statepipe.threads import held
from statepipe.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from statepipe.qemu.clone import Overlay
    from statepipe.qemu.images import Images

PATIENCE = 60.0
"""Seconds that qemu-img may take; it writes 200 KB, in 20 ms on a local disk."""

TOOL = "qemu-img"


class Clone:
    """The overlays of one load, in `folder`; without a folder, there are none and every disk is used itself.

    While it is open, no QEMU can write to the disks. Usable again after `undo`.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = None if folder is None else os.path.realpath(folder)
        self._overlays: list[Overlay] = []
        self._made: list[str] = []
        self._has_made_folder = False
        self._locks: list[int] = []

    def of(self, command: Sequence[str]) -> list[str]:
        """Make the overlays of a command line, and return the command line that uses them. Raises StatepipeError; then
        what was made is still there for `undo`."""
        if self._folder is None:
            return list(command)
        program = program_of(command)
        if program is None:
            hint = "give QEMU's own command line after --, without another program before it"
            raise UsageError(f"--clone changes QEMU's options, and {command[0]} is not a QEMU", hint=hint)
        from statepipe.qemu.clone import cloned  # it takes 4 ms, in which a QEMU can start

        words, self._overlays = cloned(command, self._folder)
        if self._overlays:
            tool = shutil.which(TOOL) or shutil.which(TOOL, path=os.path.dirname(program))
            if tool is None:
                raise StatepipeError(f"--clone needs {TOOL}, which is not installed", hint="install qemu-utils")
            self._make_folder(self._folder)
            for overlay in self._overlays:
                self._make(tool, overlay)
        return words

    def _make_folder(self, folder: str) -> None:
        try:
            with held():  # a signal must not come between it and our record of it
                os.mkdir(folder, 0o700)
                self._has_made_folder = True
        except FileExistsError:
            pass
        except OSError as error:
            hint = "name a folder that can be made, or one that exists"
            if isinstance(error, FileNotFoundError):
                hint = f"make the folder that it is to be in: mkdir -p {shlex.quote(os.path.dirname(folder))}"
            raise StatepipeError(f"cannot make the folder {folder}: {error.strerror}", hint=hint) from error
        _demand_unshared(folder)

    def _make(self, tool: str, overlay: Overlay) -> None:
        new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:  # so that an existing file is never replaced, and only its user may read what the guest writes
            with held():
                os.close(os.open(overlay.path, new, 0o600))
                self._made.append(overlay.path)
        except FileExistsError as error:
            hint = "it may have what another clone has written: name another folder with --clone, or remove it"
            raise StatepipeError(f"{overlay.path} exists already", hint=hint) from error
        except OSError as error:
            raise StatepipeError(f"cannot make the overlay {overlay.path}: {error.strerror}") from error
        self._deny_writing(overlay.base)
        words = [tool, "create", "-q", "-f", "qcow2", "-F", overlay.format, "-b", overlay.base, overlay.path]
        status, said = output_of(words, PATIENCE, with_errors=True)
        if status:
            text = said.decode(errors="replace").strip().removeprefix(f"{TOOL}: ") or f"status {status}"
            hint = "check that disk, and the room in the folder of --clone"
            raise StatepipeError(f"{TOOL} could not make an overlay over {overlay.base}: {text}", hint=hint)

    def _deny_writing(self, base: str) -> None:
        """Lock an image before the disk guard compares it. QEMU takes its own lock when the guest runs, too late for
        the guard; and a lazy QEMU 7.2 runs the guest even if it did not get that."""
        try:
            self._locks.append(open_image(base, os.O_RDONLY))
        except (OSError, NoImage) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            hint = "check the name, and who may read it"
            raise StatepipeError(f"{base} cannot be the base of a clone: cannot read it: {why}", hint=hint) from error
        if not deny_writing(self._locks[-1]):
            what = f"{base} cannot be the base of a clone: another process writes to it"
            raise StatepipeError(what, hint=holder_hint(base))

    def close(self) -> None:
        """Let others write to the disks, as far as QEMU itself does."""
        while self._locks:
            os.close(self._locks.pop())

    @property
    def is_wanted(self) -> bool:
        """Whether the guest writes to overlays."""
        return self._folder is not None

    def through(self, images: Images) -> Images:
        """Return QEMU's images as the disk guard compares them: each disk in the place of its overlay.

        From here on nobody can write to any image below them. Raises StatepipeError if somebody does already, or if
        the guest would write to another image: a script may change QEMU's options.
        """
        if self.is_wanted:
            ours = {row for each in self._overlays if (row := images.find(each.path)) is not None}
            named = [row for row in images.rows if row not in ours and not images.view.lacks(row.path)]
            if others := [row.path for row in named if row.devices != () and not row.read_only]:
                raise StatepipeError(
                    f"QEMU has disks that the guest would write to, and that have no overlay: {', '.join(others)}",
                    hint="give all of QEMU's options on the command line: a script may not add or change them",
                )
            for row in named:
                if row.is_file and row.devices == ():
                    self._deny_writing(row.path)
        return images.through({each.path: each.base for each in self._overlays})

    @property
    def where(self) -> str:
        """Which files have what the guest writes; empty if it uses every disk itself."""
        paths = ", ".join(each.path for each in self._overlays)
        return f"what the guest writes is in {paths}" if paths else ""

    def undo(self, warn: Tell) -> None:
        """Remove what was made: the guest has not run. `warn` is called for what stays."""
        self.close()
        while self._made:
            path = self._made.pop()
            try:
                with suppress(FileNotFoundError):
                    os.unlink(path)
            except OSError as error:
                warn(f"{path} stays, though its guest has not run: {error.strerror}")
        if self._has_made_folder and self._folder is not None:
            self._has_made_folder = False
            try:
                with suppress(FileNotFoundError):
                    os.rmdir(self._folder)
            except OSError as error:
                warn(f"the folder {self._folder} stays: {error.strerror}")
        self._overlays = []


def _demand_unshared(folder: str) -> None:
    """Raises StatepipeError if another user can rename files in this folder, or a folder on the way to it.

    Overlays are opened by name, by qemu-img and by QEMU. That user could put a link in an overlay's place, and have us
    write to any of our files (seen: qemu-img emptied one). Whoever became root by sudo is trusted, as in git. `folder`
    is absolute and without links.
    """
    trusted = {0, os.geteuid()}
    if os.geteuid() == 0 and (sudo := os.environ.get("SUDO_UID", "")).isdecimal():
        trusted.add(int(sudo))
    at, below = folder, ""
    while at != below:
        try:
            status = os.lstat(at)
        except OSError as error:
            raise StatepipeError(f"cannot look at the folder {at}: {error.strerror}") from error
        why = ""
        if not stat.S_ISDIR(status.st_mode):
            why = f"{at} is not a folder"
        elif status.st_uid not in trusted:
            why = f"{at} belongs to user {status.st_uid}, who could replace them"
        elif status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            why = f"every user can write to {at}, and could replace them"
        if why:
            raise StatepipeError(
                f"no overlays can be in {folder}: {why}", hint="name a folder of your own with --clone"
            )
        at, below = os.path.dirname(at), at
