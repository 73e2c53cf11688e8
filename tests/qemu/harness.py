"""QEMU for tests: a guest with monitors, the means to wait for what it does, and the proof that it lost nothing.

The monitor's client here is our own and a dozen lines, so that no test of statepipe rests on statepipe.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests import warm
from tests.guest import parse_ticks, write_image

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds to wait for any one thing: TCG beside other tests is slow."""

FINAL = ("completed", "failed", "cancelled")


def statepipe_command() -> list[str]:
    """statepipe, as words of a command line. It does not depend on the current folder."""
    return [sys.executable, "-P", "-m", "statepipe"]


EXEC = shlex.join(statepipe_command())
"""The same for a shell: f"exec:exec {EXEC} save FILE"."""


def run_statepipe(*arguments: object, timeout: float = PATIENCE, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run statepipe to its end and give its status, stdout and stderr. TimeoutExpired after `timeout` seconds."""
    command = [*statepipe_command(), *map(str, arguments)]
    options: dict[str, Any] = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL} | more
    return warm.run(command, timeout=timeout, **options)


def wait_for(what: str, look: Callable[[], T], timeout: float = PATIENCE) -> T:
    """Look until it is true, and give what was seen. AssertionError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (seen := look()):
        assert time.monotonic() < deadline, f"no {what} within {timeout} s (last seen: {seen!r})"
        time.sleep(0.005)
    return seen


class QmpError(Exception):
    """QEMU refused a command."""


class Qmp:
    """One connection to a monitor. `events` are all that came, in order."""

    def __init__(self, path: Path, timeout: float) -> None:
        self.events: list[dict[str, Any]] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._lines = self._socket.makefile("r")
        try:
            self._socket.connect(str(path))
            self._read()  # the greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, **arguments: object) -> Any:
        """What the command returns. QmpError if QEMU refuses, ConnectionError if it is gone, TimeoutError."""
        request = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        self._socket.sendall(json.dumps(request).encode())
        while "event" in (message := self._read()):
            self.events.append(message)
        if "error" in message:
            raise QmpError(message["error"]["desc"])
        return message["return"]

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise ConnectionError("QEMU closed its monitor")
        message: dict[str, Any] = json.loads(line)
        return message

    def drain(self) -> list[dict[str, Any]]:
        """All events, once QEMU has ended: those that nobody has read yet are still in the socket."""
        with contextlib.suppress(OSError):  # ConnectionError at the end of all
            while True:
                if "event" in (message := self._read()):
                    self.events.append(message)
        return self.events

    def close(self) -> None:
        """Leave the monitor to others."""
        self._lines.close()
        self._socket.close()


class Guest:
    """A QEMU with the counting guest of tests/guest.py, as a context manager that never leaves it behind.

    `image` is a boot image that exists (one is written otherwise), `incoming` the value of -incoming. Files go to
    `folder`. `socket` is a second monitor, for statepipe: one serves one client.
    """

    def __init__(
        self,
        folder: Path,
        *,
        qemu: str,
        memory: int = 128,
        args: Sequence[str] = (),
        incoming: str | None = None,
        image: Path | None = None,
        fill: int = 8,
        dirty: int = 16,
        wrapper: Sequence[str] = (),
    ) -> None:
        number = len(list(folder.glob("serial-*.txt")))
        self.folder = folder
        self.image = image or folder / f"guest-{number}.img"
        if image is None:
            write_image(self.image, fill, dirty)
        self._serial = folder / f"serial-{number}.txt"
        self._stderr = folder / f"stderr-{number}.txt"
        self._serial.touch()
        self._sockets = Path(tempfile.mkdtemp(prefix="qmp-"))  # a socket's path has 107 bytes at most
        self.socket = str(self._sockets / "qmp-2.sock")
        machine = f"-accel tcg -m {memory} -display none -nodefaults -serial file:{self._serial}".split()
        self.command = [*wrapper, qemu, *machine, "-drive", f"file={self.image},format=raw,if=ide"]
        for name in ("qmp-1.sock", "qmp-2.sock"):
            self.command += ["-qmp", f"unix:{self._sockets / name},server=on,wait=off"]
        self.command += [*args, *(["-incoming", incoming] if incoming else [])]

    def __enter__(self) -> Guest:
        with self._stderr.open("w") as stderr:
            self._process = warm.Popen(
                self.command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
            )
        try:
            self._qmp = self._connect()
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._qmp.close()
        finally:
            self._clean()

    def _connect(self) -> Qmp:
        def attempt() -> Qmp | None:
            assert self._process.poll() is None, f"QEMU ended with {self._process.returncode}: {self.stderr()}"
            with contextlib.suppress(FileNotFoundError, ConnectionError):
                return Qmp(self._sockets / "qmp-1.sock", PATIENCE)
            return None

        return wait_for("monitor", attempt)

    def _clean(self) -> None:
        self.kill()
        self.wait()
        shutil.rmtree(self._sockets)

    @property
    def pid(self) -> int:
        """Of QEMU (or of its wrapper)."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, to this process alone."""
        self._process.kill()

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit status, negative for a signal, once it has ended."""
        return self._process.wait(timeout)

    def ended(self) -> bool:
        """Whether it has."""
        return self._process.poll() is not None

    def stderr(self) -> str:
        """What QEMU and its exec: children said so far."""
        return self._stderr.read_text(errors="replace")

    def qmp(self, command: str, **arguments: object) -> Any:
        """What the command returns; `_` in an argument's name stands for `-`. QmpError if QEMU refuses."""
        return self._qmp.execute(command, **arguments)

    def events(self) -> list[dict[str, Any]]:
        """All events so far."""
        self.qmp("query-version")
        return self._qmp.events

    def all_events(self) -> list[dict[str, Any]]:
        """All events so far, of one that has ended too, or is about to."""
        if not self.ended():
            with contextlib.suppress(ConnectionError):
                return self.events()
        return self._qmp.drain()

    def run_state(self) -> str:
        """As "running", "paused", "postmigrate"."""
        return str(self.qmp("query-status")["status"])

    def wait_run_state(self, *states: str, timeout: float = PATIENCE) -> str:
        """Wait until the guest is in one of the states, and give it."""
        return wait_for(f"run state {states}", lambda: _one_of(self.run_state(), states), timeout)

    def migration(self) -> dict[str, Any]:
        """query-migrate, with a `status` in any case."""
        return {"status": "none", **self.qmp("query-migrate")}

    def wait_status(self, *statuses: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait until the migration has one of the statuses (FINAL if none is given); query-migrate's answer."""
        wanted = statuses or FINAL
        return wait_for(f"status {wanted}", lambda: _having(self.migration(), wanted), timeout)

    def wait_transferred(self, size: int, timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait until QEMU has sent `size` bytes of RAM; query-migrate's answer. AssertionError if it ends before."""

        def look() -> dict[str, Any] | None:
            answer = self.migration()
            sent = answer.get("ram", {}).get("transferred", 0)
            assert sent >= size or answer["status"] not in FINAL, f"it ended: {answer}"
            return answer if sent >= size else None

        return wait_for(f"{size} bytes transferred", look, timeout)

    def capabilities(self, **states: bool) -> None:
        """Turn capabilities on or off (`_` for `-`)."""
        items = [{"capability": name.replace("_", "-"), "state": state} for name, state in states.items()]
        self.qmp("migrate-set-capabilities", capabilities=items)

    def settings(self) -> tuple[Any, Any]:
        """The migration's parameters and capabilities, to be compared."""
        return self.qmp("query-migrate-parameters"), self.qmp("query-migrate-capabilities")

    def serial(self) -> str:
        """What the guest printed so far."""
        return self._serial.read_bytes().decode("ascii", "replace")

    def ticks(self) -> list[tuple[int, int]]:
        """(n, SUM) of each tick printed here so far."""
        return parse_ticks(self.serial())

    def wait_ticks(self, more: int, timeout: float = PATIENCE) -> None:
        """Wait until the guest has printed `more` ticks than now."""
        target = len(self.ticks()) + more
        wait_for(f"tick {target}", lambda: self.ended() or len(self.ticks()) >= target, timeout)
        assert not self.ended(), f"QEMU ended: {self.stderr()}"


def _one_of(state: str, states: Sequence[str]) -> str | None:
    return state if state in states else None


def _having(answer: dict[str, Any], statuses: Sequence[str]) -> dict[str, Any] | None:
    return answer if answer["status"] in statuses else None


def assert_continues(before: str, after: str) -> None:
    """The serial text of a guest, then of the same guest elsewhere: it went on, and nothing in it changed."""
    ticks = parse_ticks(before + after)
    assert len(ticks) > len(parse_ticks(before)), "the guest did not go on"
    assert_unbroken(ticks)


def assert_unbroken(ticks: list[tuple[int, int]]) -> None:
    """The count has no gap and no repetition, and the memory's sum never changed."""
    numbers = [number for number, _ in ticks]
    assert numbers == list(range(1, len(numbers) + 1)), f"the count is broken: {numbers}"
    assert len({total for _, total in ticks}) == 1, f"the memory changed: {ticks}"


def assert_runs_on(guest: Guest, more: int = 3) -> None:
    """The guest runs, and goes on counting, here."""
    assert guest.wait_run_state("running") == "running"
    guest.wait_ticks(more)
    assert_unbroken(guest.ticks())
