"""Two hosts and the cable between them, as network namespaces: cut it, slow it, poison it.

Each host has one interface, `cable`, an IPv4 and an IPv6 address, and no way to anywhere else. A namespace goes with
its last process and name, so nothing of it can outlive a test that ended its processes.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

CABLE = "cable"
_NUMBERS = itertools.count(1)


def environment() -> dict[str, str]:
    """Ours as it is now, with the folders of `ip`, `tc` and `nft` on the path."""
    return {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace. Its addresses are of the ranges kept for documentation (RFC 5737, RFC 3849)."""

    name: str
    ip4: str
    ip6: str

    def command(self, *words: str) -> list[str]:
        """The command line that runs `words` on this host."""
        return ["ip", "netns", "exec", self.name, *words]

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command here to its good end."""
        return run(self.command(*words), **options)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program here; the caller ends it."""
        return subprocess.Popen(self.command(*words), env=environment(), **options)

    def cut(self) -> None:
        """Take the cable out at this end: the other side's interface loses its carrier too."""
        self.run("ip", "link", "set", CABLE, "down")

    def mend(self) -> None:
        """Put it in again. IPv6 addresses went with the cut."""
        self.run("ip", "link", "set", CABLE, "up")
        self.run("ip", "-6", "address", "replace", f"{self.ip6}/64", "dev", CABLE, "nodad")

    def change_address(self, ip4: str) -> None:
        """Another IPv4 address in the place of the one it has."""
        self.run("ip", "-4", "address", "flush", "dev", CABLE)
        self.run("ip", "address", "add", f"{ip4}/24", "dev", CABLE)

    def rules(self, *lines: str) -> None:
        """What nftables does with packets that arrive, in the place of the rules before; none: all pass."""
        script = "table inet faults\ndelete table inet faults\n"
        if lines:
            chain = "type filter hook input priority 0;"
            script += f"table inet faults {{ chain input {{ {chain}\n" + "\n".join(lines) + "\n}\n}\n"
        self.run("nft", "-f", "-", input=script)

    def swallow(self) -> None:
        """A black hole: what arrives is dropped without a word."""
        self.rules("drop")

    def refuse(self, port: int) -> None:
        """What arrives for, or from, a TCP port is answered with a reset."""
        self.rules(*(f"tcp {side} {port} reject with tcp reset" for side in ("dport", "sport")))

    def lose(self, percent: int) -> None:
        """So many of a hundred packets are lost, at random."""
        self.rules(f"numgen random mod 100 < {percent} drop")

    def slow_down(self, rate: str) -> None:
        """What this host sends leaves at `rate`, in tc's words ("100mbit")."""
        shape = ("tbf", "rate", rate, "burst", "256kb", "latency", "50ms")
        self.run("tc", "qdisc", "replace", "dev", CABLE, "root", *shape)

    def limit_packets(self, mtu: int) -> None:
        """Longer packets than `mtu` bytes do not leave this host."""
        self.run("ip", "link", "set", CABLE, "mtu", str(mtu))


def run(words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its good end."""
    return subprocess.run(words, env=environment(), check=True, capture_output=True, text=True, timeout=30, **options)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other; skips the test, with the reason, where namespaces are not to be had."""
    stem = f"statepipe-{os.getpid()}-{next(_NUMBERS)}"
    hosts = [Host(f"{stem}-{letter}", f"192.0.2.{n}", f"2001:db8::{n}") for n, letter in enumerate("ab", 1)]
    with ExitStack() as stack:
        try:
            for host in hosts:
                run(["ip", "netns", "add", host.name])
                stack.callback(run, ["ip", "netns", "delete", host.name])
            first, second = hosts
            peer = ("peer", "name", CABLE, "netns", second.name)
            run(["ip", "-n", first.name, "link", "add", CABLE, "type", "veth", *peer])
            for host in hosts:
                _plug_in(host)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', '') or error}")
        yield first, second


def _plug_in(host: Host) -> None:
    host.run("ip", "link", "set", "lo", "up")
    host.run("ip", "address", "add", f"{host.ip4}/24", "dev", CABLE)
    host.mend()
