"""Stores of objects for tests: real servers, and what a test sees of them by another client than ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

HERE = Path(__file__).parent

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
            config=Config(s3={"addressing_style": "path"}, proxies={}),
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
            yield Store(f"http://127.0.0.1:{port}")
        finally:
            server.kill()
