"""Objects at az://, against Azurite: the store's two roles, and the verbs as a person types them."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from statepipe.errors import StatepipeError, UsageError
from statepipe.objectstore.address import parse_object
from statepipe.objectstore.azure.blockids import BlockId, new_upload, parse_block_id, started
from statepipe.objectstore.azure.client import AzureStore
from statepipe.objectstore.failures import Missing, Occupied, Replaced, UploadGone
from statepipe.objectstore.parts import is_same
from statepipe.objectstore.settings import Settings
from statepipe.objectstore.store import Content, Part, Seen, Upload
from tests.object.azurite import ACCOUNT, KEY, Container, azurite
from tests.object.faulty import COMPLETE, PART, READ, WRONG, always, faulty, once
from tests.object.lying import Answer, lying, says
from tests.object.stores import DATA
from tests.object.test_put import kill_at_the_commit, run
from tests.statefiles import noisy_stream

ODD = "some/k e?y%20ü#+'.state"


@pytest.fixture
def store(container: Container) -> AzureStore:
    return AzureStore(Settings())


def content(data: bytes) -> Content:
    return Content(io.BytesIO(data), len(data))


def uploaded(store: AzureStore, address: str, *parts: bytes) -> tuple[Upload, list[Part]]:
    upload = store.begin(parse_object(address), {}, overwrite=False)
    return upload, [store.put(upload, number, content(data)) for number, data in enumerate(parts, 1)]


def fetched(store: AzureStore, address: str, seen: Seen | None, start: int | None, size: int) -> bytes:
    found = store.fetch(parse_object(address), seen, start, size)
    data = found.read(found.size)
    found.close()
    return data


def test_an_object_is_there_once_its_upload_is_completed(store: AzureStore, container: Container) -> None:
    address = parse_object(container.address(ODD))
    assert store.look(address) is None
    upload, parts = uploaded(store, str(address), b"a" * 1000, b"end")
    assert list(store.parts(upload)) == parts
    assert list(store.begun(address)) == [upload]
    assert container.keys() == [] and store.look(address) is None
    store.complete(upload, parts, {"statepipe-upload": "it"}, overwrite=False)
    seen = store.look(address)
    assert seen is not None and (seen.size, seen.notes) == (1003, {"statepipe-upload": "it"})
    assert container.get(ODD) == b"a" * 1000 + b"end"
    for start, size, data in ((998, 4, b"aaen"), (998, 100, b"aaend"), (None, 3, b"end"), (1003, 5, b""), (0, 1, b"a")):
        assert fetched(store, str(address), seen, start, size) == data
    assert fetched(store, str(address), None, None, 2000) == b"a" * 1000 + b"end"
    with pytest.raises(UploadGone):
        list(store.parts(upload))


def test_an_object_is_not_overwritten_unless_asked(store: AzureStore, container: Container) -> None:
    address = container.address("key")
    container.put("key", b"older")
    upload, parts = uploaded(store, address, b"newer")
    with pytest.raises(Occupied, match=f"{address} exists already"):
        store.complete(upload, parts, {}, overwrite=False)
    assert container.get("key") == b"older"
    store.complete(upload, parts, {}, overwrite=True)
    assert container.get("key") == b"newer"


def test_another_object_is_neither_read_nor_removed(store: AzureStore, container: Container) -> None:
    address = container.address("key")
    container.put("key", b"older")
    older = store.look(parse_object(address))
    assert older is not None
    container.put("key", b"newer")
    for start in (0, None, 100):
        with pytest.raises(Replaced, match=f"{address} was replaced"):
            fetched(store, address, older, start, 3)
    with pytest.raises(Occupied, match="another object by now"):
        store.remove(parse_object(address), older)
    newer = store.look(parse_object(address))
    assert newer is not None
    store.remove(parse_object(address), newer)
    store.remove(parse_object(address), newer)
    assert container.keys() == []
    with pytest.raises(Replaced):
        fetched(store, address, newer, 0, 3)
    with pytest.raises(Missing) as raised:
        fetched(store, address, None, 0, 3)
    assert raised.value.hint is not None and "az storage blob list" in raised.value.hint


def test_an_object_may_be_empty(store: AzureStore, container: Container) -> None:
    upload, parts = uploaded(store, container.address("key"), b"")
    assert list(store.parts(upload)) == []
    store.complete(upload, parts, {}, overwrite=False)
    assert container.get("key") == b""
    assert (
        fetched(store, container.address("key"), None, 0, 9)
        == fetched(store, container.address("key"), None, None, 9)
        == b""
    )


def test_writers_who_share_a_list_of_blocks_do_not_mix(store: AzureStore, container: Container) -> None:
    """A block that was sent again is beside the older one; and what another program has left there is not ours."""
    address = container.address("key")
    one, parts = uploaded(store, address, b"first")
    two, others = uploaded(store, address, b"second")
    again = store.put(one, 1, content(b"other"))
    assert list(store.parts(one)) == [*parts, again]
    assert list(store.parts(two)) == others
    assert [each.id for each in store.begun(parse_object(address))] == sorted([one.id, two.id])
    assert is_same(again, content(b"other")) and not is_same(again, content(b"first"))
    store.complete(one, [again], {}, overwrite=False)
    assert container.get("key") == b"other"
    for overwrite, error in ((False, Occupied), (True, UploadGone)):
        with pytest.raises(error):
            store.complete(two, others, {}, overwrite=overwrite)
    container.blob("foreign").stage_block("a" * 20, b"data")
    with pytest.raises(StatepipeError, match="foreign: the store answered 400 InvalidBlobOrBlock") as raised:
        store.begin(parse_object(container.address("foreign")), {}, overwrite=False)
    assert raised.value.hint is not None and "another program" in raised.value.hint


def test_ids_of_blocks() -> None:
    id = BlockId(new_upload(1_800_000_000.25), 50_000, content(b"data").sha256)
    assert len(str(id)) == 76
    assert parse_block_id(str(id)) == id
    time = started(id.upload)
    assert time is not None and time.timestamp() == 1_800_000_000.25
    assert started("f" * 28) is None
    assert new_upload(1.0) != new_upload(1.0)
    for other in ("", "AAAA", "not base64!", "ü", "QUFB" * 19):
        assert parse_block_id(other) is None


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "it is not known in which account"),
        ({"AZURE_STORAGE_KEY": KEY}, "it is not known in which account"),
        ({"AZURE_STORAGE_KEY": KEY, "AZURE_STORAGE_SERVICE_ENDPOINT": "https://h"}, "AZURE_STORAGE_ACCOUNT is not"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "sig=SECRET"}, "_CONNECTION_STRING holds no connection string"),
        ({"AZURE_STORAGE_SERVICE_ENDPOINT": "http://127.0.0.1:1/account"}, "a login needs https"),
        (
            {"AZURE_STORAGE_SERVICE_ENDPOINT": "https://h/?sv=1&sig=SECRET", "AZURE_STORAGE_SAS_TOKEN": "sig=SECRET"},
            "can be reached at https://h/:",
        ),
        (
            {"AZURE_STORAGE_SERVICE_ENDPOINT": "?sv=1&sig=SECRET", "AZURE_STORAGE_SAS_TOKEN": "sig=SECRET"},
            "Invalid URL: https:// ",
        ),
    ],
)
def test_what_leads_nowhere_is_said(environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as raised:
        AzureStore(Settings())
    assert said in f"{raised.value} {raised.value.hint}"
    assert "SECRET" not in f"{raised.value} {raised.value.hint} {raised.value.__cause__}"


def test_a_key_that_is_none_is_said(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, said in (
        ("SECRET", "the account's key is not in base64"),
        (KEY.replace("E", "F"), "AuthorizationFailure|AuthenticationFailed"),
    ):
        monkeypatch.setenv("AZURE_STORAGE_KEY", key)
        with pytest.raises(StatepipeError, match=said) as raised:
            AzureStore(Settings()).look(parse_object(container.address("key")))
        assert key not in f"{raised.value} {raised.value.hint}"


def test_a_connection_string_or_the_configuration_names_the_store(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, endpoint = container.address("key"), container.store.endpoint
    container.put("key", b"data")
    monkeypatch.delenv("AZURE_STORAGE_SERVICE_ENDPOINT")
    config = tmp_path / "config.toml"
    config.write_text(f'endpoint = "{endpoint}"\n')
    done = run("get", address, env={**os.environ, "STATEPIPE_CONFIG": str(config)})
    assert (done.returncode, done.stdout) == (0, b"data"), done.stderr
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT")
    words = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint};"
    done = run("get", address, env={**os.environ, "AZURE_STORAGE_CONNECTION_STRING": words})
    assert (done.returncode, done.stdout) == (0, b"data"), done.stderr


def test_verbs_write_and_read_blobs(container: Container, tmp_path: Path) -> None:
    stream, state = noisy_stream(), container.address("vm.state")
    saved = run("save", state, data=stream)
    assert saved.returncode == 0, saved.stderr
    again = run("save", state, data=stream)
    assert again.returncode == 2 and b"exists already" in again.stderr
    assert run("save", "--overwrite", state, data=stream).returncode == 0
    cut = run("save", container.address("cut"), data=stream[:-100])
    assert cut.returncode == 3 and b"goes a week after" in cut.stderr
    for verb in ("inspect", "verify-state"):
        done = run(verb, state)
        assert done.returncode == 0, done.stderr
    loaded = run("load", state)
    assert loaded.stdout == stream, loaded.stderr
    assert run("tee", container.address("copy"), data=DATA).stdout == DATA
    assert container.get("copy") == DATA
    for words in (["get"], ["get", "-o", tmp_path / "file"]):
        done = run(*words, container.address("copy"))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_bytes() == DATA
    stale = run("put", "--abort-stale", container.address(""))
    assert stale.returncode == 2 and b"a week after" in stale.stderr
    assert sorted(container.keys()) == ["copy", "vm.state"]


def test_after_a_kill_no_blob_is_there_and_resume_goes_on(container: Container, file: Path, tmp_path: Path) -> None:
    """With the blocks that are there, which are compared: of a file that changed, the changed one is sent anew."""
    words = ["put", container.address("key"), str(file), "--size", "1M"]
    kill_at_the_commit(container, words)
    assert container.keys() == []
    assert len(container.uncommitted("key")) == 4
    changed = tmp_path / "changed"
    changed.write_bytes(DATA[:-1] + b"\0")
    sent = 0

    def count(kind: str) -> str | None:
        nonlocal sent
        sent += kind == PART
        return "denied" if kind == COMPLETE else None

    for path, parts, fault in ((changed, 1, count), (file, 0, always(PART, "denied"))):
        with faulty(container.store, fault) as endpoint:
            environment = {**os.environ, **container.through(endpoint)}
            done = run("put", container.address("key"), path, *words[3:], "--resume", env=environment)
        assert done.returncode == parts, done.stderr
    assert sent == 1
    assert container.get("key") == DATA
    assert container.uncommitted("key") == []


def test_wrong_bytes_of_a_state_are_read_again(container: Container) -> None:
    stream = noisy_stream()
    assert run("save", container.address("key"), data=stream).returncode == 0
    with faulty(container.store, once(READ, WRONG)) as endpoint:
        done = run("verify-state", container.address("key"), env={**os.environ, **container.through(endpoint)})
    assert done.returncode == 3 and b"may have changed on its way" in done.stderr
    assert run("verify-state", container.address("key")).returncode == 0


def test_libraries_are_imported_when_they_are_needed_alone(container: Container) -> None:
    code = """
import sys
from statepipe.objectstore.open import open_store
from statepipe.objectstore.address import parse_object
from statepipe.objectstore.settings import Settings
before = "azure" in sys.modules
open_store(parse_object("az://container/key"), Settings())
print(before, "azure.storage.blob" in sys.modules, "azure.identity" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


def alone(**environment: str) -> dict[str, str]:
    """The environment of this host, and of Azure's variables these alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AZURE_")} | environment


def test_without_a_login_that_is_all_that_is_said() -> None:
    """The library would print a page. Only variables are looked for here, and no other host is asked."""
    environment = alone(AZURE_STORAGE_ACCOUNT="account", AZURE_TOKEN_CREDENTIALS="EnvironmentCredential")
    done = run("get", "az://container/key", env=environment)
    assert done.returncode == 1
    assert len(said := done.stderr.decode().splitlines()) == 2, said
    assert "az://container/key: there are no credentials for it" in said[0] and "az login" in said[1]


class Identity(BaseHTTPRequestHandler):
    """What an instance of Azure's asks who it is: it answers with a token, whose signature Azurite does not check."""

    def do_GET(self) -> None:
        assert self.headers["X-IDENTITY-HEADER"] == "mine"
        now = int(time.time())
        claims = {"iat": now - 60, "nbf": now - 60, "exp": now + 3600, "iss": "https://sts.windows.net/tenant/"}
        claims |= {"aud": "https://storage.azure.com", "ver": "1.0"}
        token = ".".join(
            base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
            for part in ({"alg": "RS256", "typ": "JWT"}, claims, {})
        )
        body = {"access_token": token, "expires_on": str(now + 3600), "resource": "it", "token_type": "Bearer"}
        self.send_response_only(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


def test_an_instance_s_identity_serves_over_tls(tmp_path: Path) -> None:
    authority, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-keyout", str(key), "-out", str(authority), "-subj", "/CN=127.0.0.1", "-addext"]
    subprocess.run([*words, "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    more = ["--oauth", "basic", "--cert", str(authority), "--key", str(key)]
    with HTTPServer(("127.0.0.1", 0), Identity) as server, azurite(tmp_path, *more) as store:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        environment = alone(
            AZURE_STORAGE_ACCOUNT=ACCOUNT,
            AZURE_STORAGE_SERVICE_ENDPOINT=store.endpoint,
            AZURE_TOKEN_CREDENTIALS="ManagedIdentityCredential",
            IDENTITY_ENDPOINT=f"http://127.0.0.1:{server.server_address[1]}/token",
            IDENTITY_HEADER="mine",
            NO_PROXY="127.0.0.1",
        )
        try:
            strange = run("put", "az://container/key", "--retry", "0", data=b"data", env=environment)
            environment["REQUESTS_CA_BUNDLE"] = str(authority)
            done = run("put", "az://container/key", data=b"data", env=environment)
        finally:
            server.shutdown()
            thread.join()
    assert strange.returncode == 1 and b"CERTIFICATE_VERIFY_FAILED" in strange.stderr, strange.stderr
    assert b"REQUESTS_CA_BUNDLE" in strange.stderr
    assert done.returncode == 1 and b"404 ContainerNotFound" in done.stderr, done.stderr  # so we were let in


WHAT = b"<BlockList>" + b" " * (33 << 20)


@pytest.mark.parametrize(
    ("method", "answer", "said"),
    [
        ("look", says(200, b"", 'ETag: "1"', length=10**30), "none: ValueError"),
        ("look", says(200, b"", f'ETag: "{"1" * 3000}"'), "none: ValueError"),
        ("fetch", says(206, b"x", 'ETag: "1"', f"Content-Range: bytes 0-0/{10**30}"), "none: ValueError"),
        ("fetch", says(206, b"x", 'ETag: "1"', "Content-Range: bytes 0-5/9"), "none: ValueError"),
        ("fetch", says(403, b"x" * (65 << 10), "x-ms-error-code: \x1b[31m"), "sent more than the 65536 bytes"),
        (
            "fetch",
            says(400, b"<Error><Message>\x7f\xc2\x9b31m</Message></Error>", "x-ms-error-code: A"),
            "400 A: \ufffd",
        ),
        ("begun", says(200, WHAT), "sent more than the 33554432 bytes"),
        ("begun", says(200, b"<BlockList><UncommittedBlocks>"), "none: ParseError"),
        (
            "begun",
            lambda request: request.answer(200, b"", length=9) or request.for_ever(b"x", 0.1),
            "none: ParseError",
        ),
        ("begun", lambda request: request.answer(200, b"", length=999) or request.for_ever(b"x", 0.1), "and no end"),
    ],
)
def test_what_a_store_sends_is_bounded_and_checked(
    method: str, answer: Answer, said: str, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = parse_object(container.address("key"))
    with lying(answer) as endpoint:
        monkeypatch.setenv("AZURE_STORAGE_SERVICE_ENDPOINT", f"{endpoint}/account")
        store = AzureStore(Settings(retry=1))
        ask = {
            "look": lambda: store.look(address),
            "fetch": lambda: store.fetch(address, None, 0, 5),
            "begun": lambda: list(store.begun(address)),
        }
        with pytest.raises(StatepipeError, match=re.escape(said)):
            ask[method]()


CONDITIONS = [
    (404, "BlobNotFound"),
    (412, "ConditionNotMet"),
    (409, "BlobAlreadyExists"),
    (403, "UnauthorizedBlobOverwrite"),
    (416, "InvalidRange"),
]


@pytest.mark.parametrize(("status", "code"), CONDITIONS)
def test_an_answer_about_a_condition_ends_no_request_with_a_traceback(
    status: int, code: str, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one with a signature that lets it create a blob and replace none is answered, once another has made it."""
    address = parse_object(container.address("key"))
    upload, seen = Upload(address, new_upload(1.0), None), Seen(5, '"1"', None, {})
    with lying(says(status, b"", f"x-ms-error-code: {code}")) as endpoint:
        monkeypatch.setenv("AZURE_STORAGE_SERVICE_ENDPOINT", f"{endpoint}/account")
        store = AzureStore(Settings(retry=1))
        for ask in (
            lambda: store.look(address),
            lambda: store.begin(address, {}, overwrite=True),
            lambda: store.begin(address, {}, overwrite=False),
            lambda: store.put(upload, 1, content(b"data")),
            lambda: list(store.parts(upload)),
            lambda: list(store.begun(address)),
            lambda: store.complete(upload, [], {}, overwrite=True),
            lambda: store.complete(upload, [], {}, overwrite=False),
            lambda: store.remove(address, seen),
            lambda: store.fetch(address, None, 0, 5),
            lambda: store.fetch(address, seen, None, 5),
        ):
            with suppress(StatepipeError):
                ask()


def test_one_who_may_only_create_is_told_that_the_object_is_there(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = parse_object(container.address("key"))
    with lying(says(403, b"", "x-ms-error-code: UnauthorizedBlobOverwrite")) as endpoint:
        monkeypatch.setenv("AZURE_STORAGE_SERVICE_ENDPOINT", f"{endpoint}/account")
        store = AzureStore(Settings(retry=1))
        with pytest.raises(Occupied):
            store.begin(address, {}, overwrite=False)
        with pytest.raises(StatepipeError, match=f"begin to upload {address}: the store answered 403") as raised:
            store.begin(address, {}, overwrite=True)
        assert raised.value.hint is not None and "replace none" in raised.value.hint
