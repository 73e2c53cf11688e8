"""The store of an address that stands where a FILE may be, with the settings of the configuration."""

from __future__ import annotations

from statepipe.objectstore.address import ObjectAddress, parse_object
from statepipe.objectstore.settings import RETRY, Settings
from statepipe.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from statepipe.objectstore.s3 import S3Store


def store_of(text: str, retry: float = RETRY) -> tuple[S3Store, ObjectAddress]:
    """Return the store and the address that `text` names. Raises UsageError, StatepipeError."""
    from statepipe.ends.configfile import load_endpoint
    from statepipe.objectstore.open import open_store

    address = parse_object(text)
    return open_store(address, Settings(load_endpoint(), retry)), address
