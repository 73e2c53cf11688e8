"""`.ci/run` in a small project: what fails by chance is named and not forgiven, and nothing may be missing."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

FLAKY = "tests/test_it.py::test_once[two words]"

TESTS = """
import pathlib, pytest

def test_passes(): pass

@pytest.mark.parametrize("name", ["two words"])
def test_once(name):
    mark = pathlib.Path("mark")
    if not mark.exists():
        mark.touch()
        raise AssertionError("upset")
"""

FAILING = """
def test_never(): raise AssertionError("wrong")
def test_needs_a_peer(): pytest.skip("nobody is not installed")
def test_another_python(): pytest.skip("no Python 3.14: it is not here")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in (".ci/run", ".ci/flaky.py", ".ci/flaky", "tests/conftest.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    # Without the plugins that are of no use here: each start of pytest takes half as long.
    start = f"PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 {sys.executable} -m pytest -p xdist -q"
    (tmp_path / "Makefile").write_text(f"test:\n\t@{start} $(ARGS)\n")
    (tmp_path / "tests" / "test_it.py").write_text(TESTS)
    return tmp_path


def run(project: Path) -> tuple[int, list[str]]:
    """The status, and the lines that are about a test."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "MAKE"))}
    command = ["bash", ".ci/run"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=120)
    said = (done.stdout + done.stderr).splitlines()
    return done.returncode, [line for line in said if line.startswith((".ci/", "FLAKY", "FAILED", "tests/"))]


def test_what_fails_twice_fails_the_run_and_what_fails_once_is_named(project: Path) -> None:
    with (project / "tests" / "test_it.py").open("a") as tests:
        tests.write(FAILING)
    status, said = run(project)
    assert status == 1
    assert set(said[-3:]) == {
        "FAILED tests/test_it.py::test_needs_a_peer (twice)",
        "FAILED tests/test_it.py::test_never (twice)",
        f"FLAKY {FLAKY} (it failed, then passed, and .ci/flaky does not have it)",
    }


HANGING = """
def test_hangs():
    import threading
    threading.Event().wait()
"""


def test_what_hangs_has_failed_and_keeps_nothing_up(project: Path) -> None:
    runner, makefile = project / ".ci" / "run", project / "Makefile"
    runner.write_text(runner.read_text().replace("longest=300", "longest=2"))
    makefile.write_text(makefile.read_text().replace("-p xdist", "-p xdist -n 2"))
    (project / "tests" / "test_it.py").write_text(TESTS.replace("raise AssertionError", "print") + HANGING)
    status, said = run(project)
    assert status == 1 and said[-1] == "FAILED tests/test_it.py::test_hangs (twice)"
    assert sum("crashed while running" in line for line in said) == 2 and not any("test_once" in line for line in said)


@pytest.mark.parametrize("days", [-1, 0])
def test_from_a_day_on_what_fails_only_once_fails_the_run(judge: ModuleType, days: int) -> None:
    lines, wrong = judge.repeated([FLAKY], [], [], judge.STRICT_FROM + datetime.timedelta(days))
    assert (lines if days < 0 else wrong) == [f"FLAKY {FLAKY} (it failed, then passed, and .ci/flaky does not have it)"]
    assert not (wrong if days < 0 else lines)


def test_a_name_on_the_list_is_told_and_forgiven(project: Path) -> None:
    today = datetime.date.today()
    (project / ".ci" / "flaky").write_text(f"{today} {FLAKY} the disk is slow\n")
    status, said = run(project)
    assert (status, said[-1]) == (0, f"FLAKY {FLAKY} (allowed since {today}: the disk is slow)")


def test_an_old_line_ends_the_run_before_its_first_test(project: Path) -> None:
    (project / ".ci" / "flaky").write_text(f"2020-01-01 {FLAKY} slow\n")
    status, said = run(project)
    assert status == 1 and "is more than 30 days ago" in said[0] and not (project / "mark").exists()


DAY = datetime.date.today()


@pytest.fixture
def judge(project: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """.ci/flaky.py, in that project."""
    monkeypatch.chdir(project)
    described = importlib.util.spec_from_file_location("flaky", ".ci/flaky.py")
    assert described is not None and described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (f"{DAY - datetime.timedelta(31)} {FLAKY} slow", "is more than 30 days ago: mend the test"),
        (f"{DAY + datetime.timedelta(2)} {FLAKY} slow", "has not come yet"),
        (f"{DAY} tests/test_it.py::test_gone slow", "there is no test_gone in tests/test_it.py"),
        (f"{DAY} tests/test_it.py::test_once", "not a line of the form"),
        (f"2026-02-31 {FLAKY} slow", "not a line of the form"),
        ("test_once is slow", "not a line of the form"),
    ],
)
def test_a_line_that_is_old_or_names_nothing_is_an_error(
    judge: ModuleType, capsys: pytest.CaptureFixture[str], line: str, why: str
) -> None:
    Path(".ci/flaky").write_text(f"# names\n\n{line}\n{DAY - datetime.timedelta(30)} {FLAKY} slow\n")
    assert judge.main("check") == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(".ci/flaky:3: ") and why in said[0]


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ([f"tests/test_it.py::test_all[{number}]" for number in range(21)], "21 tests failed, which is no accident"),
        (["tests/test_it.py"], "cannot be collected: none of its tests was run"),
        ([], "names none of them"),
    ],
)
def test_what_is_no_accident_is_not_repeated(
    judge: ModuleType, capsys: pytest.CaptureFixture[str], names: list[str], why: str
) -> None:
    cache = Path("cache")
    (cache / "v" / "cache").mkdir(parents=True)
    (cache / "v" / "cache" / "lastfailed").write_text(json.dumps(dict.fromkeys(names, True)))
    assert judge.main("failed", "cache") == 1
    assert why in capsys.readouterr().err


def test_the_list_holds_here(judge: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert judge.main("check") == 0
