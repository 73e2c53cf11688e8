"""A server of Google Cloud Storage for tests, as far as an upload, a read and a removal need it.

It does what Google documents and its own test bench does (googleapis/storage-testbench), where the published emulators
do something else, by which a test of ours would prove nothing or fail: fake-gcs-server (which the tests also run) makes
the object when it is only asked what it has (`bytes */*`), appends what is sent twice, looks at no X-Goog-Hash, removes
an object whatever its generation, and ends no session; gcp-storage-emulator knows no conditions.

    storage/docs/performing-resumable-uploads, resumable-uploads    sessions
    storage/docs/request-preconditions, data-validation             conditions, checksums
    storage/docs/transcoding                                        Content-Encoding
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c

GRAIN = 256 << 10


class Thing(NamedTuple):
    """An object."""

    data: bytes
    generation: int
    metadata: Mapping[str, str]
    encoding: str = ""

    @property
    def crc32c(self) -> str:
        return base64.b64encode(google_crc32c.Checksum(self.data).digest()).decode()

    def resource(self) -> dict[str, Any]:
        return {
            "kind": "storage#object",
            "generation": str(self.generation),
            "size": str(len(self.data)),
            "crc32c": self.crc32c,
            "metadata": dict(self.metadata),
        }


class Session:
    """An upload that was begun."""

    def __init__(self, bucket: str, key: str, metadata: Mapping[str, str], condition: str | None) -> None:
        self.bucket, self.key, self.metadata, self.condition = bucket, key, metadata, condition
        self.data = bytearray()
        self.made: Thing | None = None
        self.lock = threading.Lock()


class Refused(Exception):
    """An answer that refuses."""

    def __init__(self, status: int, reason: str, words: str) -> None:
        self.status, self.reason, self.words = status, reason, words


class Server(ThreadingHTTPServer):
    """The state of it. `token` is the one that requests must have, if any; `hashes` is False for a store that looks at
    no X-Goog-Hash. `spans` are the Content-Ranges that came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.buckets: dict[str, dict[str, Thing]] = {}
        self.sessions: dict[str, Session] = {}
        self.token: str | None = None
        self.hashes = True
        self.spans: list[str] = []
        self.lock = threading.Lock()
        self._numbers = itertools.count(1_700_000_000_000_001)

    def bucket(self) -> GoogleBucket:
        """A new bucket."""
        name = f"bucket-{next(self._numbers)}"
        self.buckets[name] = {}
        return GoogleBucket(self, name)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that a test has broken."""

    def things(self, bucket: str) -> dict[str, Thing]:
        try:
            return self.buckets[bucket]
        except KeyError:
            raise Refused(404, "notFound", "The specified bucket does not exist.") from None

    def thing(self, bucket: str, key: str, query: Mapping[str, str]) -> Thing:
        found = self.things(bucket).get(key)
        if found is None or query.get("generation", str(found.generation)) != str(found.generation):
            raise Refused(404, "notFound", f"No such object: {bucket}/{key}")
        self.demand(found, query.get("ifGenerationMatch"))
        return found

    def demand(self, found: Thing | None, condition: str | None) -> None:
        if condition is not None and int(condition) != (0 if found is None else found.generation):
            raise Refused(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")

    def store(self, bucket: str, key: str, data: bytes, metadata: Mapping[str, str], encoding: str = "") -> Thing:
        with self.lock:
            made = Thing(data, next(self._numbers), metadata, encoding)
            self.things(bucket)[key] = made
            return made

    # --- sessions

    def begin(self, bucket: str, query: Mapping[str, str], body: bytes) -> str:
        """Return the id of a session. A condition that does not hold now is refused now, and again at the end."""
        self.demand(self.things(bucket).get(query["name"]), query.get("ifGenerationMatch"))
        with self.lock:
            id = f"secret-{next(self._numbers)}"
            metadata = json.loads(body or b"{}").get("metadata", {})
            self.sessions[id] = Session(bucket, query["name"], metadata, query.get("ifGenerationMatch"))
            return id

    def session(self, id: str) -> Session:
        try:
            return self.sessions[id]
        except KeyError:
            raise Refused(404, "notFound", "Not Found") from None

    def send(self, id: str, span: str, body: bytes, said: str | None) -> Thing | int:
        """Take a request of a session. Return the object, or how many bytes are there."""
        session = self.session(id)
        with session.lock:
            if session.made is not None:
                return session.made
            found = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", span)
            if found is None:
                raise Refused(400, "invalid", "Failed to parse Content-Range header.")
            total = None if found[3] == "*" else int(found[3])
            if found[1] is not None:
                first, size = int(found[1]), int(found[2]) - int(found[1]) + 1
                if size != len(body) or (total is None and (first + size) % GRAIN):
                    raise Refused(400, "badRequest", "Invalid request. The number of bytes is not a multiple of 262144")
                if first > len(session.data):
                    raise Refused(400, "badRequest", "Invalid request. The upload offset exceeds already uploaded size")
                session.data += body[len(session.data) - first :]
            if total != len(session.data):
                return len(session.data)
            return self._finish(id, session, said)

    def _finish(self, id: str, session: Session, said: str | None) -> Thing:
        crc = Thing(bytes(session.data), 0, {}).crc32c
        if said is not None and self.hashes and said != f"crc32c={crc}":
            del self.sessions[id]
            words = f'Provided CRC32C "{said[7:]}" doesn\'t match calculated CRC32C "{crc}".'
            raise Refused(400, "invalid", words)
        with self.lock:
            self.demand(self.things(session.bucket).get(session.key), session.condition)
            session.made = Thing(bytes(session.data), next(self._numbers), session.metadata)
            self.things(session.bucket)[session.key] = session.made
        return session.made

    def forget(self, bucket: str) -> None:
        """Remove a bucket, and what is left of its uploads."""
        del self.buckets[bucket]
        self.sessions = {id: each for id, each in self.sessions.items() if each.bucket != bucket}

    def open_sessions(self, bucket: str) -> list[str]:
        """The keys of uploads that were neither completed nor ended."""
        return [each.key for each in self.sessions.values() if each.bucket == bucket and each.made is None]


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client's."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *words: Any) -> None:
        """Say nothing."""

    def handle(self) -> None:
        with suppress(ConnectionError, ValueError):  # the client, or a proxy, has closed it
            super().handle()

    def _serve(self) -> None:
        asked = urlsplit(self.path)
        query = dict(parse_qsl(asked.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self._demand_token("upload_id" in query)
            if asked.path.startswith("/upload/"):
                self._upload(unquote(asked.path.split("/")[5]), query, body)
            else:
                names = [unquote(each) for each in asked.path.split("/")[4:]]  # b/BUCKET/o/KEY
                self._object(names[0], names[2], query)
        except Refused as error:
            if query.get("alt") == "media":
                self._answer(error.status, error.words.encode(), {"Content-Type": "text/html; charset=UTF-8"})
                return
            told = {"code": error.status, "message": error.words, "errors": [{"reason": error.reason}]}
            self._json(error.status, {"error": told})

    do_GET = do_PUT = do_POST = do_DELETE = _serve

    def _demand_token(self, has_uri: bool) -> None:
        """A session's URI is a right by itself."""
        token = self.server.token
        if token is not None and not has_uri and self.headers.get("Authorization") != f"Bearer {token}":
            raise Refused(401, "authError", "Invalid Credentials")

    def _upload(self, bucket: str, query: Mapping[str, str], body: bytes) -> None:
        if self.command == "POST":
            id = self.server.begin(bucket, query, body)
            uri = f"http://{self.headers['Host']}{self.path}&upload_id={id}"
            self._answer(200, b"", {"Location": uri})
        elif self.command == "DELETE":
            self.server.session(query["upload_id"])
            del self.server.sessions[query["upload_id"]]
            self._answer(499, b"")
        else:
            span, said = self.headers["Content-Range"], self.headers.get("X-Goog-Hash")
            self.server.spans.append(span)
            made = self.server.send(query["upload_id"], span, body, said)
            if isinstance(made, Thing):
                self._json(200, made.resource())
            else:
                self._answer(308, b"", {"Range": f"bytes=0-{made - 1}"} if made else {})

    def _object(self, bucket: str, key: str, query: Mapping[str, str]) -> None:
        found = self.server.thing(bucket, key, query)
        if self.command == "DELETE":
            del self.server.things(bucket)[key]
            self._answer(204, b"")
        elif query.get("alt") == "media":
            self._media(found)
        else:
            self._json(200, found.resource())

    def _media(self, found: Thing) -> None:
        data, stored = found.data, found.encoding or "identity"
        told = {
            "X-Goog-Generation": str(found.generation),
            "X-Goog-Stored-Content-Encoding": stored,
            "X-Goog-Stored-Content-Length": str(len(data)),
            "Content-Type": "application/octet-stream",
        }
        if stored == "gzip" and "gzip" not in self.headers.get("Accept-Encoding", ""):
            self._answer(200, gzip.decompress(data), told)  # all of it, whatever the range
            return
        if stored != "identity":
            told["Content-Encoding"] = stored
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            self._answer(200, data, told)
            return
        first = int(span[1]) if span[1] else max(len(data) - int(span[2]), 0)
        after = min(int(span[2]) + 1, len(data)) if span[1] and span[2] else len(data)
        if first >= len(data):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        self._answer(206, data[first:after], {**told, "Content-Range": f"bytes {first}-{after - 1}/{len(data)}"})

    def _json(self, status: int, what: Mapping[str, Any]) -> None:
        self._answer(status, json.dumps(what).encode(), {"Content-Type": "application/json; charset=UTF-8"})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response_only(status, "said")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class GoogleBucket(NamedTuple):
    """A bucket of a test's own, seen in the server's memory."""

    store: Server
    name: str

    def address(self, key: str) -> str:
        return f"gs://{self.name}/{key}"

    def through(self, endpoint: str) -> dict[str, str]:
        """What leads ours to a proxy."""
        return {"STORAGE_EMULATOR_HOST": endpoint}

    def get(self, key: str) -> bytes | None:
        """The object's bytes; None if there is none."""
        found = self.store.buckets[self.name].get(key)
        return None if found is None else found.data

    def put(self, key: str, data: bytes, encoding: str = "") -> None:
        self.store.store(self.name, key, data, {}, encoding)

    def keys(self) -> list[str]:
        return list(self.store.buckets[self.name])

    def uploads(self) -> list[str]:
        """The keys of uploads that are neither completed nor ended."""
        return self.store.open_sessions(self.name)


@contextmanager
def google() -> Iterator[Server]:
    """A server in threads of this process."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
