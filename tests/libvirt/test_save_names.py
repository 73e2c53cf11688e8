"""save --domain whose file cannot be read from libvirt, written or given its name, as single system calls fail: the
domain runs on, and what had the name before has it still. Where a call is not needed, the domain is saved."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests import preload
from tests.libvirt.harness import Domain, Libvirt
from tests.libvirt.saving import Save, assert_nothing_left, assert_runs_on, assert_saved, injected, injecting

OLDER = b"QEVM, older"
"""Begins as what a save may replace."""

EIO, NO_ROOM, QUOTA = "Input/output error", "No space left on device", "Disk quota exceeded"
DENIED, READ_ONLY = "Permission denied", "Read-only file system"

ALIKE = pytest.mark.faults
"""For one that differs from another in its error alone, or in its place."""

FAILS = [
    # The file: a name for a test at the beginning, its own name, and the folder's fsync behind it.
    pytest.param(["linkat:error=EIO:when=1"], ".part", EIO, None, marks=ALIKE),
    (["linkat:error=EIO:when=3"], '"state"', EIO, None),
    pytest.param(["linkat:error=ENOSPC:when=3"], '"state"', NO_ROOM, None, marks=ALIKE),
    pytest.param(["linkat:error=EDQUOT:when=3"], '"state"', QUOTA, None, marks=ALIKE),
    pytest.param(["linkat:error=EACCES:when=3"], '"state"', DENIED, None, marks=ALIKE),
    pytest.param(["fsync:error=ENOSPC:when=1"], "fsync", NO_ROOM, None, marks=ALIKE),
    (["fsync:error=EIO:when=1"], "fsync", EIO, None),
    pytest.param(["fsync:error=EIO:when=2"], "fsync", EIO, None, marks=ALIKE),
    (["fsync:error=EIO:when=3"], "fsync", EIO, None),
    # Without nameless files, it has a name that it is to lose.
    pytest.param(["linkat:error=EPERM", "renameat2:error=EIO"], '"state"', EIO, None, marks=ALIKE),
    # An older file: the new one's temporary name, the exchange, a rename in its place, and the folder's fsync.
    pytest.param(["linkat:error=EIO:when=3"], ".part", EIO, OLDER, marks=ALIKE),
    pytest.param(["renameat2:error=ENOSPC"], "RENAME_EXCHANGE", NO_ROOM, OLDER, marks=ALIKE),
    pytest.param(["renameat2:error=EACCES", "renameat:error=EIO"], '"state"', EIO, OLDER, marks=ALIKE),
    (["renameat2:error=EIO"], "RENAME_EXCHANGE", EIO, OLDER),
    (["fsync:error=EIO:when=3"], "fsync", EIO, OLDER),
    # libvirt's FIFOs and their folder.
    pytest.param(["mkdir:error=ENOSPC:when=3"], "/save-", NO_ROOM, None, marks=ALIKE),
    (["mknodat:error=ENOSPC:when=2"], "/final", NO_ROOM, None),
    pytest.param(["rename:error=EIO:when=1"], "/final", EIO, None, marks=ALIKE),
    (["rename:error=EACCES"], "/final", DENIED, None),
]
"""The calls that fail, what the first of them that matters is about, what is told, and the file that is there."""


@pytest.mark.parametrize(("faults", "about", "told", "before"), FAILS)
def test_a_call_that_fails_lets_the_domain_run_on(
    shared: Libvirt, domain: Domain, faults: list[str], about: str, told: str, before: bytes | None
) -> None:
    if before is not None:
        (domain.files / "state").write_bytes(before)
    save = Save(shared, domain, under=injecting(domain, *faults))
    assert save.end() == 1 and f"{told}\n" in save.stderr, save.stderr
    assert any(about in call for call in injected(domain)), injected(domain)
    assert "unexpectedly" not in save.stderr and "guardian" not in save.stderr
    assert domain.state() in ("running (save canceled)", "running (booted)")  # the latter: libvirt was not asked
    assert ("the domain vm1 runs on" in save.stderr) is ("canceled" in domain.state())
    if before is not None:
        assert save.file.read_bytes() == before
        save.file.unlink()
    assert_runs_on(save)


@pytest.mark.parametrize(
    ("faults", "before"),
    [
        (["linkat:error=EACCES"], None),  # as AppArmor refuses it; the name of the job (ps) is lost, too
        pytest.param(["linkat:error=EIO:when=2"], None, marks=ALIKE),  # the name of the job alone
        pytest.param(["linkat:error=EIO:when=4"], OLDER, marks=ALIKE),  # the second name of the older file
        pytest.param(["renameat2:error=EACCES"], OLDER, marks=ALIKE),
        (["renameat2:error=EACCES", "renameat:error=EIO:when=2"], OLDER),
    ],
)
def test_a_call_that_is_not_needed_does_not_matter(
    shared: Libvirt, domain: Domain, faults: list[str], before: bytes | None
) -> None:
    if before is not None:
        (domain.files / "state").write_bytes(before)
    save = Save(shared, domain, under=injecting(domain, *faults))
    assert save.end() == 0, save.stderr
    assert injected(domain)
    assert_saved(save)


@pytest.mark.parametrize(
    ("before", "faults"),
    [
        (None, ["fsync:error=EIO:when=3", "renameat2:error=EROFS", "unlinkat:error=EROFS:when=3+"]),
        (OLDER, ["fsync:error=EIO:when=3", "renameat2:error=EROFS:when=2+", "unlinkat:error=EROFS:when=5+"]),
    ],
)
def test_a_disk_that_lets_nothing_be_undone_is_told(
    shared: Libvirt, domain: Domain, before: bytes | None, faults: list[str]
) -> None:
    """As ext4 becomes read-only with an error: nobody can remove the file, so the message says that it is there."""
    if before is not None:
        (domain.files / "state").write_bytes(before)
    save = Save(shared, domain, under=injecting(domain, *faults))
    assert save.end() == 1 and "Input/output error\n" in save.stderr, save.stderr
    assert f"the domain vm1 runs on: running (save canceled); {save.file} could not be taken back: " in save.stderr
    older = [path.read_bytes() for path in domain.files.glob(".state.*.older.part")]
    assert older == ([] if before is None else [before])
    domain.assert_runs_on()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of tests/preload.py."""
    return preload.library(tmp_path_factory.mktemp("preload"))


@pytest.mark.parametrize(
    ("call", "number", "told"),
    [
        ("read-fifo", 2, "cannot read libvirt's image"),
        ("read-fifo", 8, "cannot read the image of vm1"),
        ("read-fifo", 40, "cannot read libvirt's request to commit"),
        pytest.param("write", 1, "cannot write", marks=ALIKE),
        pytest.param("write", 3, "cannot write", marks=ALIKE),
    ],
)
def test_an_error_of_the_fifo_or_of_the_disk_lets_the_domain_run_on(
    shared: Libvirt, domain: Domain, built: Path, call: str, number: int, told: str
) -> None:
    save = Save(shared, domain, under=preload.failing(built, call, errno.EIO, number, number))
    assert save.end() == 1, save.stderr
    assert f"{told}" in save.stderr and "Input/output error" in save.stderr and "unexpectedly" not in save.stderr
    assert "the domain vm1 runs on: running (save canceled)" in save.stderr
    assert_runs_on(save)


@pytest.mark.parametrize(
    "settings",
    [
        {"INTERRUPT": 1, "SHORT": 1},
        pytest.param({"INTERRUPT": 1}, marks=ALIKE),
        pytest.param({"SHORT": 1}, marks=ALIKE),
        pytest.param({"SHORT": 1, "DELAY_MS": 40}, marks=ALIKE),
    ],
)
def test_interrupted_short_and_slow_calls_change_nothing(
    shared: Libvirt, domain: Domain, built: Path, settings: dict[str, int]
) -> None:
    """Those of statepipe, its guardian and virsh."""
    save = Save(shared, domain, under=preload.under(built, **settings))
    assert save.end() == 0, save.stderr
    assert_nothing_left(save)
    loading = shared.run(*preload.under(built, **settings), *save.load_words(), check=False)
    assert loading.returncode == 0, loading.stderr
    domain.assert_runs_on()
