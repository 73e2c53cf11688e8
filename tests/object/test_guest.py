"""A real guest is saved to an object: through QEMU's monitor, and after a failure it runs on and no object is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.object.faulty import COMPLETE, PART, always, faulty
from tests.object.stores import EACH, Bucket
from tests.qemu.harness import Guest, assert_continues, assert_runs_on, run_statepipe

MEMORY = 32


@EACH
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_a_guest_runs_on_from_the_state_that_is_in_the_store(
    tmp_path: Path,
    bucket: Bucket,
    qemu72: str,
    encrypted: bool,
) -> None:
    words, key = [], tmp_path / "key"
    if encrypted:
        made = run_statepipe("keygen", "-o", key)
        words = ["-r", made.stderr.split()[-1]]
    with Guest(tmp_path, qemu=qemu72, memory=MEMORY, fill=8, dirty=0) as guest:
        guest.wait_ticks(2)
        done = run_statepipe("save", "--qmp", guest.socket, *words, bucket.address("vm.state"))
        assert done.returncode == 0, done.stderr
        text, image = guest.serial(), guest.image
    state = bucket.get("vm.state")
    assert state is not None and bucket.uploads() == []
    (tmp_path / "vm.state").write_bytes(state)
    with Guest(tmp_path, qemu=qemu72, memory=MEMORY, image=image, incoming="defer") as other:
        keys = ["-i", key] if encrypted else []
        done = run_statepipe("load", "--qmp", other.socket, *keys, tmp_path / "vm.state")
        assert done.returncode == 0, done.stderr
        other.wait_ticks(3)
        assert_continues(text, other.serial())


@pytest.mark.parametrize(("kind", "fault"), [(PART, "quota"), (COMPLETE, "denied")])
def test_a_guest_whose_save_the_store_refuses_runs_on(
    tmp_path: Path,
    bucket: Bucket,
    qemu72: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    fault: str,
) -> None:
    running = Guest(tmp_path, qemu=qemu72, memory=MEMORY, fill=8, dirty=0)
    with running as guest, faulty(bucket.store, always(kind, fault)) as endpoint:
        for name, value in bucket.through(endpoint).items():
            monkeypatch.setenv(name, value)
        guest.wait_ticks(2)
        done = run_statepipe("save", "--qmp", guest.socket, bucket.address("vm.state"))
        assert done.returncode == 1, done.stderr
        assert bucket.address("vm.state") in done.stderr
        assert_runs_on(guest)
    assert bucket.keys() == bucket.uploads() == []
