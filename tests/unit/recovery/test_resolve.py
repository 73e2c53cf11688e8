"""What a person decides, where QEMU has a word to say against it."""

from __future__ import annotations

from typing import Any

import pytest

from statepipe.cli.main import main
from statepipe.errors import QemuError
from statepipe.recovery.handover import Source
from statepipe.recovery.rescue import recover_source, socket_of
from statepipe.recovery.resolve import decide
from tests.qmpserver import QmpServer


@pytest.mark.parametrize("state", ["running", "suspended"])
def test_a_qemu_whose_guest_is_alive_is_not_ended_for_one_elsewhere(server: QmpServer, state: str) -> None:
    server.answers["query-status"] = {"status": state}
    with pytest.raises(QemuError, match=f"the guest is {state} here"):
        decide(server.path, "elsewhere", lambda text: None)
    assert "quit" not in server.commands()


def test_the_guardian_does_not_wake_a_guest_that_qemu_would_die_of(server: QmpServer) -> None:
    """QEMU 9 and later abort on `cont` of one that slept when it was sent."""
    version: dict[str, Any] = {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": ""}
    server.answers |= {
        "query-status": {"status": "postmigrate"},
        "query-migrate": {"status": "completed"},
        "query-version": version,
    }
    settings: dict[str, Any] = {"capabilities": {}, "parameters": {}}
    state = Source.HANDED.name
    known = {"state": state, "states": [state], "qmp": server.path, "runs": True, "was": "suspended"}
    known |= {"before": settings, "socket": socket_of(server.path)}
    with pytest.raises(QemuError, match="suspended"):
        recover_source(known, lambda text: None)
    assert "cont" not in server.commands()


@pytest.mark.parametrize(
    ("state", "status", "words"),
    [
        ("paused", "none", "QEMU has no migration. If no other QEMU is to run the guest, run it in this one:"),
        ("postmigrate", "completed", "If the guest was saved to a file, there is no other QEMU: "),
        ("postmigrate", "completed", "If it was sent to another QEMU, check that one, too. "),
    ],
)
def test_another_host_is_spoken_of_only_where_there_may_be_one(
    server: QmpServer, capsys: pytest.CaptureFixture[str], state: str, status: str, words: str
) -> None:
    server.answers |= {"query-status": {"status": state}, "query-migrate": {"status": status}}
    assert main(["resolve", "--qmp", server.path]) == 0
    said = capsys.readouterr().out
    assert words in said and f"statepipe resolve --qmp {server.path} here" in said
    assert ("another QEMU" in said) == (status == "completed") and "other host too" not in said


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        (["statepipe-state-0123456789abcdef0123456789abcdef"], "statepipe load --resume --qmp {qmp} FILE"),
        ([], "each of two QEMUs has a part of the guest (postcopy): end neither"),
    ],
)
def test_a_guest_that_lacks_memory_is_neither_run_nor_ended(
    server: QmpServer, capsys: pytest.CaptureFixture[str], objects: list[str], words: str
) -> None:
    """Its disks are newer than the state that it came from: without this QEMU it would be lost."""
    server.answers |= {
        "query-status": {"status": "paused"},
        "query-migrate": {"status": "postcopy-paused"},
        "qom-list": [{"name": name, "type": "child<secret>"} for name in objects],
    }
    words = words.format(qmp=server.path)
    assert main(["resolve", "--qmp", server.path]) == 0
    shown = capsys.readouterr().out
    assert words in shown and "load the file" not in shown and "elsewhere" not in shown
    for where in ("here", "elsewhere"):
        assert main(["resolve", "--qmp", server.path, where]) == 6
        assert words in capsys.readouterr().err
    assert not {"quit", "cont", "migrate_cancel"} & set(server.commands())
