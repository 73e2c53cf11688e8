"""libvirt for tests: a libvirtd of the test's own, its domains, and the proof that a guest lost nothing.

In the mode `session`, it runs as an ordinary user's does (qemu:///session); if the tests run as root, in a user
namespace in which they are not root. In the mode `system`, it runs as root's does (qemu:///system), in a mount
namespace in which libvirt's folders are empty. So tests run in parallel, no daemon of the host is touched, and nothing
is left behind: keep.py ends every process that libvirt has started.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from tests.guest import parse_ticks, write_image
from tests.linux import linux_arguments
from tests.qemu.harness import PATIENCE, assert_unbroken, statepipe_command, wait_for

ROOT = Path(__file__).parents[2]
KEEP = str(Path(__file__).with_name("keep.py"))
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
"""With the folders of daemons, which an ordinary user's PATH lacks."""

PROGRAMS = ("libvirtd", "virsh", "qemu-system-x86_64")

FOLDERS = ("/run", "/var/lib", "/var/cache", "/var/log", "/etc/libvirt")
"""Where a system's libvirtd keeps its files. In the namespace, each is an empty tmpfs."""

MODES = ("session", "system")

HOMES = {"HOME": "home", "XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache"}

SETTINGS = {"stdio_handler": "file"}
"""Of qemu.conf: without virtlogd, which would outlive the test."""

SYSTEM_SETTINGS: Mapping[str, object] = {"cgroup_controllers": [], "namespaces": []}
"""Of qemu.conf: without cgroups, which are the host's; and without QEMU's own /dev, which fails below our mounts."""

USER, GROUP = "libvirt-qemu:x:64055:64055::/nonexistent:/bin/false\n", "libvirt-qemu:x:64055:\n"
"""Who runs QEMU in Debian, as the package libvirt-daemon-system makes it."""

SHARED: Mapping[str, object] = {"unix_sock_rw_perms": "0777", "auth_unix_rw": "none"}
"""Of libvirtd.conf: every user may ask for everything, as the members of group libvirt may."""

MEMBER = 65534
"""The number of such a user: nobody."""

DOMAIN = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>{name}</name><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type>{boot}</os>
<devices><emulator>{qemu}</emulator>
<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{image}'/>
<target dev='hda' bus='ide'/></disk>
<serial type='file'><source path='{serial}' append='on'/><target port='0'/></serial>
</devices>{more}</domain>"""


class Libvirt:
    """A libvirtd that runs. What it and its clients need is in `folder`; `environment` leads clients to it."""

    def __init__(
        self, folder: Path, mode: str, log: Path, keeper: subprocess.Popen[str], runtime: Path | None = None
    ) -> None:
        self.folder, self.mode, self.log, self._is_apart = folder, mode, log, runtime is not None
        self.uri = f"qemu:///{mode}"
        self._keeper = keeper
        self.environment = {**os.environ, "PATH": PATH, "PYTHONPATH": str(ROOT), "STATEPIPE_CONFIG": "/dev/null"}
        self.environment |= {"LIBVIRT_DEFAULT_URI": self.uri, "LIBVIRT_AUTOSTART": "0"}
        self.environment |= _homes(folder, runtime)
        self.pid = 0

    def start(self) -> None:
        """Start libvirtd, and wait until it answers."""
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        self._keeper.stdin.write("\n")
        self._keeper.stdin.flush()
        self.pid = int(self._keeper.stdout.readline() or 0)
        assert self.pid, f"libvirtd was not started: {self.log.read_text()}"

        def answers() -> bool:
            assert is_alive(self.pid), f"libvirtd ended: {self.log.read_text()}"
            return self.virsh("uri", check=False).returncode == 0

        wait_for("answer of libvirtd", answers)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End libvirtd alone: its domains run on."""
        os.kill(self.pid, number)
        wait_for("end of libvirtd", lambda: not is_alive(self.pid))

    def clear(self) -> None:
        """Remove its domains and all files of a test; a libvirtd that a test has left stopped or ended is started
        anew."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)
        listed = ["timeout", "20", "virsh", "-q", "-c", self.uri, "list", "--all", "--name"]
        if (found := self.run(*listed, check=False)).returncode:
            if is_alive(self.pid):
                self.end(signal.SIGKILL)
            self.start()
            found = self.run(*listed)
        for name in found.stdout.splitlines():
            self.virsh("destroy", name, check=False)
            self.virsh("undefine", "--managed-save", name, check=False)
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in HOMES.values():
                shutil.rmtree(path)
        shutil.rmtree(self.folder / "run" / "statepipe", ignore_errors=True)

    def command(self, *words: object) -> list[str]:
        """The command line that runs `words` where libvirtd runs."""
        place = f"/proc/{self._keeper.pid}/ns"
        if self.mode == "system":
            return ["nsenter", f"--mount={place}/mnt", "--wd=.", *map(str, words)]
        if _as_root():
            apart = ["nsenter", f"--mount={place}/mnt", "--wd=."] if self._is_apart else []
            return [*apart, "nsenter", f"--user={place}/user", "--preserve-credentials", *map(str, words)]
        return [*map(str, words)]

    def popen(self, *words: object, **more: Any) -> subprocess.Popen[Any]:
        """Start a client; the caller ends it."""
        return subprocess.Popen(self.command(*words), env=self.environment, **more)

    def run(self, *words: object, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a client to its end. AssertionError with its messages if it fails."""
        options: dict[str, Any] = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL} | more
        done = subprocess.run(self.command(*words), env=self.environment, timeout=PATIENCE * 2, **options)
        assert not (check and done.returncode), f"{words} ended with {done.returncode}: {done.stderr}"
        return done

    def virsh(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run virsh."""
        return self.run("virsh", "-q", "-c", self.uri, *words, check=check)

    def statepipe(self, *words: object, check: bool = False, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run statepipe as the user that may ask this libvirtd."""
        return self.run(*statepipe_command(), *words, check=check, **more)

    def place(self, name: str) -> Path:
        """A new folder in which clients may write."""
        folder = self.folder / name
        folder.mkdir()
        return folder

    def domain(self, name: str = "vm1", *, transient: bool = False, **more: Any) -> Domain:
        """Start a domain with the counting guest; wait for its second tick."""
        domain = Domain(self, name, **more)
        if transient:
            self.virsh("create", domain.xml_path)
        else:
            self.virsh("define", domain.xml_path)
            self.virsh("start", name)
        domain.wait_ticks(2)
        return domain


class Domain:
    """A domain with the counting guest of tests/guest.py."""

    def __init__(
        self,
        libvirt: Libvirt,
        name: str,
        *,
        memory: int = 64,
        fill: int = 8,
        dirty: int = 4,
        form: str = "raw",
        more: str = "",
        qemu: str | None = None,
        linux: bool = False,
    ) -> None:
        self.name, self._libvirt = name, libvirt
        self.files = files = libvirt.place(f"domain-{len(list(libvirt.folder.glob('domain-*')))}")
        self.image, self.serial_path, raw = files / "disk.img", files / "serial.txt", files / "disk.raw"
        write_image(raw if form != "raw" else self.image, fill, dirty)
        if form != "raw":
            subprocess.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", form, raw, self.image], check=True)
            raw.unlink()
        self.serial_path.touch()
        if libvirt.mode == "system":
            self.serial_path.chmod(0o666)  # QEMU's user is another one; libvirt gives it the disk, but not this
        self.xml_path = files / "domain.xml"
        boot = ""
        if linux:  # tests/linux.py, in the place of the guest on the disk
            options = linux_arguments(files, fill)[::2], linux_arguments(files, fill)[1::2]
            names = {"-kernel": "kernel", "-initrd": "initrd", "-append": "cmdline"}
            boot = "".join(f"<{names[key]}>{value}</{names[key]}>" for key, value in zip(*options, strict=True))
        text = DOMAIN.format(
            boot=boot,
            name=escape(name),
            memory=memory,
            qemu=qemu or shutil.which("qemu-system-x86_64"),
            format=form,
            image=self.image,
            serial=self.serial_path,
            more=more,
        )
        self.xml_path.write_text(text)

    def state(self) -> str:
        """As virsh shows it with its reason: "running (booted)". Empty if there is no such domain."""
        done = self._libvirt.virsh("domstate", "--reason", self.name, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    def at(self, libvirt: Libvirt) -> Domain:
        """The same guest as a domain of another libvirtd."""
        other = copy.copy(self)
        other._libvirt = libvirt
        return other

    def runs(self) -> bool:
        """Whether it is running."""
        return self.state().startswith("running")

    def pid(self) -> int:
        """The process id of its QEMU, as the test sees it."""
        wanted = f"guest={self.name},".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if any(word.startswith(wanted) for word in words) and os.fsencode(self.image) in b" ".join(words):
                    return int(folder.name)
        raise AssertionError(f"no QEMU of {self.name}")

    def serial(self) -> str:
        """What the guest has printed so far, in all its runs."""
        return self.serial_path.read_bytes().decode("ascii", "replace")

    def ticks(self) -> list[tuple[int, int]]:
        """(n, SUM) of each tick printed so far."""
        return parse_ticks(self.serial())

    def wait_ticks(self, more: int) -> None:
        """Wait until the guest has printed `more` ticks than now."""
        target = len(self.ticks()) + more
        wait_for(f"tick {target} of {self.name}", lambda: len(self.ticks()) >= target, PATIENCE * 2)

    def assert_runs_on(self, more: int = 3) -> None:
        """It runs and goes on counting, and nothing in it has changed."""
        try:
            wait_for(f"{self.name} running", self.runs)
        except AssertionError as error:
            raise AssertionError(f"{error}: it is {self.state() or 'not there'}") from error
        self.wait_ticks(more)
        assert_unbroken(self.ticks())


def _as_root() -> bool:
    return os.geteuid() == 0


def missing() -> str | None:
    """What is not installed, of what this needs."""
    return next((name for name in PROGRAMS if shutil.which(name, path=PATH) is None), None)


@contextlib.contextmanager
def started(
    mode: str,
    settings: Mapping[str, object] | None = None,
    libvirtd: str = "libvirtd",
    path: Path | None = None,
    daemon: Mapping[str, object] | None = None,
    runtime: Path | None = None,
) -> Iterator[Libvirt]:
    """A libvirtd in `mode`, session or system, with more `settings` in its qemu.conf, and `daemon` in libvirtd.conf;
    `libvirtd` is its program, and `path` a folder in which it finds other programs first.

    A session's may have a mount namespace of its own, in which the folder `runtime` is its XDG_RUNTIME_DIR: so two
    hosts have sockets with the same paths. Only root can do that.
    """
    with tempfile.TemporaryDirectory(prefix="libvirt-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        for part in HOMES.values():
            (folder / part).mkdir(mode=0o700)
        conf = folder / "config" / "libvirt"
        conf.mkdir()
        lines = {**SETTINGS, **(SYSTEM_SETTINGS if mode == "system" else {}), **(settings or {})}
        for name_of_it, chosen in (("qemu.conf", lines), ("libvirtd.conf", daemon or {})):
            (conf / name_of_it).write_text("".join(f"{key} = {_value(value)}\n" for key, value in chosen.items()))
        folder.chmod(0o755)
        log = folder / "libvirtd.log"
        keeper = _keeper(mode, folder, stack.enter_context(log.open("w")), libvirtd, path, runtime)
        stack.callback(_let_go, keeper)
        libvirt = Libvirt(folder, mode, log, keeper, runtime)
        libvirt.start()
        yield libvirt


def _homes(folder: Path, runtime: Path | None) -> dict[str, str]:
    """The variables that name a user's folders."""
    homes = {name: str(folder / part) for name, part in HOMES.items()}
    return homes if runtime is None else homes | {"XDG_RUNTIME_DIR": str(runtime)}


def _keeper(
    mode: str, folder: Path, log: Any, libvirtd: str, path: Path | None, runtime: Path | None
) -> subprocess.Popen[str]:
    """The process that libvirtd's family belongs to."""
    found = PATH if path is None else f"{path}:{PATH}"
    words, environment = [libvirtd], {"PATH": found, **_homes(folder, runtime)}
    if mode == "system":
        (folder / "passwd").write_text(Path("/etc/passwd").read_text() + USER)
        (folder / "group").write_text(Path("/etc/group").read_text() + GROUP)
        steps = [f"mount -t tmpfs -o mode=755 tmpfs {place}" for place in FOLDERS]
        steps += [f"mount --bind {folder}/{name} /etc/{name}" for name in ("passwd", "group")]
        if os.path.exists("/dev/kvm"):  # it would be examined anew for each domain, for 7 s where KVM is emulated
            (folder / "kvm").touch(mode=0)
            steps += [f"mount --bind {folder}/kvm /dev/kvm"]
        steps += [f"cp {folder}/config/libvirt/*.conf /etc/libvirt/", 'exec "$@"']
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", " && ".join(steps), "sh"]
        environment = {"PATH": found}
    else:
        enter = ["unshare", "--map-user=daemon", "--map-group=daemon"] if _as_root() else []
        if runtime is not None:
            mount = 'mount -t tmpfs -o mode=700 tmpfs "$0" && exec "$@"'
            enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, str(runtime), *enter]
    return subprocess.Popen(
        [*enter, sys.executable, "-I", "-S", KEEP, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        cwd=folder,
        env=environment,
    )


def _let_go(keeper: subprocess.Popen[str]) -> None:
    """End the keeper with all it keeps."""
    assert keeper.stdin is not None and keeper.stdout is not None
    keeper.stdin.close()
    keeper.stdout.close()
    keeper.wait()


def _value(value: object) -> str:
    """As qemu.conf writes it."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(int(value)) if isinstance(value, int) else str(value)


def is_alive(pid: int) -> bool:
    """Whether the process exists and has not ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
