"""What a user or a host has set once, so that it need not be typed: the codec, who may open, and with which keys.

The command line wins over the environment, the environment over the file. The file is the first there is of
$STATEPIPE_CONFIG, config.toml in the folder of ends/config.py, ~/.config/statepipe and /etc/statepipe: a save that QEMU
starts by exec: has QEMU's environment, which often has no home.

    codec = "zstd:3"
    recipients = ["age1…", "gpg:KEY"]
    identities = ["~/.config/statepipe/key.txt"]
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from contextlib import suppress
from dataclasses import dataclass, replace

from statepipe.descriptors import look_at
from statepipe.ends.config import config_folder, home
from statepipe.errors import StatepipeError, UsageError

SYSTEM = "/etc/statepipe"

SIZE_LIMIT = 1 << 20
"""Bytes of a configuration file: a few lines, or a folder of somebody's keys in one list."""


_DEEP = re.compile(rb"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*"|'[^'\n]*')[ \t]*+\.[ \t]*+){16}""")
"""A key of so many parts: none of ours has two, and tomllib takes memory by the square of them."""


@dataclass(frozen=True, slots=True)
class Config:
    """The settings. `recipients` are written as for `encrypt`, `identities` are paths of files."""

    codec: str | None = None
    recipients: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()


def load_config() -> Config:
    """The settings of file and environment together. Raises StatepipeError, UsageError naming file and setting."""
    path = _find()
    config = _read(path) if path else Config()
    if codec := os.environ.get("STATEPIPE_CODEC"):
        config = replace(config, codec=codec)
    if recipients := os.environ.get("STATEPIPE_RECIPIENTS"):
        config = replace(config, recipients=tuple(recipients.split()))
    if identities := os.environ.get("STATEPIPE_IDENTITIES"):
        config = replace(config, identities=_paths(identities.split(":")))
    return config


def _find() -> str | None:
    """The file that was named must be there; of the others the first that is."""
    if named := os.environ.get("STATEPIPE_CONFIG"):
        look_at(named)
        return named
    own = home()
    folders = [os.path.join(own, ".config/statepipe"), SYSTEM] if own else [SYSTEM]
    with suppress(StatepipeError):  # no home, and nothing in its place: then nothing was set there either
        folders.insert(0, config_folder())
    paths = [os.path.join(folder, "config.toml") for folder in dict.fromkeys(folders)]
    return next((path for path in paths if os.path.exists(path)), None)


def _read(path: str) -> Config:
    import tomllib

    try:
        with open(path, "rb") as file:
            if path != os.environ.get("STATEPIPE_CONFIG"):
                _refuse_others(path, os.fstat(file.fileno()))
            text = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise StatepipeError(f"cannot read {path}: {error.strerror}", hint="look at STATEPIPE_CONFIG") from error
    if len(text) > SIZE_LIMIT:
        raise UsageError(f"{path} is larger than {SIZE_LIMIT} bytes: that is no configuration")
    if _DEEP.search(text):
        raise UsageError(f"{path}: a key of more than 15 parts: that is no configuration")
    try:
        return _config(path, tomllib.loads(text.decode()))
    except RecursionError as error:
        raise UsageError(f"{path}: lists in lists in lists: that is no configuration") from error
    except ValueError as error:  # what TOML and UTF-8 are refused with
        raise UsageError(f"{path}: {error}", hint="man statepipe, CONFIGURATION, shows what it may hold") from error


def _refuse_others(path: str, status: os.stat_result) -> None:
    """What nobody has named must be ours or root's: who may write it decides who opens what we save."""
    if status.st_uid not in (0, os.geteuid()):
        hint = "remove it, or name it with STATEPIPE_CONFIG if it is meant"
        raise StatepipeError(f"{path} belongs to user {status.st_uid}", hint=hint)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StatepipeError(f"{path} can be written by others", hint=f"chmod go-w {shlex.quote(path)}")


def _config(path: str, table: dict[str, object]) -> Config:
    for key in table:
        if key not in Config.__slots__:
            raise UsageError(f"{path}: no setting '{key}'", hint=f"settings are {', '.join(Config.__slots__)}")
    codec = table.get("codec")
    if not isinstance(codec, str | None):
        raise UsageError(f'{path}: codec is a string, as "zstd:3"')
    recipients, identities = (_strings(path, key, table.get(key, [])) for key in ("recipients", "identities"))
    return Config(codec, tuple(recipients), _paths(identities))


def _strings(path: str, key: str, value: object) -> list[str]:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise UsageError(f"{path}: {key} is a list of strings")


def _paths(names: list[str]) -> tuple[str, ...]:
    """With ~ for the home. Raises UsageError for a descriptor that is not open."""
    paths = tuple(os.path.expanduser(name) for name in names if name)
    for path in paths:
        look_at(path)
    return paths
