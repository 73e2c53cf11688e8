"""Whatever answers at a QMP socket, and however, what comes of it is an answer of the right shape or a QemuError."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from statepipe.errors import QemuError, QemuGone, QemuSilent, StatepipeError
from statepipe.qemu.answers import ANSWERS
from statepipe.qemu.facts import gather
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.settings import adjust, put_back
from statepipe.threads import beside
from tests.qmpserver import GREETING, SILENT, QmpServer, Raw, qmp_server

DEEP = Raw(b'{"return": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")

ODD: list[Any] = [None, -1, "x" * 100_000, [], {}, [None], [{}]]
"""For every command; then what is odd for one alone."""

RAM = dict.fromkeys(("transferred", "total", "remaining", "dirty-sync-count"), 1)

ODD_FOR: dict[str, list[Any]] = {
    "query-status": [{"status": None}, {"status": ["running"]}],
    "query-migrate": [
        {"status": ["completed"]},
        {"status": "active", "ram": []},
        {"status": "active", "ram": RAM | {"remaining": "x"}},
        {"status": {}, "error-desc": 3},
        {"blocked-reasons": "no"},
    ],
    "query-version": [{"qemu": {"major": "7"}, "package": None}],
    "query-memory-size-summary": [{"base-memory": "128M"}, {"base-memory": 1 << 70}],
    "query-named-block-nodes": [
        [{"drv": "file", "file": "/a\0b"}],
        [{"drv": "file", "file": "/\udc00\ud800"}],
        [{"drv": ["file"], "file": None}],
    ],
    "query-cpus-fast": [[{"qom-path": 7}]],
    "query-migrate-capabilities": [[{"capability": {}, "state": "on"}]],
    "qom-get feature-words": [[{"cpuid-input-eax": "1", "cpuid-register": [], "features": -1}]],
    "query-migrate-parameters": [{"max-bandwidth": "fast"}],
}


def ask_everything(monitor: Monitor) -> None:
    """All that statepipe reads of a QEMU."""
    gather(monitor)
    monitor.run_state()
    assert monitor.migration()["status"].upper()
    with put_back(monitor, adjust(monitor, {"events": True}, {"max-bandwidth": 0})):
        pass


@pytest.mark.parametrize("command", ANSWERS)
def test_an_odd_answer_is_told_by_the_command_it_answers(server: QmpServer, command: str) -> None:
    with closing(Monitor(server.path)) as monitor:
        ask_everything(monitor)
        for odd in [*ODD, *ODD_FOR.get(command, [])]:
            server.answers[command] = odd
            try:
                ask_everything(monitor)
            except QemuError as error:
                assert server.path in str(error), error
                assert command.partition(" ")[0] in str(error) or "disks" in str(error)


@pytest.mark.parametrize(
    "raw",
    [
        DEEP,
        Raw(b"[]\n"),
        Raw(b"\xff\xfe\n"),
        Raw(b"nonsense\n"),
        Raw(b'{"return": NaN}\n'),
        Raw(b'{"return": {}, "id": []}\n'),
        Raw(b'{"event": ["MIGRATION"]}\n'),
        Raw(b'{"error": 5}\n'),
        Raw(b'{"error": {"class": 1, "desc": {}}, "id": "__qmp#00000"}\n'),
        Raw(b'{"id": "__qmp#00000"}\n'),
        Raw(b'{"return": "' + b"x" * (5 << 20) + b'"}\n'),
    ],
    ids=lambda raw: repr(bytes(raw)[:24]),
)
def test_what_is_no_message_of_qmp_ends_the_wait_for_one(server: QmpServer, raw: Raw) -> None:
    server.answers["query-status"] = raw
    with closing(Monitor(server.path)) as monitor, pytest.raises(QemuError, match="query-status"):
        monitor.run_state()


@pytest.mark.parametrize(
    "greeting",
    [
        Raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
        Raw(b"{}\n"),
        Raw(b'{"QMP": 1}\n'),
        Raw(b'{"QMP": {"version": [], "capabilities": {}}}\n'),
        Raw(b"[" * 100_000 + b"\n"),
        Raw(b"x" * (6 << 20)),
    ],
    ids=lambda raw: repr(bytes(raw)[:24]),
)
def test_who_greets_otherwise_is_no_monitor(qmp_folder: Path, greeting: Raw) -> None:
    with qmp_server(qmp_folder, greeting) as server, pytest.raises(QemuError, match="is not a QMP monitor"):
        Monitor(server.path)


def test_a_monitor_for_people_is_called_so(qmp_folder: Path) -> None:
    hmp = Raw(b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ")
    with qmp_server(qmp_folder, hmp) as server, pytest.raises(QemuError, match=r"QEMU's human monitor \(HMP") as caught:
        Monitor(server.path)
    assert "-qmp unix:PATH" in (caught.value.hint or "")


EVENT = b'{"event": "RESET", "data": {"guest": true}, "timestamp": {"seconds": 1, "microseconds": 2}}\r\n'


def test_events_that_come_before_qemu_has_answered_anything_are_passed_over(qmp_folder: Path) -> None:
    """As of a guest that resets all the time."""
    early = Raw(EVENT + json.dumps(GREETING).encode() + b"\r\n" + EVENT)
    with qmp_server(qmp_folder, early) as server, closing(Monitor(server.path)) as monitor:
        assert monitor.run_state() == "paused"


@pytest.mark.parametrize("spelling", ["unix:{}", "unix:{},server=on,wait=off", "unix://{}", "tcp:127.0.0.1:{port}"])
def test_a_monitor_is_reached_as_qemu_spells_it(server: QmpServer, spelling: str) -> None:
    with forwarded(server.path) as port, closing(Monitor(spelling.format(server.path, port=port))) as monitor:
        assert monitor.run_state() == "paused"
        if spelling.startswith("tcp:"):
            with pytest.raises(QemuError, match="only through a monitor at a unix socket"):
                monitor.demand_handover()
        else:
            monitor.demand_handover()


@contextmanager
def forwarded(path: str) -> Iterator[int]:
    """A port of this host that leads to the socket, for one client."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as there:

        def carry(source: socket.socket, sink: socket.socket) -> None:
            with suppress(OSError):
                while data := source.recv(65536):
                    sink.sendall(data)

        def serve() -> None:
            with suppress(OSError):
                here = listener.accept()[0]
                with here:
                    there.connect(path)
                    back = threading.Thread(target=carry, args=(there, here))
                    back.start()
                    carry(here, there)
                    there.shutdown(socket.SHUT_RDWR)
                    back.join()

        with beside("serve", serve, lambda: listener.shutdown(socket.SHUT_RDWR)):
            yield listener.getsockname()[1]


def test_capabilities_that_are_refused_are_no_monitor(server: QmpServer) -> None:
    server.answers["qmp_capabilities"] = Raw(b'{"error": {"class": "GenericError", "desc": "no"}}\n')
    with pytest.raises(QemuError, match="no QMP monitor answers at"):
        Monitor(server.path)


@pytest.mark.parametrize("command", ["qmp_capabilities", "query-status"])
def test_a_connection_that_is_closed_in_the_midst_is_qemu_gone_or_no_monitor(server: QmpServer, command: str) -> None:
    def leave() -> Any:
        raise OSError  # which ends the connection

    server.answers[command] = leave
    server_side = threading.Thread(target=lambda: (server.wait_for(command), server.close()))
    server_side.start()
    try:
        with pytest.raises(QemuError), closing(Monitor(server.path)) as monitor:
            monitor.run_state()
    finally:
        server_side.join()


@pytest.mark.parametrize("kind", ["file", "folder", "FIFO", "nothing"])
def test_a_path_that_is_no_socket_is_told_as_what_it_is(qmp_folder: Path, kind: str) -> None:
    path = qmp_folder / "path"
    make = {"file": path.touch, "folder": path.mkdir, "FIFO": lambda: os.mkfifo(path), "nothing": lambda: None}
    make[kind]()
    found = "No such file" if kind == "nothing" else f"it is a {kind}, not a socket"
    with pytest.raises(QemuError, match=f"no QMP monitor answers at {path}: {found}"):
        Monitor(str(path))


@pytest.mark.parametrize("command", ["query-status", "query-migrate", "cont", "quit"])
def test_a_command_that_is_not_answered_ends_when_told_to_hurry(server: QmpServer, command: str) -> None:
    """And nothing says that it failed."""
    server.answers[command] = SILENT
    with closing(Monitor(server.path)) as monitor:
        outcome: list[BaseException] = []

        def wait() -> None:
            try:
                monitor.execute(command)
            except StatepipeError as error:
                outcome.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        server.wait_for(command)
        monitor.hurry()
        waiting.join(30)
        assert [type(error) for error in outcome] == [QemuSilent]
        assert not isinstance(outcome[0], QemuGone) and command in str(outcome[0])


def test_a_migration_that_does_not_end_is_not_waited_for_in_a_hurry(server: QmpServer) -> None:
    server.answers["query-migrate"] = {"status": "active", "ram": RAM}
    with closing(Monitor(server.path)) as monitor:
        threading.Thread(target=lambda: (server.wait_for("query-migrate"), monitor.hurry())).start()
        with pytest.raises(QemuSilent, match="has not finished its migration"):
            monitor.migration_outcome()


def test_a_failure_right_after_an_answer_is_not_taken_for_another_migration(server: QmpServer) -> None:
    """Answer and event arrive in one segment: the answer is older, whichever is looked at first."""

    def answer() -> Raw:
        message = {"return": {"status": "active"}, "id": server.identity}
        event = {"event": "MIGRATION", "data": {"status": "failed"}, "timestamp": {"seconds": 1, "microseconds": 2}}
        server.answers["query-migrate"] = {"status": "failed", "error-desc": "its own reason"}
        return Raw(b"\r\n".join(json.dumps(each).encode() for each in (message, event)) + b"\r\n")

    for _ in range(20):
        server.answers["query-migrate"] = answer
        with closing(Monitor(server.path)) as monitor:
            monitor.migrate("fd:x")
            assert monitor.migration_outcome()["error-desc"] == "its own reason"


def test_a_monitor_that_is_closed_answers_with_an_error(server: QmpServer) -> None:
    """A thread that outlived its use hears so, and leaves no coroutine that never ran (warnings are errors here)."""
    with closing(Monitor(server.path)) as monitor:
        pass
    with pytest.raises(QemuGone, match="has disconnected"):
        monitor.execute("query-status")


def test_a_late_answer_counts(server: QmpServer) -> None:
    told, may_answer = [], threading.Event()
    server.answers["cont"] = lambda: may_answer.wait(30) and {}
    with closing(Monitor(server.path, tell=told.append)) as monitor:
        threading.Thread(target=lambda: (server.wait_for("cont"), may_answer.set())).start()
        assert monitor.execute("cont") == {} and told == []


def test_one_that_greets_and_answers_nothing_is_not_called_one_without_a_greeting(
    server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statepipe.qemu.connection.GREETING_WORD", 0.3)  # the next word is at 1.2 s
    monkeypatch.setattr("statepipe.qemu.connection.GREETING_TIME", 1.0)
    server.answers["qmp_capabilities"] = SILENT
    told: list[str] = []
    with pytest.raises(QemuSilent, match=r"QEMU does not answer qmp_capabilities$"):
        Monitor(server.path, tell=told.append)
    assert told == [f"QEMU at {server.path} has not answered qmp_capabilities for 0.3 s"]


def test_events_alone_take_no_memory(server: QmpServer) -> None:
    """A QEMU, or what has taken it over, may tell of as many as it likes."""
    flood = json.dumps({"event": "MIGRATION", "data": {"status": "active"}, "timestamp": {}}).encode() + b"\n"
    server.answers["query-version"] = Raw(flood * 20_000 + b'{"return": {"qemu": 5}, "id": "__qmp#00000"}\n')
    with closing(Monitor(server.path)) as monitor:
        before = resident()
        with pytest.raises(QemuError, match="query-version"):
            monitor.execute("query-version")
        assert resident() - before < 100 << 20
        assert monitor.run_state() == "paused"


def test_of_migrations_only_our_own_is_heard_of(server: QmpServer) -> None:
    """Another client's may end before ours begins, or begin once ours has failed."""
    heard: list[str] = []
    with closing(Monitor(server.path)) as monitor:
        monitor.on_events(heard.append)

        def tells(*statuses: str) -> list[str]:
            for status in statuses:
                server.event(status)
            monitor.run_state()  # its answer comes after the events
            return heard

        assert tells("setup", "pre-switchover", "completed") == []
        monitor.migrate("fd:ours")
        assert tells("completed") == []
        assert tells("setup", "active", "pre-switchover") == ["setup", "active", "pre-switchover"]
        server.event("", "STOP")
        server.event("", "RESUME")
        assert tells("failed", "setup", "completed")[3:] == ["STOP", "RESUME"]
        assert monitor.broken_off == "failed"


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_monitor_that_failed_leaves_no_thread(qmp_folder: Path) -> None:
    with qmp_server(qmp_folder, Raw(b"{}\n")) as server:
        before = {*threading.enumerate()}
        with pytest.raises(QemuError):
            Monitor(server.path)
        left = [thread.name for thread in threading.enumerate() if thread not in before]
        assert not [name for name in left if "(serve)" not in name]  # the server's own may end later
        assert not any(thread.name == "monitor" for thread in threading.enumerate())


def test_in_a_context_that_remembers_no_query_is_sent_twice(server: QmpServer) -> None:
    with closing(Monitor(server.path)) as monitor:
        server.commands()
        with monitor.remembered():
            for _ in range(2):
                assert monitor.execute("qom-get", path="/machine", property="type") == "pc-machine"
                assert monitor.execute("qom-get", path="/machine", property="tsc-frequency") == 0
                assert monitor.run_state() == "paused"
            assert server.commands() == ["qom-get", "qom-get", "query-status"]
        server.answers["query-status"] = {"status": "running"}
        assert monitor.run_state() == "running"
