"""`make install`: what is put where, that it runs from there, and that nothing of it is left by `make uninstall`."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NETWORK = ("No matching distribution", "Could not fetch URL", "Temporary failure in name resolution")


def make(target: str, destination: Path | str, prefix: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["make", target, f"DESTDIR={destination}", f"PREFIX={prefix}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """DESTDIR and PREFIX, a path that is not there yet."""
    folder = tmp_path_factory.mktemp("install")
    done = make("install", folder / "root", folder / "opt")
    if done.returncode and any(word in done.stderr for word in NETWORK):
        pytest.skip("the packages of requirements.lock cannot be had from here")
    assert done.returncode == 0, done.stderr
    yield folder / "root", folder / "opt"


def test_what_is_installed_runs_from_its_prefix_and_goes_again(installed: tuple[Path, Path]) -> None:
    destination, prefix = installed
    staged = Path(f"{destination}{prefix}")
    files = {str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()}
    assert {
        "bin/statepipe",
        "share/man/man1/statepipe.1",
        "share/bash-completion/completions/statepipe",
        "lib/systemd/system/statepipe-receive@.service",
        "lib/systemd/system/statepipe-receive@.socket",
        "lib/sysusers.d/statepipe.conf",
        "lib/tmpfiles.d/statepipe.conf",
        "lib/statepipe/statepipe/cli/main.py",
    } <= files
    for name in files:
        path = staged / name
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022, f"{name} may be written by others"
        if not name.startswith("lib/statepipe/"):
            assert path.stat().st_size and str(destination) not in path.read_text(), name
    unit = (staged / "lib/systemd/system/statepipe-receive@.service").read_text()
    assert f"ExecStart={prefix}/bin/statepipe receive" in unit

    os.rename(staged, prefix)  # as a package's files come to where they belong
    run = [str(prefix / "bin" / "statepipe")]
    alone = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    packed = subprocess.run([*run, "compress"], input=b"data" * 9999, stdout=subprocess.PIPE, check=True, env=alone)
    plain = subprocess.run([*run, "decompress"], input=packed.stdout, stdout=subprocess.PIPE, check=True, env=alone)
    assert plain.stdout == b"data" * 9999

    assert make("uninstall", "", prefix).returncode == 0
    assert [path for path in prefix.rglob("*") if not path.is_dir()] == []


def test_only_what_is_known_by_its_hash_is_installed(tmp_path: Path) -> None:
    said = make("install", tmp_path, Path("/usr"), "--dry-run").stdout
    words = said.replace("\\\n", " ").splitlines()
    pip = [line for line in words if "pip install" in line]
    assert len(pip) == 1 and "--require-hashes" in pip[0] and "-r requirements.lock" in pip[0]
    assert "--only-binary :all:" in pip[0], "sources would run build tools that nobody has looked at"
