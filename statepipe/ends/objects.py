"""The object that an address names, where a FILE may be: its store has the settings of the configuration."""

from __future__ import annotations

from statepipe.ends.configfile import load_endpoint
from statepipe.objectstore.address import ObjectAddress, parse_object, parse_prefix
from statepipe.objectstore.open import open_store
from statepipe.objectstore.settings import RETRY, Settings
from statepipe.objectstore.store import Store
from statepipe.objectstore.upload import How, ObjectSink
from statepipe.objectstore.workers import aside
from statepipe.telling import Tell, nobody


def new_object(
    text: str,
    *,
    overwrite: bool = False,
    size: int | None = None,
    resume: bool = False,
    retry: float = RETRY,
    tell: Tell = nobody,
) -> ObjectSink:
    """Begin to write the object at an address; the keywords are those of `How`, and seconds. Raises UsageError,
    StatepipeError."""
    return ObjectSink(parse_object(text), Settings(load_endpoint(), retry), How(overwrite, size, resume), tell)


def store_of(text: str, retry: float = RETRY) -> tuple[Store, ObjectAddress]:
    """Return the store and the address that `text` names. Raises UsageError, StatepipeError."""
    address = parse_object(text)
    settings = Settings(load_endpoint(), retry)
    return aside(lambda: open_store(address, settings)), address


def store_below(text: str, retry: float = RETRY) -> tuple[Store, ObjectAddress]:
    """Do as `store_of` for what the addresses of several objects begin with. Raises UsageError, StatepipeError."""
    prefix = parse_prefix(text)
    settings = Settings(load_endpoint(), retry)
    return aside(lambda: open_store(prefix, settings)), prefix
