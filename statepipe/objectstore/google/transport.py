"""Requests to Google's store: where it is, who we are, and what becomes of errors on the way.

google-auth finds the credentials and renews their tokens; requests brings the answers. Neither tries again by itself
here, follows a redirect, or reads more of an answer than is asked for.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from types import SimpleNamespace
from urllib.parse import quote

from statepipe.errors import StatepipeError, UsageError
from statepipe.extras import extra
from statepipe.objectstore.address import ObjectAddress
from statepipe.objectstore.failures import Transient, unreadable
from statepipe.objectstore.google.answers import Answer, broken, read_refusal, refused, without_secrets
from statepipe.objectstore.settings import CONNECT, Settings, demand_endpoint
from statepipe.objectstore.store import Rereadable
from statepipe.objectstore.trickle import read_up_to
from statepipe.typed import Any

PIECE = 128 << 10
"""Bytes that are given to the network at once: a link that moves these in the time of a silence is not stalled."""

CONNECTIONS = 40
"""Connections that are kept open at most: more than a reader has requests under way."""

ANSWER_LIMIT = 1 << 20
"""Bytes of an answer that is JSON, at most: an object's notes have 8 KiB."""

SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"

UNIVERSE = "googleapis.com"

EMULATOR = "STORAGE_EMULATOR_HOST"
"""The variable with which Google's own tools are led to an emulator. It gets no credentials."""

_HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")


class Slice:
    """`size` bytes of a file at `at`, as the body of a request."""

    def __init__(self, file: Rereadable, at: int, size: int) -> None:
        self._file, self._left = file, size
        self.len = size  # what requests asks for
        file.seek(at)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most `size`."""
        piece = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(piece)
        return piece

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read(PIECE):
            yield piece


class Transport:
    """Makes requests to the store. `endpoint` is its URL; `crc` continues a CRC32C. Any thread may call it.

    Raises StatepipeError if there are no credentials, or a package is missing.
    """

    def __init__(self, settings: Settings) -> None:
        with extra("object"):
            import google.auth
            import google.auth.exceptions
            import google.auth.transport.requests
            import google_crc32c
            import requests
            import requests.adapters
            import requests.exceptions
            import urllib3.exceptions
        self._libraries = SimpleNamespace(
            requests=requests.exceptions, urllib3=urllib3.exceptions, auth=google.auth.exceptions
        )
        self._errors = (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            google.auth.exceptions.GoogleAuthError,
            OSError,
        )
        if google_crc32c.implementation != "c":
            what = "the Python package google-crc32c has no compiled part here, and would be a hundred times slower"
            raise StatepipeError(what, hint="install its wheel for this Python and machine, or use s3://")
        self.crc: Callable[[int, bytes], int] = google_crc32c.extend
        self._silence = settings.silence
        self._timeout = (min(CONNECT, settings.silence), settings.silence)
        logging.getLogger("urllib3.connectionpool").addFilter(without_secrets)
        self._http = requests.Session()
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=CONNECTIONS, max_retries=0)
        adapter.init_poolmanager(CONNECTIONS, CONNECTIONS, blocksize=PIECE)
        self._http.mount("https://", adapter)
        self._http.mount("http://", adapter)
        self._http.headers["User-Agent"] = "statepipe"
        self._lock = threading.Lock()
        self._credentials: Any = None
        default: Any = google.auth.default
        if named := os.environ.get(EMULATOR):
            self.endpoint = demand_endpoint(named if "://" in named else f"http://{named}").rstrip("/")
            return
        plain = google.auth.transport.requests.Request(requests.Session())
        self._renewer = lambda *words, **more: plain(*words, **{**more, "timeout": settings.silence})
        with self.told("find the credentials for gs://"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it advises about quotas of projects
            self._credentials, _ = default(scopes=[SCOPE], request=self._renewer)
            universe = str(getattr(self._credentials, "universe_domain", UNIVERSE))
        if not _HOST.fullmatch(universe):
            raise UsageError("the credentials name no domain of a store", hint="check universe_domain in their file")
        self.endpoint = f"https://storage.{universe}"

    def url(self, address: ObjectAddress) -> str:
        """Return the URL of an object."""
        return f"{self.endpoint}/storage/v1/b/{quote(address.bucket, safe='')}/o/{quote(address.key, safe='')}"

    @contextmanager
    def asked(
        self,
        doing: str,
        method: str,
        url: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Slice | bytes | None = None,
        *,
        is_session: bool = False,
    ) -> Iterator[Any]:
        """Within it, the answer to one request is there, and its body is not read yet. Raises StatepipeError."""
        with closing(self.answer(doing, method, url, query, headers, body, is_session=is_session)) as answer:
            yield answer
            self._body(answer, doing)  # an answer that was read to its end leaves its connection to the next request

    def answer(
        self,
        doing: str,
        method: str,
        url: str,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        body: Slice | bytes | None = None,
        *,
        is_session: bool = False,
    ) -> Any:
        """Return the answer to one request, to be closed. A session's URI is all that its requests need.

        Raises StatepipeError.
        """
        token = ""

        def authorize(request: Any) -> Any:
            """Also keeps requests from taking another user's name from ~/.netrc."""
            nonlocal token
            if self._credentials is not None and not is_session:
                token = self._authorize(request)
            return request

        with self.told(doing):
            answer = self._http.request(
                method,
                url,
                params=query,
                data=body,
                headers=headers,
                auth=authorize,
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            )
        if answer.status_code == 401 and token:
            with closing(answer):
                raise self._renewed(token, self.refusal(answer, doing), doing)
        return answer

    def _authorize(self, request: Any) -> str:
        """Sign a request with a token that is renewed before its end. Return it."""
        with self._lock:
            self._credentials.before_request(self._renewer, request.method, request.url, request.headers)
            return str(self._credentials.token)

    def _renewed(self, token: str, refusal: Answer, doing: str) -> StatepipeError:
        """Return the error for a token that was refused before its end: another attempt helps if there is a new one."""
        error = refused(refusal, doing, "")
        with self._lock, self.told(doing):
            if self._credentials.token == token:
                self._credentials.refresh(self._renewer)
            is_new = self._credentials.token != token
        return Transient(str(error), hint=error.hint) if is_new else error

    @contextmanager
    def told(self, doing: str) -> Iterator[None]:
        """Turn the libraries' errors into ours. Raises StatepipeError."""
        try:
            yield
        except self._errors as error:
            # The cause is not kept: it may tell a session's URI.
            raise broken(error, doing, self._libraries) from None

    def demand(self, answer: Any, statuses: Sequence[int], doing: str, rights: str) -> None:
        """Raise StatepipeError unless the answer has one of these statuses."""
        if answer.status_code not in statuses:
            raise refused(self.refusal(answer, doing), doing, rights)

    def refusal(self, answer: Any, doing: str) -> Answer:
        """Return what an answer says that refuses. Raises Transient if it is cut short."""
        return read_refusal(answer.status_code, self._body(answer, doing))

    def _body(self, answer: Any, doing: str) -> bytes:
        return self.read(answer, ANSWER_LIMIT, doing, unpacked=True)

    def read(self, answer: Any, size: int, doing: str, *, unpacked: bool) -> bytes:
        """Return the next `size` bytes of an answer's body, fewer at its end. Raises Transient if they do not come."""
        read1 = partial(answer.raw.read1, decode_content=unpacked)
        with self.told(doing):
            return read_up_to(read1, size, self._silence, doing)

    def resource(self, answer: Any, doing: str) -> dict[str, Any]:
        """Return the JSON of an answer. Raises Transient for what is none."""
        body = self._body(answer, doing)
        try:
            found = json.loads(body)
        except ValueError as error:
            raise unreadable(error, doing) from error
        if not isinstance(found, dict):
            raise unreadable(ValueError(), doing)
        return found
