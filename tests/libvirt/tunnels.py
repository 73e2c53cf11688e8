"""Two hosts with a libvirtd each and a cable between them, through which only a tunnel leads; and guests that move.

A host is a mount namespace (tests/libvirt/harness.py) and a network namespace (tests/net/hosts.py). The files of guests
are on both hosts at the same path, as on shared storage.
"""

from __future__ import annotations

import contextlib
import copy
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import sshd as ssh
from tests.guest import parse_ticks
from tests.libvirt.harness import Domain, Libvirt, started
from tests.net.hosts import Host, two_hosts
from tests.qemu.harness import assert_unbroken, statepipe_command, wait_for
from tests.qemu.moving import LISTENING, Credentials, Running

ADDRESSES = "192.0.2.1", "192.0.2.2"
SETTINGS = {"remember_owner": 0}
"""Of qemu.conf: two libvirts must not both note in a file's attributes who owned it before."""

FOLDER = "/run/libvirt/qemu/statepipe"


class End(Running):
    """A tunnel's end in the background."""

    def line(self) -> list[str]:
        """The line that it prints, as a shell reads it."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        assert text, self.said
        return shlex.split(text)


@dataclass(frozen=True)
class Hosts:
    """`here` is where guests run at first."""

    here: Libvirt
    there: Libvirt
    cable: tuple[Host, Host]
    credentials: Credentials

    def end(self, which: int, *words: object) -> End:
        """A tunnel's end on the host of that number."""
        libvirt, host = (self.here, self.there)[which], self.cable[which]
        program = host.command(*libvirt.command(*statepipe_command()))
        trust = self.credentials.of(("source", "destination")[which])
        return End("tunnel", "--libvirt", *words, *trust, program=program, env=libvirt.environment)

    @contextlib.contextmanager
    def far(self, *words: object) -> Iterator[End]:
        """The far end, which listens."""
        with self.end(1, *words, "tls://:20490") as far:
            far.wait_said(LISTENING.pattern)
            yield far

    @contextlib.contextmanager
    def tunnel(self, domain: str, *words: object) -> Iterator[tuple[End, End, list[str]]]:
        """Both ends, and the line that the near one prints."""
        with self.far(*words) as far, self.near(domain, *words) as near:
            yield near, far, near.line()

    def near(self, domain: str, *words: object) -> End:
        """The near end."""
        return self.end(0, *words, "--domain", domain, f"tls://{ADDRESSES[1]}")

    def by_ssh(self, host: ssh.Host, domain: str, *words: object) -> End:
        """A near end that leads through an sshd, beside the cable."""
        there = self.there.command("env", f"XDG_RUNTIME_DIR={host.runtime}", *statepipe_command())
        words = (*words, "--domain", domain, "--ssh", host.ssh, "--remote-command", shlex.join(there), host.address)
        program = self.here.command(*statepipe_command())
        return End("tunnel", "--libvirt", *words, program=program, env=self.here.environment)

    def migrate(self, line: list[str], *more: str) -> subprocess.CompletedProcess[str]:
        """Type the line, with more options."""
        return self.here.run(*line, "--unsafe", *more, check=False)  # libvirt cannot know that the disk is shared

    @contextlib.contextmanager
    def migrating(self, line: list[str], *more: str) -> Iterator[subprocess.Popen[str]]:
        """Type the line, and go on while it migrates."""
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.here.popen(*line, "--unsafe", *more, text=True, **streams) as virsh:
            try:
                yield virsh
            finally:
                virsh.kill()

    def wait_sent(self, domain: Domain, size: int) -> None:
        """Until so many bytes of the guest's memory are sent."""

        def sent() -> bool:
            job = self.here.virsh("domjobinfo", domain.name, "--rawstats", check=False).stdout
            facts = dict(line.split(": ", 1) for line in job.splitlines() if ": " in line)
            return int(facts.get("memory_processed", 0)) >= size

        wait_for("bytes of its memory", sent)

    @contextlib.contextmanager
    def guest(self, name: str, **more: Any) -> Iterator[Domain]:
        """A guest that runs here, and is ended wherever it is then."""
        domain = self.here.domain(name, **more)
        try:
            yield domain
        finally:
            for libvirt in (self.here, self.there):
                libvirt.virsh("destroy", name, check=False)
                libvirt.virsh("undefine", name, check=False)

    def assert_arrived(self, domain: Domain) -> None:
        """It runs there alone, and counts on without a gap."""
        assert domain.state() in ("", "shut off (migrated)")
        moved = self.seen_there(domain)
        moved.assert_runs_on()
        assert len(self.pids(domain)) == 1

    def assert_stayed(self, domain: Domain) -> None:
        """It runs here alone, and counts on."""
        domain.assert_runs_on()
        wait_for("end of what was to take it", lambda: not self.seen_there(domain).state() or self.is_off(domain))
        assert len(self.pids(domain)) == 1

    def assert_settled(self, domain: Domain) -> None:
        """It stayed, or it runs there, and is paused here as libvirt could not learn that."""
        if domain.state() != "paused (migrating)":
            self.assert_stayed(domain)
            return
        self.seen_there(domain).assert_runs_on()
        assert domain.state() == "paused (migrating)"

    def is_off(self, domain: Domain) -> bool:
        return self.seen_there(domain).state().startswith("shut off")

    def seen_there(self, domain: Domain) -> Domain:
        """The same domain at the other libvirt."""
        moved = copy.copy(domain)
        moved._libvirt = self.there
        return moved

    @staticmethod
    def pids(domain: Domain) -> list[int]:
        """Every QEMU that has the guest."""
        wanted = f"guest={domain.name},".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if any(word.startswith(wanted) for word in words) and str(domain.image) in str(words):
                    found.append(int(folder.name))
        return found


def left(libvirt: Libvirt) -> list[str]:
    """What there is in the folder for tunnels, which the first tunnel makes."""
    return libvirt.run("sh", "-c", f"[ ! -e {FOLDER} ] || ls {FOLDER}").stdout.split()


def counted(domain: Domain) -> int:
    """How often it has ticked, without a gap."""
    ticks = parse_ticks(domain.serial())
    assert_unbroken(ticks)
    return len(ticks)


@contextlib.contextmanager
def two(folder: Path, *daemons: str, **settings: object) -> Iterator[Hosts]:
    """Two hosts; `daemons` are their two libvirtds."""
    first, second = daemons or ("libvirtd", "libvirtd")
    with (
        two_hosts() as cable,
        started("system", SETTINGS | settings, first) as here,
        started("system", SETTINGS | settings, second) as there,
    ):
        yield Hosts(here, there, cable, Credentials(folder, *ADDRESSES))


@contextlib.contextmanager
def two_sessions(folder: Path) -> Iterator[Hosts]:
    """Two hosts with an ordinary user's libvirtd each. `folder` holds certificates, and is where both have their
    sockets."""
    runtime = folder / "run"
    runtime.mkdir()
    with (
        two_hosts() as cable,
        started("session", SETTINGS, runtime=runtime) as here,
        started("session", SETTINGS, runtime=runtime) as there,
    ):
        yield Hosts(here, there, cable, Credentials(folder, *ADDRESSES))
