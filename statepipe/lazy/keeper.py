"""The keeper: a small program that keeps QEMU reachable for `load --resume` after statepipe was killed.

When the connection of a lazy load ends, QEMU's main loop may be waiting for a page, with its big lock held: then its
monitor greets a new client but answers no command, and nobody could tell QEMU to accept a new connection. It carries
out only commands out of band, on a monitor where that was negotiated before. So the keeper holds such a monitor. When
QEMU reports postcopy-paused, the keeper has it listen (migrate-recover) at a socket in the runtime folder, where
`load --resume` connects.

It is a program of its own, with arguments MONITOR CONTROL PATH HOW. It starts while QEMU and statepipe need the
processor, so it imports nothing of statepipe, and only what it needs at that moment: 7 ms of processor time. With json,
socket, signal and contextlib it would be 18.

HOW is `own` for a monitor that nobody else uses: the keeper negotiates, and stays as long as there is something to
continue. With `shared`, it holds the monitor of statepipe, waits for statepipe's end, and frees the monitor once QEMU
listens. On CONTROL, statepipe says K with QEMU's pidfd before QEMU loads the devices, R before the guest may run, and a
dot when all is done; the keeper says once that it has negotiated.

If statepipe is killed before R, there is nothing to continue, since the guest has not run. After K, the keeper kills
QEMU, which fails by then, and may hang over it (seen on 7.2: no `quit` reaches it). Before K, a QEMU that statepipe has
started is told to quit, and a shared monitor is freed at once.

The keeper may come late: it was stopped, or had no processor. Somebody may have continued the load meanwhile, and any
client of a monitor can run the guest before R. QEMU reports both, before its guest runs, and then it is not killed.
"""

from __future__ import annotations

import _socket
import os
import select
import sys
import time

AGAIN = 0.05
"""Seconds until QEMU is asked again, if it has not noticed the end of the connection yet."""

GIVE_UP = 30.0
"""Seconds that a shared monitor is held for a QEMU that does not agree to listen."""

ENDED = ("none", "completed", "failed")
"""The status of a migration that has not begun, or that is over."""

LONGEST = 4 << 20
"""Bytes of one message of QEMU's monitor."""


READY = b'"id": "ready"'
"""What the answer to the negotiation has, as QEMU writes it."""

NOTED = (b'"keeper"', b'"left"', b'"RESUME"', b'"postcopy-paused"', b'"postcopy-recover', b'"completed"')
"""One of these is in each other message that matters."""

_INT = 4
"""Bytes of a descriptor's number (unix(7), SCM_RIGHTS)."""


class Keeper:
    """Holds the monitor `monitor` and has QEMU listen at `path` when it has lost its connection."""

    def __init__(self, monitor: _socket.socket, control: _socket.socket, path: str, *, shared: bool) -> None:
        self._monitor, self._control, self._path, self._shared = monitor, control, path, shared
        self._rest = b""
        self._due = False  # QEMU is to listen, and has not agreed yet
        self._next = 0.0  # when it is to be asked
        self._waits = False  # it was asked, and has not answered yet
        self._failing: int | None = None  # the pidfd of a QEMU that cannot go on without statepipe
        if not shared:
            self._say(b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}, "id": "ready"}')

    def run(self) -> None:
        """Serve until nothing is left to continue."""
        control = self._control
        watched, until = [control] if self._shared else [control, self._monitor], float("inf")
        while time.monotonic() < until:
            ready = _ready(AGAIN if self._due else None, *watched)
            if control in ready:
                if (word := self._told()) == b".":
                    return
                if word:
                    continue
                if self._failing is not None and not self._kill(self._failing):
                    return
                watched = [self._monitor]
                self._say(b'{"execute": "query-migrate", "id": "left"}')
                if self._shared:
                    self._due, until = True, time.monotonic() + GIVE_UP
            if self._monitor in ready and not self._hear():
                return
            if self._due and not self._waits and time.monotonic() >= self._next:
                self._listen()

    def _told(self) -> bytes:
        """Return what statepipe says; nothing if it has ended."""
        try:
            word, rights, _, _ = self._control.recvmsg(1, _socket.CMSG_SPACE(_INT))
        except ConnectionResetError:  # it was killed before it had read our byte
            return b""
        if word == b"K" and rights:  # a sandbox may keep it from us
            self._failing = int.from_bytes(rights[0][2][:_INT], sys.byteorder)
        elif word == b"R":
            self._failing = None
        return word

    def _kill(self, pidfd: int) -> bool:
        """Kill QEMU, unless it has reported that its guest runs or that its load goes on. Return False if its monitor
        has ended, and with it all that was to be done.

        It is stopped first: nothing happens between its last report and its end.
        """
        from signal import SIGCONT, SIGKILL, SIGSTOP, pidfd_send_signal

        try:
            pidfd_send_signal(pidfd, SIGSTOP)
            try:
                while _ready(0, self._monitor):
                    if not self._hear():
                        return False
            finally:
                pidfd_send_signal(pidfd, SIGCONT if self._failing is None else SIGKILL)
        except OSError:  # it has ended, or we may not
            pass
        return True

    def _listen(self) -> None:
        """Ask QEMU to listen. Whatever has that name before is gone, so it must not be asked twice at a time: QEMU may
        be listening there already, and its answer be on its way."""
        import json

        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
        order = {"exec-oob": "migrate-recover", "arguments": {"uri": f"unix:{self._path}"}, "id": "keeper"}
        self._say(json.dumps(order).encode())
        self._waits, self._next = True, time.monotonic() + AGAIN

    def _say(self, message: bytes) -> None:
        self._monitor.sendall(message + b"\n")

    def _hear(self) -> bool:
        """Read messages of QEMU. Return False once QEMU has ended or all is done."""
        data = self._monitor.recv(65536)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > LONGEST:
            return False
        return all(map(self._note, lines))

    def _note(self, line: bytes) -> bool:
        """Handle one message of QEMU. Return False once all is done."""
        if READY in line and b'"return"' in line:
            try:
                self._control.send(b"+")
            except OSError:  # statepipe has ended
                pass
            return True
        if not any(word in line for word in NOTED):
            return True
        import json

        try:
            message = json.loads(line)
        except ValueError:  # the rest of a line whose beginning statepipe has read
            return True
        if message.get("id") == "keeper":
            self._waits = False
            if "return" in message:
                self._due = False
                return not self._shared
        if message.get("id") == "left" and "return" in message:
            status = message["return"].get("status", "none")
            if status == "none" and not self._shared:
                self._say(b'{"execute": "quit"}')
                return True  # QEMU forgets the commands of a client that leaves
            return status not in ENDED
        if message.get("event") == "RESUME":
            self._failing = None
        if message.get("event") != "MIGRATION":
            return True
        status = str(message["data"]["status"])
        if status == "postcopy-recover":
            self._failing = None
        if self._shared:
            return True
        self._due = status == "postcopy-paused"
        return status != "completed"


def _ready(within: float | None, *ends: _socket.socket) -> list[_socket.socket]:
    """Return those that can be read, after so many seconds at most. select(2) takes no descriptor from 1024 on."""
    poll = select.poll()
    for end in ends:
        poll.register(end, select.POLLIN)
    found = {fd for fd, _ in poll.poll(None if within is None else within * 1000)}
    return [end for end in ends if end.fileno() in found]


def main() -> None:
    """Run with the words of the command line."""
    monitor, control = (_socket.socket(fileno=int(word)) for word in sys.argv[1:3])
    path, shared = sys.argv[3], sys.argv[4] == "shared"
    try:
        Keeper(monitor, control, path, shared=shared).run()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass


if __name__ == "__main__":
    main()
