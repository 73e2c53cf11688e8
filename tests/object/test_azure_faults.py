"""Azure's store, and a network to it, that fail: as in test_faults.py, with what is Azure's own.

Nothing is there after a failure but blocks that no list shows. Azure cannot end an upload, so after a commit without an
answer it may be said that nobody knows.
"""

from __future__ import annotations

import os
import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from tests import warm
from tests.object.azurite import ACCOUNT, KEY, Container
from tests.object.faulty import (
    AZURE_REFUSALS,
    BEGIN,
    BREAKS,
    CHANGED,
    COMPLETE,
    CUT,
    GARBAGE,
    LIST,
    LOOK,
    LOST,
    PART,
    RESET,
    STALL,
    always,
    once,
)
from tests.object.stores import DATA
from tests.object.test_faults import PUT, demand_truth, one_run, put
from tests.object.test_signals import SOON, end

POSSIBLE = (*AZURE_REFUSALS, *BREAKS)

MATRIX = [(kind, fault) for kind in (LOOK, BEGIN, PART, LIST, COMPLETE) for fault in ("500", "503", *BREAKS)]
COMMON = {
    (LOOK, GARBAGE),
    (BEGIN, LOST),
    (PART, CHANGED),
    (PART, STALL),
    (PART, RESET),
    (LIST, CUT),
    (LIST, GARBAGE),
} | {(COMPLETE, fault) for fault in ("500", "503", LOST, CHANGED, GARBAGE, RESET)}


@pytest.mark.parametrize(
    ("kind", "fault"), [row if row in COMMON else pytest.param(*row, marks=pytest.mark.faults) for row in MATRIX]
)
def test_what_fails_once_is_done_again(container: Container, file: Path, kind: str, fault: str) -> None:
    done = put(container, once(kind, fault), file)
    assert done.returncode == 0, done.stderr
    demand_truth(container, done)
    assert container.uncommitted("key") == []


@pytest.mark.parametrize(
    ("kind", "fault", "code", "words"),
    [
        (BEGIN, "denied", 1, "Storage Blob Data Contributor"),
        (BEGIN, "no-bucket", 1, "create the container"),
        (BEGIN, "other-ids", 1, "another program has left blocks"),
        (PART, "expired", 1, "get a new one"),
        (PART, "503", 5, "ServerBusy"),
        (PART, RESET, 5, "block [1-3] of"),
        (PART, CHANGED, 3, "block [1-3] of.* MD5"),
        (PART, STALL, 5, "check the network"),
        (COMPLETE, "leased", 1, "az storage blob lease break"),
        (COMPLETE, "503", 5, "ServerBusy"),
    ],
)
def test_what_fails_for_good_leaves_nothing_to_be_seen(
    container: Container, file: Path, kind: str, fault: str, code: int, words: str
) -> None:
    done = put(container, always(kind, fault), file, retry=1)
    demand_truth(container, done)
    assert done.returncode == code, done.stderr
    assert re.search(words, done.stderr.replace("MD5", " MD5")), done.stderr
    assert (kind == BEGIN) == ("goes a week after" not in done.stderr), done.stderr
    assert container.keys() == []


@pytest.mark.parametrize("fault", [RESET, "500"])
def test_a_commit_that_may_yet_be_carried_out_is_said(container: Container, file: Path, fault: str) -> None:
    """S3's upload would be aborted, and then no late request could make the object."""
    done = put(container, always(COMPLETE, fault), file, retry=1)
    assert done.returncode == 5
    assert f"it is not known whether {container.address('key')} is there: the store may still carry out" in done.stderr
    assert container.keys() == []


class Rival:
    """A plan: another writer is faster, just before a request of that kind."""

    DATA = DATA[::-1]

    def __init__(self, container: Container, at: str) -> None:
        self._words, self._at = [*PUT, container.address("key"), "--size", "1M"], at
        self.code: int | None = None

    def __call__(self, kind: str) -> None:
        if kind == self._at and self.code is None:
            self.code = warm.run(self._words, input=self.DATA, capture_output=True, timeout=60).returncode


@pytest.mark.parametrize("at", [LIST, COMPLETE])
@pytest.mark.parametrize(
    ("options", "code", "words"), [([], 2, "exists already"), (["--overwrite"], 1, "another writer was faster")]
)
def test_of_two_writers_one_wins_and_the_other_says_so(
    container: Container, file: Path, at: str, options: list[str], code: int, words: str
) -> None:
    """The faster one's commit drops the blocks of the other, whose list they were on too."""
    rival = Rival(container, at)
    done = put(container, rival, file, *options, retry=30)
    assert (rival.code, done.returncode) == (0, code), done.stderr
    assert words in done.stderr
    assert container.get("key") == Rival.DATA


@pytest.mark.parametrize("kind", [LOOK, PART, COMPLETE])
def test_a_signal_leaves_nothing_to_be_seen(container: Container, file: Path, kind: str) -> None:
    words = ["put", container.address("key"), str(file), "--size", "1M"]
    status, said, took = end(container, words, kind, STALL, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM, said
    assert took < SOON, said
    assert container.keys() == []
    assert ("goes a week after" in said) == (kind != LOOK)
    assert ("may still carry out the request" in said) == (kind == COMPLETE)


def signature(container: Container, lasts: timedelta) -> str:
    now = datetime.now(UTC)
    allowed = ContainerSasPermissions(read=True, write=True, create=True, delete=True)
    made: str = generate_container_sas(
        ACCOUNT, container.name, account_key=KEY, permission=allowed, start=now - timedelta(hours=2), expiry=now + lasts
    )
    return made


def test_a_signature_serves_and_is_never_shown(
    container: Container, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    for lasts, code in ((timedelta(hours=1), 0), (timedelta(hours=-1), 1)):
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", secret := signature(container, lasts))
        done = put(container, lambda kind: None, file, "--overwrite")
        assert done.returncode == code, done.stderr
        unsent = put(container, always(BEGIN, RESET), file, "--overwrite", retry=0)
        elsewhere = {**os.environ, **container.through("http://127.0.0.1:1/account")}
        words = [*PUT, container.address("key"), str(file), "--retry", "0"]
        refused = warm.run(words, capture_output=True, text=True, timeout=60, env=elsewhere)
        assert (unsent.returncode, refused.returncode) == (5, 5)
        assert "Connection refused" in refused.stderr
        for said in (done.stderr, unsent.stderr, refused.stderr):
            assert "sig=" not in said and secret.rpartition("sig=")[2] not in said


@pytest.mark.parametrize("seed", range(4))
def test_a_few_runs_with_a_fault_at_random(container: Container, file: Path, seed: int) -> None:
    one_run(container, file, seed, POSSIBLE)


@pytest.mark.faults
@pytest.mark.parametrize("tens", range(50))
def test_many_runs_with_a_fault_at_random(container: Container, file: Path, tens: int) -> None:
    for seed in range(4 + 10 * tens, 14 + 10 * tens):
        one_run(container.store.bucket(), file, seed, POSSIBLE)
