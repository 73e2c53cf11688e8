"""The files of a host as another process sees them: in its folder, under its root, in its mount namespace.

QEMU in a container calls a file by a name that leads out here to another file, or to none. What it has is reached
through /proc/PID/root; an absolute link in there is followed within it, as the process itself follows it.
"""

from __future__ import annotations

import os

LINKS = 40
"""The most links on the way to one file, as the kernel has it (path_resolution(7))."""


class View:
    """The files as process `pid` sees them; as we see them, where it may not be looked at or is not known (0)."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        same = _sees_what_we_see(pid)
        self._is_known = same is not None
        self._root = f"/proc/{pid}/root" if same is False else "/"

    def full(self, path: str) -> str | None:
        """A path of its own from the root on; None for one relative to a folder that may not be looked at."""
        if os.path.isabs(path):
            return path
        try:
            return os.path.join(os.readlink(f"/proc/{self._pid}/cwd"), path)
        except OSError:
            return None

    def real(self, path: str) -> str | None:
        """The name without links, by which its files are compared; None for what is no file's name."""
        try:
            return os.path.realpath(path) if self._root == "/" else "/" + "/".join(self._walk(path))
        except (ValueError, OSError):
            return None

    def place(self, path: str) -> str:
        """The name by which we open what it calls `path`."""
        if self._root == "/":
            return path
        real = self.real(path)
        return path if real is None else self._root + real

    def lacks(self, path: str) -> bool:
        """Whether it was seen that no file has this name, as that of a disk that was unlinked while it was open."""
        if not (self._is_known and os.path.isabs(path)):
            return False
        try:
            os.lstat(self.place(path))
        except FileNotFoundError:
            return True
        except (OSError, ValueError):  # a folder that is not ours to look into
            return False
        return False

    def _walk(self, path: str) -> list[str]:
        """The components of the real path within the root. Raises OSError, ValueError."""
        done: list[str] = []
        left, links = path.split("/")[::-1], 0
        while left:
            name = left.pop()
            if name == "..":
                done = done[:-1]
            elif name not in ("", "."):
                target = _link("/".join([self._root, *done, name]))
                if target is None:
                    done.append(name)
                    continue
                if (links := links + 1) > LINKS:
                    raise ValueError("too many links")
                done = [] if target.startswith("/") else done
                left += target.split("/")[::-1]
        return done


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:  # no link, or nothing at all
        return None


def _sees_what_we_see(pid: int) -> bool | None:
    """None where that is not known."""
    try:
        ours, its = (os.readlink(f"/proc/{who}/ns/mnt") for who in ("self", pid))
        return ours == its and os.path.samefile(f"/proc/{pid}/root", "/")
    except OSError:
        return None
