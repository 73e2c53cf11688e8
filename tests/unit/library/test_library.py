"""`import statepipe`: what it offers, with which defaults, and what it leaves alone in the program that imports it."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import statepipe
from statepipe.cli import filtertable
from statepipe.cli.filtertable import FILTERS, find
from statepipe.cli.grammar import parse
from statepipe.library import filters
from tests.agefiles import KEY_FILE
from tests.statefiles import noisy_stream
from tests.world import world

PATIENCE = 30


def test_what_is_typed_is_what_is_there() -> None:
    """The imports for type checkers, the table that is used, and __all__ name the same, from the same modules."""
    tree = ast.parse(Path(statepipe.__file__).read_text())
    typed = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("statepipe.")
        for alias in node.names
    }
    assert typed == {name: f"statepipe.{module}" for name, module in statepipe._MODULE_OF.items()}
    assert sorted([*typed, "__version__"]) == sorted(statepipe.__all__)
    assert set(statepipe.__all__) <= set(dir(statepipe))
    assert all(getattr(statepipe, name) is not None for name in statepipe.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'statepipe' has no attribute 'compres'"):
        _ = statepipe.compres  # type: ignore[attr-defined]


GIVEN = {
    "verify": ["--from", "FILE"],
    "throttle": ["100M"],
    "tee": ["FILE"],
    "put": ["s3://b/k"],
    "get": ["s3://b/k"],
    "external": ["--", "cat"],
}
"""What a filter's command line must have."""

SET_BY_CLI = {
    "checksum": {"report"},
    "verify": {"from_file"},
    "throttle": {"rate"},
    "tee": {"file"},
    "put": {"address"},
    "get": {"address"},
}
"""What it hands over then, or always. Whatever else comes must be the default."""


@pytest.mark.parametrize("name", [row.name for row in FILTERS])
def test_the_defaults_are_those_of_the_command_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line hands over without options is what the factory would take by itself."""
    factory = getattr(filters, name)
    signature = inspect.signature(factory)
    handed: dict[str, Any] = {}

    @functools.wraps(factory)  # the table looks at its annotations, to hand over what it takes and nothing else
    def note(*arguments: object, **keywords: object) -> None:
        handed.update(signature.bind(*arguments, **keywords).arguments)

    monkeypatch.setattr(filtertable.filters, name, note)
    row = find(name)
    row.build(parse(row, GIVEN.get(name, [])), world())
    assert handed.pop("context") is not None
    defaults = {each.name: each.default for each in signature.parameters.values()}
    left = {key: value for key, value in handed.items() if key not in SET_BY_CLI.get(name, ())}
    if "passphrase" in left:
        left["passphrase"] = left["passphrase"]()
    if name == "external":
        assert left.pop("command") == ["cat"]
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in left.items()} == {
        key: defaults[key] for key in left
    }


def test_each_option_of_a_filter_has_a_keyword() -> None:
    """The ways to give a passphrase are one keyword; status lines are the command's alone."""
    renamed = {"recipient": "recipients", "recipients_file": "recipients_files", "identity": "identities"}
    renamed |= {"from": "from_file", "passphrase_file": "passphrase", "passphrase_fd": "passphrase"}
    for row in FILTERS:
        options = {param.name.removeprefix("--").replace("-", "_") for param in row.params} - {"status_fd"}
        keywords = set(inspect.signature(getattr(filters, row.name)).parameters) - {"context"}
        assert {renamed.get(option, option) for option in options} == keywords - {"report", "name"} | (
            keywords & {"name"} if row.name == "progress" else set()
        )


QUIET = """
import ctypes, os, resource, signal, sys, threading

def state():
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    return handlers, dict(os.environ), os.getcwd(), resource.getrlimit(resource.RLIMIT_CORE)

before, called, real = state(), [], ctypes.CDLL
ctypes.CDLL = lambda *given: called.append(given) or real(*given)
import statepipe
assert [name for name in sys.modules if name.startswith("statepipe.")] == []
with statepipe.from_file(sys.argv[1]) as source:
    stages = [("compress", statepipe.compress()), ("gzip", statepipe.compress("gzip"))]
    statepipe.Pipeline(source, stages, statepipe.to_file("out")).run()
statepipe.decrypt(sys.argv[1])
assert state() == before
assert called == [], "mallopt or prctl"
assert real(None).prctl(3, 0, 0, 0, 0) == 1
assert signal.set_wakeup_fd(-1) == -1
assert threading.enumerate() == [threading.main_thread()]
assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""
"""A program that uses the library, and finds itself as it was: PR_GET_DUMPABLE is 3."""


def test_a_program_that_uses_it_is_left_as_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "-c", QUIET, str(KEY_FILE)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


INTERRUPTED = """
import os, sys
import statepipe
reading, writing = os.pipe()
os.write(writing, b"some bytes")
print("ready", flush=True)
try:
    with statepipe.from_fd(reading) as source:
        statepipe.Pipeline(source, [("compress", statepipe.compress())], statepipe.to_file("out")).run()
except KeyboardInterrupt:
    print(os.listdir("."), flush=True)
    raise
"""


def test_ctrl_c_ends_a_program_that_uses_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        wait_until_it_waits(process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (-signal.SIGINT, "[]\n")
    assert err.endswith("KeyboardInterrupt\n")


def wait_until_it_waits(process: subprocess.Popen[str]) -> None:
    """Until the pipeline has its threads: what it reads has no end."""
    while len(os.listdir(f"/proc/{process.pid}/task")) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_a_late_ctrl_c_is_not_lost(tmp_path: Path) -> None:
    """One that comes in the midst of a commit is the program's, which hears of it behind that."""
    source = Interrupting(noisy_stream(), tmp_path / "guest.state")
    with pytest.raises(KeyboardInterrupt), source:
        statepipe.save(source, source.path)  # type: ignore[arg-type]  # as much of a source as is asked for
    assert statepipe.verify_state(source.path)["digest"]


class Interrupting:
    """A source of a stream; as the file gets its name, the program is interrupted."""

    def __init__(self, data: bytes, path: Path) -> None:
        self.bytes, self.path = 0, path
        self._parts = iter([data])

    def __enter__(self) -> Interrupting:
        self._link = os.link
        os.link = self._interrupted
        return self

    def __exit__(self, *error: object) -> None:
        os.link = self._link

    def _interrupted(self, source: str, name: str, **named: Any) -> None:
        if name == self.path.name:
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        self._link(source, name, **named)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        part = next(self._parts)
        self.bytes += len(part)
        return part

    def cancel(self) -> None: ...


def test_pipelines_run_in_threads_and_at_once(tmp_path: Path) -> None:
    """Each in a thread of its own, each with stages that have threads."""
    data = os.urandom(1 << 20)
    (tmp_path / "in").write_bytes(data)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with statepipe.from_file(tmp_path / "in") as source:
                stages = [("compress", statepipe.compress()), ("decompress", statepipe.decompress())]
                statepipe.Pipeline(source, stages, statepipe.to_file(tmp_path / f"out{number}")).run()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    assert [(tmp_path / f"out{number}").read_bytes() == data for number in range(2)] == [True, True]


def test_nobody_is_asked_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    stage = statepipe.external(shell="cat; echo words >&2")
    assert b"".join(stage(iter([b"data"]))) == b"data"
    assert capfd.readouterr() == ("", "")
    with pytest.raises(statepipe.StatepipeError, match="no passphrase can be asked for"):
        statepipe.context().ask("passphrase")
    statepipe.context().warn("take care")
    assert caplog.messages == ["take care"]


def test_what_is_wrong_is_said_at_once() -> None:
    for wrong in (lambda: statepipe.compress("zip"), lambda: statepipe.throttle("fast"), lambda: statepipe.verify()):
        with pytest.raises(statepipe.UsageError):
            wrong()


def test_a_state_that_is_damaged_does_not_end(tmp_path: Path) -> None:
    (tmp_path / "stream").write_bytes(noisy_stream())
    with statepipe.from_file(tmp_path / "stream") as source:
        statepipe.save(source, tmp_path / "state")
    data = bytearray((tmp_path / "state").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "state").write_bytes(data)
    with statepipe.load(tmp_path / "state") as state, pytest.raises(statepipe.IntegrityError):
        statepipe.Pipeline(state, [], statepipe.to_file(tmp_path / "out")).run()
    assert not (tmp_path / "out").exists()


def test_a_stream_that_is_cut_is_not_saved(tmp_path: Path) -> None:
    (tmp_path / "stream").write_bytes(noisy_stream()[:-20])
    with statepipe.from_file(tmp_path / "stream") as source, pytest.raises(statepipe.TruncatedError):
        statepipe.save(source, tmp_path / "state")
    assert not (tmp_path / "state").exists()
