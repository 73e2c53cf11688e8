"""Plugins of age by their protocol: a foreign one, which age itself speaks to as well."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from statepipe.cli.filtertable import find
from statepipe.cli.grammar import parse
from statepipe.errors import StatepipeError
from statepipe.formats.age import bech32
from tests import agefiles
from tests.conformance.running import STATEPIPE, run
from tests.terminal import at_terminal
from tests.world import world

RECIPIENT = bech32.encode("age1demo", b"a public key")
IDENTITY = bech32.encode("AGE-PLUGIN-DEMO-", b"a secret one")
DATA = b"for whoever has the token\n" * 4000


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plugin on PATH; the folder that it and the identity are in."""
    program = tmp_path / "age-plugin-demo"
    shutil.copy(Path(__file__).parent / "age_plugin_demo.py", program)
    program.write_text(program.read_text().replace("#!/usr/bin/env python3", f"#!{sys.executable}", 1))
    program.chmod(0o755)
    (tmp_path / "key").write_text(f"# a token\n{IDENTITY}\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("DEMO_LOG", str(tmp_path / "log"))
    return tmp_path


def filtered(data: bytes, name: str, *arguments: str, pin: str = "1234") -> tuple[bytes, str]:
    """What comes of the filter with someone at the terminal who types `pin`, and what was said to them."""
    said = io.StringIO()

    def ask(prompt: str) -> str:
        said.write(f"{prompt}? ")
        return pin

    row = find(name)
    stage = row.build(parse(row, arguments), world(said)._replace(ask=ask))
    return b"".join(stage(iter([data]))), said.getvalue()


def test_there_and_back(plugin: Path) -> None:
    sealed, said = filtered(DATA, "encrypt", "-r", RECIPIENT)
    assert said == "demo: please touch the token\n" and b"-> demo an-argument\n" in sealed
    assert filtered(sealed, "decrypt", "-i", str(plugin / "key")) == (DATA, "demo: PIN? ")


def test_a_plugin_beside_other_keys(plugin: Path) -> None:
    sealed, _ = filtered(DATA, "encrypt", "-r", agefiles.RECIPIENT, "-r", RECIPIENT)
    assert filtered(sealed, "decrypt", "-i", str(agefiles.KEY_FILE))[0] == DATA
    assert filtered(sealed, "decrypt", "-i", str(plugin / "key"))[0] == DATA


def test_a_wrong_answer_opens_nothing(plugin: Path) -> None:
    sealed, _ = filtered(DATA, "encrypt", "-r", RECIPIENT)
    with pytest.raises(StatepipeError, match="no identity opens this stream"):
        filtered(sealed, "decrypt", "-i", str(plugin / "key"), pin="4321")


@pytest.mark.skipif(shutil.which("age") is None, reason="age is not installed")
def test_age_and_we_open_each_others(plugin: Path) -> None:
    (plugin / "in").write_bytes(DATA)
    (plugin / "ours").write_bytes(filtered(DATA, "encrypt", "-r", RECIPIENT)[0])
    status, seen = at_terminal("age -d -i key -o out ours", [("PIN", "1234")], plugin)
    assert (status, (plugin / "out").read_bytes()) == (0, DATA), seen
    status, seen = at_terminal(f"age -r {RECIPIENT} -o theirs in", [], plugin)
    assert status == 0, seen
    ours = " ".join([*STATEPIPE, "decrypt -i key <theirs >out"])
    status, seen = at_terminal(ours, [("demo: PIN: ", "1234")], plugin)
    assert (status, (plugin / "out").read_bytes()) == (0, DATA), seen


FAILURES = {
    "die": "age-plugin-demo ended before it was finished",
    "babble": "age-plugin-demo sent something that is not a stanza",
    "fail": "age-plugin-demo failed: the token is not there",
}


@pytest.mark.parametrize("behaviour", FAILURES)
def test_a_plugin_that_fails(behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO", behaviour)
    done = run("encrypt", "-r", RECIPIENT, data=DATA)
    assert (done.returncode, done.stdout) == (1, b"")
    assert FAILURES[behaviour] in done.stderr.decode()


def test_a_plugin_that_is_not_there() -> None:
    done = run("encrypt", "-r", bech32.encode("age1nobody", b"x"), data=DATA)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"cannot start age-plugin-nobody: No such file or directory" in done.stderr
    assert b"hint: is age-plugin-nobody installed, in a folder of your PATH?" in done.stderr


def test_no_secret_is_in_its_arguments_or_environment(plugin: Path) -> None:
    sealed, _ = filtered(DATA, "encrypt", "-r", RECIPIENT)
    (plugin / "pass").write_text("correct horse")
    (plugin / "pass").chmod(0o600)
    arguments = ["-i", str(plugin / "key"), "--passphrase-file", str(plugin / "pass")]
    assert filtered(sealed, "decrypt", *arguments)[0] == DATA
    started = [json.loads(line) for line in (plugin / "log").read_text().splitlines()]
    assert [arguments[1:] for arguments, _ in started] == [["--age-plugin=recipient-v1"], ["--age-plugin=identity-v1"]]
    for secret in ("correct", "1234", IDENTITY):
        assert not any(secret in str(each).replace(str(plugin), "") for each in started)
