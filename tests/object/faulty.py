"""A proxy before a store that does what networks and stores do: it refuses, resets, cuts, changes and stalls."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from statepipe.objectstore.azure.blockids import parse_block_id
from tests.object.azurite import Azure
from tests.object.googleserver import Server
from tests.object.stores import Store

BEGIN, PART, LIST, COMPLETE, ABORT, LOOK, READ, UPLOADS, REMOVE, ASK, OTHER = KINDS = (
    *("begin", "part", "list", "complete", "abort", "look", "read", "uploads", "remove", "ask", "other"),
)

REFUSALS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "expired": (400, "ExpiredToken"),
    "skewed": (403, "RequestTimeTooSkewed"),
    "denied": (403, "AccessDenied"),
    "no-bucket": (404, "NoSuchBucket"),
    "quota": (403, "QuotaExceeded"),
    "conflict": (409, "ConditionalRequestConflict"),
    "no-conditions": (501, "NotImplemented"),
}
"""What S3 would answer."""

AZURE_REFUSALS = {
    "500": (500, "InternalError"),
    "503": (503, "ServerBusy"),
    "expired": (403, "AuthenticationFailed"),
    "denied": (403, "AuthorizationPermissionMismatch"),
    "no-bucket": (404, "ContainerNotFound"),
    "leased": (412, "LeaseIdMissing"),
    "other-ids": (400, "InvalidBlobOrBlock"),
}
"""What Azure would."""

EXPIRED = (
    "<AuthenticationErrorDetail>Signature not valid in the specified time frame: 1 - 2</AuthenticationErrorDetail>"
)

GOOGLE_REFUSALS = {
    "500": (500, "backendError"),
    "503": (503, "backendError"),
    "429": (429, "rateLimitExceeded"),
    "expired": (401, "authError"),
    "denied": (403, "forbidden"),
    "no-bucket": (404, "notFound"),
    "quota": (403, "quotaExceeded"),
    "conflict": (409, "conflict"),
}
"""What Google would."""

BACKWARDS, BEYOND = LIES = "backwards", "beyond"
"""A store of Google's kind says that it has less than it had, or more than was sent."""

RESET, LOST, CUT, CHANGED, STALL, GARBAGE = BREAKS = "reset", "lost", "cut", "changed", "stall", "garbage"
"""What happens on the way: the connection is reset in the midst of the request; the request is carried out, and no
answer or half of one comes; a bit of what is sent changes; no answer comes for long; somebody else answers."""

FAULTS = (*REFUSALS, *BREAKS)

LATE = "late"
"""The request is carried out, and its answer does not come for long."""

TORN, WRONG, HALTED = ANSWERS = "torn", "wrong", "halted"
"""What happens to what is read: the connection is reset in the midst of it; a bit changes; half of it comes, and then
nothing for long."""

Plan = Callable[[str], str | None]
"""The fault that a request of that kind meets, None for none."""


def kind_at_azure(method: str, path: str, headers: Mapping[str, str]) -> str:
    """What a request of Azure asks for."""
    asked = parse_qs(urlsplit(path).query)
    if asked.get("comp") == ["block"]:
        id = parse_block_id(asked["blockid"][0])
        return BEGIN if id is not None and id.number == 0 else PART
    if asked.get("comp") == ["blocklist"]:
        return {"PUT": COMPLETE, "GET": LIST}[method]
    return {"HEAD": LOOK, "DELETE": REMOVE, "GET": READ}.get(method, OTHER)


def kind_at_google(method: str, path: str, headers: Mapping[str, str]) -> str:
    """What a request of Google's JSON API asks for."""
    asked = parse_qs(urlsplit(path).query)
    if "upload_id" in asked:
        span = headers.get("Content-Range", "")
        return ABORT if method == "DELETE" else ASK if span == "bytes */*" else PART if span[-1] == "*" else COMPLETE
    reads = READ if asked.get("alt") == ["media"] else LOOK
    return {"POST": BEGIN, "DELETE": REMOVE, "GET": reads}[method]


def kind_at_s3(method: str, path: str, headers: Mapping[str, str]) -> str:
    """What a request of S3 asks for."""
    asked = parse_qs(urlsplit(path).query, keep_blank_values=True)
    if "uploads" in asked:
        return BEGIN if method == "POST" else UPLOADS
    if "uploadId" in asked:
        return {"PUT": PART, "GET": LIST, "POST": COMPLETE, "DELETE": ABORT}[method]
    is_object = urlsplit(path).path.strip("/").count("/") > 0
    return {"HEAD": LOOK, "DELETE": REMOVE, "GET": READ if is_object else OTHER}.get(method, OTHER)


def xml(code: str) -> tuple[str, str]:
    """How S3 refuses."""
    return "application/xml", f"<Error><Code>{code}</Code><Message>said by the test</Message></Error>"


def as_azure(code: str) -> tuple[str, str]:
    """How Azure refuses: with more words for who is not let in."""
    more = EXPIRED if code == AZURE_REFUSALS["expired"][1] else ""
    return "application/xml", f"<Error><Code>{code}</Code><Message>said by the test</Message>{more}</Error>"


def as_json(code: str) -> tuple[str, str]:
    """How Google refuses."""
    words = "The specified bucket does not exist." if code == "notFound" else "said by the test\x1b[31m"
    return "application/json", json.dumps({"error": {"message": words, "errors": [{"reason": code}]}})


class Dialect(NamedTuple):
    """How a kind of store speaks: what a request asks for, and how it refuses."""

    kind_of: Callable[[str, str, Mapping[str, str]], str]
    refusals: Mapping[str, tuple[int, str]]
    say: Callable[[str], tuple[str, str]]


S3 = Dialect(kind_at_s3, REFUSALS, xml)
AZURE = Dialect(kind_at_azure, AZURE_REFUSALS, as_azure)
GOOGLE = Dialect(kind_at_google, GOOGLE_REFUSALS, as_json)


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client's."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *words: Any) -> None:
        """Say nothing."""

    def handle(self) -> None:
        with suppress(ConnectionError, ValueError):  # the client, or we, have closed it
            super().handle()

    def _serve(self) -> None:
        speaks, size = self.server.dialect, int(self.headers.get("Content-Length") or 0)
        kind = speaks.kind_of(self.command, self.path, self.headers)
        fault = self.server.fault(kind)
        if fault == RESET:
            self.rfile.read(size // 2)
            self._reset()
            return
        body = self.rfile.read(size)
        if fault in speaks.refusals:
            status, code = speaks.refusals[fault]
            form, said = speaks.say(code)
            self._answer(status, {"Content-Type": form, "x-ms-error-code": code}, said.encode())
            return
        if fault == GARBAGE:
            self._answer(200, {"Content-Type": "text/html"}, b"<html>welcome to the hotel<br>")
            return
        if fault == STALL:
            self.server.ended.wait(self.server.stall)
            self.close_connection = True
            return
        if fault == CHANGED and body:
            body = body[: size // 2] + bytes([body[size // 2] ^ 1]) + body[size // 2 + 1 :]
        status, headers, answer = self._forward(body)
        if fault == LATE:
            self.server.ended.wait(self.server.stall)
            self.close_connection = True
            return
        if fault in (LOST, CUT, TORN, HALTED):
            if fault != LOST:
                self._answer(status, headers, answer, most=len(answer) // 2)
            if fault == TORN:
                self._reset()
            if fault == HALTED:
                self.server.ended.wait(self.server.stall)
            self.close_connection = True
            return
        if fault == WRONG and answer:
            answer = answer[: len(answer) // 2] + bytes([answer[len(answer) // 2] ^ 1]) + answer[len(answer) // 2 + 1 :]
        if fault in LIES and status == 308:
            headers["Range"] = "bytes=0-99" if fault == BACKWARDS else f"bytes=0-{10**12}"
        self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "connection")}
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)) as onward:
            onward.request(self.command, self.path, body or None, headers)
            with onward.getresponse() as answer:
                return answer.status, dict(answer.getheaders()), answer.read()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, most: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        length = headers.get("content-length", headers.get("Content-Length")) if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:most])


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, store: Store | Azure | Server, plan: Plan, stall: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.dialect = AZURE if isinstance(store, Azure) else GOOGLE if isinstance(store, Server) else S3
        self.port = urlsplit(store.endpoint).port
        self.ended, self.stall = threading.Event(), stall
        self._plan, self._lock = plan, threading.Lock()

    def fault(self, kind: str) -> str | None:
        with self._lock:
            return self._plan(kind)


@contextmanager
def faulty(store: Store | Azure | Server, plan: Plan, stall: float = 60) -> Iterator[str]:
    """The endpoint of a proxy before the store. A stalled request ends after `stall` seconds, or with the context."""
    server = _Server(store, plan, stall)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{urlsplit(store.endpoint).path}"
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def once(kind: str, fault: str, at: int = 1) -> Plan:
    """The request of that kind with that number meets the fault."""
    seen = 0

    def plan(asked: str) -> str | None:
        nonlocal seen
        seen += asked == kind
        return fault if asked == kind and seen == at else None

    return plan


def always(kind: str, fault: str) -> Plan:
    """Each request of that kind meets the fault."""
    return lambda asked: fault if asked == kind else None
