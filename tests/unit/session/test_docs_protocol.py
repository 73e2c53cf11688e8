"""docs/protocol.md against the code: its bytes, its tables, its bounds. tests/net/test_minipeer.py has it spoken."""

from __future__ import annotations

import hmac
import json
import re
from hashlib import sha256
from itertools import chain
from typing import Any

import pytest
from spake2 import SPAKE2_B
from spake2.parameters.ed25519 import ParamsEd25519

from statepipe.ends import firstbyte
from statepipe.ends.address import PORT
from statepipe.migration import contact, coordinator, negotiation, peer
from statepipe.recovery.handover import DESTINATION, HURRIED, SOURCE, Action, Destination, Event, Source
from statepipe.session import gate, links, messages, overssh, overtls, overunix, session, ssh, tls
from statepipe.session.protocol import channels
from statepipe.session.protocol.admission import REMEMBERED_LINKS
from statepipe.session.protocol.frames import (
    GREETING_SIZE,
    LENGTHS,
    MAGIC,
    MAX_LINKS,
    VERSION,
    Greets,
    Kind,
    Role,
)
from statepipe.session.protocol.states import STATES, State, Turn
from statepipe.shapes import Misshapen, check
from statepipe.trust import pair, spake
from statepipe.trust.certificates import make_self
from statepipe.tunnel.connections import CONNECTIONS, MOST_WINDOW
from tests.documents import cases, dumps, joined, keys, number, rows, section, text_of
from tests.exchange import message, transfer
from tests.unit.qemu.test_compare import DISK, HOST

NAME = "protocol.md"
TEXT = re.sub(r"\s+", " ", text_of(NAME))
"""In one line, as a sentence may be broken anywhere."""


# --- the bytes


def test_the_exchange_in_the_document_is_what_the_two_ends_say_today() -> None:
    assert [joined(dump) for dump in dumps(section(NAME, "12. An exchange"))] == transfer()


def test_the_words_beside_the_bytes_give_their_numbers() -> None:
    found = 0
    for data, words in chain(*dumps(section(NAME, "12. An exchange"))):
        told = re.match(r"(?:version|kind|role|link|window:|offset|verdict|the channel has) ([0-9,]+)", words)
        told = told or re.match(r"([0-9]+)(?: bytes (?:of|are)|:)", words) or re.match("channel ([0-9]+)", words)
        told = told or re.match("received of channel 0: ([0-9]+)", words)
        if told is not None:
            assert number(told[1]) == int.from_bytes(data, "big"), words
            found += 1
    assert found > 50


def test_a_message_in_the_document_is_what_is_said_today() -> None:
    (shown,) = dumps(section(NAME, "8. Messages"))
    assert joined(shown) == message() and shown[-1][1] == '{"begin":true}'


def test_the_greeting_and_its_numbers_are_those_of_the_code() -> None:
    sizes = [int(row[0]) for row in rows(section(NAME, "3. The greeting"))]
    assert sum(sizes) == GREETING_SIZE and f"The first {GREETING_SIZE} bytes of a link" in TEXT
    assert f"the magic, `{MAGIC.hex(' ')}`" in TEXT and f"the version, {VERSION} |" in TEXT
    assert f"the kind: {', '.join(f'{kind.value} {kind.name}' for kind in Greets)} |" in TEXT
    roles = (Role.SENDS, Role.RECEIVES, Role.BOTH, Role.TUNNELS, Role.LIBVIRT)
    assert [role.value for role in roles] == [1, 2, 3, 4, 5]
    assert "the role: 1 sends a stream, 2 receives one, 3 moves a guest, 4 a tunnel, 5 one for libvirt |" in TEXT


def test_the_frames_are_those_of_the_code() -> None:
    shown = [row for row in rows(section(NAME, "4. Frames")) if len(row) == 5]
    assert [row[:2] for row in shown] == [[str(int(kind)), kind.name] for kind in Kind]
    for row in shown:
        numbers = [number(each) for each in re.findall("[0-9,]+", row[4])]
        lengths = LENGTHS[Kind(int(row[0]))]
        assert (lengths[0], lengths[-1]) == (numbers[0], numbers[-1])


# --- the tables of states


def test_the_states_of_a_session_are_those_of_the_code() -> None:
    turns = ((Turn.SAY_CLOSE,), (Turn.HEAR_CLOSE,), (Turn.SAY_ABORT, Turn.HEAR_ABORT))
    shown = {
        (State(row[0]), turn): State(cell)
        for row in rows(section(NAME, "6. The end"))
        for each, cell in zip(turns, row[1:], strict=True)
        for turn in each
    }
    assert shown == STATES


@pytest.mark.parametrize(
    ("heading", "states", "table"), [("The source", Source, SOURCE), ("The destination", Destination, DESTINATION)]
)
def test_the_tables_of_a_handover_are_those_of_the_code(heading: str, states: Any, table: Any) -> None:
    text = section(NAME, heading)
    shown: dict[Any, dict[Event, Any]] = {}
    for state, events, new, actions in rows(text):
        done = tuple(Action[name] for name in actions.split(", ") if name)
        for event in events.split(", "):
            assert Event[event] not in shown.setdefault(states[state], {})
            shown[states[state]][Event[event]] = (states[new], done)
    assert shown == {state: dict(row) for state, row in table.items() if row}
    ends = re.search(r"^([A-Z, a-z]+) are ends\.", text, re.MULTILINE)
    assert ends is not None
    assert re.findall("[A-Z]+", ends[1]) == [state.name for state, row in table.items() if not row]


def test_each_event_and_action_is_explained() -> None:
    assert list(keys_of("Events")) == [event.name for event in Event]
    shown = keys_of("Actions")
    assert {action.name for action in Action if not action.name.startswith("SEND_")} == set(shown) - {"SEND_…"}


def keys_of(heading: str) -> list[str]:
    return [row[0].strip("`") for row in rows(section(NAME, heading))]


def test_each_side_hears_what_the_other_can_know() -> None:
    shown = {row[0]: re.findall("[A-Z]+", row[1]) for row in rows(section(NAME, "9. The handover"))}
    assert set(shown) == {"source", "destination"}
    for names, side in ((shown["source"], Destination), (shown["destination"], Source)):
        for event in Event:
            assert is_taken({"event": event.name}, negotiation.HEARD_BY[side]) == (event.name in names)


# --- messages


def is_taken(value: Any, shape: Any) -> bool:
    try:
        check(json.loads(json.dumps(value)), shape)
    except Misshapen:
        return False
    return True


OFFER = {"offer": "migrate", "facts": HOST, "undo": [], "runs": True}
FACTS = keys(section(NAME, "The facts"))


@pytest.mark.parametrize("name", FACTS)
def test_the_table_of_facts_says_what_is_taken_and_what_is_refused(name: str) -> None:
    right, wrong = cases(FACTS[name])
    for value in right:
        assert is_taken(OFFER | {"facts": HOST | {name: value}}, negotiation.OFFER), f"{name}: {value!r:.60}"
    for value in wrong:
        assert not is_taken(OFFER | {"facts": HOST | {name: value}}, negotiation.OFFER), f"{name}: {value!r:.60}"


def test_all_facts_but_the_last_four_are_required() -> None:
    for place, name in enumerate(FACTS):
        left = {key: value for key, value in HOST.items() if key != name}
        assert is_taken(OFFER | {"facts": left}, negotiation.OFFER) == (place >= len(FACTS) - 4), name


PARTS = {
    "guest": (HOST["guest"] | {"name": "a guest", "uuid": "1"}, {"name", "uuid"}),
    "disk": (DISK | {"devices": [], "inode": 1, "samples_blake3": "0"}, {"devices", "inode", "samples_blake3"}),
    "other disk": (
        {"path": "/d", "unknown": "it is not there", "devices": [], "driver": "nbd", "size": None},
        {"devices", "driver", "size"},
    ),
    "place": ({"path": "/p", "option": "-D", "inode": 1, "busy": True, "held": False}, {"inode", "busy", "held"}),
}
"""Whole ones, and the keys that the document calls optional."""


@pytest.mark.parametrize("name", PARTS)
def test_the_parts_of_the_facts_have_the_keys_of_the_document(name: str) -> None:
    whole, optional = PARTS[name]
    key = {"guest": "guest", "place": "places"}.get(name, "disks")
    assert all(f"`{each}`" in section(NAME, "The facts") for each in whole)
    for left_out in ("", *whole):
        part = {each: value for each, value in whole.items() if each != left_out}
        facts = HOST | {key: part if key == "guest" else [part]}
        assert is_taken(OFFER | {"facts": facts}, negotiation.OFFER) == (not left_out or left_out in optional), left_out


def test_the_other_messages_have_the_form_of_the_document() -> None:
    most = messages.MAX_MESSAGE
    assert is_taken(OFFER | {"undo": ["decompress", "decrypt"] * 2, "offer": "check"}, negotiation.OFFER)
    assert not is_taken(OFFER | {"undo": ["decrypt"] * 5}, negotiation.OFFER)
    assert is_taken({"facts": OFFER["facts"]}, negotiation.ANSWER)
    assert is_taken({"begin": True}, negotiation.BEGIN) and not is_taken({"begin": False}, negotiation.BEGIN)
    assert is_taken({"event": "GO", "reason": None}, negotiation.HEARD_BY[Destination])
    assert f"at most {most:,}" in TEXT and f"A `REASON` is a text of at most {most:,} characters" in TEXT


# --- bounds


BOUNDS = {
    f"the port is {PORT} by default": True,
    f"A handshake has {tls.HANDSHAKE_TIME:g} seconds and {tls.HANDSHAKE_BYTES:,} bytes": True,
    f"at most {gate.AT_THE_GATE} handshakes at a time": True,
    "at most as many as a quarter of its descriptor limit": gate.SHARE == 4,
    "at most 256 GiB in each direction": tls.RENEWED == 256 << 30,
    f"reads at most {ssh.LINE_LIMIT} bytes of it": True,
    f"NAME is {2 * ssh.NAME_SIZE} hexadecimal digits": True,
    f"it has {overssh.FIRST:g} seconds, or `--timeout`. A later one has {overssh.SSH_REDIAL:g} seconds": True,
    f"waits {overunix.HEARD:g} seconds for this line": overunix.FIRST_LINE == b"statepipe session\n",
    "in bytes: 1 MiB to 1 GiB": (channels.MIN_WINDOW, channels.MAX_WINDOW) == (1 << 20, 1 << 30),
    f"The whole greeting must come within {links.GREETING_TIME:g} seconds": True,
    f"At most {MAX_LINKS} links of one identity at a time may be without their greeting": True,
    f"more than {REMEMBERED_LINKS} below the highest": True,
    f"no answer after {links.ANSWER_TIME:g} seconds": True,
    "If three links died": links.ATTEMPTS == 3,
    f"a pause of {links.FIRST_PAUSE:g} seconds that doubles up to {links.LAST_PAUSE:g}": True,
    f"a tunnel accepts up to {CONNECTIONS} at a time": True,
    "an eighth of the window, or 512 pieces": (channels.ACK_PARTS, channels.MAX_PIECES) == (8, 4096),
    "nor 4096 pieces, unacknowledged": channels.MAX_PIECES == 4096,
    "`send` and `recv` have 64 MiB": channels.WINDOW == 64 << 20,
    "what 1.25 GB/s need for the round trip, at least 4 MiB and at most 16": (contact.FAST, contact.WINDOWS)
    == (1.25e9, (4 << 20, 16 << 20)),
    "A tunnel has at most 16 MiB": MOST_WINDOW == 16 << 20,
    f"for at most {session.FAREWELL:g} seconds": True,
    f"nothing came for {overtls.SILENCE:g} seconds (`--timeout`)": True,
    f"`--retry` seconds of patience ({overtls.RETRY:g})": True,
    f"{negotiation.OFFER_TIME:g} s from the first WELCOME": True,
    f"{negotiation.ANSWER_TIME:g} s from the offer": True,
    f"{negotiation.BEGIN_TIME:g} s from the answer": True,
    "at most 4 of `decompress` (with at most 8 MiB of memory": negotiation.STAGES == 4
    and "memory=8M" in str(negotiation.UNDOING),
    f"{coordinator.OVERDUE:g} s, or {coordinator.OVERDUE_ON_STOPPING:g} after a signal; then OVERDUE": True,
    "in CANCELLING, RESUMING, DOUBTED, ENDING and STRAYED": [state.name for state in HURRIED]
    == ["CANCELLING", "RESUMING", "DOUBTED", "ENDING", "STRAYED"],
    f"waits {peer.PARTING:g} seconds for the other side's END": True,
    f"at most {firstbyte.MOST} connections that have sent nothing": True,
    f"4 bytes length (1 to {spake.HELLO_LIMIT:,}), JSON": spake.CONFIRM_SIZE == 32,
    f"A waits {pair.LISTENING:g} seconds for a hello, and keeps at most {pair.VISITORS} connections": True,
    f"B waits {pair.TYPING.silence:g} seconds for each answer until `ready`": True,
    f"All other answers have {pair.ANSWER.silence:g} seconds": True,
}


@pytest.mark.parametrize("words", BOUNDS)
def test_each_bound_is_that_of_the_code(words: str) -> None:
    assert words in TEXT and BOUNDS[words]


# --- pairing


def test_a_host_that_pairs_by_the_document_is_understood() -> None:
    """SPAKE2's key is its library's; what is made of it, and of whose bytes, is the document's."""
    certificate = make_self("b")[0].decode()
    ours = SPAKE2_B(b"12345678", idA=b"statepipe pair, listening", idB=b"statepipe pair, connecting")
    hello = json.dumps({"name": "b", "certificate": certificate, "spake2": ours.start().hex()}).encode()
    listening = spake.Pairing("1234-5678", "a", make_self("a")[0].decode(), first=True)
    confirmation = listening.take_hello(hello)
    theirs = json.loads(listening.hello)
    key = ours.finish(bytes.fromhex(theirs["spake2"]))
    both = sha256(listening.hello).digest() + sha256(hello).digest()

    def said(words: bytes) -> bytes:
        return hmac.digest(key, words + both, "sha256")

    assert len(theirs["spake2"]) == 66 and confirmation == said(b"statepipe pair confirm A")
    assert listening.take_confirm(said(b"statepipe pair confirm B")).certificate == certificate
    for word in (b"ready", b"kept", b"done"):
        assert listening.word(word) == said(b"statepipe pair " + word)


def test_the_points_of_the_document_are_those_of_the_library() -> None:
    assert f"M = `{ParamsEd25519.M.to_bytes().hex()}`" in TEXT and f"N = `{ParamsEd25519.N.to_bytes().hex()}`" in TEXT
