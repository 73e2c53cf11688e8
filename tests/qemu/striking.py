"""statepipe that sends itself a signal at a step of a lazy load, of a save or a load through libvirt, or of a
conversion.

It does so between two calls, so that nothing is left to chance:

    python -m tests.qemu.striking SIGNAL STEP RECORD -- VERB …

A step is a call that the main thread makes, before it begins or after it has returned: "before Monitor.execute cont".
RECORD gets each step that was reached, one a line. With SIGSTOP, the main thread alone stops, until there is a file
beside RECORD whose name ends in .go.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

NAMING = ("FileSink.sync", "FileSink.commit", "FileSink._keep_older", "replace", "sync_names", "FileSink.withdraw")
"""Of a new file that gets its name."""

CALLS: dict[str, dict[str, tuple[str, ...]]] = {
    "convert": {
        "ends.file": NAMING,
        "libvirt.convert": ("open_state", "prepare", "new_output", "Pipeline.pour", "save_stream"),
    },
    "load": {
        "lazy.keeping": ("Keeping.__init__", "Keeping.will_load", "Keeping.may_run", "OwnMonitor.__init__"),
        "lazy.load": ("_pages",),
        "lazy.resume": ("find_listening", "_agree"),
        "lazy.rest": ("Rest.wait", "Rest.settle"),
        "lazy.server": ("Server.begin", "Server.push", "Server.close"),
        "lazy.work": ("LazyWork.__init__",),
        "libvirt.load": ("_restore", "_report"),
        "libvirt.offer": ("Offer.__enter__", "Offer._place", "Offer._serve", "Offer._hand", "Offer.commit"),
        "libvirt.target": ("Target.demand_idle", "Target.became"),
        "libvirt.work": ("AtWork.__init__", "AtWork.has_ended"),
        "qemu.monitor": ("Monitor.__init__", "Monitor.execute", "Monitor.give", "Monitor.close"),
        "qemu.process": ("Child.__init__",),
        "recovery.guardian": ("Guardian.__enter__", "Guardian.note"),
    },
    "save": {
        "ends.file": NAMING,
        "libvirt.intake": (
            "Intake.__enter__",
            "Intake.await_image",
            "Intake.read_beginning",
            "Intake.await_question",
            "Intake.refuse",
        ),
        "libvirt.save": ("answer", "save_stream"),
        "objectstore.upload": ("ObjectSink.sync", "ObjectSink.commit", "ObjectSink.withdraw", "ObjectSink.__exit__"),
        "libvirt.witness": ("Job.ask",),
        "libvirt.work": ("AtWork.__init__", "AtWork.has_ended"),
        "recovery.guardian": ("Guardian.__enter__", "Guardian.note"),
    },
}
"""What makes the steps, by the verb and its module."""

ROOT = Path(__file__).parents[2]


def striking(number: signal.Signals, step: str, record: Path) -> list[str]:
    """The words that start it, in the place of statepipe's own."""
    return [sys.executable, "-P", __file__, number.name, step, str(record), "--"]


def steps_of(record: Path) -> list[str]:
    """The steps that were reached, each once, in order."""
    return list(dict.fromkeys(record.read_text().splitlines())) if record.exists() else []


class Striker:
    """Sends the signal when the step is reached for the first time."""

    def __init__(self, number: signal.Signals, step: str, record: str) -> None:
        self._number, self._step = number, step
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._go = Path(f"{record}.go")
        self._has_struck = False

    def reach(self, step: str) -> None:
        """The main thread is there."""
        if threading.current_thread() is not threading.main_thread():
            return
        os.write(self._record, f"{step}\n".encode())
        if step == self._step and not self._has_struck:
            self._has_struck = True
            if self._number is not signal.SIGSTOP:
                os.kill(os.getpid(), self._number)
            while self._number is signal.SIGSTOP and not self._go.exists():
                time.sleep(0.01)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with a step before it and one after it."""

        @wraps(function)
        def stepping(*arguments: Any, **more: Any) -> Any:
            words = name
            if name == "Monitor.execute":
                words = f"{name} {arguments[1]}"
            elif name == "Guardian.note":
                words = f"{name} {arguments[1].get('state', 'over')}"
            self.reach(f"before {words}")
            result = function(*arguments, **more)
            self.reach(f"after {words}")
            return result

        return stepping


def main(words: Sequence[str]) -> None:
    """Put the steps in, and be statepipe."""
    striker = Striker(signal.Signals[words[0]], words[1], words[2])
    for place, names in CALLS[words[4]].items():
        module = import_module(f"statepipe.{place}")
        for name in names:
            owner, _, attribute = name.rpartition(".")
            where = getattr(module, owner) if owner else module
            setattr(where, attribute, striker.around(name.removesuffix(".__init__"), getattr(where, attribute)))
    sys.argv[1:] = words[4:]
    from statepipe.cli.main import entry

    entry()


if __name__ == "__main__":
    main(sys.argv[1:])
