"""The session's doors: greetings, frames in any order over links that come and go, messages, offers, steps."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from random import Random
from typing import Any

from statepipe.errors import IntegrityError, StatepipeError
from statepipe.migration.negotiation import CHECK, MIGRATE, Offer, begun, offered, step_of
from statepipe.migration.peer import CHANNELS, Peer
from statepipe.qemu.compare import as_rows, compare, worst
from statepipe.qemu.images import Image, Images
from statepipe.qemu.shared import disk_facts
from statepipe.recovery.handover import Destination, Event, Side, Source, destination
from statepipe.session.links import Acceptor, dialled
from statepipe.session.messages import MESSAGES
from statepipe.session.protocol.admission import Doorkeeper, Party, Secrets, refuse
from statepipe.session.protocol.channels import MIN_WINDOW, ChannelVerdict
from statepipe.session.protocol.frames import (
    GREETING_SIZE,
    MAX_CHANNELS,
    Frame,
    FrameReader,
    Greeting,
    Kind,
    Role,
    Violation,
    decode_greeting,
)
from statepipe.session.protocol.wire import Wire
from statepipe.session.session import Timing
from statepipe.session.transport import SocketTransport
from statepipe.tunnel.libvirthost import Host
from statepipe.tunnel.targets import OPENED, WISH, Targets, compared, hear
from tests.fuzz.harness import Door
from tests.fuzz.mutation import LARGE, mutated, odd_json, portions
from tests.fuzz.samples import FACTS
from tests.wires import fed, receive

SECRETS = Secrets(b"s" * 16, b"t" * 32)
REFUSALS = (Violation, IntegrityError)
"""What the sans-IO machine says of a peer."""

# --- greetings


def greet(data: bytes) -> None:
    """One link's first bytes, at the side that dialled and at the one that was dialled."""
    data = data[:GREETING_SIZE].ljust(GREETING_SIZE, b"\0")
    greeting = decode_greeting(data)
    assert refuse(greeting, "for a test")
    for role in Role:
        with suppress(*REFUSALS):
            Party(SECRETS, role).check_answer(greeting, 1)
        with suppress(*REFUSALS):
            Doorkeeper(SECRETS, "peer").admit(greeting, "peer")
        with suppress(*REFUSALS):
            wire = Wire(Party(SECRETS, role), CHANNELS)
            wire.open(0).write(b"x")
            wire.accept(greeting)


def make_greeting(random: Random) -> bytes:
    party = Party(SECRETS, random.choice(list(Role)), random.choice((MIN_WINDOW, 0, 1 << 30, (1 << 32) - 1)))
    received = tuple(random.choice(LARGE) for _ in range(MAX_CHANNELS)) if random.random() < 0.3 else (0,) * 16
    good = (
        party.ask(random.choice((0, 1, (1 << 32) - 1)), received, known=random.random() < 0.5),
        party.answer(1, received),
        refuse(decode_greeting(party.answer(1, (0,) * 16)), "no\x1b[2J"),
    )
    return mutated(random, random.choice(good)) if random.random() < 0.8 else random.choice(good)


# --- frames


def take_frames(data: bytes) -> None:
    """A side that reads two channels and writes two, over two links; what comes is dealt out to them."""
    wire = Wire(Party(SECRETS, Role.BOTH, MIN_WINDOW), CHANNELS)
    for number in (1, 2):
        wire.accept(decode_greeting(Party(SECRETS, Role.BOTH, MIN_WINDOW).ask(number, (0,) * 16, known=True)))
    for number in range(CHANNELS):
        wire.open(number).write(bytes(1000))
    wire.end(wire.outgoing[1])
    for count, part in enumerate(portions(data)):
        link = 1 + count % 2 if 1 + count % 2 in wire.links else next(iter(wire.links), 0)
        if link and part:
            receive(wire, link, part)
        _live_on(wire, count)
        assert all(channel.held <= MIN_WINDOW for channel in wire.incoming.values())


def _live_on(wire: Wire, count: int) -> None:
    """What a session does meanwhile."""
    for number in range(CHANNELS):
        channel = wire.read(number)
        while count % 3 and (piece := wire.take(channel)) is not None:
            channel.absorb(piece)
        if channel.is_whole and not channel.verdict:
            channel.prove()
            wire.judge(channel, ChannelVerdict())
    for link in list(wire.links):
        wire.to_send(link)
    if count % 7 == 6:
        for link in wire.tick(3):
            wire.lost(link)


def make_frames(random: Random) -> bytes:
    frames = b"".join(map(bytes, _frames(random)))
    return mutated(random, frames) if random.random() < 0.5 else frames


def _frames(random: Random) -> Iterator[bytes]:
    places = [0, 0, 0]
    for _ in range(random.choice((1, 3, 10, 60, 600))):
        kind, number = random.choice((Kind.DATA, Kind.DATA, Kind.DATA, *Kind)), random.choice((0, 0, 0, 1, 1, 2))
        payload = bytes(random.choice((1, 1, 2, 5, 100, 5000)))
        offset = places[number] if random.random() < 0.8 else random.choice((*LARGE, 1000, places[number] + 3))
        if kind is Kind.DATA:
            places[number] = (offset + len(payload)) % (1 << 63)
        else:
            sizes = {Kind.END: 32, Kind.DONE: random.randrange(20), Kind.ABORT: random.randrange(20)}
            payload = random.randbytes(sizes.get(kind, 0))
            offset = random.choice((offset, 0, 1, 256, 1000))
        yield b"".join(map(bytes, Frame(kind, number, offset, payload).encode()))


def read_frames(data: bytes) -> None:
    """A link's bytes from its first one on."""
    reader = FrameReader()
    for part in portions(data):
        for item in fed(reader, part):
            if isinstance(item, Frame):
                assert item.encode()
            else:
                assert isinstance(item, Greeting)


def make_link(random: Random) -> bytes:
    return mutated(random, make_greeting(random).ljust(GREETING_SIZE, b"\0") + make_frames(random))


# --- what two sides say to each other

TIMING = Timing(tick=0.5, limit=20, retry=10)

SAID = (
    {"offer": MIGRATE, "facts": FACTS, "undo": ["decompress"], "runs": True},
    {"offer": CHECK, "facts": FACTS, "undo": [], "runs": False},
    {"facts": FACTS},
    {"refused": "for no reason"},
    {"begin": True},
    {"event": "READY"},
    {"event": "ABORT", "reason": "it failed"},
    {"event": "GO"},
)


@contextmanager
def hearing(data: bytes) -> Iterator[Peer]:
    """A peer that says `data` on the channel of messages, whatever that is, and ends it."""
    ours, theirs = socket.socketpair()
    acceptor = Acceptor(Role.BOTH, TIMING, lambda name, error: None, channels=CHANNELS)
    other = dialled(lambda: SocketTransport(theirs, "them", "them"), Role.BOTH, "them", TIMING, channels=CHANNELS)
    channel = other.wire.open(MESSAGES)

    def speak() -> None:
        with suppress(StatepipeError), other:
            other.meet()
            for at in range(0, len(data), 1 << 16):
                channel.absorb(data[at : at + (1 << 16)])
                other.put(channel, data[at : at + (1 << 16)])
            other.end(channel)
            other.wait_until(lambda: channel.verdict is not None)

    acceptor.adopt(SocketTransport(ours, "us", "us"))
    speaker = threading.Thread(target=speak)
    speaker.start()
    try:
        with acceptor.wait(TIMING.retry) as session, Peer(session) as peer:
            yield peer
            peer.session.fail(StatepipeError("enough"))
    finally:
        speaker.join()


def answering() -> Side[Destination]:
    """A destination that has had its offer."""
    side = destination()
    side.hear(Event.OFFER)
    return side


def hear_messages(data: bytes) -> None:
    """Offers, answers and steps, each taken for all it may be."""
    with hearing(data) as peer:
        while (message := peer.hear()) is not None:
            looks: list[Callable[[], object]] = [
                lambda: offered(_said(message)),
                lambda: begun(_said(message), Offer(MIGRATE, FACTS), answering()),
                *(partial(step_of, message, side) for side in (Source, Destination)),
            ]
            for look in looks:
                with suppress(StatepipeError):
                    look()


class _Said:
    """A peer that has said one thing: what the session lets through is in question, and not the session."""

    name = "the other host"

    def __init__(self, message: dict[str, object]) -> None:
        self._messages = [message]

    def hear(self, within: float | None = None) -> dict[str, object] | None:
        return self._messages.pop() if self._messages else None

    def tell(self, message: object) -> None:
        json.dumps(message)


def _said(message: dict[str, object]) -> Any:
    """As a Peer, or as its Messages."""
    return _Said(message)


def make_messages(random: Random) -> bytes:
    out = b""
    for _ in range(random.choice((1, 5, 20))):
        text = odd_json(random, random.choice(SAID))
        out += len(text).to_bytes(4, "big") + text
    return mutated(random, out) if random.random() < 0.3 else out


def weigh_answers(data: bytes) -> None:
    """Facts of the other host, set beside ours."""
    if (message := _parsed(data)) is not None:
        findings = compare(FACTS, Offer(MIGRATE, FACTS).make(_said(message)))
        json.dumps(as_rows(findings))
        assert worst(findings)


def _parsed(data: bytes) -> dict[str, object] | None:
    """As session/messages.py gives it."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def make_answer(random: Random) -> bytes:
    return odd_json(random, {"facts": FACTS})


def weigh_offers(data: bytes) -> None:
    """Facts of a caller that `receive` looks at."""
    if (message := _parsed(data)) is not None:
        offer, _ = offered(_said(message))
        json.dumps(disk_facts(Images((Image("/srv/disk.qcow2", "file"),)), offer.disks))
        json.dumps({"guest": offer.facts["guest"]})


def make_offer(random: Random) -> bytes:
    return odd_json(random, random.choice(SAID[:2]))


WISHES = (
    {"tunnel": "0123abcd", "domain": "guest"},
    {"tunnel": "0123abcd", "to": "memory"},
    {"tunnel": "0123abcd", "to": "libvirtd"},
    {"daemon": "/run/d", "memory": "/run/m", "disks": "/run/d"},
)


def grant_wishes(data: bytes) -> None:
    """What the two ends of a tunnel for libvirt say: one opens a tunnel, and asks for connections in it."""
    if (message := _parsed(data)) is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        host = Host("session", f"{folder}/tunnels", (f"{folder}/daemon",), os.geteuid(), os.getegid())
        with socket.socket(socket.AF_UNIX) as daemon, suppress(StatepipeError):
            daemon.bind(host.daemons[0])
            daemon.listen()
            _grant(Targets(host), message)
        assert set(os.listdir(folder)) <= {"daemon", "tunnels"}
        assert not os.path.exists(host.folder) or not os.listdir(host.folder)
        with suppress(StatepipeError):
            compared(host.paths("0123abcd", "guest"), hear(_said(message), OPENED, 1), "them")


def _grant(targets: Targets, message: dict[str, object]) -> None:
    wish = hear(_said(message), WISH, 1)
    with targets.opened("peer", wish["tunnel"], wish.get("domain", "guest")) as answer:
        assert all(answer.values())
        targets.connect("peer", wish["tunnel"], wish.get("to", "libvirtd")).close()


def make_wish(random: Random) -> bytes:
    return odd_json(random, random.choice(WISHES))


def _framed(message: object) -> bytes:
    text = json.dumps(message).encode()
    return len(text).to_bytes(4, "big") + text


def _odd_command() -> bytes:
    return json.dumps({"facts": FACTS | {"command": ["qemu", None]}}).encode()


MESSAGES_KNOWN = {
    "an event that is a list": lambda: _framed({"event": ["GO"]}),
    "an event that is an object": lambda: _framed({"event": {"name": "GO"}}),
    "an offer of thousands of disks": lambda: _framed(
        {"offer": MIGRATE, "facts": FACTS | {"disks": [{"path": "/x"}] * 3900}, "undo": [], "runs": True}
    ),
}

DOORS = {
    "greetings": Door(greet, make_greeting),
    "frames": Door(take_frames, make_frames, raises=REFUSALS),
    "links": Door(read_frames, make_link, raises=REFUSALS),
    "messages": Door(hear_messages, make_messages, MESSAGES_KNOWN),
    "answers": Door(weigh_answers, make_answer, {"a command that is no text": _odd_command}),
    "offers": Door(weigh_offers, make_offer),
    "wishes": Door(grant_wishes, make_wish),
}
