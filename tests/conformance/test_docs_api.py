"""docs/api.md: its examples run and are typed, and its tables name what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import statepipe
from statepipe import errors
from tests.agefiles import KEY_FILE, RECIPIENT
from tests.documents import rows, section, text_of
from tests.streams import whole

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```python( \w+)?\n(.*?)^```$", text_of("api.md"), re.DOTALL | re.MULTILINE)
EXAMPLES = [code for mark, code in BLOCKS if not mark]


def name_of(example: str) -> str:
    """The calls that it shows."""
    return "-".join(dict.fromkeys(re.findall(r"statepipe\.(\w+)\(", example)))[:60]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page names, as the current one."""
    (tmp_path / "disk.img").write_bytes(bytes(range(256)) * 1024)
    (tmp_path / "stream").write_bytes(whole())
    (tmp_path / "recipient.txt").write_text(f"{RECIPIENT}\n")
    shutil.copy(KEY_FILE, tmp_path / "key.txt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_an_example_runs(example: str, folder: Path) -> None:
    exec(compile(example, "api.md", "exec"), {"__name__": "example"})
    assert not [path for path in folder.iterdir() if path.suffix == ".part"]


def test_the_examples_are_typed(tmp_path: Path) -> None:
    for number, (_, code) in enumerate(BLOCKS):
        (tmp_path / f"example{number}.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_error_is_in_the_table() -> None:
    told = {
        name: code
        for names, _, code in rows(section("api.md", "Errors"))
        for name in re.findall("`([A-Z]\\w+)`", names)
    }
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and name in statepipe.__all__}
    assert told.keys() == kinds.keys()
    assert all(code == str(kinds[name].exit_code) for name, code in told.items() if name != "InterruptedBySignal")


def test_each_name_is_on_the_page() -> None:
    page = text_of("api.md")
    unsaid = {name for name in statepipe.__all__ if not re.search(rf"\b{name}\b", page)}
    assert unsaid == {"Cancelled", "__version__"}
