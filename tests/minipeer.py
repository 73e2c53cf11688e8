"""A sender, a receiver and a tunnel's near end that do what docs/protocol.md says, with none of statepipe's own code.

Run as a program it is what `send --ssh` takes for an ssh: it receives into the file that $MINIPEER_OUTPUT names.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

GREETING, HEADER = struct.Struct(">8sHBBII16s32s128s"), struct.Struct(">BBHIQ")
MAGIC, OFFSETS = b"\x89SPW\r\n\x1a\n", struct.Struct(">16Q")
NEW, RESUME, WELCOME, REFUSED = 1, 2, 3, 4
SENDS, RECEIVES, LIBVIRT = 1, 2, 5
DATA, ACK, END, DONE, ABORT, CLOSE, PING = range(1, 8)
PIECE, WINDOW = 65_536, 1 << 20


class Broken(Exception):
    """The other side does not do what the document says, or has ended the session."""


@dataclass
class Link:
    """A connection of bytes; `read` gives at most so many and none at the end. Counts what was heard."""

    read: Callable[[int], bytes]
    write: Callable[[bytes], object]
    heard: int = 0

    def take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not (more := self.read(size - len(data))):
                raise Broken(f"the link ended after {self.heard + len(data)} bytes")
            data += more
        self.heard += size
        return data

    def say(self, kind: int, offset: int = 0, payload: bytes = b"", channel: int = 0) -> None:
        self.write(HEADER.pack(kind, channel, 0, len(payload), offset) + payload)

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Kind, channel, offset and payload of each frame but PINGs, each of which is followed by one of ours."""
        while True:
            kind, channel, zero, length, offset = HEADER.unpack(self.take(HEADER.size))
            if not DATA <= kind <= PING or zero or channel > 15:
                raise Broken(f"a frame of kind {kind} for channel {channel}")
            payload = self.take(length)
            if kind == ABORT:
                raise Broken(f"aborted with {offset}: {payload.decode()}")
            if kind == PING:
                self.say(PING, self.heard)
            else:
                yield kind, channel, offset, payload


class Large:
    """The dialler's end of a link over TLS for which ALPN chose AES in large records: greetings in TLS, then those."""

    def __init__(self, secure: ssl.SSLSocket) -> None:
        self._secure, self._secret = secure, os.urandom(32)
        self._wire = socket.socket(fileno=os.dup(secure.fileno()))  # what TLS is not used for
        self._wire.settimeout(secure.gettimeout())
        self._said, self._read = b"", b""
        self._keys: list[tuple[AESGCM, int]] = []
        self._numbers = [0, 0]

    def __enter__(self) -> Link:
        return Link(self.read, self.write)

    def __exit__(self, *error: object) -> None:
        self._wire.close()

    def write(self, data: bytes) -> None:
        if not self._said:
            self._said = data
            self._secure.sendall(data + self._secret)
            return
        for place in range(0, len(data), 262_160):
            plain = data[place : place + 262_160] + b"\x17"
            length = (len(plain) + 16).to_bytes(4)
            self._wire.sendall(length + self._keys[0][0].encrypt(self._nonce(0), plain, length))

    def read(self, size: int) -> bytes:
        if not self._keys:
            self._read = self._greet()
        if not self._read:
            length = self._get(4)
            plain = self._keys[1][0].decrypt(self._nonce(1), self._get(int.from_bytes(length)), length)
            assert plain[-1:] == b"\x17"
            self._read = plain[:-1]
        data, self._read = self._read[:size], self._read[size:]
        return data

    def _greet(self) -> bytes:
        """The acceptor's greeting; with its secret, both keys are known."""
        block = b""
        while len(block) < 228:
            block += self._secure.recv(228 - len(block))
        finished, name = self._secure.get_channel_binding("tls-unique"), self._secure.selected_alpn_protocol()
        seen = bytes([len(finished or b"")]) + (finished or b"") + self._said + block[:196] + (name or "").encode()
        salt, secrets = hashlib.sha384(seen).digest(), self._secret + block[196:]
        for side in (b"dialler", b"acceptor"):
            made = HKDF(SHA384(), 44, salt, b"statepipe records of the " + side).derive(secrets)
            self._keys.append((AESGCM(made[:32]), int.from_bytes(made[32:])))
        return block[:196]

    def _nonce(self, direction: int) -> bytes:
        number, self._numbers[direction] = self._numbers[direction], self._numbers[direction] + 1
        return (self._keys[direction][1] ^ number).to_bytes(12)

    def _get(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not (more := self._wire.recv(size - len(data))):
                raise Broken("the link ended")
            data += more
        return data


@dataclass
class Session:
    """What both sides have in common. `received` is how far the other side's channel 0 has arrived."""

    role: int
    name: bytes = field(default_factory=lambda: os.urandom(16))
    token: bytes = field(default_factory=lambda: os.urandom(32))
    received: int = 0

    def proof(self, words: bytes, number: int) -> bytes:
        return blake3(words + self.name + number.to_bytes(4, "big"), key=self.token).digest()

    def greet(self, link: Link, kind: int, number: int, proof: bytes) -> None:
        offsets = OFFSETS.pack(self.received, *[0] * 15)
        link.write(GREETING.pack(MAGIC, 1, kind, self.role, number, WINDOW, self.name, proof, offsets))

    def hear(self, link: Link) -> tuple[int, int, int, bytes, bytes, bytes]:
        """Kind, number, window, id, proof and the last 128 bytes of the other side's greeting."""
        magic, version, kind, role, number, window, name, proof, more = GREETING.unpack(link.take(GREETING.size))
        if magic != MAGIC or version != 1:
            raise Broken("it is no session of version 1")
        if kind == REFUSED:
            raise Broken(f"refused: {more.rstrip(bytes(1)).decode()}")
        if role != {SENDS: RECEIVES, RECEIVES: SENDS, LIBVIRT: LIBVIRT}[self.role] or not 1 << 20 <= window <= 1 << 30:
            raise Broken(f"role {role} with a window of {window}")
        return kind, number, window, name, proof, more


class Sender:
    """Sends `data`. `run` goes on over each next link; `stops_at`: give the link up after so many bytes of it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.session = data, Session(SENDS)
        self.digest = blake3(data).digest()
        self._links = self._acked = self._arrived = 0
        self.window = WINDOW

    def run(self, link: Link, stops_at: int | None = None) -> tuple[int, str] | None:
        """The verdict; None where it stopped before."""
        self.open(link)
        at, frames = max(self._acked, self._arrived), link.frames()
        while at < len(self.data):
            if stops_at is not None and at >= stops_at:
                return None
            piece = self.data[at : (at // PIECE + 1) * PIECE]  # so that a piece keeps its bounds
            while at + len(piece) > self._acked + self.window:
                self._acked = max(self._acked, self._next(frames, ACK)[0])
            link.say(DATA, at, piece)
            at += len(piece)
        link.say(END, len(self.data), self.digest)
        verdict = self._next(frames, DONE)
        link.say(CLOSE)
        self._next(frames, CLOSE)
        return verdict[0], verdict[1].decode()

    def open(self, link: Link) -> None:
        """The greetings over the next link."""
        self._links += 1
        number, session = 16 * self._links, self.session
        kind = NEW if number == 16 else RESUME
        session.greet(link, kind, number, session.token if kind == NEW else session.proof(b"statepipe link", number))
        answer, its, self.window, name, proof, more = session.hear(link)
        if (answer, its, name, proof) != (WELCOME, number, session.name, session.proof(b"statepipe welcome", number)):
            raise Broken("not the answer to our greeting")
        self._arrived = OFFSETS.unpack(more)[0]

    def _next(self, frames: Iterator[tuple[int, int, int, bytes]], wanted: int) -> tuple[int, bytes]:
        """Offset and payload of the next frame of that kind; what comes back on the receiver's channel is passed by."""
        for kind, _, offset, payload in frames:
            if kind == wanted:
                return offset, payload
            if kind == DONE:
                raise Broken(f"verdict {offset}: {payload.decode()}")
        raise AssertionError("frames end by an exception")


class Near:
    """One session of the near end of a tunnel for libvirt: messages on channel 1, a program's bytes on channel 0."""

    def __init__(self, link: Link) -> None:
        self._link, session = link, Session(LIBVIRT)
        session.greet(link, NEW, 16, session.token)
        if session.hear(link)[0] != WELCOME:
            raise Broken("not the answer to our greeting")
        self._frames = link.frames()
        self._said, self._heard, self._stream = [b"", b""], b"", b""

    def write(self, data: bytes, channel: int = 0) -> None:
        """Some of the bytes of a channel."""
        self._link.say(DATA, len(self._said[channel]), data, channel)
        self._said[channel] += data

    def end(self, channel: int = 0) -> None:
        """No more of them."""
        self._link.say(END, len(self._said[channel]), blake3(self._said[channel]).digest(), channel)

    def tell(self, message: dict[str, Any]) -> None:
        """A message."""
        text = json.dumps(message).encode()
        self.write(len(text).to_bytes(4, "big") + text, 1)

    def hear(self) -> dict[str, Any] | None:
        """The other side's next message; None at their end."""
        while True:
            length = int.from_bytes(self._heard[:4], "big")
            if len(self._heard) >= 4 + length > 4:
                text, self._heard = self._heard[4 : 4 + length], self._heard[4 + length :]
                return dict(json.loads(text))
            if self._next() == (END, 1):
                return None

    def read(self, size: int) -> bytes:
        """So many of the other program's bytes."""
        while len(self._stream) < size:
            self._next()
        data, self._stream = self._stream[:size], self._stream[size:]
        return data

    def close(self) -> None:
        """Both have all they want."""
        self._link.say(CLOSE)
        while self._next()[0] != CLOSE:
            continue

    def _next(self) -> tuple[int, int]:
        kind, channel, _, payload = next(self._frames)
        if kind == DATA and channel == 1:
            self._heard += payload
        elif kind == DATA:
            self._stream += payload
        return kind, channel


def receive(link: Link) -> bytes:
    """All of the stream of whoever dials over this link, once both sides have agreed that it is here."""
    session = Session(RECEIVES)
    kind, number, _, session.name, session.token, _ = session.hear(link)
    if kind != NEW:
        raise Broken(f"a greeting of kind {kind}")
    session.greet(link, WELCOME, number, session.proof(b"statepipe welcome", number))
    stream, early, acked, end = bytearray(), dict[int, bytes](), 0, None
    for kind, channel, offset, payload in link.frames():
        if kind == DATA and channel == 0:
            early[offset] = payload
            while len(stream) in early:
                stream += early.pop(len(stream))
            if len(stream) - acked >= WINDOW // 8:
                acked = len(stream)
                link.say(ACK, acked)
        elif kind == END:
            end = offset, payload
        elif kind == CLOSE:
            link.say(CLOSE)
            return bytes(stream)
        if end is not None and end[0] == len(stream) and kind in (DATA, END):
            good = blake3(stream).digest() == end[1]
            link.say(END, 0, blake3().digest())
            link.say(DONE, 0 if good else 3, b"" if good else b"another digest")
    raise AssertionError("frames end by an exception")


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    write_all(1, b"statepipe session %s\n" % os.urandom(16).hex().encode())
    here = receive(Link(lambda size: os.read(0, size), lambda data: write_all(1, data)))
    with open(os.environ["MINIPEER_OUTPUT"], "wb") as file:
        file.write(here)
