"""keygen: new identities in new files, and recipients of those that there are."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from statepipe.cli.main import main
from statepipe.formats.age.keys import parse_identity
from tests import agefiles

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(("options", "name", "secret"), [([], "age1", "1"), (["--pq"], "age1pq1", "PQ-1")])
def test_a_file_of_ones_own(
    options: list[str], name: str, secret: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = os.umask(0)
    try:
        assert main(["keygen", *options, "-o", str(tmp_path / "key")]) == 0
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    created, public, key = (tmp_path / "key").read_text().splitlines()
    assert re.fullmatch(r"# created: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", created)
    said = capsys.readouterr()
    assert said.out == "" and said.err == f"Public key: {public.removeprefix('# public key: ')}\n"
    assert public.startswith(f"# public key: {name}") and key.startswith(f"AGE-SECRET-KEY-{secret}")
    assert str(parse_identity(key).recipient) == public.split()[-1]  # type: ignore[union-attr]


def test_no_file_is_overwritten(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "key").write_text("precious")
    for arguments in (["-o"], ["-y", str(agefiles.KEY_FILE), "-o"]):
        assert main(["keygen", *arguments, str(tmp_path / "key")]) == 1
        assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "key").read_text() == "precious"


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: Captured) -> None:
    assert main(["keygen", "-o", str(tmp_path / "no" / "key")]) == 1
    assert "cannot create" in capsys.readouterr().err


def test_the_recipients_of_a_file(tmp_path: Path, capsys: Captured) -> None:
    assert main(["keygen", "-y", str(agefiles.KEY_FILE)]) == 0
    assert capsys.readouterr().out == f"{agefiles.RECIPIENT}\n"
    assert main(["keygen", "-y", str(agefiles.KEY_FILE), "-o", str(tmp_path / "list")]) == 0
    assert (tmp_path / "list").read_text() == f"{agefiles.RECIPIENT}\n"


WRONG = {
    ("keygen", "key"): "keygen reads no file",
    ("keygen", "-y", "--pq", str(agefiles.KEY_FILE)): "--pq and --recipients exclude each other",
    ("keygen", "-y", "/dev/null"): "/dev/null contains no identity",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_what_cannot_be_meant(arguments: tuple[str, ...], capsys: Captured) -> None:
    assert main(list(arguments)) == 2
    assert WRONG[arguments] in capsys.readouterr().err


KEYS = {
    ("decrypt", "-i", "/nowhere"): (1, "cannot read /nowhere: No such file or directory"),
    ("decrypt", "-i", "/dev/zero"): (2, "/dev/zero is too large for a key file"),
    ("decrypt", "-i", "/dev/null"): (2, "/dev/null contains no identity"),
    ("decrypt", "--passphrase-fd", "0"): (2, "descriptor 0 cannot give a passphrase"),
    ("decrypt", "--passphrase-fd", "999999"): (2, "descriptor 999999 is not open"),
    ("decrypt", "--passphrase-file", "/dev/null"): (2, "the passphrase is empty"),
    ("decrypt", "-p", "--passphrase-fd", "2"): (2, "the passphrase is given in several ways"),
    ("encrypt",): (2, "encrypt needs a recipient"),
    ("encrypt", "-r", agefiles.RECIPIENT, "--passphrase-file", str(agefiles.KEY_FILE)): (
        2,
        "cannot be combined with other recipients",
    ),
}


@pytest.mark.parametrize("arguments", KEYS)
def test_keys_that_are_none(arguments: tuple[str, ...], capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull, "rb") as nothing:
        saved = os.dup(0)
        os.dup2(nothing.fileno(), 0)
        try:
            code = main(list(arguments))
        finally:
            os.dup2(saved, 0)
            os.close(saved)
    assert code == KEYS[arguments][0]
    assert KEYS[arguments][1] in capsys.readouterr().err
