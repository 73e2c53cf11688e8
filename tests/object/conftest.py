"""What the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.object.stores import Bucket, Store, environment, moto


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    """A real server of S3 for this session."""
    with moto() as running:
        yield running


@pytest.fixture
def bucket(store: Store, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket that ours and other clients reach by the environment."""
    for name, value in environment(store.endpoint).items():
        monkeypatch.setenv(name, value)
    return store.bucket()
