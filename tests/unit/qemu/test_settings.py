"""What QEMU was set to before: what would make another thing of a migration is off meanwhile, and put back."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from statepipe.qemu.monitor import Monitor
from statepipe.qemu.settings import adjust, made_ready, put_back, restore, restored
from tests.qmpserver import SILENT, QmpServer

SET = {
    "events": False,
    "return-path": True,
    "xbzrle": True,
    "compress": True,
    "x-ignore-shared": True,
    "multifd": True,
    "mapped-ram": True,
    "x-of-a-later-qemu": True,
    "postcopy-ram": False,
}

PARAMETERS = {"max-bandwidth": 1, "downtime-limit": 300, "tls-creds": "t", "mode": "cpr-reboot"}


@pytest.fixture
def server(server: QmpServer) -> QmpServer:
    """A QEMU that keeps what it is set to."""
    capabilities, parameters = dict(SET), dict(PARAMETERS)

    def keep(arguments: dict[str, Any]) -> dict[str, Any]:
        if "capabilities" in arguments:
            capabilities.update({row["capability"]: row["state"] for row in arguments["capabilities"]})
        else:
            parameters.update(arguments)
        return {}

    server.answers |= {
        "query-migrate-capabilities": lambda: [{"capability": n, "state": on} for n, on in capabilities.items()],
        "query-migrate-parameters": lambda: dict(parameters),
    }
    server.takes |= {"migrate-set-capabilities": keep, "migrate-set-parameters": keep}
    return server


def found(monitor: Monitor) -> tuple[dict[str, bool], dict[str, Any]]:
    """How it is set now."""
    rows = monitor.execute("query-migrate-capabilities")
    return {row["capability"]: row["state"] for row in rows}, monitor.execute("query-migrate-parameters")


def test_what_one_stream_cannot_serve_is_off_meanwhile_and_put_back(server: QmpServer) -> None:
    with closing(Monitor(server.path)) as monitor:
        with put_back(monitor, adjust(monitor, {"events": True}, {"max-bandwidth": 0})):
            capabilities, parameters = found(monitor)
            assert {name for name, on in capabilities.items() if on} == {"events", "return-path", "xbzrle"}
            assert parameters == PARAMETERS | {"max-bandwidth": 0, "tls-creds": "", "mode": "normal"}
        assert found(monitor) == (SET, PARAMETERS)


def test_where_nothing_else_goes_with_it_everything_else_is_off(server: QmpServer) -> None:
    with closing(Monitor(server.path)) as monitor, put_back(monitor, adjust(monitor, {"events": True}, {}, ())):
        assert {name for name, on in found(monitor)[0].items() if on} == {"events"}


def test_a_qemu_that_waits_takes_one_stream_and_is_as_before(server: QmpServer) -> None:
    with closing(Monitor(server.path)) as monitor:
        before = made_ready(monitor, ("events", "late-block-activate"))
        capabilities, parameters = found(monitor)
        assert {name for name, on in capabilities.items() if on} == {"events", "return-path", "xbzrle"}
        assert parameters["tls-creds"] == "" and parameters["max-bandwidth"] == 1
        restore(monitor, before)
        assert found(monitor) == (SET, PARAMETERS)


def test_settings_that_are_not_put_back_are_told_of_and_no_failure_of_what_is_done(server: QmpServer) -> None:
    """The guest that came is here, whatever QEMU still has to say."""
    with closing(Monitor(server.path)) as monitor:
        before = made_ready(monitor, ("events",))
        assert restored(monitor, before) is None
        assert found(monitor) == (SET, PARAMETERS)
        server.takes["migrate-set-capabilities"] = lambda arguments: SILENT
        monitor.hurry()
        words = restored(monitor, before)
        assert words is not None and words.startswith("QEMU's migration settings are not as before: ")
