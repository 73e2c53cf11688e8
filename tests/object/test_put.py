"""put, and an address as a FILE, as a person types them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from random import Random

import pytest
import zstandard

from tests import warm
from tests.object.azurite import Container
from tests.object.faulty import BEGIN, COMPLETE, PART, STALL, always, faulty
from tests.object.stores import EACH, Bucket
from tests.statefiles import noisy_stream

STATEPIPE = [sys.executable, "-m", "statepipe"]
DATA = Random(18).randbytes(20_000_000)


def run(*words: object, data: bytes | None = None, **options: object) -> subprocess.CompletedProcess[bytes]:
    given = {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
    done: subprocess.CompletedProcess[bytes] = warm.run(
        [*STATEPIPE, *map(str, words)], capture_output=True, timeout=60, **given, **options
    )
    return done


def test_a_stream_that_proves_itself_becomes_an_object(bucket: Bucket) -> None:
    done = run("pipe", "zstd:1", f"put:{bucket.address('key')}", data=DATA)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    packed = bucket.get("key")
    assert packed is not None
    with zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as reader:
        assert reader.read() == DATA


def test_a_stream_that_is_cut_becomes_none(bucket: Bucket) -> None:
    whole = noisy_stream()
    done = run("put", bucket.address("key"), data=whole[: len(whole) // 2])
    assert done.returncode == 3
    assert bucket.keys() == bucket.uploads() == []
    assert run("put", bucket.address("key"), data=whole).returncode == 0
    assert bucket.get("key") == whole


def test_a_stream_that_proves_nothing_is_told(bucket: Bucket) -> None:
    done = run("put", bucket.address("key"), data=b"text")
    assert done.returncode == 0
    assert b"does not prove that it is whole" in done.stderr


def test_a_file_is_compared_with_its_size(bucket: Bucket, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    done = run("put", bucket.address("key"), path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert bucket.get("key") == DATA


def test_a_file_has_an_address(tmp_path: Path) -> None:
    assert run("put", f"file://{tmp_path}/new", data=b"text").returncode == 0
    assert (tmp_path / "new").read_bytes() == b"text"
    refused = run("put", f"file://{tmp_path}/new", tmp_path / "new")
    assert refused.returncode == 2
    assert b"is the file that is read" in refused.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["put"], "put needs the ADDRESS"),
        (["put", "key"], "is not the address of an object"),
        (["put", "s3://bucket"], "names a bucket and no key"),
        (["put", "file", "s3://bucket/key"], "write: statepipe put s3://bucket/key file"),
        (["put", "azure://bucket/key"], "did you mean az?"),
        (["put", "https://bucket.s3.amazonaws.com/key"], "AWS_ENDPOINT_URL_S3"),
        (["save", "s3:/bucket/key"], "an object is named by s3://BUCKET/KEY"),
        (["save", "azure://bucket/key"], "an object is named by s3://BUCKET/KEY"),
        (["compress", "s3://bucket/key"], "statepipe get reads an object"),
        (["compress", "/nowhere/file"], "check the path\n"),
        (["put", "s3://bucket/key", "--resume"], "not a regular file"),
        (["put", "s3://bucket/key", "--abort-stale", "s3://bucket/"], "takes a PREFIX alone"),
        (["pipe", "put:s3://bucket/key", "compress"], "nothing comes out of put"),
        (["send", "put:s3://bucket/key", "tcp://localhost:1"], "nothing comes out of put"),
        (["save", "put:s3://bucket/key", "file"], "save does not take the filter 'put'"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str, bucket: Bucket) -> None:
    done = run(*words, data=b"")
    assert done.returncode in (1, 2)
    assert said in done.stderr.decode()
    assert bucket.uploads() == []


def test_a_guest_is_saved_to_an_object(bucket: Bucket) -> None:
    """Read again by zstd alone; a second save does not replace it unless told to."""
    stream, address = noisy_stream(), bucket.address("guest.state")
    assert run("save", address, data=stream).returncode == 0
    state = bucket.get("guest.state")
    assert state is not None
    with zstandard.ZstdDecompressor().stream_reader(state, read_across_frames=True) as reader:
        assert reader.read() == stream
    again = run("save", address, data=stream)
    assert again.returncode == 2
    assert b"exists already" in again.stderr
    assert bucket.get("guest.state") == state
    assert run("save", "--overwrite", address, data=stream).returncode == 0


def test_a_save_that_is_cut_leaves_no_object(bucket: Bucket) -> None:
    stream = noisy_stream()
    assert run("save", bucket.address("guest.state"), data=stream[:-100]).returncode == 3
    assert bucket.keys() == bucket.uploads() == []


def test_a_copy_can_be_an_object(bucket: Bucket) -> None:
    done = run("tee", bucket.address("copy"), data=DATA)
    assert (done.returncode, done.stdout) == (0, DATA)
    assert bucket.get("copy") == DATA
    assert run("compress", "-o", bucket.address("packed"), data=DATA).returncode == 0
    assert run("decompress", data=bucket.get("packed")).stdout == DATA


@EACH
@pytest.mark.parametrize("older", [False, True], ids=["new", "overwritten"])
def test_what_is_received_can_be_an_object(bucket: Bucket, tmp_path: Path, older: bool) -> None:
    socket, stream = tmp_path / "socket", noisy_stream()
    words = [*STATEPIPE, "recv", f"unix://{socket}", "-o", bucket.address("key")]
    if older:
        bucket.put("key", b"older")
        refused = run(*words[len(STATEPIPE) :])
        assert (refused.returncode, bucket.get("key")) == (2, b"older")
        assert b"put, save, recv and convert replace it with --overwrite" in refused.stderr
        words += ["--overwrite"]
    with warm.Popen(words, stderr=subprocess.PIPE) as receiver:
        sent = run("send", "--retry", "30", f"unix://{socket}", data=stream)
        said = receiver.communicate(timeout=60)[1]
    assert (sent.returncode, receiver.returncode) == (0, 0), said + sent.stderr
    assert bucket.get("key") == stream


def test_overwrite_of_recv_is_for_an_object(tmp_path: Path) -> None:
    done = run("recv", "tls://:1", "-o", str(tmp_path / "file"), "--overwrite")
    assert done.returncode == 2
    assert b"--overwrite is for an object" in done.stderr


def kill_at_the_commit(bucket: Bucket | Container, words: list[str]) -> None:
    """End ours without a word when all is sent."""
    committing = threading.Event()

    def plan(kind: str) -> str | None:
        if kind == COMPLETE:
            committing.set()
            return STALL
        return None

    with faulty(bucket.store, plan) as endpoint:
        environment = {**os.environ, **bucket.through(endpoint)}
        with warm.Popen([*STATEPIPE, *words], stderr=subprocess.DEVNULL, env=environment) as process:
            assert committing.wait(60)
            process.kill()


def test_after_a_kill_no_object_is_there_and_resume_goes_on(bucket: Bucket, tmp_path: Path) -> None:
    path, address = tmp_path / "file", bucket.address("key")
    path.write_bytes(DATA)
    words = ["put", address, str(path), "--size", "1M"]
    kill_at_the_commit(bucket, words)
    assert bucket.keys() == []
    assert bucket.uploads() == ["key"]
    with faulty(bucket.store, always(PART, "quota")) as endpoint:  # none is to be sent again
        done = run(*words, "--resume", env={**os.environ, **bucket.through(endpoint)})
    assert done.returncode == 0, done.stderr
    assert bucket.get("key") == DATA
    assert bucket.uploads() == []


def test_resume_keeps_what_was_sent_when_it_fails(bucket: Bucket, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    words = ["put", bucket.address("key"), str(path), "--size", "1M", "--resume"]
    with faulty(bucket.store, always(COMPLETE, "expired")) as endpoint:
        done = run(*words, env={**os.environ, **bucket.through(endpoint)})
    assert done.returncode == 1
    assert b"put --resume goes on with it" in done.stderr
    assert b"begins anew" in done.stderr
    assert bucket.uploads() == ["key"]
    assert run(*words).returncode == 0
    assert bucket.get("key") == DATA


def test_uploads_that_were_left_are_ended_and_told(bucket: Bucket) -> None:
    """moto says of each upload that it began in 2010."""
    for key in ("a/1", "a/2", "b/1"):
        bucket.store.client.create_multipart_upload(Bucket=bucket.name, Key=key)
    done = run("put", "--abort-stale", bucket.address("a/"))
    assert done.returncode == 0
    assert [line.split("\t")[0] for line in done.stdout.decode().splitlines()] == [
        bucket.address("a/1"),
        bucket.address("a/2"),
    ]
    assert bucket.uploads() == ["b/1"]


def test_the_configuration_names_the_store(bucket: Bucket, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'endpoint = "{bucket.store.endpoint}"\n')
    environment = {name: value for name, value in os.environ.items() if name != "AWS_ENDPOINT_URL_S3"}
    done = run("put", bucket.address("key"), data=b"", env={**environment, "STATEPIPE_CONFIG": str(config)})
    assert done.returncode == 0, done.stderr
    assert bucket.get("key") == b""


def test_a_signal_to_a_slow_producer_s_put_leaves_nothing(bucket: Bucket) -> None:
    begun = threading.Event()

    def plan(kind: str) -> None:
        if kind == BEGIN:
            begun.set()

    with faulty(bucket.store, plan) as endpoint:
        environment = {**os.environ, **bucket.through(endpoint)}
        words = [*STATEPIPE, "put", bucket.address("key")]
        with warm.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
            assert process.stdin is not None
            process.stdin.write(b"beginning")
            process.stdin.flush()
            assert begun.wait(60)
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert bucket.keys() == bucket.uploads() == [], said
