"""Azure's blobs, of blocks that are sent side by side and committed at once, by the pipeline of azure-storage-blob.

    begin      Put Block of one byte: it shows that we may write, and that the blocks are still there later
    put        Put Block with Content-MD5, which the service verifies
    parts      Get Block List of those that are not committed
    complete   Put Block List with If-None-Match: the commit
    abort      there is none: blocks that nobody commits go after a week

The library finds the place, signs, and gets tokens. The requests are ours, as its own calls hide what we must know: its
download reads a whole range before it gives a byte, and tries again by itself. Its retries are off:
objectstore/retry.py decides what is tried again and for how long, and tells.
"""

from __future__ import annotations

import hashlib
import re
import time
import xml.etree.ElementTree as ET
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from statepipe.errors import StatepipeError, UsageError
from statepipe.objectstore.address import ObjectAddress
from statepipe.objectstore.azure.answers import refused
from statepipe.objectstore.azure.blockids import BlockId, new_upload, parse_block_id, started
from statepipe.objectstore.azure.service import Answer, Request, Service
from statepipe.objectstore.failures import (
    Occupied,
    UploadGone,
    missing,
    not_as_sent,
    occupied,
    replaced,
    unreadable,
)
from statepipe.objectstore.settings import Settings
from statepipe.objectstore.store import Content, Part, Seen, Upload
from statepipe.typed import cast

READ, WRITE, DELETE = (
    "the role Storage Blob Data Reader, or r in a shared access signature",
    "the role Storage Blob Data Contributor, or cw in a shared access signature",
    "the role Storage Blob Data Contributor, or d in a shared access signature",
)

IN_FLIGHT = 16
"""Blocks on their way at most."""

LONGEST_LIST = 32 << 20
"""Bytes of a list of blocks at most: 100,000 with ids of the longest, and their sizes, have 20 MB."""

LONGEST_ETAG = 2048

PIECE = 64 << 10
"""Bytes of a block that are sent at once: each must go within settings.CONNECT."""

LEFT = "what was sent of it is kept by the store, unseen, and goes a week after the last of it came"

_NOTE = "x-ms-meta-"

_MARK = b"\0"
"""What is in block 0, which no list names: a block must have a byte."""


class AzureStore:
    """Azure's store, in both roles. Raises StatepipeError if no client can be made."""

    in_flight = IN_FLIGHT

    def __init__(self, settings: Settings) -> None:
        self._service = Service(settings)

    @property
    def place(self) -> str:
        """The URL of the store, without a signature."""
        return self._service.url

    def look(self, address: ObjectAddress) -> Seen | None:
        """Return what is known of an object, None if there is none. Raises StatepipeError."""
        doing = f"look for {address}"
        try:
            with self._ask(Request("HEAD", address, doing, READ), 200) as answer:
                return _seen(answer, _whole(answer.headers["Content-Length"]))
        except _Absent:
            return None
        except (KeyError, ValueError) as error:
            raise unreadable(error, doing) from error

    def leftovers(self, address: ObjectAddress) -> str:
        """Return what becomes of the blocks of an upload."""
        return LEFT

    def begin(self, address: ObjectAddress, notes: Mapping[str, str], *, overwrite: bool) -> Upload:
        """Begin an upload. `complete` takes the notes and the condition. Raises Occupied if the credentials are told so
        now, StatepipeError."""
        number = new_upload(time.time())
        mark = BlockId(number, 0, b64encode(hashlib.sha256(_MARK).digest()).decode())
        try:
            self._send_block(address, f"begin to upload {address}", mark, _MARK)
        except _Unmet as error:
            if overwrite:
                raise
            raise occupied(address) from error
        return Upload(address, number, started(number))

    def put(self, upload: Upload, number: int, content: Content) -> Part:
        """Send a part. Raises NotAsSent if the store has other bytes than were sent, StatepipeError."""
        id = BlockId(upload.id, number, content.sha256)
        if content.size:  # a block must have a byte; without one, there is nothing to send
            self._send_block(upload.address, f"upload block {number} of {upload.address}", id, _Body(content))
        return Part(number, content.size, str(id), content.sha256)

    def _send_block(self, address: ObjectAddress, doing: str, id: BlockId, body: bytes | _Body) -> None:
        self._send(Request("PUT", address, doing, WRITE, {"comp": "block", "blockid": str(id)}, {}, body))

    def parts(self, upload: Upload) -> Iterator[Part]:
        """Yield the parts that the store has; of one that was sent anew with other bytes, also the older ones.

        Raises UploadGone, StatepipeError.
        """
        found = [part for id, part in self._blocks(upload.address) if id.upload == upload.id]
        if not any(part.number == 0 for part in found):
            what = f"cannot list the blocks of {upload.address}: the store has dropped them"
            raise UploadGone(what, hint="another writer was faster, or a week has passed: start again")
        yield from (part for part in found if part.number)

    def _blocks(self, address: ObjectAddress) -> Iterator[tuple[BlockId, Part]]:
        """Yield the uncommitted blocks of a blob that are of statepipe. Raises StatepipeError."""
        doing = f"list the blocks of {address}"
        query = {"comp": "blocklist", "blocklisttype": "uncommitted"}
        try:
            with self._ask(Request("GET", address, doing, READ, query), 200) as answer:
                listed = ET.fromstring(answer.whole(LONGEST_LIST))
                if listed.tag != "BlockList":
                    raise unreadable(ValueError(), doing)
                for block in listed.iterfind("UncommittedBlocks/Block"):
                    name = block.findtext("Name") or ""
                    if (id := parse_block_id(name)) is not None:
                        yield id, Part(id.number, _whole(block.findtext("Size") or ""), name, id.sha256)
        except _Absent:
            return
        except (ET.ParseError, ValueError) as error:
            raise unreadable(error, doing) from error

    def complete(
        self, upload: Upload, parts: Sequence[Part], notes: Mapping[str, str], *, overwrite: bool
    ) -> str | None:
        """Make the object of the parts, at once, with these notes. Return None: its version is not used.

        Raises Occupied, UploadGone, NotAsSent if the list changed on its way, StatepipeError.
        """
        address, doing = upload.address, f"complete {upload.address}"
        listed = "".join(f"<Uncommitted>{part.etag}</Uncommitted>" for part in parts if part.size)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
        headers = {f"{_NOTE}{name.replace('-', '_')}": value for name, value in notes.items()}
        headers["x-ms-blob-content-type"] = "application/octet-stream"
        if not overwrite:
            headers["If-None-Match"] = "*"
        try:
            self._send(Request("PUT", address, doing, WRITE, {"comp": "blocklist"}, headers, body))
        except _Unmet as error:
            if overwrite:
                raise
            raise occupied(address) from error
        except UploadGone as error:
            there = {part.etag for part in self.parts(upload)}
            if all(part.etag in there for part in parts if part.size):
                raise not_as_sent(doing, "the store read another list of blocks than was sent") from error
            raise
        return None

    def abort(self, upload: Upload) -> str | None:
        """Return what becomes of the blocks. Azure ends no upload: to drop blocks, one has to make a blob."""
        return LEFT

    def begun(self, address: ObjectAddress) -> Iterator[Upload]:
        """Yield the uploads that were begun for this object. Raises StatepipeError."""
        for number in sorted({id.upload for id, _ in self._blocks(address) if id.number == 0}):
            yield Upload(address, number, started(number))

    def uploads(self, prefix: ObjectAddress) -> Iterator[Upload]:
        """Raise UsageError: what could be found could not be ended."""
        what = f"the uploads below {prefix} cannot be ended: Azure drops blocks only when a blob is made or removed"
        raise UsageError(what, hint="leave them: what nobody completes, Azure drops a week after the last of it came")

    def remove(self, address: ObjectAddress, seen: Seen) -> None:
        """Remove the object that was seen, and no other: if it still has its ETag.

        Raises Occupied if another one is there by now, StatepipeError.
        """
        request = Request("DELETE", address, f"remove {address}", DELETE, {}, {"If-Match": seen.etag})
        try:
            with self._ask(request, 202):
                return
        except _Absent:
            return
        except _Unmet as error:
            if self.look(address) is None:
                return
            raise Occupied(f"{address} is another object by now, and stays", hint="look at it") from error

    def fetch(self, address: ObjectAddress, seen: Seen | None, start: int | None, size: int) -> AzureRange:
        """Begin to read `size` bytes at `start`, of the object that was seen if one was; None: its last ones.

        Near the end there are fewer. Azure knows no range from the end: that takes a look first. Raises Replaced if
        there is another object now, or none, Missing if none was seen before, StatepipeError.
        """
        if start is None:
            doing = f"read the end of {address}"
            seen = self.look(address) if seen is None else seen
            if seen is None:
                raise missing(address)
            if not seen.size:
                return AzureRange(seen, 0, 0, None)
            return self._fetch(address, seen, max(seen.size - size, 0), size, doing)
        doing = f"read {size} bytes at byte {start} of {address}"
        return self._fetch(address, seen, start, size, doing)

    def _fetch(self, address: ObjectAddress, seen: Seen | None, start: int, size: int, doing: str) -> AzureRange:
        headers = {"x-ms-range": f"bytes={start}-{start + size - 1}"}
        if seen is not None:
            headers["If-Match"] = seen.etag
        try:
            answer = self._asked(Request("GET", address, doing, READ, {}, headers), 206)
        except _Absent as error:
            raise (missing(address) if seen is None else replaced(address, start)) from error
        except _Unmet as error:
            raise replaced(address, start) from error
        except _Beyond as error:
            if (now := self.look(address)) is None:
                raise missing(address) from error
            if seen is not None and now.etag != seen.etag:
                raise replaced(address, start) from error
            return AzureRange(now, now.size, 0, None)
        try:
            body = AzureRange.of(answer, doing)
            if seen is not None and body.seen.etag != seen.etag:  # what stands before the store knows no conditions
                raise replaced(address, start)
            if (body.start, body.size) != (start, min(size, body.seen.size - start)):
                raise unreadable(ValueError(), doing)
        except StatepipeError:
            answer.close()
            raise
        return body

    # --- requests

    def _send(self, request: Request) -> None:
        """Send bytes, whose MD5 the service verifies. Raises NotAsSent, StatepipeError, _Unmet."""
        body = request.body
        md5 = body.md5() if isinstance(body, _Body) else _md5(cast(bytes, body))
        headers = {"Content-MD5": md5, "Content-Length": str(len(body)), **request.headers}
        with self._ask(request._replace(headers=headers), 201) as answer:
            answer.whole()
            # The service verified it, or would have answered 400; what it computed itself, it should tell besides.
            if answer.headers.get("Content-MD5", md5) != md5:
                raise not_as_sent(request.doing, "the store has other bytes than were sent")

    @contextmanager
    def _ask(self, request: Request, wanted: int) -> Iterator[Answer]:
        """Make a request, for the time of a context. Raises as `_asked`."""
        answer = self._asked(request, wanted)
        try:
            yield answer
        finally:
            answer.close()

    def _asked(self, request: Request, wanted: int) -> Answer:
        """Make a request, and return the answer if it has the wanted status.

        Raises StatepipeError, _Absent, _Unmet, _Beyond.
        """
        answer = self._service.ask(request)
        status, code = answer.status, answer.code
        if status == wanted:
            return answer
        try:
            if status < 400:  # a portal's page, perhaps
                raise unreadable(ValueError(), request.doing)
            ours = refused(status, code, answer.whole(), request.doing, request.right)
            if code == "BlobNotFound" and request.method != "PUT":
                raise _Absent(str(ours), hint=ours.hint)
            if code in _UNMET:
                raise _Unmet(str(ours), hint=ours.hint)
            if status == 416:
                raise _Beyond(str(ours), hint=ours.hint)
            raise ours
        finally:
            answer.close()


_UNMET = {"ConditionNotMet", "TargetConditionNotMet", "BlobAlreadyExists", "UnauthorizedBlobOverwrite"}
"""Codes for a condition that was not met: 412 with If-Match, 409 with If-None-Match: *; and 403, from a shared access
signature that lets one create a blob and not replace one."""


class _Absent(StatepipeError):
    """There is no such object."""


class _Unmet(StatepipeError):
    """The condition of a request was not met."""


class _Beyond(StatepipeError):
    """The object has no byte of the range that was asked for."""


class _Body:
    """The bytes of a part, to be sent in pieces."""

    def __init__(self, content: Content) -> None:
        self._content = content

    def __len__(self) -> int:
        return self._content.size

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces(PIECE)

    def _pieces(self, size: int) -> Iterator[bytes]:
        self._content.file.seek(0)
        while piece := self._content.file.read(size):
            yield piece

    def md5(self) -> str:
        """Return their MD5 in base64."""
        digest = hashlib.md5(usedforsecurity=False)
        for piece in self._pieces(1 << 20):
            digest.update(piece)
        return b64encode(digest.digest()).decode()


def _md5(data: bytes) -> str:
    return b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _seen(answer: Answer, size: int) -> Seen:
    """Return what an answer says of an object of `size` bytes. Raises KeyError if it is none of a store's."""
    notes = {
        name.lower().removeprefix(_NOTE).replace("_", "-"): value
        for name, value in answer.headers.items()
        if name.lower().startswith(_NOTE)
    }
    return Seen(size, _etag(answer.headers["ETag"]), None, notes)


def _etag(text: str) -> str:
    """Return an ETag, which is kept and sent back. Raises ValueError for what is none."""
    if not 0 < len(text) <= LONGEST_ETAG or not text.isprintable():
        raise ValueError
    return text


def _whole(text: str) -> int:
    """Return a number of bytes. Raises ValueError for what is none, or is more than a store has."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError
    return int(text)


_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class AzureRange:
    """A range of an object on its way: of which object, where it begins, and how many bytes it has.

    Closed before its end, it gives up its connection.
    """

    def __init__(self, seen: Seen, start: int, size: int, answer: Answer | None) -> None:
        self.seen, self.start, self.size = seen, start, size
        self._answer = answer

    @classmethod
    def of(cls, answer: Answer, doing: str) -> AzureRange:
        """Return the range of an answer. Raises Transient for what is none."""
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        try:
            if found is None:
                raise ValueError
            first, last, total = map(_whole, found.groups())
            return cls(_seen(answer, total), first, last - first + 1, answer)
        except (KeyError, ValueError) as error:
            raise unreadable(error, doing) from error

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes. Raises Transient if they do not come."""
        return self._answer.read(size) if self._answer is not None and size else b""

    def close(self) -> None:
        """End it."""
        if self._answer is not None:
            self._answer.close()
