"""What statepipe does without the packages that only a part of it needs: all else works, and the error says what to
type."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from statepipe.extras import EXTRAS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PARTS = {name: needs for name, needs in PROJECT["optional-dependencies"].items() if name not in ("all", "dev")}

MODULES = {
    "azure-identity": "azure",
    "azure-storage-blob": "azure",
    "google-auth": "google",
    "google-crc32c": "google_crc32c",
    "python-gnupg": "gnupg",
    "qemu.qmp": "qemu",
}
"""The name to import, where it is not the project's."""

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))
from statepipe.start import entry
sys.argv[0] = "statepipe"
entry()
"""

BLOCKED = {
    "gzip": ("isal", ["compress", "gzip"]),
    "lz4": ("lz4", ["compress", "lz4"]),
    "pair": ("spake2", ["pair", "--listen", "127.0.0.1:0"]),
    "pq": ("cryptography.hazmat.primitives.hpke", ["keygen", "--pq"]),
    "gpg": ("gnupg", ["encrypt", "gpg:somebody"]),
    "object": ("botocore", ["tee", "s3://bucket/key"]),
    "ssh-keys": ("bcrypt", ["decrypt", "-i", "key", "--passphrase-file", "passphrase"]),
}
"""For each extra, a module that it brings, and a command line that needs it."""


def without(modules: str, *words: str, folder: Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-P", "-c", WITHOUT, modules, *words]
    return subprocess.run(command, input=data, capture_output=True, cwd=folder, timeout=60)


def test_every_extra_has_its_words_and_all_has_every_extra() -> None:
    assert set(PARTS) == set(EXTRAS) == set(BLOCKED)
    [everything] = map(Requirement, PROJECT["optional-dependencies"]["all"])
    assert everything.extras == set(PARTS)


def modules(needs: list[str]) -> set[str]:
    return {MODULES.get(name, name) for name in (Requirement(need).name for need in needs)}


def imported(node: ast.AST) -> set[str]:
    """The topmost names of the modules that are imported within."""
    found = [each for each in ast.walk(node) if isinstance(each, ast.Import | ast.ImportFrom)]
    names = {alias.name for each in found if isinstance(each, ast.Import) for alias in each.names}
    names |= {each.module for each in found if isinstance(each, ast.ImportFrom) and each.module}
    return {name.partition(".")[0] for name in names}


def test_the_core_imports_its_own_packages_and_a_part_those_of_its_extra() -> None:
    """No other package is imported anywhere, nor one of an extra without the words for it."""
    used: set[str] = set()
    for path in (ROOT / "statepipe").rglob("*.py"):
        tree = ast.parse(path.read_text())
        guarded: set[str] = set()
        for each in ast.walk(tree):
            call = each.items[0].context_expr if isinstance(each, ast.With) else None
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "extra":
                assert isinstance(call.args[0], ast.Constant)
                assert imported(each) <= modules(PARTS[call.args[0].value]), path
                guarded |= imported(each)
        others = imported(tree) - set(sys.stdlib_module_names) - {"statepipe"}
        assert others - guarded <= modules(PROJECT["dependencies"]), path
        used |= others
    assert used == modules(PROJECT["dependencies"]) | set().union(*map(modules, PARTS.values()))


@pytest.mark.parametrize("name", BLOCKED)
def test_what_is_missing_is_named_with_what_to_type(tmp_path: Path, name: str) -> None:
    module, words = BLOCKED[name]
    if name == "ssh-keys":
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "open sesame", "-f", tmp_path / "key"]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        (tmp_path / "passphrase").write_text("open sesame\n")
        (tmp_path / "passphrase").chmod(0o600)
        to = ["encrypt", "-R", "key.pub"]
        sealed = without("none", *to, folder=tmp_path, data=b"it").stdout
        done = without(module, *words, folder=tmp_path, data=sealed)
    else:
        done = without(module, *words, folder=tmp_path)
    said = done.stderr.decode()
    assert (done.returncode, done.stdout) == (1, b""), said
    assert re.search(rf"^statepipe: {words[0]}: error: .* needs .*Python package \S+", said), said
    assert f"statepipe: hint: type pip install 'statepipe[{name}]'" in said


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("google", "google-auth"),
        ("google.auth", "google-auth"),
        ("google_crc32c", "google-crc32c"),
        ("requests", "requests"),
    ],
)
def test_what_google_s_store_needs_is_named(tmp_path: Path, module: str, package: str) -> None:
    done = without(module, "put", "gs://bucket/key", folder=tmp_path)
    said = done.stderr.decode()
    assert f"an object store needs the Python package {package}, which is not installed" in said
    assert "type pip install 'statepipe[object]'" in said


def test_without_any_of_them_the_defaults_work(tmp_path: Path) -> None:
    blocked = ",".join(set().union(*map(modules, PARTS.values())) - {"cryptography"})
    packed = without(blocked, "compress", folder=tmp_path, data=b"it" * 999)
    assert without(blocked, "decompress", folder=tmp_path, data=packed.stdout).stdout == b"it" * 999
    for words in (["save", "--help"], ["migrate", "--help"], ["keygen"]):
        assert without(blocked, *words, folder=tmp_path).returncode == 0, words


@pytest.mark.parametrize(("module", "package"), [("blake3", "blake3"), ("qemu", "qemu.qmp")])
def test_a_checkout_that_was_not_set_up_says_what_to_type(tmp_path: Path, module: str, package: str) -> None:
    words = ["compress"] if module == "blake3" else ["save", "--qmp", "socket", "state"]
    done = without(module, *words, folder=tmp_path)
    assert done.returncode == 1 and done.stdout == b""
    assert done.stderr.decode().splitlines() == [
        f"statepipe: {words[0]}: error: the Python package {package} is not installed for {sys.executable}",
        f"statepipe: hint: type: {ROOT}/tools/setup",
    ]


def test_a_checkout_whose_setup_was_broken_off_says_what_to_type(tmp_path: Path) -> None:
    """Its .venv has a Python, and no statepipe yet; the Python outside has no packages."""
    for part in ("bin", "statepipe", "tools"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for place, script in ((".venv/bin/python", "exit 9"), ("path/python3", f'exec "{sys.executable}" -S "$@"')):
        program = tmp_path / place
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    path = {"PATH": f"{tmp_path}/path:/usr/bin:/bin"}
    done = subprocess.run([tmp_path / "bin" / "statepipe", "compress"], input=b"", capture_output=True, env=path)
    assert done.returncode == 1
    assert done.stderr.decode().endswith(f"statepipe: hint: type: {tmp_path}/tools/setup\n"), done.stderr


def test_an_installation_that_lacks_a_package_is_to_be_repaired(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "statepipe", tmp_path / "statepipe", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", WITHOUT, "blake3", "compress"]
    done = subprocess.run(command, input=b"", capture_output=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1 and b"hint: install statepipe with its packages: pip install" in done.stderr, (
        done.stderr
    )


def test_a_module_of_ours_that_is_missing_is_a_bug(tmp_path: Path) -> None:
    done = without("statepipe.stages.packing", "compress", folder=tmp_path)
    assert done.returncode == 1 and b"ModuleNotFoundError" in done.stderr
