"""Stores of objects for tests: real servers, and what a test sees of them by another client than ours."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

EACH = pytest.mark.parametrize("bucket", ["s3", "az", "gs"], indirect=True)
"""Marks a test of what all kinds of stores do alike."""

EACH_AT_LEISURE = pytest.mark.parametrize(
    "bucket", ["s3", *(pytest.param(kind, marks=pytest.mark.faults) for kind in ("az", "gs"))], indirect=True
)
"""Marks one that takes long."""

HERE = Path(__file__).parent

DATA = Random(18).randbytes(17_000_000)

AWS = HERE.parents[1] / "build" / "awscli" / "bin" / "aws"
"""The aws command, where tools/setup puts it."""

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret"}


def environment(endpoint: str) -> Mapping[str, str]:
    """What a program needs to reach the store, and nothing of this host's own settings."""
    nobody = {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
    alone = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_REGION": "us-east-1", "NO_PROXY": "127.0.0.1"}
    return {**CREDENTIALS, **nobody, **alone, "AWS_ENDPOINT_URL_S3": endpoint}


@dataclass(frozen=True)
class Store:
    """A server at an endpoint, seen by boto3."""

    endpoint: str

    @cached_property
    def client(self) -> Any:
        return boto3.client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            config=Config(
                s3={"addressing_style": "path"}, proxies={}, retries={"total_max_attempts": 20, "mode": "standard"}
            ),
        )

    def bucket(self) -> Bucket:
        """A new bucket."""
        name = f"bucket-{uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
        return Bucket(self, name)


@dataclass(frozen=True)
class Bucket:
    """A bucket of a test's own."""

    store: Store
    name: str

    def address(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def through(self, endpoint: str) -> dict[str, str]:
        """What leads ours to a proxy."""
        return {"AWS_ENDPOINT_URL_S3": endpoint}

    def get(self, key: str) -> bytes | None:
        """The object's bytes; None if there is none."""
        try:
            body: bytes = self.store.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        return body

    def put(self, key: str, data: bytes) -> None:
        self.store.client.put_object(Bucket=self.name, Key=key, Body=data)

    def keys(self) -> list[str]:
        return [each["Key"] for each in self.store.client.list_objects_v2(Bucket=self.name).get("Contents", ())]

    def uploads(self) -> list[str]:
        """The keys of uploads that are neither completed nor aborted."""
        found = self.store.client.list_multipart_uploads(Bucket=self.name)
        return [each["Key"] for each in found.get("Uploads", ())]


@contextmanager
def moto() -> Iterator[Store]:
    """A moto server of one's own."""
    command = [sys.executable, str(HERE / "motoserver.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=os.environ) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            store = Store(f"http://127.0.0.1:{port}")
            yield store
            store.client.close()
        finally:
            server.kill()


IDENTITY = {
    "name": "test",
    "credentials": [{"accessKey": CREDENTIALS["AWS_ACCESS_KEY_ID"], "secretKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}],
    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
}


@contextmanager
def seaweed(folder: Path) -> Iterator[Store]:
    """A SeaweedFS with all its servers in one process, at ports that were free a moment before."""
    (folder / "s3.json").write_text(json.dumps({"identities": [IDENTITY]}))
    names = [f"{server}.port{kind}" for server in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    with ExitStack() as taken:
        places = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        ports = dict(zip(names, (place.getsockname()[1] for place in places), strict=True))
    command = [str(Path(sys.executable).parent / "weed"), "server", f"-dir={folder}", "-filer", "-s3"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", f"-s3.config={folder}/s3.json"]
    command += [
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.localSocket={folder}/s3",
        f"-filer.localSocket={folder}/filer",
    ]
    command += ["-master.volumeSizeLimitMB=128", "-volume.max=0", *(f"-{name}={port}" for name, port in ports.items())]
    with open(folder / "log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            store = Store(f"http://127.0.0.1:{ports['s3.port']}")
            store.bucket()  # which boto3 tries until the servers have found each other
            yield store
            store.client.close()
        finally:
            server.kill()
            for name, port in ports.items():
                Path(f"/tmp/seaweedfs-{name.partition('.')[0]}-grpc-{port}.sock").unlink(missing_ok=True)
