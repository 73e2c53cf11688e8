"""What the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.object.azurite import Azure, Container, azurite
from tests.object.azurite import environment as azure_environment
from tests.object.googleserver import GoogleBucket, Server, google
from tests.object.stores import DATA, Bucket, Store, environment, moto, seaweed
from tests.qemu.conftest import qemu72 as qemu72


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    """A real server of S3 for this session."""
    with moto() as running:
        yield running


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of three parts."""
    path = tmp_path_factory.mktemp("data") / "file"
    path.write_bytes(DATA)
    return path


@pytest.fixture(scope="session")
def sea(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store that people run."""
    with seaweed(tmp_path_factory.mktemp("sea")) as running:
        yield running


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    """A real server of Azure's blobs for this session."""
    with azurite(tmp_path_factory.mktemp("azurite")) as running:
        yield running


@pytest.fixture(scope="session")
def google_server() -> Iterator[Server]:
    """A server of Google's JSON API for this session."""
    with google() as running:
        yield running


@pytest.fixture
def gs(google_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[GoogleBucket]:
    """A bucket of Google's that ours reaches by the environment."""
    bucket = google_server.bucket()
    for name, value in bucket.through(google_server.endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield bucket
    google_server.forget(bucket.name)


@pytest.fixture
def container(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> Container:
    """A container of Azure's that ours and other clients reach by the environment."""
    for name, value in azure_environment(azure.endpoint).items():
        monkeypatch.setenv(name, value)
    return azure.bucket()


@pytest.fixture
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket | Container | GoogleBucket:
    """A bucket that ours and other clients reach by the environment: of S3, or of a store that EACH names."""
    kind = getattr(request, "param", "s3")
    if kind == "az":
        return cast(Container, request.getfixturevalue("container"))
    if kind == "gs":
        return cast(GoogleBucket, request.getfixturevalue("gs"))
    return reached(request.getfixturevalue("store"), monkeypatch)


@pytest.fixture
def drop(sea: Store, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket of the store that people run."""
    return reached(sea, monkeypatch)


def reached(store: Store, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A new bucket, and the environment that leads there."""
    for name, value in environment(store.endpoint).items():
        monkeypatch.setenv(name, value)
    return store.bucket()
