"""Whatever comes in at a door: what is foreseen is raised and nothing else, in bounded memory and time."""

from __future__ import annotations

import os
import secrets
from importlib import import_module
from pathlib import Path

import pytest

from tests.fuzz.harness import DOORS, LONGER, SECONDS, SEED, attack

STARTING = 0.7
"""Seconds until a process has imported what it needs, and tried what once failed."""

SHARE = max(2 * SECONDS / len(DOORS) - STARTING, 0.2)
"""Seconds for one door, as two run at a time."""


@pytest.mark.parametrize("door", DOORS)
def test_nothing_but_what_is_foreseen_is_raised(door: str, tmp_path: Path) -> None:
    assert attack(door, SEED, SHARE, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("door", DOORS)
def test_nothing_but_what_is_foreseen_is_raised_for_long(door: str, tmp_path: Path) -> None:
    seed = os.environ.get("STATEPIPE_FUZZ_SEED") or secrets.token_hex(4)
    print(f"{door}: {attack(door, seed, SHARE * LONGER, tmp_path)} inputs of seed {seed}")


def test_every_door_is_in_the_table() -> None:
    found = {name for module in set(DOORS.values()) for name in import_module(f"tests.fuzz.{module}").DOORS}
    assert found == set(DOORS)
