"""The settings of file and environment: which wins, and what is refused with its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from statepipe.ends.configfile import SIZE_LIMIT, Config, load_config
from statepipe.errors import StatepipeError, UsageError

WHOLE = """
codec = "zstd:3"
recipients = ["age1one", "gpg:KEY"]
identities = ["~/key.txt", "/other"]
records = "tls"
endpoint = "https://store.example:9000"
"""


ENDPOINT = "https://store.example:9000"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user with a home and no settings."""
    monkeypatch.delenv("STATEPIPE_CONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration that is read."""
    path = tmp_path / "config.toml"
    monkeypatch.setenv("STATEPIPE_CONFIG", str(path))
    return path


def test_nothing_is_set_unless_somebody_did() -> None:
    assert load_config() == Config()


@pytest.mark.parametrize("folder", ["settings/statepipe", ".config/statepipe"])
def test_the_file_of_the_user(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "config.toml").write_text(WHOLE)
    assert load_config() == Config("zstd:3", ("age1one", "gpg:KEY"), (f"{tmp_path}/key.txt", "/other"), "tls", ENDPOINT)


def test_the_environment_wins_over_the_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(WHOLE)
    monkeypatch.setenv("STATEPIPE_CODEC", "zstd:9")
    monkeypatch.setenv("STATEPIPE_RECIPIENTS", "age1two  age1three")
    monkeypatch.setenv("STATEPIPE_IDENTITIES", "~/a:/b")
    assert load_config() == Config("zstd:9", ("age1two", "age1three"), (f"{tmp_path}/a", "/b"), "tls", ENDPOINT)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("codec = 3", "codec must be a string"),
        ("endpoint = 1", "endpoint: '' is not the URL of a store"),
        ('endpoint = "store:9000"', "endpoint: 'store:9000' is not the URL of a store"),
        ('endpoint = "https://user:secret@store"', "is not the URL of a store"),
        ("records = 1", "records must be .large. or .tls."),
        ('records = "TLS"', "records must be .large. or .tls."),
        ('recipients = "age1"', "recipients must be a list of strings"),
        ("identities = [1]", "identities must be a list of strings"),
        ('recipient = ["age1"]', "no setting 'recipient'"),
        ("codec = ", "Invalid value"),
    ],
)
def test_a_slip_is_told_with_its_file(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        load_config()
    assert "config.toml" in str(caught.value)


def test_what_is_no_text_or_too_long_is_refused(file: Path) -> None:
    file.write_bytes(b"codec = '\xff'")
    with pytest.raises(UsageError, match="utf-8"):
        load_config()
    file.write_bytes(b"#" * (SIZE_LIMIT + 1))
    with pytest.raises(UsageError, match="larger"):
        load_config()


def test_a_file_that_was_named_must_be_there(file: Path) -> None:
    with pytest.raises(StatepipeError, match=r"cannot read .*: No such file"):
        load_config()
