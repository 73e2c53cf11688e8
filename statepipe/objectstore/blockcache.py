"""A folder that keeps what was read of objects, for the next start and for other processes.

    DIR/statepipe-UID/ETAG-DIGEST/NUMBER     the bytes of a block, and their BLAKE3

The folder of an object is named by its ETag, and by a digest of all that tells it from others: store, bucket, key,
ETag, version, size. So an object that was replaced has another one. The digest behind a block covers that name and the
block's number. A block is used only if it agrees, so what a broken disk or a killed process has left is fetched again.

Everything belongs to one user (0700, 0600). A block gets its name once it is whole (rename), so several processes may
read and write at once. The blocks that were not used for longest are removed when there are too many. What cannot be
written is not kept, which is told once: a read never fails because of its cache.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from blake3 import blake3

from statepipe.errors import StatepipeError
from statepipe.objectstore.address import ObjectAddress
from statepipe.objectstore.store import Seen
from statepipe.telling import Tell

BLOCK = 256 << 10
"""Bytes of a block: less than a compressed frame of a state, so that a page costs little more than its frame."""

DIGEST = 32

SPARE = 256 << 20
"""Bytes that are left free on the file system, or a hundredth of it if that is less."""

TRIMMED = 16
"""The cache is looked through after each part of its size that was written: the size divided by this."""

FULL = 0.9
"""The part of its size that the cache has after old blocks were removed."""

LEFT = 3600.0
"""Seconds after which a block that has no name yet was left by a process that was killed."""

UNUSED = 24 * 3600.0
"""Seconds after which an empty folder of an object is removed: others may just have opened it."""

_ETAG = re.compile(r"[^0-9A-Za-z-]")


class NoRoom(StatepipeError):
    """The file system of a cache is full, or can only be read: the read goes on without a cache."""


_NO_ROOM = errno.ENOSPC, errno.EDQUOT, errno.EROFS


class BlockCache:
    """The blocks of the object `name` in a cache at the path `folder`. Any thread may call it.

    `limit` is how many bytes the blocks of all objects have, about. Raises StatepipeError if the folder cannot be used,
    NoRoom if it could with more room.
    """

    def __init__(self, folder: str, name: str, limit: int, tell: Tell) -> None:
        self._name, self._limit, self._tell = name, limit, tell
        self._lock = threading.Lock()
        self._users = 1  # we, and each thread that is at work: the last one closes the folders
        self._written = 0  # bytes since the last look
        self._is_off = False
        self._path = os.path.join(folder, f"statepipe-{os.geteuid()}")
        try:
            with suppress(FileExistsError):
                os.mkdir(folder, 0o700)
            self._root = _own_folder(self._path)
            try:
                self._fd = _own_folder(name, self._root)
            except BaseException:
                os.close(self._root)
                raise
        except OSError as error:
            hint = "name a folder on a local disk where you may write, or leave --cache out"
            kind = NoRoom if error.errno in _NO_ROOM else StatepipeError
            raise kind(f"cannot keep a cache in {folder}: {error.strerror}", hint=hint) from error

    @staticmethod
    def name_of(place: str, address: ObjectAddress, seen: Seen) -> str:
        """Return the name of an object's folder; `place` says which store it is."""
        told = "\0".join([place, *address, seen.etag, seen.version or "", str(seen.size)])
        return f"{_ETAG.sub('', seen.etag)[:48]}-{blake3(told.encode(errors='surrogateescape')).hexdigest(16)}"

    @property
    def beside(self) -> str:
        """A path for what belongs to the object, to which a name is added."""
        return os.path.join(self._path, self._name)

    def get(self, number: int, size: int) -> bytes | None:
        """Return a block of `size` bytes; None if it is not there, or is not what was written."""
        with self._in_use() as is_open:
            return self._get(number, size) if is_open else None

    def _get(self, number: int, size: int) -> bytes | None:
        try:
            fd = os.open(str(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError:
            return None
        try:
            data = _read(fd, size + DIGEST + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
            if len(data) == size + DIGEST and data[size:] == self._digest(number, data[:size]):
                with suppress(OSError):  # then it is taken for older than it is
                    os.utime(fd)
                return data[:size]
        except OSError:  # the disk fails: the block is fetched, and replaced if that is possible
            pass
        finally:
            os.close(fd)
        self._unlink(number)
        return None

    def put(self, number: int, data: bytes) -> None:
        """Keep a block."""
        with self._in_use() as is_open:
            if is_open and not self._is_off:
                try:
                    self._write(number, data)
                    if self._is_due(len(data)):
                        self._trim()
                except OSError as error:
                    self._off(error)

    def _write(self, number: int, data: bytes) -> None:
        """Raises OSError."""
        part = f".{number}.{os.urandom(6).hex()}.part"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        try:
            _write(fd, data)
            _write(fd, self._digest(number, data))
            os.rename(part, str(number), src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            with suppress(OSError):  # `trim` removes it later
                os.unlink(part, dir_fd=self._fd)
            raise
        finally:
            os.close(fd)

    def drop(self, number: int) -> None:
        """Remove a block, if it is there."""
        with self._in_use() as is_open:
            if is_open:
                self._unlink(number)

    def _unlink(self, number: int) -> None:
        with suppress(OSError):  # mostly, it is not there
            os.unlink(str(number), dir_fd=self._fd)

    @contextmanager
    def _in_use(self) -> Iterator[bool]:
        """Within it, the folders stay open, if they are open: no other file gets their descriptors' numbers."""
        with self._lock:
            is_open = self._users > 0
            self._users += is_open
        try:
            yield is_open
        finally:
            if is_open:
                self.close()

    def close(self) -> None:
        """Close the folders, once no thread is at work there. Call it once."""
        with self._lock:
            self._users -= 1
            is_last = not self._users
        if is_last:
            os.close(self._fd)
            os.close(self._root)

    def _off(self, error: OSError) -> None:
        with self._lock:
            if self._is_off:
                return
            self._is_off = True
        self._tell(f"what is read is not kept in {self._path} any more: {error.strerror}")

    def _digest(self, number: int, data: bytes) -> bytes:
        return blake3(f"{self._name}/{number}\0".encode()).update(data).digest()

    # --- its size

    def _is_due(self, size: int) -> bool:
        """Count bytes that were written; return whether the cache is to be looked through."""
        with self._lock:
            self._written += size
            is_due = self._written > self._limit // TRIMMED
            if is_due:
                self._written = 0
        return is_due

    def trim(self) -> None:
        """Remove the blocks that were not used for longest if there are too many."""
        with self._in_use() as is_open:
            if is_open:
                try:
                    self._trim()
                except OSError as error:
                    self._off(error)

    def _trim(self) -> None:
        """Raises OSError."""
        found, now = [], time.time()
        for folder in os.listdir(self._root):
            try:
                at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root)
            except (NotADirectoryError, FileNotFoundError):  # what lies beside an object; or it was removed
                continue
            try:
                names = os.listdir(at)
                for name in names:
                    with suppress(FileNotFoundError):  # another process has removed it
                        its = os.stat(name, dir_fd=at, follow_symlinks=False)
                        if stat.S_ISDIR(its.st_mode):  # none of ours
                            continue
                        if name.endswith(".part") and now - its.st_mtime > LEFT:
                            os.unlink(name, dir_fd=at)
                        else:
                            found.append((min(its.st_mtime, now), its.st_blocks * 512, folder, name))
                if not names and now - os.fstat(at).st_mtime > UNUSED:
                    with suppress(OSError):  # another process has put something there
                        os.rmdir(folder, dir_fd=self._root)
            finally:
                os.close(at)
        total = sum(size for _, size, _, _ in found)
        its_disk = os.fstatvfs(self._root)
        spare = min(SPARE, its_disk.f_blocks * its_disk.f_frsize // 100)
        room = min(self._limit, total + its_disk.f_bavail * its_disk.f_frsize - spare)
        if total <= room:
            return
        for _, size, folder, name in sorted(found):
            if total <= room * FULL:
                break
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name), dir_fd=self._root)
            total -= size


def _own_folder(path: str, folder: int | None = None) -> int:
    """Open a folder of ours, and create it if needed. Raises OSError, also for another user's."""
    with suppress(FileExistsError):
        os.mkdir(path, 0o700, dir_fd=folder)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    its = os.fstat(fd)
    if its.st_uid != os.geteuid() or stat.S_IMODE(its.st_mode) & 0o077:
        os.close(fd)
        raise PermissionError(1, f"{path} belongs to user {its.st_uid}, with the mode {stat.S_IMODE(its.st_mode):04o}")
    return fd


def _read(fd: int, size: int) -> bytes:
    """Return at most `size` bytes from the beginning. Raises OSError."""
    data = b""
    while len(data) < size and (more := os.read(fd, size - len(data))):
        data += more
    return data


def _write(fd: int, data: bytes) -> None:
    """Write all of it. Raises OSError."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
