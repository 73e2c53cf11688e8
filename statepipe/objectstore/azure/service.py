"""The place of Azure's blobs and who asks there, found by azure-storage-blob as by Azure's own tools.

    AZURE_STORAGE_CONNECTION_STRING           all in one
    AZURE_STORAGE_SERVICE_ENDPOINT            the place, otherwise our setting `endpoint`, otherwise the account's name
    AZURE_STORAGE_ACCOUNT                     with AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN
    AZURE_STORAGE_AUTH_MODE=login, or neither   azure-identity: variables, the instance, az login

Of the library, the pipeline is used: it signs and brings tokens. Import: 0.21 s, with azure-identity 0.1 s more.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from urllib.parse import quote, urlencode

from statepipe.errors import UsageError
from statepipe.extras import extra
from statepipe.objectstore.address import ObjectAddress
from statepipe.objectstore.azure.answers import CREDENTIALS, broken
from statepipe.objectstore.failures import cut_short, unfit
from statepipe.objectstore.settings import CONNECT, Settings, endpoint_for_azure
from statepipe.objectstore.trickle import read_up_to
from statepipe.typed import Any, NamedTuple, Protocol

VERSION = "2020-10-02"
"""Of the protocol. What is used here has been in it since 2019-12-12, and other stores that speak it may be older."""

CONNECTIONS = 40
"""Connections that are kept open at most: more than there are requests at once."""

SMALL = 64 << 10
"""Bytes of an answer's body, if it is neither a blob nor a list."""

DOMAIN = "blob.core.windows.net"


class Body(Protocol):
    """Bytes to send, again if need be."""

    def __len__(self) -> int: ...


class Request(NamedTuple):
    """What is asked for: of which object, in words what is being done, and which right it needs."""

    method: str
    address: ObjectAddress
    doing: str
    right: str
    query: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    body: bytes | Body = b""


class Answer:
    """What the store answered: its status, its headers, and its body on the way. Closed before its end, it gives up its
    connection."""

    def __init__(self, response: Any, doing: str, silence: float, errors: tuple[type[Exception], ...]) -> None:
        self._silence = silence
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._response, self._doing, self._errors = response.internal_response, doing, errors

    @property
    def code(self) -> str:
        """The store's word for an error, empty if it has none."""
        return self.headers.get("x-ms-error-code", "")

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes. Raises Transient if they do not come."""
        data = self._up_to(size)
        if len(data) != size:
            raise cut_short(self._doing)
        return data

    def whole(self, most: int = SMALL) -> bytes:
        """Return all that is left. Raises Transient if that is more than `most` bytes, or its end does not come."""
        data = self._up_to(most + 1)
        if len(data) > most:
            raise unfit(f"sent more than the {most} bytes that are expected at most", self._doing)
        return data

    def _up_to(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer at the end. Raises Transient, also if they come one by one."""
        try:
            return read_up_to(self._response.raw.read1, size, self._silence, self._doing)
        except self._errors as error:
            raise broken(error, self._doing) from error

    def close(self) -> None:
        """End it."""
        self._response.close()


class Service:
    """Makes requests: one attempt each. Raises StatepipeError if no client can be made. `url` has no signature."""

    def __init__(self, settings: Settings) -> None:
        with extra("object"):
            import requests
            import requests.adapters
            from azure.core.exceptions import AzureError
            from azure.core.pipeline.transport import HttpRequest, RequestsTransport
            from azure.storage.blob import BlobServiceClient
            from urllib3.connection import HTTPConnection
            from urllib3.exceptions import HTTPError

        class Adapter(requests.adapters.HTTPAdapter):
            """A pool for all our threads, whose connections notice when the store is gone."""

            def init_poolmanager(self, *words: Any, **options: Any) -> None:
                alive = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                options["socket_options"] = [*HTTPConnection.default_socket_options, alive]
                super().init_poolmanager(*words, **options)

        # Without a handler of their own, their warnings would go to standard error: a page of them without a login.
        for name in ("azure", "msal"):
            logging.getLogger(name).addHandler(logging.NullHandler())
        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, Adapter(pool_connections=4, pool_maxsize=CONNECTIONS))
        transport = RequestsTransport(
            session=session,
            session_owner=False,
            connection_timeout=min(CONNECT, settings.silence),
            read_timeout=settings.silence,
        )
        how = {"transport": transport, "retry_total": 0, "permit_redirects": False, "user_agent": "statepipe"}
        self._silence = settings.silence
        self._errors = AzureError, HTTPError, requests.RequestException, OSError
        client = _client(BlobServiceClient, settings, how)
        self._request: Any = HttpRequest
        self.url: str
        self.url, _, self._signature = client.url.partition("?")
        # The library has no public way to send a request of one's own. This attribute is in all of its releases (12.0
        # to 12.31), and its own clients hand it to one another.
        self._pipeline: Any = client._pipeline

    def ask(self, request: Request) -> Answer:
        """Make a request and return the answer, of whatever status. Raises StatepipeError."""
        address = request.address
        query = "&".join(filter(None, (urlencode(request.query, quote_via=quote), self._signature)))
        url = f"{self.url.rstrip('/')}/{quote(address.bucket)}/{quote(address.key, safe='/~')}"
        headers = {"x-ms-version": VERSION, "Accept-Encoding": "identity", **request.headers}
        asked = self._request(request.method, f"{url}?{query}" if query else url, headers, data=request.body or None)
        try:
            return Answer(
                self._pipeline.run(asked, stream=True).http_response, request.doing, self._silence, self._errors
            )
        except self._errors as error:
            raise broken(error, request.doing) from error


def _client(kind: Any, settings: Settings, how: Mapping[str, Any]) -> Any:
    """Return a client of the library, with the place and the credentials of the environment.

    Raises UsageError, StatepipeError.
    """
    environment = os.environ.get
    if given := environment("AZURE_STORAGE_CONNECTION_STRING"):
        try:
            return kind.from_connection_string(given, **how)
        except ValueError:
            what = "AZURE_STORAGE_CONNECTION_STRING holds no connection string"
            raise UsageError(what, hint="copy it anew: az storage account show-connection-string") from None
    account, endpoint = environment("AZURE_STORAGE_ACCOUNT"), endpoint_for_azure(settings)
    if not (account or endpoint):
        raise UsageError("it is not known in which account of Azure's this is", hint=CREDENTIALS)
    key, signature = environment("AZURE_STORAGE_KEY"), environment("AZURE_STORAGE_SAS_TOKEN", "")
    credential: Any
    if environment("AZURE_STORAGE_AUTH_MODE") == "login" or not (key or signature):
        credential = _identity()
    elif key and account:
        credential = {"account_name": account, "account_key": key}
    elif key:
        raise UsageError("AZURE_STORAGE_KEY is set, and AZURE_STORAGE_ACCOUNT is not", hint="set both")
    else:
        from azure.core.credentials import AzureSasCredential

        credential = AzureSasCredential(signature)
    try:
        return kind(endpoint or f"https://{account}.{DOMAIN}", credential, **how)
    except ValueError as error:
        named = endpoint or f"{account}"
        place = named.partition("?")[0]  # what follows may be a signature
        what = f"no store of Azure's can be reached at {place}: {error}".replace(named, place)
        raise UsageError(what, hint="check AZURE_STORAGE_ACCOUNT and the endpoint; a login needs https") from None


def _identity() -> Any:
    """Return who we are by azure-identity: of variables, of the instance, or of az login."""
    with extra("object"):
        from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential()
