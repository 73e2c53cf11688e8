"""This host's libvirt, as a tunnel for its migrations needs it: its socket, the user of its QEMUs, and a folder.

Each tunnel has a folder of its own, with the same path on both hosts, because libvirt uses the same paths on both
(docs/migration.rst of libvirt, "Migration using only UNIX sockets"). On the source, it has the tunnel's sockets: the
daemon or QEMU connects to them. On the destination, QEMU listens in it, and the tunnel connects to QEMU.

AppArmor lets a QEMU use only files that its profile names. libvirt adds the socket of a migration to the profile on the
source, but not on the destination (libvirt 9 to 11). It does always add /run/libvirt/**/*.tunnelmigrate.dest.GUEST, for
its own tunnelled migrations (virt-aa-helper.c). Our sockets have such names, and therefore need the guest's name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice

from statepipe.ends.address import PATH_LIMIT
from statepipe.ends.net import Patience, tune
from statepipe.ends.peercred import peer_of, user_name
from statepipe.errors import PeerError, StatepipeError, UsageError
from statepipe.pipeline.runtimefolder import open_runtime_folder, runtime_folder
from statepipe.typed import NamedTuple

SYSTEM, SESSION = "system", "session"
"""libvirt's two kinds of daemon: root's, and one for each user."""

SYSTEM_FOLDER = "/run/libvirt/qemu/statepipe"
"""The default folder for root. SELinux's policies label /run/libvirt/qemu as QEMU's own: svirt_runtime_t in Debian 12,
qemu_var_run_t elsewhere."""

QEMU_FOLDER = "/var/lib/libvirt/qemu"
"""libvirt's root daemon gives this folder to the user of its QEMUs (`user` in qemu.conf) each time it starts."""

DAEMONS = ("virtqemud-sock", "libvirt-sock")
"""The sockets of libvirt's daemon for QEMU and of the older one for everything. A host has one of them, or both with
virtproxyd at the second."""

IDENT = re.compile("[0-9a-f]{8}")
"""The name of a tunnel's own folder."""

LOOKED_AT = 64
"""Files in a tunnel's folder that are looked at when it is removed: it has three."""

CONNECT = 20.0
"""Seconds until a connection to a program on this host counts as failed: its queue is full."""

_SELINUX, _SOCKETS = "/sys/fs/selinux/enforce", "/proc/thread-self/attr/sockcreate"
_LABEL = b"system_u:system_r:svirt_socket_t:s0"
"""What libvirt's documentation names for sockets to which a QEMU connects, under SELinux."""


class Paths(NamedTuple):
    """The sockets of a tunnel, in its folder. `libvirtd` exists on the source only."""

    libvirtd: str
    memory: str
    disks: str


class Host(NamedTuple):
    """This host's libvirt: its kind, the folder for tunnels, its daemon's possible sockets, QEMU's user and group."""

    kind: str
    folder: str
    daemons: tuple[str, ...]
    user: int
    group: int

    def paths(self, ident: str, domain: str) -> Paths:
        """Return the sockets of a tunnel for a guest. Raises UsageError if a path would be too long."""
        own = f"{self.folder}/{ident}"
        paths = Paths(f"{own}/libvirtd", *(f"{own}/{what}.tunnelmigrate.dest.{domain}" for what in ("memory", "disks")))
        longest = max(len(path.encode()) for path in paths)
        if longest > PATH_LIMIT:
            what = f"the sockets' paths would have {longest} bytes, and {PATH_LIMIT} are possible"
            raise UsageError(what, hint="give both ends a shorter path below /run/libvirt with --folder DIR")
        return paths


def this_host(folder: str | None, daemon: str | None) -> Host:
    """Return this host's libvirt: root's if we are root, else this user's. The two arguments replace the defaults.

    Raises StatepipeError if root's libvirt was never started here, UsageError for a folder that a URI cannot contain.
    """
    if folder is not None and not re.fullmatch(r"(?:/[\w.+-]+)+", folder, re.ASCII):
        hint = "give --folder an absolute path of letters, digits, '.', '_', '+' and '-'"
        raise UsageError(f"'{folder}' cannot be the folder of the sockets", hint=hint)
    uid, gid, kind = os.geteuid(), os.getegid(), SESSION
    runtime = os.environ.get("XDG_RUNTIME_DIR") or os.path.join(os.path.expanduser("~"), ".cache")
    base, default = os.path.join(runtime, "libvirt"), os.path.join(runtime_folder(), "libvirt")
    if uid == 0:
        kind, base, default = SYSTEM, "/run/libvirt", SYSTEM_FOLDER
        try:
            status = os.stat(QEMU_FOLDER)
        except OSError as error:
            what = f"libvirt's QEMU driver has never run here: {QEMU_FOLDER}: {os.strerror(error.errno or 0)}"
            raise StatepipeError(what, hint="install it and start libvirtd or virtqemud") from error
        uid, gid = status.st_uid, status.st_gid
    daemons = tuple(os.path.join(base, name) for name in DAEMONS) if daemon is None else (daemon,)
    return Host(kind, default if folder is None else folder, daemons, uid, gid)


def check_domain(name: str) -> str:
    """Return the name of a guest if it can be part of a file's name. Raises UsageError."""
    if not name or "/" in name or not name.isprintable():
        raise UsageError(f"'{name[:100]}' cannot be a guest's name", hint="virsh list shows the names")
    return name


def virsh_line(host: Host, domain: str, paths: Paths) -> str:
    """Return the command that migrates the guest through these sockets."""
    from urllib.parse import quote

    words = ["virsh", "-c", f"qemu:///{host.kind}", "migrate", "--live", "--domain", domain]
    words += ["--desturi", f"qemu+unix:///{host.kind}?socket={quote(paths.libvirtd)}"]
    words += ["--migrateuri", f"unix://{quote(paths.memory)}", "--disks-uri", f"unix://{quote(paths.disks)}"]
    return shlex.join(words)


# --- the folder


@contextmanager
def own_folder(host: Host, ident: str, *, listens: bool) -> Iterator[int]:
    """Make the folder of one tunnel and give its descriptor; at the exit, remove it with the sockets in it.

    If the user of QEMU `listens` in it, the folder is that user's; else that user can only reach what is in it. Folders
    of tunnels that were killed are removed. Raises StatepipeError.
    """
    try:
        top = _opened(host.folder)
        try:
            fcntl.flock(top, fcntl.LOCK_EX)  # the others sweep, too
            for name in filter(IDENT.fullmatch, os.listdir(top)):
                _sweep(top, name)
            os.mkdir(ident, 0o700, dir_fd=top)
            fd = os.open(ident, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
            fcntl.flock(fd, fcntl.LOCK_SH)  # as long as we live
            if listens:
                os.fchown(fd, host.user, host.group)
            elif host.kind == SYSTEM:
                os.fchmod(fd, 0o711)
        finally:
            fcntl.flock(top, fcntl.LOCK_UN)
            os.close(top)
    except OSError as error:
        raise _cannot_make(host.folder, error) from error
    try:
        yield fd
    finally:
        _remove(host.folder, ident, fd)
        os.close(fd)


def _opened(path: str) -> int:
    """Open the folder of all tunnels, and make it if needed. Raises OSError."""
    if os.path.dirname(path) == runtime_folder():  # which this user's first statepipe makes
        os.close(open_runtime_folder()[0])
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
        os.chmod(path, 0o711)  # whatever the umask is
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        os.close(fd)
        raise OSError(errno.EPERM, "others can write it")
    return fd


def _cannot_make(folder: str, error: OSError) -> StatepipeError:
    if error.errno == errno.EEXIST:
        hint = "the two ends of this tunnel are on different hosts, or in different mount namespaces"
        return StatepipeError(f"a tunnel of this name has its folder in {folder} already", hint=hint)
    if error.errno == errno.EPERM:
        hint = "give --folder DIR, a path that does not exist yet on either host"
        return StatepipeError(f"the folder {folder} cannot be used: others can write it", hint=hint)
    hint = "start libvirt here, or give --folder DIR: the same path on both hosts"
    return StatepipeError(f"cannot make a folder in {folder}: {os.strerror(error.errno or 0)}", hint=hint)


def _sweep(top: int, name: str) -> None:
    """Remove the folder of a tunnel that does not run any more."""
    with suppress(OSError):
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _empty(fd)
            os.rmdir(name, dir_fd=top)
        finally:
            os.close(fd)


def _remove(top: str, name: str, fd: int) -> None:
    with suppress(OSError):  # it may have been removed with the host's runtime folder
        _empty(fd)
        os.rmdir(f"{top}/{name}")


def _empty(fd: int) -> None:
    """Remove the sockets in the folder. Other files are not ours, and QEMU's user can have made any number."""
    with os.scandir(fd) as entries:
        names = [entry.name for entry in islice(entries, LOOKED_AT)]
    for name in names:
        if stat.S_ISSOCK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=fd)


# --- sockets


@contextmanager
def labelled() -> Iterator[None]:
    """Sockets that this thread makes in the context get the label that SELinux demands, where SELinux is on.

    Raises StatepipeError.
    """
    if not os.path.exists(_SELINUX):
        yield
        return
    _label(_LABEL)
    try:
        yield
    finally:
        _label(b"")


def _label(label: bytes) -> None:
    """Set the label of the next sockets; empty means the default (setsockcreatecon(3))."""
    try:
        with open(_SOCKETS, "wb", buffering=0) as attribute:
            attribute.write(label)
    except OSError as error:
        if error.errno == errno.EINVAL:  # this policy, as Debian's, has no such label
            return
        what = f"SELinux does not let us label sockets for QEMU: {os.strerror(error.errno or 0)}"
        raise StatepipeError(what, hint=f"start statepipe where it may make sockets as {_LABEL.decode()}") from error


def connect_daemon(host: Host) -> tuple[str, socket.socket]:
    """Connect to this host's libvirt daemon; return the path and the connection. Raises PeerError."""
    failures = []
    for path in host.daemons:
        try:
            return path, _connected(path)
        except OSError as error:
            failures.append(f"{path}: {os.strerror(error.errno or 0)}")
    hint = "start virtqemud or libvirtd there; --libvirtd SOCKET names another socket"
    raise PeerError(f"no libvirt daemon answers: {', '.join(failures)}", hint=hint)


def connect_qemu(host: Host, folder: int, path: str) -> socket.socket:
    """Connect to the QEMU that listens at the path, which is in the open folder of a tunnel. Raises PeerError.

    The folder is another user's, who may have put anything there: no link is followed, and only that user may listen.
    """
    try:
        fd = os.open(os.path.basename(path), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                raise OSError(errno.ENOTSOCK, "")
            connection = _connected(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    except OSError as error:
        hint = "virsh must get the line that the tunnel has printed, while the tunnel runs"
        raise PeerError(f"no QEMU listens at {path}: {os.strerror(error.errno or 0)}", hint=hint) from error
    if (uid := peer_of(connection)[1]) != host.user:
        connection.close()
        raise PeerError(f"{user_name(uid)} listens at {path}, not {user_name(host.user)}", hint="check who did that")
    return connection


def _connected(path: str) -> socket.socket:
    """Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        tune(connection, Patience(CONNECT))
        connection.connect(path)
        tune(connection, Patience())
    except OSError as error:
        connection.close()
        if error.errno is None:  # Python's own, for a path that is too long
            raise OSError(errno.ENAMETOOLONG, "") from error
        raise
    return connection
