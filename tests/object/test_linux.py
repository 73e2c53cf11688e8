"""A Linux guest of 512 MiB, saved to a store and started lazily from it: from two stores, plain and encrypted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest

from tests import agefiles
from tests.linux import Missing, linux_arguments
from tests.object.stores import Store, environment
from tests.qemu.harness import Guest, run_statepipe
from tests.qemu.lazily import Lazy, assert_went_on
from tests.qemu.loading import Saved
from tests.qemu.test_linux import BOOT

MEMORY = 512

FILL = 160
"""MB of random bytes in the guest's files."""


@pytest.mark.faults
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("kind", ["store", "sea"], ids=["moto", "seaweedfs"])
def test_linux_is_saved_to_a_store_and_starts_lazily_from_it(
    tmp_path: Path, request: pytest.FixtureRequest, qemu72: str, kind: str, sealed: bool
) -> None:
    try:
        arguments = linux_arguments(tmp_path, fill=FILL)
    except Missing as why:
        pytest.skip(f"no Linux guest: {why}")
    store: Store = request.getfixturevalue(kind)
    bucket, reaching = store.bucket(), os.environ | environment(store.endpoint)
    with Guest(tmp_path, qemu=qemu72, memory=MEMORY, args=arguments) as guest:
        guest.wait_ticks(2, BOOT)
        words = ["-r", agefiles.RECIPIENT] if sealed else []
        done = run_statepipe(
            "save", "--qmp", guest.socket, "--then", "quit", *words, bucket.address("vm"), env=reaching, timeout=BOOT
        )
        assert done.returncode == 0, done.stderr
        saved = Saved(cast(Path, bucket.address("vm")), guest.image, guest.serial(), qemu72)
    assert len(bucket.get("vm") or b"") > FILL << 20
    folder = tmp_path / "load"
    folder.mkdir()
    keys = ["-i", str(agefiles.KEY_FILE)] if sealed else []
    with Lazy(folder, saved, *keys, args=arguments, env=environment(store.endpoint), memory=MEMORY) as lazy:
        lazy.complete()
        assert_went_on(saved, lazy)
    assert bucket.uploads() == []
