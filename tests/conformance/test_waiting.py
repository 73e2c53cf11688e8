"""A wait that a signal's exception breaks off, and what the next wait then says: under each Python there is.

In CPython 3.9 to 3.12 `Thread.join` that is broken off so takes a thread that runs for one that has ended.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BEGIN = """
import signal, sys, threading
from statepipe.ends.relay import Backflow
from statepipe.threads import held

class Stopped(Exception):
    pass

def stop(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped

signal.signal(signal.SIGTERM, stop)
main = threading.get_ident()
go = threading.Event()
passed, waiting, holds = [], [], []

def interrupt():
    # once the main thread waits
    while not waiting or sys._current_frames()[main].f_code.co_name not in ("wait", "join", "_wait_for_tstate_lock"):
        continue
    while signal.getsignal(signal.SIGTERM) is stop:  # it may come in the instant before the wait itself
        signal.pthread_kill(main, signal.SIGTERM)
        if holds:
            break
"""

END = """
from statepipe.threads import End
end = End()

def work():
    go.wait()
    passed.append(True)
    end.tell()

with held():
    threading.Thread(target=work, daemon=True).start()
    threading.Thread(target=interrupt, daemon=True).start()
try:
    waiting.append(True)
    end.wait()
    assert False, "no signal came"
except Stopped:
    pass
assert not end.come and not end.wait(0), "it has not come yet"
go.set()
while not end.come:
    waiting.append(True)
    end.wait()
assert passed
"""

BACKFLOW = """
class Silent:
    bytes = 0

    def __iter__(self):
        go.wait()
        passed.append(True)
        return iter(())

    def cancel(self):
        pass

back = Backflow(Silent(), passed.append)
back.start()
with held():
    threading.Thread(target=interrupt, daemon=True).start()
try:
    waiting.append(True)
    back.wait(None)
    assert False, "no signal came"
except Stopped:
    pass

def release():
    while sys._current_frames()[main].f_code.co_name == "<module>":
        continue
    go.set()

with held():
    threading.Thread(target=release, daemon=True).start()
back.wait(None)
assert passed, "it waited for nobody"
"""

JOIN = """
from statepipe.threads import join
thread = threading.Thread(target=lambda: (go.wait(), passed.append(True)), daemon=True)
holds.append(True)
with held():
    thread.start()
    threading.Thread(target=lambda: (interrupt(), go.set()), daemon=True).start()
try:
    waiting.append(True)
    join(thread)
    assert False, "no signal came"
except Stopped:
    pass
assert passed or thread.is_alive(), "one that runs was taken for one that has ended"
join(thread)
assert passed and not thread.is_alive()
"""


def pythons() -> list[str]:
    """This one, and one of each other version that there is: also where a name stands for a choice of versions."""
    found = [sys.executable]
    for minor in range(11, 20):
        if minor != sys.version_info.minor and (path := shutil.which(f"python3.{minor}")):
            choice = sorted(Path(path).parent.parent.glob(f"versions/3.{minor}.*/bin/python3.{minor}"))
            found.append(str(choice[0]) if choice else path)
    return found


@pytest.mark.parametrize("script", [END, BACKFLOW, JOIN], ids=["end", "backflow", "join"])
@pytest.mark.parametrize("python", pythons(), ids=os.path.basename)
def test_a_wait_that_was_broken_off_is_no_end(python: str, script: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [python, "-P", "-c", BEGIN + script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
