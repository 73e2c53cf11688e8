"""The settings of file and environment: which wins, and what is refused with its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from statepipe.cli.config import SIZE_LIMIT, Config, load_config
from statepipe.errors import StatepipeError, UsageError

WHOLE = """
codec = "zstd:3"
recipients = ["age1one", "gpg:KEY"]
identities = ["~/key.txt", "/other"]
"""


def written(tmp_path: Path, text: str) -> dict[str, str]:
    """An environment whose configuration holds `text`."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    return {"STATEPIPE_CONFIG": str(path)}


def test_nothing_is_set_unless_somebody_did(tmp_path: Path) -> None:
    assert load_config({"HOME": str(tmp_path)}) == Config()
    assert load_config({}) == Config()


def test_the_file_of_the_user(tmp_path: Path) -> None:
    (tmp_path / ".config" / "statepipe").mkdir(parents=True)
    (tmp_path / ".config" / "statepipe" / "config.toml").write_text(WHOLE)
    config = load_config({"HOME": str(tmp_path)})
    assert (config.codec, config.recipients) == ("zstd:3", ("age1one", "gpg:KEY"))
    assert config.identities == (f"{tmp_path}/key.txt", "/other")
    assert load_config({"XDG_CONFIG_HOME": str(tmp_path / ".config")}).codec == "zstd:3"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    environment = written(tmp_path, WHOLE) | {"STATEPIPE_CODEC": "zstd:9", "HOME": "/home/me"}
    assert load_config(environment).codec == "zstd:9"
    assert load_config(environment | {"STATEPIPE_RECIPIENTS": "age1two  age1three"}).recipients == (
        "age1two",
        "age1three",
    )
    assert load_config(environment | {"STATEPIPE_IDENTITIES": "~/a:/b"}).identities == ("/home/me/a", "/b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("codec = 3", "codec is a string"),
        ('recipients = "age1"', "recipients is a list of strings"),
        ("identities = [1]", "identities is a list of strings"),
        ('recipient = ["age1"]', "no setting 'recipient'"),
        ("codec = ", "Invalid value"),
    ],
)
def test_a_slip_is_told_with_its_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        load_config(written(tmp_path, text))
    assert "config.toml" in str(caught.value)


def test_what_is_no_text_or_too_long_is_refused(tmp_path: Path) -> None:
    environment = written(tmp_path, "")
    Path(environment["STATEPIPE_CONFIG"]).write_bytes(b"codec = '\xff'")
    with pytest.raises(UsageError, match="utf-8"):
        load_config(environment)
    Path(environment["STATEPIPE_CONFIG"]).write_bytes(b"#" * (SIZE_LIMIT + 1))
    with pytest.raises(UsageError, match="larger"):
        load_config(environment)


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(StatepipeError, match=r"cannot read .*: No such file"):
        load_config({"STATEPIPE_CONFIG": str(tmp_path / "none")})
