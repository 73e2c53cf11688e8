"""The store's two roles against a real server of S3."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from statepipe.errors import StatepipeError, UsageError
from statepipe.objectstore.address import parse_object
from statepipe.objectstore.failures import Missing, Occupied, Replaced, Transient, UploadGone
from statepipe.objectstore.open import open_store
from statepipe.objectstore.parts import is_same
from statepipe.objectstore.s3.client import S3Store
from statepipe.objectstore.settings import Settings
from statepipe.objectstore.store import Content, Part, Seen, Upload
from tests.object.stores import Bucket

LEAST = 5 << 20
"""Bytes of a part at least, the last excepted."""


@pytest.fixture
def s3(bucket: Bucket) -> S3Store:
    return open_store(parse_object(bucket.address("key")), Settings())


def content(data: bytes) -> Content:
    return Content(io.BytesIO(data), len(data))


def uploaded(s3: S3Store, address: str, *parts: bytes) -> tuple[Upload, list[Part]]:
    upload = s3.begin(parse_object(address), {"note": "it"}, overwrite=False)
    return upload, [s3.put(upload, number, content(data)) for number, data in enumerate(parts, 1)]


def test_an_object_is_there_once_its_upload_is_completed(s3: S3Store, bucket: Bucket) -> None:
    address = bucket.address("some/key")
    assert s3.look(parse_object(address)) is None
    upload, parts = uploaded(s3, address, b"a" * LEAST, b"end")
    assert list(s3.parts(upload)) == parts
    assert [each.id for each in s3.uploads(parse_object(address))] == [upload.id]
    assert bucket.keys() == []
    s3.complete(upload, parts, {}, overwrite=False)
    seen = s3.look(parse_object(address))
    assert seen is not None and (seen.size, seen.notes) == (LEAST + 3, {"note": "it"})
    assert bucket.get("some/key") == b"a" * LEAST + b"end"
    assert fetched(s3, address, seen, LEAST - 2, 4) == b"aaen"
    assert fetched(s3, address, seen, LEAST - 2, 100) == b"aaend"
    assert fetched(s3, address, seen, None, 3) == b"end"


def test_an_endpoint_that_leads_nowhere_is_named(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    address = parse_object(bucket.address("key"))
    plain = bucket.store.endpoint.removeprefix("http://")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://{plain}")
    with pytest.raises(StatepipeError) as caught:
        open_store(address, Settings()).look(address)
    assert "write http://" in str(caught.value.hint)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", plain)
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL_S3 is not the URL of a store"):
        open_store(address, Settings())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_part_is_hashed_once_where_tls_allows_it(
    monkeypatch: pytest.MonkeyPatch, bucket: Bucket, scheme: str
) -> None:
    """Its signature covers our SHA-256 of it, and without TLS one of botocore's own as well."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"{scheme}://127.0.0.1:1")  # where nobody is: what would be sent counts
    sent: list[Mapping[str, bytes]] = []
    address, part = parse_object(bucket.address("key")), content(b"data")
    s3 = open_store(address, Settings())
    assert isinstance(s3, S3Store)
    s3._client.meta.events.register("before-send.s3.UploadPart", lambda request, **_: sent.append(request.headers))
    with pytest.raises(Transient):
        s3.put(Upload(address, "id", None), 1, part)
    [headers] = sent
    assert headers["x-amz-checksum-sha256"] == part.sha256.encode()
    assert b"x-amz-checksum-sha256" in headers["Authorization"]
    unsigned = headers["X-Amz-Content-SHA256"] == b"UNSIGNED-PAYLOAD"
    assert unsigned == (scheme == "https")


def test_an_object_is_not_overwritten_unless_asked(s3: S3Store, bucket: Bucket) -> None:
    bucket.put("key", b"older")
    upload, parts = uploaded(s3, bucket.address("key"), b"newer")
    with pytest.raises(Occupied, match=rf"s3://{bucket.name}/key exists already"):
        s3.complete(upload, parts, {}, overwrite=False)
    assert bucket.get("key") == b"older"
    s3.complete(upload, parts, {}, overwrite=True)
    assert bucket.get("key") == b"newer"


def test_an_aborted_upload_is_gone_and_can_be_aborted_again(s3: S3Store, bucket: Bucket) -> None:
    upload, parts = uploaded(s3, bucket.address("key"), b"data")
    s3.abort(upload)
    s3.abort(upload)
    assert bucket.uploads() == []
    with pytest.raises(UploadGone):
        list(s3.parts(upload))
    with pytest.raises(StatepipeError):
        s3.complete(upload, parts, {}, overwrite=False)


def fetched(s3: S3Store, address: str, seen: Seen | None, start: int | None, size: int) -> bytes:
    found = s3.fetch(parse_object(address), seen, start, size)
    return found.read(found.size)


def test_a_replaced_object_is_not_read_on(s3: S3Store, bucket: Bucket) -> None:
    bucket.put("key", b"older")
    address = parse_object(bucket.address("key"))
    seen = s3.look(address)
    assert seen is not None
    bucket.put("key", b"newer")
    with pytest.raises(Replaced, match="was replaced or removed while it was read, before byte 2 came"):
        s3.fetch(address, seen, 2, 3)
    with pytest.raises(Occupied):
        s3.remove(address, seen)
    assert bucket.get("key") == b"newer"


def test_what_the_store_has_is_compared(s3: S3Store) -> None:
    sent = content(b"sent")
    md5 = '"7ce38fa5aedb1fb8f3ee3cf5e3ca92a9"'
    part = Part(1, 4, md5, sent.sha256)
    assert is_same(part, sent)
    assert is_same(part._replace(sha256=None), content(b"sent")) is False  # the MD5 of other bytes
    assert is_same(part._replace(size=5), sent) is False
    assert is_same(part._replace(sha256=content(b"other").sha256), sent) is False
    assert is_same(Part(1, 4, '"opaque"', None), sent) is None


def test_a_bucket_that_is_not_there_is_named_with_the_next_step(s3: S3Store) -> None:
    with pytest.raises(StatepipeError, match=r"cannot begin to upload s3://nowhere/key: .*NoSuchBucket") as caught:
        s3.begin(parse_object("s3://nowhere/key"), {}, overwrite=False)
    assert "create the bucket" in str(caught.value.hint)


def test_a_stranger_s_port_is_no_store(monkeypatch: pytest.MonkeyPatch, bucket: Bucket) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    s3 = open_store(parse_object(bucket.address("key")), Settings(retry=1))
    with pytest.raises(StatepipeError, match=r"cannot look for .*127\.0\.0\.1:1") as caught:
        s3.look(parse_object(bucket.address("key")))
    assert caught.value.exit_code == 5


def test_an_empty_object_has_no_ranges(s3: S3Store, bucket: Bucket) -> None:
    bucket.put("key", b"")
    assert fetched(s3, bucket.address("key"), None, None, 10) == fetched(s3, bucket.address("key"), None, 0, 10) == b""


def test_an_object_that_is_not_there_is_named(s3: S3Store, bucket: Bucket) -> None:
    with pytest.raises(Missing, match=rf"there is no object s3://{bucket.name}/none") as caught:
        s3.fetch(parse_object(bucket.address("none")), None, 0, 10)
    assert caught.value.hint


@pytest.mark.parametrize(
    "told", ["0-99999999999999/100000000000000", "5-14/15", "0-9/999", "9-0/10", "0-9/0", "x", None], ids=str
)
@pytest.mark.parametrize("start", [None, 0])
def test_a_store_that_sends_another_range_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, bucket: Bucket, told: str | None, start: int | None
) -> None:
    class Liar(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(206)
            if told is not None:
                self.send_header("Content-Range", f"bytes {told}")
            self.send_header("ETag", '"it"')
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(bytes(10))

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Liar) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_address[1]}")
        lying = open_store(parse_object(bucket.address("key")), Settings())
        with pytest.raises(StatepipeError, match=f"cannot read .* of s3://{bucket.name}/key: the store"):
            lying.fetch(parse_object(bucket.address("key")), None, start, 8)
        thread.join()
