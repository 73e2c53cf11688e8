"""Which library serves which kind of store. It is imported only when an address names one."""

from __future__ import annotations

from statepipe.objectstore.address import ObjectAddress
from statepipe.objectstore.scheme import AZ, GS
from statepipe.objectstore.settings import Settings
from statepipe.objectstore.store import Store


def open_store(address: ObjectAddress, settings: Settings) -> Store:
    """Return the store of an address. A program, or another host, may be asked for credentials, so do it `aside`.

    Raises StatepipeError.
    """
    if address.scheme == AZ:
        from statepipe.objectstore.azure.client import AzureStore

        return AzureStore(settings)
    if address.scheme == GS:
        from statepipe.objectstore.google.client import GoogleStore

        return GoogleStore(settings)
    from statepipe.objectstore.s3.client import S3Store

    return S3Store(settings)
