"""Stories of users, as they would type them: NAME.sh, and what it prints (NAME.stdout, NAME.stderr) beside it.

A script runs in an empty folder that holds `stream`, a whole migration stream, with `statepipe` on its path. Its
first comment says how it ends; `***` in what is expected stands for anything within a line.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conformance.running import PATIENCE, STATEPIPE, STREAM

STORIES = sorted(Path(__file__).parent.glob("*.sh"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the story plays."""
    (tmp_path / "bin").mkdir()
    launcher = tmp_path / "bin" / "statepipe"
    launcher.write_text(f'#!/bin/sh\nexec {" ".join(STATEPIPE)} "$@"\n')
    launcher.chmod(0o755)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "stream").write_bytes(STREAM)
    return tmp_path / "here"


def ending(script: str) -> int:
    """The exit status that the first line promises: `# ends with 3: …`."""
    found = re.match(r"# ends with (\d+): ", script)
    assert found, "the first line says how the story ends"
    return int(found[1])


def assert_like(said: str, expected: Path) -> None:
    text = expected.read_text() if expected.exists() else ""
    pattern = ".*".join(re.escape(part) for part in text.split("***"))
    assert re.fullmatch(pattern, said), f"{expected.name} says otherwise:\n{said}"


@pytest.mark.parametrize("story", STORIES, ids=lambda path: path.stem)
def test_the_story_goes_as_told(story: Path, folder: Path) -> None:
    environment = {**os.environ, "PATH": f"{folder.parent}/bin:{os.environ['PATH']}", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    done = subprocess.run(
        ["/bin/sh", "-u", story], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert_like(done.stdout, story.with_suffix(".stdout"))
    assert_like(done.stderr, story.with_suffix(".stderr"))
    assert done.returncode == ending(story.read_text())
