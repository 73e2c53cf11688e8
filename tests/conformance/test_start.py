"""A Ctrl-C while Python still reads our code: an end as by any other signal, in every way to start us."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

INTERRUPTED = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
"""What comes first in the module of ours that is read last."""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder with our package, in which a Ctrl-C comes as its last module is read."""
    package = tmp_path / "library" / "statepipe"
    linked(ROOT / "statepipe", package, "cli")
    linked(ROOT / "statepipe" / "cli", package / "cli", "main.py")
    (package / "cli" / "main.py").write_text(f"{INTERRUPTED}raise SystemExit('it goes on')\n")
    return package.parent


def linked(source: Path, target: Path, but: str) -> None:
    target.mkdir(parents=True)
    for entry in source.iterdir():
        if entry.name not in (but, "__pycache__"):
            (target / entry.name).symlink_to(entry)


def as_module(library: Path) -> list[str]:
    return ["-P", "-m", "statepipe"]


def as_script(library: Path) -> list[str]:
    """As pip writes it."""
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, function = metadata["project"]["scripts"]["statepipe"].partition(":")
    (library / "script").write_text(f"import re\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    return [str(library / "script")]


def as_launcher(library: Path) -> list[str]:
    """As `make install` writes it."""
    text = re.search(r"define LAUNCHER_TEXT\n(.*?)endef", (ROOT / "Makefile").read_text(), re.DOTALL)
    assert text is not None
    (library / "launcher").write_text(text[1].replace("$(LIBRARY)", str(library)))
    return ["-I", str(library / "launcher")]


@pytest.mark.parametrize("way", [as_module, as_script, as_launcher])
def test_a_ctrl_c_while_we_are_read_leaves_no_traceback(library: Path, way: object) -> None:
    assert callable(way)
    command = [sys.executable, *way(library), "--version"]
    environment = os.environ | {"PYTHONPATH": str(library)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (-signal.SIGINT, "", "")
