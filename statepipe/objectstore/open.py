"""Which library serves which kind of store. It is imported only when an address names one."""

from __future__ import annotations

from statepipe.errors import UsageError
from statepipe.objectstore.address import ObjectAddress
from statepipe.objectstore.scheme import AZ, S3
from statepipe.objectstore.settings import Settings
from statepipe.objectstore.store import Store


def open_store(address: ObjectAddress, settings: Settings) -> Store:
    """Return the store of an address. A program, or another host, may be asked for credentials, so do it `aside`.

    Raises StatepipeError; UsageError for a kind of store that is not served.
    """
    if address.scheme == AZ:
        from statepipe.objectstore.azure.client import AzureStore

        return AzureStore(settings)
    if address.scheme != S3:
        what = f"{address}: objects at {address.scheme}:// cannot be written or read yet"
        raise UsageError(what, hint="use s3://, which many stores speak")
    from statepipe.objectstore.s3.client import S3Store

    return S3Store(settings)
