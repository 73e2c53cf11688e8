"""The configuration of a user or a host: the codec, the recipients, the identities, the kind of records, the store.

The command line overrides the environment, and the environment the file. The file is $STATEPIPE_CONFIG, or the first
that exists of config.toml in the folder of ends/config.py, ~/.config/statepipe and /etc/statepipe: a save that QEMU
starts by exec: has QEMU's environment, often without a home.

    codec = "zstd:3"
    recipients = ["age1…", "gpg:KEY"]
    identities = ["~/.config/statepipe/key.txt"]
    records = "tls"
    endpoint = "https://store.example:9000"
"""

from __future__ import annotations

import os
import re
import shlex
import stat

from statepipe.descriptors import look_at
from statepipe.ends.config import RECORDS, home, known_folder
from statepipe.errors import StatepipeError, UsageError
from statepipe.guessing import did_you_mean
from statepipe.objectstore.settings import demand_endpoint
from statepipe.typed import NamedTuple

SYSTEM = "/etc/statepipe"

SIZE_LIMIT = 1 << 20
"""Most bytes of a configuration file: a few lines, or a long list of keys."""

_DEEP = re.compile(rb"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*"|'[^'\n]*')[ \t]*+\.[ \t]*+){16}""")
"""A dotted key of that many parts: ours have one, and tomllib needs memory by the square of them."""

_FORMAT = "the format is in man statepipe, CONFIGURATION"


class Config(NamedTuple):
    """The settings: `recipients` as for `encrypt`, `identities` as paths of files, `records` as one of RECORDS,
    `endpoint` as the URL of a store of objects."""

    codec: str | None = None
    recipients: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    records: str | None = None
    endpoint: str | None = None


def load_config() -> Config:
    """Return the settings of file and environment. Raises StatepipeError, UsageError naming file and setting."""
    path = _find()
    config = _read(path) if path else Config()
    if codec := os.environ.get("STATEPIPE_CODEC"):
        config = config._replace(codec=codec)
    if recipients := os.environ.get("STATEPIPE_RECIPIENTS"):
        config = config._replace(recipients=tuple(recipients.split()))
    if identities := os.environ.get("STATEPIPE_IDENTITIES"):
        config = config._replace(identities=_paths(identities.split(":")))
    return config


def load_records() -> str | None:
    """Return the setting `records` of the file, which needs nothing of the environment. Raises as `load_config`."""
    path = _find()
    return _read(path).records if path else None


def load_endpoint() -> str | None:
    """Return the setting `endpoint` of the file. Raises as `load_config`."""
    path = _find()
    return _read(path).endpoint if path else None


def _find() -> str | None:
    """Return the file that STATEPIPE_CONFIG names, or the first of the others that exists."""
    if named := os.environ.get("STATEPIPE_CONFIG"):
        look_at(named)
        return named
    own = home()
    folders = [os.path.join(own, ".config/statepipe"), SYSTEM] if own else [SYSTEM]
    if (folder := known_folder()) is not None:
        folders.insert(0, folder)
    paths = [os.path.join(folder, "config.toml") for folder in dict.fromkeys(folders)]
    return next((path for path in paths if os.path.exists(path)), None)


def _read(path: str) -> Config:
    import tomllib

    try:
        with open(path, "rb") as file:
            if path != os.environ.get("STATEPIPE_CONFIG"):
                status = os.fstat(file.fileno())  # whoever can write it decides who can open what we save
                if status.st_uid not in (0, os.geteuid()):
                    hint = "remove it, or name it with STATEPIPE_CONFIG if you trust it"
                    raise StatepipeError(f"{path} belongs to user {status.st_uid}", hint=hint)
                if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    raise StatepipeError(f"{path} can be written by others", hint=f"chmod go-w {shlex.quote(path)}")
            text = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise StatepipeError(f"cannot read {path}: {error.strerror}", hint="check STATEPIPE_CONFIG") from error
    if len(text) > SIZE_LIMIT:
        raise UsageError(f"{path} is larger than {SIZE_LIMIT} bytes: it is not a configuration", hint=_FORMAT)
    if _DEEP.search(text):
        raise UsageError(f"{path}: a key has more than 15 parts: it is not a configuration", hint=_FORMAT)
    try:
        table = tomllib.loads(text.decode())
    except RecursionError as error:
        raise UsageError(f"{path}: its lists are nested too deeply: it is not a configuration", hint=_FORMAT) from error
    except ValueError as error:  # of TOML and UTF-8
        raise UsageError(f"{path}: {error}", hint=_FORMAT) from error
    for key, value in table.items():
        if key not in Config._fields:
            hint = f"{did_you_mean(key, Config._fields)}settings are {', '.join(Config._fields)}"
            raise UsageError(f"{path}: no setting '{key}'", hint=hint)
        if key == "codec" and not isinstance(value, str):
            raise UsageError(f'{path}: codec must be a string, as in "zstd:3"', hint=_FORMAT)
        if key == "records" and value not in RECORDS:
            raise UsageError(f"{path}: records must be {' or '.join(map(repr, RECORDS))}", hint=_FORMAT)
        if key == "endpoint":
            _demand_endpoint(path, value)
        if key not in ("codec", "records", "endpoint") and not (
            isinstance(value, list) and all(isinstance(item, str) for item in value)
        ):
            raise UsageError(f"{path}: {key} must be a list of strings", hint=_FORMAT)
    identities = _paths(table.get("identities", []))
    recipients = tuple(table.get("recipients", ()))
    return Config(table.get("codec"), recipients, identities, table.get("records"), table.get("endpoint"))


def _demand_endpoint(path: str, value: object) -> None:
    """Raise UsageError for an endpoint that is no URL."""
    try:
        demand_endpoint(value if isinstance(value, str) else "")
    except UsageError as error:
        raise UsageError(f"{path}: endpoint: {error}", hint=error.hint) from error


def _paths(names: list[str]) -> tuple[str, ...]:
    """Return the paths, with ~ replaced by the home. Raises UsageError for a descriptor that is not open."""
    paths = tuple(os.path.expanduser(name) for name in names if name)
    for path in paths:
        look_at(path)
    return paths
