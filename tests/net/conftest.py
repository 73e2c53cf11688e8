"""What the tests of this folder share."""

from __future__ import annotations

import pytest

from tests.net.homes import World, world_in


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Hosts that have pinned each other, and some that have not."""
    return world_in(tmp_path_factory.mktemp("homes"))
