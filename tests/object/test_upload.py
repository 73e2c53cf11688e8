"""The sink that becomes an object: it is there, whole, after the commit, and not before or otherwise."""

from __future__ import annotations

import signal
import threading
from random import Random

import pytest

from statepipe.errors import InterruptedBySignal, StatepipeError, UsageError
from statepipe.objectstore import sending
from statepipe.objectstore.address import parse_object
from statepipe.objectstore.failures import Occupied
from statepipe.objectstore.settings import Settings
from statepipe.objectstore.upload import SAFE, How, ObjectSink
from statepipe.pipeline.signals import as_exceptions
from statepipe.threads import join
from tests.object import stores
from tests.object.faulty import COMPLETE, LOOK, LOST, PART, STALL, faulty
from tests.object.stores import Bucket

DATA = Random(18).randbytes(20_000_000)


def sink(bucket: Bucket, how: How = SAFE, retry: float = 5, key: str = "key") -> ObjectSink:
    return ObjectSink(parse_object(bucket.address(key)), Settings(retry=retry), how)


def write(to: ObjectSink, data: bytes, piece: int = 1_000_003) -> None:
    for at in range(0, len(data), piece):
        to.write(memoryview(data)[at : at + piece])


@pytest.mark.parametrize("size", [0, 1, 8 << 20, (8 << 20) + 1, 16 << 20, len(DATA)])
@pytest.mark.parametrize("told", [None, 1 << 20], ids=["unknown", "told"])
def test_what_was_written_is_there_after_the_commit_and_not_before(bucket: Bucket, size: int, told: int | None) -> None:
    with sink(bucket, How(size=told)) as to:
        write(to, DATA[:size])
        to.sync()
        assert bucket.keys() == []
        to.commit()
        assert to.bytes == size
    assert bucket.get("key") == DATA[:size]
    assert bucket.uploads() == []


def test_parts_have_one_size_that_is_chosen_by_what_is_told(bucket: Bucket) -> None:
    with sink(bucket) as to:
        to.measure = lambda: 90_000 << 20
        write(to, DATA)
        to.sync()
        [upload] = bucket.store.client.list_multipart_uploads(Bucket=bucket.name)["Uploads"]
        parts = bucket.store.client.list_parts(Bucket=bucket.name, Key="key", UploadId=upload["UploadId"])["Parts"]
    assert [part["Size"] for part in parts] == [10 << 20, len(DATA) - (10 << 20)]


def test_a_failure_aborts_the_upload(bucket: Bucket) -> None:
    with pytest.raises(InterruptedBySignal), sink(bucket, How(size=1)) as to:
        write(to, DATA)
        raise InterruptedBySignal(15)
    assert bucket.keys() == bucket.uploads() == []


def test_an_object_that_is_there_is_not_replaced_unless_asked(bucket: Bucket) -> None:
    bucket.put("key", b"older")
    with pytest.raises(UsageError, match=r"key exists already") as caught:
        sink(bucket)
    assert "--overwrite" in str(caught.value.hint)
    assert bucket.uploads() == []
    with sink(bucket, How(overwrite=True)) as to:
        to.write(b"newer")
        to.commit()
    assert bucket.get("key") == b"newer"


def test_an_object_that_appears_meanwhile_is_not_replaced(bucket: Bucket) -> None:
    with pytest.raises(Occupied), sink(bucket) as to:
        to.write(b"newer")
        bucket.put("key", b"rival")
        to.commit()
    assert bucket.get("key") == b"rival"
    assert bucket.uploads() == []


@stores.EACH
def test_a_committed_object_can_be_withdrawn_and_another_one_not(bucket: Bucket) -> None:
    for key, rival in (("mine", None), ("theirs", b"rival")):
        with sink(bucket, key=key) as to:
            to.write(b"data")
            to.commit()
            if rival is not None:
                bucket.put(key, rival)
            to.withdraw()
        assert bucket.get(key) == rival


def test_a_signal_while_threads_end_leaves_no_upload(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them waits for an answer that does not come."""
    is_stuck = threading.Event()

    def plan(kind: str) -> str | None:
        if kind != PART:
            return None
        is_stuck.set()
        return STALL

    def stop(thread: threading.Thread, within: float) -> bool:
        if is_stuck.is_set():
            signal.raise_signal(signal.SIGTERM)
        return join(thread, min(within, 0.1))

    monkeypatch.setattr(sending, "join", stop)
    with faulty(bucket.store, plan) as endpoint, as_exceptions():
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        with pytest.raises(InterruptedBySignal), sink(bucket, How(size=1), retry=60) as to:
            write(to, DATA)
            assert is_stuck.wait(30)
            raise StatepipeError("the source has failed")
    assert bucket.uploads() == []


def test_a_signal_while_a_lost_commit_is_looked_for_does_not_leave_its_object_unsaid(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody hears what the thread finds that looks for it; what is there is undone at the exit all the same."""
    is_silent, is_looking, has_ended = threading.Event(), threading.Event(), threading.Event()
    main, settled = threading.get_ident(), ObjectSink._settled

    def plan(kind: str) -> str | None:
        return LOST if kind == COMPLETE else "503" if kind == LOOK and is_silent.is_set() else None

    def stop(self: ObjectSink) -> bool:
        is_looking.set()
        signal.pthread_kill(main, signal.SIGTERM)
        try:
            return settled(self)
        finally:
            has_ended.set()

    monkeypatch.setattr(ObjectSink, "_settled", stop)
    with faulty(bucket.store, plan) as endpoint, as_exceptions():
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        with pytest.raises(InterruptedBySignal), sink(bucket, retry=1) as to:
            to.write(b"data")
            to.sync()
            is_silent.set()
            try:
                to.commit()
            finally:
                assert is_looking.is_set() and has_ended.wait(30)
                is_silent.clear()
    assert bucket.keys() == []


def test_an_upload_that_was_left_is_continued_with_the_parts_that_are_there(bucket: Bucket) -> None:
    with pytest.raises(InterruptedBySignal), sink(bucket, How(size=1, resume=True)) as to:
        write(to, DATA)
        to.sync()
        raise InterruptedBySignal(15)
    assert bucket.uploads() == ["key"]
    with sink(bucket, How(size=1, resume=True)) as to:
        write(to, b"another beginning" + DATA[17:])
        to.commit()
        assert to.facts()["parts_kept"] == 2
    assert bucket.get("key") == b"another beginning" + DATA[17:]
    assert bucket.uploads() == []


def test_memory_is_bounded(bucket: Bucket) -> None:
    with sink(bucket, How(size=900_000 << 20)) as to:
        write(to, DATA)
        assert to.facts()["part_size"] == 100 << 20
    with sink(bucket) as to:
        write(to, DATA)
        assert 2 * to.facts()["part_size"] <= 220 << 20


def test_nothing_runs_on_behind_it(bucket: Bucket) -> None:
    before = set(threading.enumerate())
    with sink(bucket, How(size=1)) as to:
        write(to, DATA)
        to.commit()
    assert set(threading.enumerate()) == before
