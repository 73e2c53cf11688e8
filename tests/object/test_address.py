"""What is an address, what it names, and what is wrong with one that names nothing."""

from __future__ import annotations

import pytest

from statepipe.errors import UsageError
from statepipe.objectstore.address import ObjectAddress, parse_object, parse_prefix
from statepipe.objectstore.scheme import is_address, local_path


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://bucket/key", ObjectAddress("s3", "bucket", "key")),
        ("S3://Old_Bucket/a/b c/ü.zst", ObjectAddress("s3", "Old_Bucket", "a/b c/ü.zst")),
        ("s3://bucket/100%25?x#y", ObjectAddress("s3", "bucket", "100%25?x#y")),
        ("gs://bucket.example.org/key", ObjectAddress("gs", "bucket.example.org", "key")),
        ("az://$root/key", ObjectAddress("az", "$root", "key")),
    ],
)
def test_an_address_names_a_bucket_and_a_key_as_written(text: str, address: ObjectAddress) -> None:
    assert is_address(text)
    assert parse_object(text) == address
    assert str(address) == text.replace("S3:", "s3:")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        ("s3://bucket", "names a bucket and no key"),
        ("s3://bucket/", "names a bucket and no key"),
        ("s3://bucket/folder/", "ends with a slash"),
        ("s3://host:9000/bucket/key", "'host:9000' is not the name of a bucket"),
        ("s3://user@bucket/key", "is not the name of a bucket"),
        ("s3://bucket//key", "a slash at its beginning"),
        ("s3://bucket/a//b", "two behind one another"),
        ("s3://bucket/a/../b", "'..' between two slashes"),
        ("s3://bucket/a\nb", "control characters"),
        ("s3://bucket/" + "k" * 1025, "1025 bytes"),
        ("s3://bucket/\udcff", "not UTF-8"),
        ("s4://bucket/key", "is not the address of an object"),
        ("bucket/key", "is not the address of an object"),
    ],
)
def test_what_names_no_object_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_object(text)
    assert caught.value.hint


def test_a_prefix_may_be_a_bucket_or_a_folder() -> None:
    assert parse_prefix("s3://bucket").key == parse_prefix("s3://bucket/").key == ""
    assert parse_prefix("s3://bucket/a/").key == "a/"


@pytest.mark.parametrize("text", ["./s3://bucket/key", "/s3://b/k", "s3:", "s3:/b/k", "tcp://h:1", "file", ""])
def test_a_path_is_no_address(text: str) -> None:
    assert not is_address(text)


def test_a_file_has_an_address_too() -> None:
    assert is_address("file:///a%20b")
    assert local_path("file:///a%20b") == "/a%20b"
    assert local_path("s3://bucket/key") is None
    with pytest.raises(UsageError, match="absolute path"):
        local_path("file://a")
