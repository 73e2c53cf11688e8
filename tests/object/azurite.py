"""Azure's store for tests: Azurite, a real server, and what a test sees of it by Azure's own client."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobServiceClient

PROGRAM = Path(__file__).parents[2] / "build/azurite/node_modules/azurite/dist/src/blob/main.js"
"""Where tools/setup puts it."""

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's own, which are no secret."""


def environment(endpoint: str) -> Mapping[str, str]:
    """What a program needs to reach the store."""
    who = {"AZURE_STORAGE_ACCOUNT": ACCOUNT, "AZURE_STORAGE_KEY": KEY}
    return {**who, "AZURE_STORAGE_SERVICE_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"}


@dataclass(frozen=True)
class Azure:
    """A server at an endpoint, seen by azure-storage-blob."""

    endpoint: str

    @cached_property
    def client(self) -> Any:
        who = {"account_name": ACCOUNT, "account_key": KEY}
        return BlobServiceClient(self.endpoint, who, api_version="2023-11-03")  # the newest are not Azurite's

    def bucket(self) -> Container:
        """A new container."""
        name = f"container-{uuid4().hex[:12]}"
        self.client.create_container(name)
        return Container(self, name)


@dataclass(frozen=True)
class Container:
    """A container of a test's own."""

    store: Azure
    name: str

    def address(self, key: str) -> str:
        return f"az://{self.name}/{key}"

    def through(self, endpoint: str) -> dict[str, str]:
        """What leads ours to a proxy."""
        return {"AZURE_STORAGE_SERVICE_ENDPOINT": endpoint}

    def blob(self, key: str) -> Any:
        return self.store.client.get_blob_client(self.name, key)

    def get(self, key: str) -> bytes | None:
        """The object's bytes; None if there is none."""
        try:
            body: bytes = self.blob(key).download_blob().readall()
        except ResourceNotFoundError:
            return None
        return body

    def put(self, key: str, data: bytes) -> None:
        self.blob(key).upload_blob(data, overwrite=True)

    def keys(self) -> list[str]:
        return [each.name for each in self.store.client.get_container_client(self.name).list_blobs()]

    def uploads(self) -> list[str]:
        """The keys that have no object and blocks that nobody has committed."""
        found = self.store.client.get_container_client(self.name).list_blobs(include=["uncommittedblobs"])
        return sorted({each.name for each in found} - set(self.keys()))

    def uncommitted(self, key: str) -> list[str]:
        """The ids of the blocks that nobody has committed, in base64."""
        client = self.blob(key)._client.block_blob
        return [each.name for each in client.get_block_list(list_type="uncommitted").uncommitted_blocks or ()]


@contextmanager
def azurite(folder: Path, *more: str) -> Iterator[Azure]:
    """An Azurite of one's own, in memory. It ends with the process that started it, however that ends."""
    command = ["setpriv", "--pdeathsig", "KILL", "node", str(PROGRAM), "--blobHost", "127.0.0.1", "--blobPort", "0"]
    command += ["--inMemoryPersistence", "--silent", "--disableProductStyleUrl", *more]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, cwd=folder, env=os.environ, text=True
    ) as server:
        try:
            assert server.stdout is not None
            said = next(line for line in server.stdout if "successfully listens" in line)
            store = Azure(f"{said.split()[-1]}/{ACCOUNT}")
            yield store
            store.client.close()
        finally:
            server.kill()
