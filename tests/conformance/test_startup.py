"""What a common command imports: modules that it does not need cost each run of it milliseconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agefiles import RECIPIENT
from tests.bench.data import ROOT
from tests.statefiles import state_file
from tests.streams import whole

SLOW = {
    "typing": "3 ms, and a named tuple made by it 0.1 ms more",
    "socket": "4 ms, with selectors and array: its enums",
    "platform": "2 ms",
    "pathlib": "8 ms, with urllib and ipaddress",
    "ctypes": "2 ms",
    "argparse": "5 ms, with locale and shutil, and as much again to build the parser of a verb",
    "dataclasses": "0.5 to 0.8 ms for each class besides; a named tuple takes 0.15",
    "inspect": "5 ms",
    "locale": "0.7 ms",
    "shutil": "1.5 ms, with bz2 and lzma",
    "subprocess": "0.5 ms; processes.py starts programs",
    "asyncio": "20 ms; only a monitor needs it",
    "ssl": "4 ms",
    "cryptography": "8 ms",
    "multiprocessing": "5 ms",
    "logging": "1.3 ms",
}
"""What each takes of processor time, with what only it imports."""

COMMANDS = {
    "compress": (["compress"], set()),
    "decompress": (["decompress", "state"], set()),
    "checksum": (["checksum"], set()),
    "encrypt": (["encrypt", "-r", RECIPIENT], {"cryptography", "typing"}),  # which imports it
    "save": (["save", "new"], {"shutil", "socket", "typing"}),
    "load": (["load", "state"], {"shutil", "socket", "typing"}),
    "recv": (["recv", "-o", "nowhere/file", "unix://{0}/socket"], {"socket", "typing"}),
}
"""The words of each, and which of SLOW it needs."""

RUN = """
import sys
from statepipe.cli.main import main
status = main()
print(status, *sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_common_command_imports_nothing_slow_that_it_does_not_need(name: str, tmp_path: Path) -> None:
    words, needed = COMMANDS[name]
    (tmp_path / "state").write_bytes(state_file([whole()]))
    environment = {name: value for name, value in os.environ.items() if name != "STATEPIPE_CONFIG"}  # no TOML to read
    done = subprocess.run(
        [sys.executable, "-c", RUN, *(word.format(tmp_path) for word in words)],
        input=whole(),
        stdout=subprocess.DEVNULL,  # else it could be a return path
        stderr=subprocess.PIPE,
        timeout=60,
        cwd=tmp_path,
        env=environment | {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )
    status, *imported = done.stderr.splitlines()[-1].decode().split()
    assert status == ("1" if name == "recv" else "0"), done.stderr  # recv finds no folder, with all imported
    assert {module: SLOW[module] for module in SLOW.keys() & set(imported) - needed} == {}
