"""A store that lies: what it says is bounded, in bytes, in number and in time, and each error names the object, what
the store did, and the next step, in one clean line."""

from __future__ import annotations

import gc
import io
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from statepipe.errors import StatepipeError
from statepipe.objectstore.address import parse_object, parse_prefix
from statepipe.objectstore.s3.client import S3Store
from statepipe.objectstore.settings import Settings
from statepipe.objectstore.store import Content, Seen, Upload
from tests.object.lying import Answer, Request, lying, says
from tests.object.stores import environment

KEY = parse_object("s3://bucket/key")
UPLOAD = Upload(KEY, "id", None)
DATA = b"some bytes"
CONTENT = Content(io.BytesIO(DATA), len(DATA))
SEEN = Seen(len(DATA), '"it"', None, {})

MEMORY = 128 << 20
"""Bytes that an answer may take at most, with what is parsed of it."""

SOON = 60.0
"""Seconds that an answer may take here, where a second of silence is allowed, on a machine with much other work."""

ASK: dict[str, Callable[[S3Store], Any]] = {
    "look": lambda s3: s3.look(KEY),
    "begin": lambda s3: s3.begin(KEY, {}, overwrite=False),
    "part": lambda s3: s3.put(UPLOAD, 1, CONTENT),
    "list": lambda s3: list(s3.parts(UPLOAD)),
    "complete": lambda s3: s3.complete(UPLOAD, [], {}, overwrite=False),
    "abort": lambda s3: s3.abort(UPLOAD),
    "uploads": lambda s3: list(s3.uploads(parse_prefix("s3://bucket/ke"))),
    "remove": lambda s3: s3.remove(KEY, SEEN),
    "read": lambda s3: read(s3),
}


def read(s3: S3Store, seen: Seen | None = None) -> bytes:
    found = s3.fetch(KEY, seen, 0, len(DATA))
    try:
        return found.read(found.size)
    finally:
        found.close()


class Liar:
    """A store that answers as a test says, and our client of it, which waits a second for a byte."""

    def __init__(self) -> None:
        self.answer: Answer = says(500)
        self.s3: S3Store

    def asked(self, answer: Answer, ask: Callable[[S3Store], Any]) -> Any:
        """Ask it for something, when it answers so."""
        self.answer = answer
        try:
            return ask(self.s3)
        finally:
            self.s3._client.close()  # the server ends each connection after a request

    def refused(self, answer: Answer, kind: str) -> str:
        """Ask it for something, which is refused soon; return the error and its hint."""
        began = time.monotonic()
        with pytest.raises(StatepipeError) as caught:
            self.asked(answer, ASK[kind])
        assert time.monotonic() - began < SOON
        said = str(caught.value)
        assert said.isprintable() and len(said) < 1500
        assert "s3://bucket/ke" in said and caught.value.hint
        return f"{said} {caught.value.hint}"


@pytest.fixture(scope="module")
def liar() -> Iterator[Liar]:
    made = Liar()
    with pytest.MonkeyPatch.context() as patch, lying(lambda request: made.answer(request)) as endpoint:
        for name, value in environment(endpoint).items():
            patch.setenv(name, value)
        made.s3 = S3Store(Settings(retry=1))
        yield made


def xml(root: str, text: str) -> bytes:
    return f'<?xml version="1.0"?><{root}>{text}</{root}>'.encode()


def endless(head: str, piece: bytes, pause: float = 0) -> Answer:
    def answer(request: Request) -> None:
        request.send(head.replace("\n", "\r\n").encode())
        request.for_ever(piece, pause)

    return answer


BLANK = b" " * 65536
ENDLESS = {
    "body": endless("HTTP/1.1 200 X\n\n", BLANK),
    "error": endless("HTTP/1.1 500 X\nContent-Length: 99999999999\n\n", BLANK),
    "xml": endless("HTTP/1.1 400 X\n\n<Error><Code>", b"A" * 65536),
    "chunks": endless("HTTP/1.1 400 X\nTransfer-Encoding: chunked\n\n", b"10\r\n" + b" " * 16 + b"\r\n"),
    "chunk-name": endless("HTTP/1.1 400 X\nTransfer-Encoding: chunked\n\n1;", BLANK),
    "trailers": endless("HTTP/1.1 400 X\nTransfer-Encoding: chunked\n\n0\n", b"X: y\r\n" * 1000),
    "header": endless("HTTP/1.1 200 X\nX: ", BLANK),
    "headers": endless("HTTP/1.1 200 X\n", b"X: y\r\n" * 1000),
    "status": endless("HTTP/1.1 200 ", BLANK),
    "continue": endless("", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "slow-head": endless("HTTP/1.1 200 X\nX: ", b"y", 0.4),
    "slow-body": endless("HTTP/1.1 400 X\n\n<Error>", b" ", 0.4),
}


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("kind", ["look", "list", "read", "part"])
def test_an_answer_without_an_end_is_ended(liar: Liar, name: str, kind: str) -> None:
    if kind == "look" and name in ("body", "error", "xml", "chunks", "chunk-name", "trailers", "slow-body"):
        return  # a HEAD has no body
    tracemalloc.start()
    try:
        liar.refused(ENDLESS[name], kind)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


def test_an_answer_that_trickles_while_an_object_is_read_is_ended(liar: Liar) -> None:
    head = 'HTTP/1.1 206 X\nContent-Range: bytes 0-9/10\nContent-Length: 10\nETag: "it"\n\n'
    assert "read 10 bytes at byte 0" in liar.refused(endless(head, b"", 0.4), "read")
    assert "and no end" in liar.refused(endless(head, b"y", 0.5), "read")


ROWS = "<IsTruncated>{}</IsTruncated>{}"
PART = '<Part><PartNumber>{}</PartNumber><ETag>"it"</ETag><Size>5</Size></Part>'
ONE = PART.format(1)
AN_UPLOAD = "<Upload><Key>{}</Key><UploadId>id</UploadId></Upload>"
BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaaaaaaaaaaaa">' + "".join(
    f'<!ENTITY a{n} "{f"&a{n - 1 if n else str()};" * 20}">' for n in range(8)
)
NONSENSE = [
    ("list", xml("R", ROWS.format("true", ONE))),  # again and again
    ("list", xml("R", ROWS.format("false", PART.format(0)))),
    ("list", xml("R", ROWS.format("false", PART.format(10001)))),
    ("list", xml("R", ROWS.format("false", PART.format("-1")))),
    ("list", xml("R", ROWS.format("false", PART.format("one")))),
    ("list", xml("R", ROWS.format("false", PART.format("9" * 5000)))),
    ("list", xml("R", ROWS.format("false", ONE.replace(">5<", ">-5<")))),
    ("list", xml("R", ROWS.format("false", ONE.replace(">5<", ">5.5<")))),
    ("list", xml("R", ROWS.format("false", ONE.replace(">5<", f">{1 << 70}<")))),
    ("list", xml("R", ROWS.format("false", ONE.replace('"it"', "")))),
    ("list", xml("R", ROWS.format("false", ONE.replace('"it"', "x" * 1_000_000)))),
    ("list", xml("R", ROWS.format("false", ONE.replace('"it"', "&#27;[31m")))),
    ("list", xml("R", ROWS.format("false", ONE.replace("ETag", "Etag")))),
    ("list", xml("R", "".join(PART.format(n) for n in range(1, 20_000)) + ROWS.format("false", ""))),
    ("list", xml("R", "<a>" * 200_000)),
    ("list", xml("R", "<a>" * 50_000 + "</a>" * 50_000)),
    ("list", BOMB.encode() + b"]><x>&a7;</x>"),
    ("list", (BOMB + "]><x>&a7;</x>").encode("utf-16")),
    ("list", xml("R", ONE)),
    ("list", b"PK\x03\x04 no XML"),
    ("list", b""),
    ("uploads", xml("R", ROWS.format("true", "<NextKeyMarker>k</NextKeyMarker>" + AN_UPLOAD.format("key")))),
    ("uploads", xml("R", ROWS.format("false", AN_UPLOAD.format("another")))),
    ("uploads", xml("R", ROWS.format("false", AN_UPLOAD.format("key" + "x" * 2000)))),
    ("uploads", xml("R", ROWS.format("false", AN_UPLOAD.format("key").replace("id<", "<")))),
    ("uploads", xml("R", ROWS.format("false", AN_UPLOAD.format("key") + "<Upload/>"))),
    *(
        ("uploads", xml("R", ROWS.format("false", f"<Upload><Key>key</Key><Initiated>{date}</Initiated></Upload>")))
        for date in ("0000-00-00T00:00:00Z", "soon", "99999-01-01T00:00:00Z", "9" * 400)
    ),
    ("begin", xml("R", "")),
    ("begin", xml("R", f"<UploadId>{'x' * 100_000}</UploadId>")),
    ("begin", xml("R", "<UploadId>a&#10;b</UploadId>")),
    ("complete", xml("R", "")),
    ("complete", xml("Error", "<Code>InternalError</Code>")),
    ("complete", xml("R", f"<ETag>{'x' * 100_000}</ETag>")),
    ("part", b""),
]


@pytest.mark.parametrize(("kind", "body"), NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_refused(liar: Liar, kind: str, body: bytes) -> None:
    liar.refused(says(200, body), kind)


@pytest.mark.parametrize("status", [403, 412, 416, 503])
@pytest.mark.parametrize("kind", ASK)
@pytest.mark.parametrize(
    "body",
    [
        xml(
            "Error",
            "<Code>A&#10;statepipe: B\u202e\u009b31m</Code><Message>\u009b2J " + "M" * 90_000 + "</Message>",
        ),
        xml("Error", f"<Code>{'X' * 100_000}</Code>"),
        xml("Error", "<a>" * 20_000 + "</a>" * 20_000),
        xml("Error", f'<Code a="{"y" * 1_000_000}">C</Code>'),
        BOMB.encode() + b"]><Error><Code>&a7;</Code></Error>",
        b"\xff\xfe\x00",
        b"\x1b[31m",
    ],
    ids=["controls", "long", "deep", "attribute", "bomb", "binary", "text"],
)
def test_what_a_refusal_says_is_clean_and_short(liar: Liar, kind: str, status: int, body: bytes) -> None:
    liar.refused(says(status, body), kind)


RANGE = "Content-Range: bytes 0-9/10"
ETAG = 'ETag: "it"'


@pytest.mark.parametrize(
    ("status", "lines", "body"),
    [
        (206, [RANGE], DATA),
        (206, [RANGE, "ETag: "], DATA),
        (206, [RANGE, "ETag: " + "x" * 60_000], DATA),
        (206, [RANGE, "ETag: \x1b[31m"], DATA),
        (206, [RANGE, ETAG, "x-amz-version-id: " + "x" * 60_000], DATA),
        (206, [ETAG, "Content-Range: bytes 0-9/" + "9" * 5000], DATA),
        (206, [ETAG, "Content-Range: bytes 0-9/-1"], DATA),
        (206, [ETAG, "Content-Range: bytes 0-9/*"], DATA),
        (206, [ETAG, "Content-Range: bytes 0-\u00b2/10"], DATA),
        (206, [ETAG, "Content-Range: bytes 0-8/9223372036854775807"], DATA),
        (206, [ETAG, "Content-Range: bytes 5-14/15"], DATA),
        (206, [ETAG, RANGE], DATA[:5]),
        (200, [ETAG], DATA + DATA),
        (200, [ETAG, "Transfer-Encoding: chunked"], b"5\r\nsome \r\n0\r\n\r\n"),
        (204, [], b""),
        (304, [], b""),
        (416, [ETAG], b""),
    ],
)
def test_a_range_that_was_not_asked_for_is_refused(liar: Liar, status: int, lines: list[str], body: bytes) -> None:
    liar.refused(says(status, body, *lines), "read")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_date_that_is_none_is_refused(liar: Liar) -> None:
    """botocore's parser raises before anybody has the body, so its connection goes with the garbage."""
    liar.refused(says(206, DATA, ETAG, RANGE, "Last-Modified: never"), "read")
    gc.collect()


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: -5", ETAG],
        ["Content-Length: many", ETAG],
        ["Content-Length: 5", "ETag: "],
        [],
        [f"Content-Length: {1 << 80}", ETAG],
    ],
)
def test_a_look_that_tells_nonsense_is_refused(liar: Liar, lines: list[str]) -> None:
    def answer(request: Request) -> None:
        request.send("\r\n".join(["HTTP/1.1 200 X", *lines, "", ""]).encode())

    liar.refused(answer, "look")


def test_more_than_was_told_is_not_taken_for_the_object(liar: Liar) -> None:
    assert liar.asked(says(206, DATA + b"and more", RANGE, ETAG, length=10), read) == DATA


def test_nothing_is_decompressed(liar: Liar) -> None:
    """Bytes are bytes: a bomb stays as small as it is, and an object that is a gzip file stays one."""
    answer = says(206, DATA, RANGE, ETAG, "Content-Encoding: gzip")
    assert liar.asked(answer, read) == DATA


def test_another_object_between_two_requests_is_none_of_ours(liar: Liar) -> None:
    answer = says(206, DATA, RANGE, 'ETag: "another"')
    with pytest.raises(StatepipeError, match="was replaced or removed"):
        liar.asked(answer, lambda s3: read(s3, SEEN))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("kind", ASK)
def test_a_redirection_does_not_take_us_to_another_host(liar: Liar, kind: str, status: int) -> None:
    """A region that the answer names is tried, at the same endpoint; what we are by is sent nowhere else."""
    strangers: list[bytes] = []
    with lying(lambda request: strangers.append(request.head)) as elsewhere:
        body = xml("Error", f"<Code>PermanentRedirect</Code><Endpoint>{elsewhere}</Endpoint><Region>r-1</Region>")
        lines = f"Location: {elsewhere}/", f"x-amz-bucket-region: {elsewhere.removeprefix('http://')}/"
        said = liar.refused(says(status, body, *lines), kind)
    assert strangers == []
    assert elsewhere not in said


@pytest.mark.parametrize("region", ["evil.example", "evil.example#", "x@evil.example/", "127.0.0.1:1/", "a" * 1000])
def test_a_region_that_an_answer_names_leads_to_no_host_of_its_choice(
    monkeypatch: pytest.MonkeyPatch, region: str
) -> None:
    """Of Amazon's own store, whose host the client builds of the region."""
    import botocore.awsrequest
    import botocore.hooks

    for name, value in environment("").items():
        monkeypatch.setenv(name, value)
    hosts: list[str] = []

    def instead(request: Any, **more: object) -> Any:
        hosts.append(request.url)
        raw = io.BytesIO(b"")
        raw.stream = lambda: iter([b""])  # type: ignore[attr-defined]
        return botocore.awsrequest.AWSResponse(request.url, 301, {"x-amz-bucket-region": region}, raw)

    s3 = S3Store(Settings(retry=1))
    s3._client.meta.events.register("before-send.s3", instead)
    with pytest.raises(StatepipeError):
        s3.look(KEY)
    assert hosts
    for url in hosts:
        assert url.split("/")[2].endswith(".amazonaws.com"), url


@pytest.mark.parametrize("kind", sorted(set(ASK) - {"look", "remove"}))
def test_an_absent_object_ends_no_other_request_with_a_traceback(liar: Liar, kind: str) -> None:
    liar.refused(says(404, xml("Error", "<Code>NoSuchKey</Code>")), kind)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL_S3", "http://someone:secret-word@127.0.0.1:1"),
        ("AWS_SESSION_TOKEN", "secret-word\nwith a second line"),
        ("HTTP_PROXY", "http://someone:secret-word@127.0.0.1:1"),
    ],
)
def test_no_secret_of_the_environment_is_in_a_message(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for each, its in environment("http://127.0.0.1:1").items():
        monkeypatch.setenv(each, its)
    if name == "HTTP_PROXY":
        monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv(name, value)
    with pytest.raises(StatepipeError) as caught:
        S3Store(Settings(retry=1)).look(KEY)
    assert "secret-word" not in f"{caught.value} {caught.value.hint}"
    assert "second line" not in str(caught.value)


def test_expired_credentials_are_no_reason_to_put(liar: Liar) -> None:
    expired = says(400, xml("Error", "<Code>ExpiredToken</Code>"))
    assert "put --resume" not in liar.refused(expired, "read")
    assert "put --resume" in liar.refused(expired, "part")


def test_a_program_for_credentials_that_prints_rubbish_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment("http://127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "config").write_text("[profile p]\ncredential_process = echo rubbish\n")
    monkeypatch.setenv("AWS_PROFILE", "p")
    with pytest.raises(StatepipeError, match="what finds the credentials gives nothing readable") as caught:
        S3Store(Settings())
    assert "check the credentials" in str(caught.value.hint)
