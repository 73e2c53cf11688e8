"""Two hosts on the loopback, with statepipes of their own, and guests that move between them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests import warm
from tests.guest import parse_ticks
from tests.net.hosts import Host, environment
from tests.qemu.harness import PATIENCE, Guest, assert_unbroken, run_statepipe, statepipe_command

LISTENING = re.compile(r"listening at port (\d+)")


class Credentials:
    """Certificates of two hosts, `source` and `destination`, of one authority; both have the other names as well."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self._pki("init")
        for host in ("source", "destination"):
            self._pki("issue", "localhost", "127.0.0.1", *names, host, "--dir", folder / host)

    def _pki(self, *words: object) -> None:
        done = run_statepipe("pki", *words, "--ca", self.folder / "ca")
        assert done.returncode == 0, done.stderr

    def of(self, host: str) -> list[str]:
        return ["--tls-creds", str(self.folder / host)]


class Running:
    """A statepipe (or `program`) in the background, whose words are kept. On leaving it is killed, if it lives.

    `on` is the host it runs on, where that is another than this.
    """

    def __init__(
        self,
        *words: object,
        wrapper: Sequence[str] = (),
        program: Sequence[str] = (),
        on: Host | None = None,
        **more: Any,
    ) -> None:
        command = [*wrapper, *(program or statepipe_command()), *map(str, words)]
        if on is not None:
            command, more = on.command(*command), more | {"env": environment()}
        self._process = warm.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
        )
        self.said: list[str] = []
        self._told: Callable[[str], object] = lambda line: None
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self.said.append(line.rstrip("\n"))
                self._told(self.said[-1])
                self._changed.notify_all()
        with self._changed:
            self.said.append("")
            self._changed.notify_all()

    def on_line(self, tell: Callable[[str], object]) -> None:
        """Have each line told as soon as it is there, with those that were there before."""
        with self._changed:
            self._told = tell
            for line in self.said:
                tell(line)

    def wait_said(self, pattern: str) -> re.Match[str]:
        """Wait for a line that the pattern is found in."""

        def look() -> re.Match[str] | None:
            return next((found for line in self.said if (found := re.search(pattern, line))), None)

        with self._changed:
            assert self._changed.wait_for(lambda: look() or "" in self.said, PATIENCE), self.said
            found = look()
        assert found is not None, self.said
        return found

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL, if it lives."""
        if not self.ended():
            self._process.kill()

    def wait_process(self, seconds: float) -> int:
        """Its exit status, whoever else still holds its standard error. TimeoutExpired after so many seconds."""
        return self._process.wait(seconds)

    def wait(self) -> int:
        """Its exit status, once all it had to say is there too."""
        status = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.ended():
            self._process.kill()
        self._process.wait()
        self._reader.join(PATIENCE)  # a QEMU that was left behind would hold it open
        for stream in (self._process.stdout, self._process.stderr):
            if stream:
                stream.close()


def receiver(credentials: Credentials, *words: object, **more: Any) -> tuple[Running, int]:
    """A `receive` at a port of its choice."""
    running = Running("receive", "tls://127.0.0.1:0", *credentials.of("destination"), *words, **more)
    try:
        return running, int(running.wait_said(LISTENING.pattern)[1])
    except BaseException:
        running.__exit__()
        raise


def mover(credentials: Credentials, guest: Guest, port: int, *words: object, **more: Any) -> Running:
    """A `migrate` of the guest to that port."""
    where = f"tls://127.0.0.1:{port}"
    return Running("migrate", "--qmp", guest.socket, *credentials.of("source"), *words, where, **more)


def waiting(folder: Path, qemu: str, source: Guest, *args: str) -> Guest:
    """The QEMU that the guest is to move into."""
    return Guest(folder, qemu=qemu, image=source.image, incoming="defer", args=[*args, "-S"])


def assert_moved(source: Guest, target: Guest) -> None:
    """The guest ticks there alone, and no tick was lost on the way."""
    target.wait_ticks(3)
    silent = source.serial()
    target.wait_ticks(3)
    assert source.serial() == silent
    assert_unbroken(parse_ticks(silent + target.serial()))


def child_of(pid: int, program: str = "qemu") -> int:
    """The process that a receive has started: QEMU, and not its guardian (a python)."""
    children = [entry for entry in os.listdir("/proc") if f"\nPPid:\t{pid}\n" in _status(entry)]
    return next(int(entry) for entry in children if program in os.path.basename(os.readlink(f"/proc/{entry}/exe")))


def _status(entry: str) -> str:
    try:
        return Path(f"/proc/{entry}/status").read_text()
    except OSError:  # no process, or one that has just ended
        return ""
