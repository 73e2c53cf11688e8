"""An object read at any offset and in order, as from a file; requests are counted at a proxy."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from statepipe.ends.objectsource import ObjectSource, open_object
from statepipe.errors import PeerError, StatepipeError
from statepipe.objectstore import reader
from statepipe.objectstore.blockcache import BLOCK
from statepipe.objectstore.failures import Missing, Replaced
from statepipe.objectstore.reader import ENDS
from statepipe.objectstore.settings import Reading
from statepipe.stage import Cancelled
from tests.object.faulty import CUT, HALTED, LOOK, LOST, READ, RESET, STALL, TORN, Plan, always, faulty, once
from tests.object.stores import Bucket

DATA = Random(4).randbytes(12_345_678)


class Counted:
    """A plan that counts, and lets another one decide."""

    def __init__(self, plan: Plan = lambda kind: None) -> None:
        self.kinds: list[str] = []
        self.plan = plan

    def __call__(self, kind: str) -> str | None:
        self.kinds.append(kind)
        return self.plan(kind)

    @property
    def reads(self) -> int:
        return self.kinds.count(READ)


@contextmanager
def opened(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, plan: Plan, how: Reading | None = None
) -> Iterator[ObjectSource]:
    with faulty(bucket.store, plan) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        with open_object(bucket.address("key"), how or Reading(retry=3)) as source:
            yield source


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, ENDS, ENDS + 1, 3 * ENDS + 7])
def test_an_object_is_read_as_a_file_is(bucket: Bucket, size: int) -> None:
    data = DATA[:size]
    bucket.put("key", data)
    random = Random(size)
    with open_object(bucket.address("key"), Reading()) as source:
        assert (source.size(), source.expected, source.name) == (size, size, bucket.address("key"))
        for _ in range(20):
            at, count = random.randrange(size + 2), random.randrange(2 * BLOCK)
            assert source.tail(at, count) == data[at : at + count]
        assert b"".join(source) == data
        assert source.expected == 0
        assert b"".join(source.again()) == data


def test_both_ends_take_two_requests(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted()
    bucket.put("key", DATA)
    with opened(bucket, monkeypatch, counted) as source:
        assert source.tail(0, 1000) + source.tail(len(DATA) - 1000, 1000) == DATA[:1000] + DATA[-1000:]
        assert counted.kinds == [READ, READ]
        assert source.tail(5_000_000, 3) == DATA[5_000_000:5_000_003]
        assert counted.kinds == [READ, READ, READ]
        assert source.tail(5_000_003, 300) == DATA[5_000_003:5_000_303]
        assert counted.kinds == [READ, READ, READ]


def test_reads_that_follow_one_another_are_made_ahead(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted()
    bucket.put("key", DATA)
    with opened(bucket, monkeypatch, counted) as source:
        for at in range(0, len(DATA), 100_000):
            assert source.tail(at, 100_000) == DATA[at : at + 100_000]
    assert counted.reads < 12


@pytest.mark.parametrize("fault", ["500", "503", RESET, LOST, CUT, TORN, HALTED, STALL])
def test_what_breaks_once_is_read_again_from_there(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    bucket.put("key", DATA)
    with opened(bucket, monkeypatch, once(READ, fault, at=4)) as source:
        assert b"".join(source) == DATA


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("500", "InternalError"),
        ("503", "SlowDown"),
        (TORN, "check the network"),
        (CUT, "check the network"),
        (RESET, "check the network"),
        (STALL, "check the network"),
        ("expired", "get new ones"),
        ("denied", "s3:GetObject"),
    ],
)
def test_what_stays_broken_names_the_object_the_byte_and_the_next_step(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    bucket.put("key", DATA)
    broken = threading.Event()

    def plan(kind: str) -> str | None:
        return fault if broken.is_set() else None

    with opened(bucket, monkeypatch, plan, Reading(retry=0.5)) as source:
        broken.set()
        with pytest.raises(StatepipeError, match=rf"read \d+ bytes at byte \d+ of s3://{bucket.name}/key") as caught:
            source.tail(2_000_000, 10)
        assert words in f"{caught.value} {caught.value.hint}"
        assert isinstance(caught.value, PeerError) == (fault not in ("expired", "denied"))
        broken.clear()
        assert source.tail(2_000_000, 10) == DATA[2_000_000:2_000_010], "the store is back"


def test_a_store_that_is_gone_at_the_beginning_is_named(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(PeerError, match=rf"cannot read .* of s3://{bucket.name}/key"),
        opened(bucket, monkeypatch, always(READ, RESET), Reading(retry=0.5)),
    ):
        pass


def test_an_object_that_is_not_there(bucket: Bucket) -> None:
    for how in (Reading(), Reading(cache=os.devnull)):
        with pytest.raises(Missing, match=f"there is no object s3://{bucket.name}/key"):
            open_object(bucket.address("key"), how)


@pytest.mark.parametrize("is_removed", [False, True])
def test_an_object_that_is_replaced_or_removed_is_no_mixture(bucket: Bucket, is_removed: bool) -> None:
    bucket.put("key", DATA)
    with open_object(bucket.address("key"), Reading()) as source:
        if is_removed:
            bucket.store.client.delete_object(Bucket=bucket.name, Key="key")
        else:
            bucket.put("key", DATA[::-1])
        with pytest.raises(Replaced, match=rf"s3://{bucket.name}/key was replaced or removed .*before byte \d+"):
            source.tail(5_000_000, 10)
        assert source.tail(0, 10) == DATA[:10], "what was read before is of the older object"
        with pytest.raises(Replaced):
            b"".join(source)


def test_of_a_versioned_bucket_the_version_is_read_that_was_there(bucket: Bucket) -> None:
    client = bucket.store.client
    client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    bucket.put("key", DATA)
    with open_object(bucket.address("key"), Reading()) as source:
        bucket.put("key", DATA[::-1])
        assert source.tail(5_000_000, 10) == DATA[5_000_000:5_000_010]


def test_an_object_that_is_replaced_between_its_two_ends(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("key", DATA)
    replaced = threading.Event()
    lock, order = threading.Lock(), []

    def plan(kind: str) -> str | None:
        with lock:
            order.append(kind)
            if len(order) == 2:
                bucket.put("key", DATA[::-1])
                replaced.set()
        return None

    with pytest.raises(Replaced), opened(bucket, monkeypatch, plan):
        pass


def test_a_reader_that_gives_up_does_not_wait_for_the_store(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("key", DATA)
    stalled = threading.Event()

    def plan(kind: str) -> str | None:
        if counted.reads > 2:
            stalled.set()
            return STALL
        return None

    counted = Counted(plan)
    with opened(bucket, monkeypatch, counted, Reading(retry=300)) as source:
        threading.Thread(target=lambda: (stalled.wait(), source.give_up())).start()
        with pytest.raises(Cancelled):
            source.tail(6_000_000, 10)


def test_memory_is_bounded(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what was read at offsets, KEPT bytes are kept."""
    most = 4 << 20
    monkeypatch.setattr(reader, "KEPT", most)
    bucket.put("key", DATA)
    with open_object(bucket.address("key"), Reading()) as source:
        for at in range(0, source.size(), 1 << 20):
            source.tail(at, 1 << 20)
        its = source._reader._blocks
        assert its.kept <= most
        assert sum(len(block.data or b"") for block in its._blocks.values()) == its.kept
        assert b"".join(source) == DATA
        assert its.kept <= most


# --- the cache


def kept_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("statepipe-*/*/*") if path.is_file())


def kept_bytes(folder: Path) -> int:
    """The bytes of the blocks in a cache from which some may be removed at this moment."""
    total = 0
    for path in kept_in(folder):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_what_was_read_is_kept_for_the_next_start(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    how, folder = Reading(cache=str(tmp_path / "cache")), tmp_path / "cache"
    bucket.put("key", DATA)
    with opened(bucket, monkeypatch, Counted(), how) as source:
        assert b"".join(source) == DATA
    assert sum(path.stat().st_size - 32 for path in kept_in(folder)) == len(DATA)
    for path in (folder, *folder.glob("*"), *folder.glob("*/*")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept_in(folder)} == {0o600}
    etag = bucket.store.client.head_object(Bucket=bucket.name, Key="key")["ETag"].strip('"')
    assert {path.parent.name.partition("-")[0] for path in kept_in(folder)} == {etag}
    again = Counted()
    with faulty(bucket.store, again) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        # the name of the store is part of the cache's: read once more through this endpoint
        with open_object(bucket.address("key"), how) as source:
            assert b"".join(source) == DATA
        again.kinds.clear()
        with open_object(bucket.address("key"), how) as source:
            assert source.tail(6_000_000, 10) == DATA[6_000_000:6_000_010]
            assert b"".join(source) == DATA
        assert again.kinds == [LOOK]


def test_what_is_wrong_in_the_cache_is_fetched_again(bucket: Bucket, tmp_path: Path) -> None:
    how = Reading(cache=str(tmp_path))
    bucket.put("key", DATA)
    with open_object(bucket.address("key"), how) as source:
        assert b"".join(source) == DATA
    random = Random(3)
    for number, path in enumerate(kept_in(tmp_path)):
        data = bytearray(path.read_bytes())
        if number % 4 == 0:
            data[random.randrange(len(data))] ^= 1
        elif number % 4 == 1:
            del data[random.randrange(len(data)) :]
        elif number % 4 == 2:
            data = bytearray(kept_in(tmp_path)[0].read_bytes())
        path.write_bytes(data)
    with open_object(bucket.address("key"), how) as source:
        assert b"".join(source) == DATA
        assert source.tail(0, len(DATA)) == DATA


def test_another_object_of_that_name_has_another_cache(bucket: Bucket, tmp_path: Path) -> None:
    how = Reading(cache=str(tmp_path))
    for data in (DATA, DATA[::-1]):
        bucket.put("key", data)
        with open_object(bucket.address("key"), how) as source:
            assert source.tail(1_000_000, 1000) == data[1_000_000:1_001_000]


def test_a_cache_has_a_bound_and_what_is_used_stays(bucket: Bucket, tmp_path: Path) -> None:
    limit = 4 << 20
    how = Reading(cache=str(tmp_path), cache_size=limit)
    bucket.put("key", DATA)
    with open_object(bucket.address("key"), how) as source:
        for at in range(0, len(DATA), BLOCK):
            source.tail(at, 1)
            source.doubt(at, 0)
        assert b"".join(source) == DATA
    assert 0 < sum(path.stat().st_size for path in kept_in(tmp_path)) <= limit * 1.1


def test_several_may_use_a_cache_at_once(bucket: Bucket, tmp_path: Path) -> None:
    how = Reading(cache=str(tmp_path), cache_size=3 << 20)
    bucket.put("key", DATA)
    results: list[bool] = []

    def read(seed: int) -> None:
        random = Random(seed)
        with open_object(bucket.address("key"), how) as source:
            for _ in range(30):
                at = random.randrange(len(DATA))
                results.append(source.tail(at, BLOCK) == DATA[at : at + BLOCK])
            results.append(b"".join(source) == DATA)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4 * 31


def test_a_cache_that_cannot_be_written_is_told_and_does_not_fail_the_read(bucket: Bucket, tmp_path: Path) -> None:
    said: list[str] = []
    bucket.put("key", DATA)
    how = Reading(cache=str(tmp_path), tell=said.append)
    with open_object(bucket.address("key"), how) as source:
        (folder,) = tmp_path.glob("statepipe-*/*")
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        assert b"".join(source) == DATA
    (line,) = said
    assert str(tmp_path) in line and "No such file" in line


def test_a_folder_that_is_none_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bucket.put("key", DATA)
    with pytest.raises(StatepipeError, match=f"cannot keep a cache in {tmp_path}/file") as caught:
        open_object(bucket.address("key"), Reading(cache=str(tmp_path / "file")))
    assert "--cache" in str(caught.value.hint)
    folder = tmp_path / f"statepipe-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StatepipeError, match="with the mode 0777"):
        open_object(bucket.address("key"), Reading(cache=str(tmp_path)))
    if os.geteuid() == 0:
        folder.chmod(0o700)
        os.chown(folder, 12345, 12345)
        with pytest.raises(StatepipeError, match="belongs to user 12345"):
            open_object(bucket.address("key"), Reading(cache=str(tmp_path)))


def test_a_cache_that_became_smaller_is_trimmed_at_the_next_start(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("key", DATA)
    with open_object(bucket.address("key"), Reading(cache=str(tmp_path))) as source:
        assert b"".join(source) == DATA
    left = tmp_path / f"statepipe-{os.geteuid()}" / "left"
    left.mkdir()
    (left / ".3.0123456789ab.part").touch()
    for path in (left / ".3.0123456789ab.part", left):
        os.utime(path, (0, 0))
    with open_object(bucket.address("key"), Reading(cache=str(tmp_path), cache_size=1 << 20)):
        deadline = time.monotonic() + 30
        while kept_bytes(tmp_path) > 1 << 20:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not list(left.glob("*")) or not left.exists()
