"""The door of QEMU's monitor: whatever answers there, on a real connection."""

from __future__ import annotations

import json
import tempfile
from contextlib import closing, suppress
from random import Random
from typing import Any

from statepipe.errors import StatepipeError
from statepipe.qemu.facts import gather
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.settings import adjust, put_back
from statepipe.recovery.resolve import look
from tests.fuzz.harness import Door
from tests.fuzz.mutation import mutated, odd_json
from tests.qmpserver import ANSWERS, GREETING, Raw, qmp_server

RAM = dict.fromkeys(("transferred", "total", "remaining", "dirty-sync-count", "page-size"), 1)
MORE = ANSWERS | {"query-migrate": {"status": "completed", "ram": RAM, "total-time": 5, "downtime": 1}}

ODD_GREETING = "greeting"


def talk(data: bytes) -> None:
    """All that is ever asked of a QEMU that stands still; the first line says to what the rest is the answer."""
    which, _, text = data.partition(b"\n")
    key = which.decode(errors="replace")
    greeting: Any = Raw(text + b"\n") if key == ODD_GREETING else GREETING
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder, qmp_server(folder, greeting) as server:
        server.answers.update(MORE)
        server.answers[key] = _raw(text)
        with closing(Monitor(server.path)) as monitor:
            monitor.hurry()  # an answer to nothing is one that is never there: do not wait for it
            for ask in (lambda: gather(monitor), monitor.migration, monitor.run_state, lambda: _adjust(monitor)):
                with suppress(StatepipeError):
                    json.dumps(ask())
        if not isinstance(greeting, Raw) and not isinstance(server.answers[key], Raw):
            found = look(server.path, None, lambda text: None)
            assert isinstance(found.run_state, str) and isinstance(found.migration, str)


def _adjust(monitor: Monitor) -> None:
    with put_back(monitor, adjust(monitor, {"events": True}, {"max-bandwidth": 0})):
        pass


def _raw(text: bytes) -> Any:
    """In the place of a result, whatever it is; of a whole message, where it begins with a colon."""
    if text.startswith(b":"):
        return Raw(text[1:] + b"\n")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return Raw(b'{"return": ' + text + b"}\n")


def make_answer(random: Random) -> bytes:
    if random.random() < 0.1:
        return ODD_GREETING.encode() + b"\n" + odd_json(random, GREETING).replace(b"\n", b"")
    key = random.choice(list(MORE))
    text = odd_json(random, MORE[key])
    if random.random() < 0.2:
        message = json.dumps({"return": MORE[key], "id": "__qmp#00001", "timestamp": {"seconds": 1}}).encode()
        text = b":" + mutated(random, message).replace(b"\n", b"")
    return key.encode() + b"\n" + text


DOORS = {"monitors": Door(talk, make_answer)}
