"""What a paired peer may say: each of it has its shape, and what has it harms nobody who reads on."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from statepipe.errors import PeerError
from statepipe.migration.negotiation import (
    ANSWER,
    BEGIN,
    CHECK,
    HEARD_BY,
    MIGRATE,
    OFFER,
    STAGES,
    STEPS,
    step_of,
)
from statepipe.qemu.compare import compare
from statepipe.qemu.facts import DISKS
from statepipe.recovery.handover import DESTINATION, SOURCE, Action, Destination, Event, Source
from statepipe.session.messages import MAX_MESSAGE
from statepipe.shapes import Misshapen, Shape, parse
from tests.unit.qemu.test_compare import DISK, HOST

Facts = dict[str, Any]

UNKNOWN = {"path": "/d/b.img", "unknown": "Permission denied"}
FACTS: Facts = HOST | {"disks": [DISK, UNKNOWN], "guest": HOST["guest"] | {"name": "a guest", "uuid": None}}
THING = {"offer": MIGRATE, "facts": FACTS, "undo": ["decrypt", "decompress"], "runs": True}


def heard(message: object, shape: Shape) -> Any:
    """What comes of it at its door, after the way that it takes through the session."""
    return parse(json.dumps(message), shape)


def test_what_is_said_is_heard() -> None:
    for purpose in (MIGRATE, CHECK):
        assert heard(THING | {"offer": purpose}, OFFER)["facts"] == FACTS
    assert heard({"facts": FACTS}, ANSWER) == {"facts": FACTS}
    assert heard({"begin": True}, BEGIN) == {"begin": True}


def test_what_a_later_version_says_besides_is_passed_over() -> None:
    assert heard(THING | {"colour": "blue"}, OFFER)["colour"] == "blue"


# --- everything, in the place of everything

ODD: list[Any] = [
    *(None, True, False, "", "x", "\x1b[2J", "\0", "\ud800", "7", "0.0.0.0.0.0.0", "9" * 5000, "/" * 5000),
    *(-1, 0, 1 << 63, -(1 << 70), 0.5, 1e308, [], {}, [[]], [{}], ["x"] * 5000, {"": {}}, {"x" * 5000: 1}),
    *([None], {"x": None}, [[[[[[]]]]]], {"path": "/x"}, {"path": ["x"], "unknown": ""}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value that is within."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def altered(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], object]) -> Any:
    """A copy in which `change` has been done to the container and key at the end of the way."""
    within = {"": copy.deepcopy(value)}
    at: Any = within
    for key in ("", *path)[:-1]:
        at = at[key]
    change(at, ("", *path)[-1])
    return within.get("")


def variants(value: Any) -> Iterator[Any]:
    """The value with each part of it missing, and with everything odd in its place."""
    for path in places(value):
        yield altered(value, path, lambda at, key: at.pop(key))
        for odd in ODD:
            yield altered(value, path, lambda at, key, odd=odd: at.__setitem__(key, odd))


def test_an_odd_offer_is_refused_or_read_without_surprise() -> None:
    refused = read = 0
    for message in variants(THING):
        try:
            facts = heard(message, OFFER)["facts"]
        except Misshapen as error:
            refused += str(error) != ""
            continue
        for one, other in ((FACTS, facts), (facts, FACTS), (facts, facts)):
            assert all(isinstance(finding.reason, str) for finding in compare(one, other))
            read += 1
    assert refused > 1000 and read > 100


def test_odd_steps_are_refused_or_read_without_surprise() -> None:
    for message in variants({"event": "READY", "reason": "because"}):
        if isinstance(message, dict):
            try:
                assert step_of(message, Source)[0] in Event
            except PeerError as error:
                assert "is not a step of a migration" in str(error) and str(error).isprintable()


ODD_OFFERS: dict[str, tuple[Facts, str]] = {
    "more disks than a guest can have": (
        {"facts": FACTS | {"disks": [UNKNOWN | {"path": f"/{n}"} for n in range(3900)]}},
        f"facts.disks is a list, where a list of at most {DISKS} is expected",
    ),
    "a disk without a path": ({"facts": FACTS | {"disks": [{}]}}, "facts.disks[0].path is missing"),
    "stages without end": ({"undo": ["decrypt"] * (STAGES + 1)}, f"a list of at most {STAGES}"),
    "a stage that writes files": ({"undo": ["tee"]}, "undo[0] is 'tee'"),
    "another purpose": ({"offer": "format"}, "offer is 'format'"),
    "a version that is none": ({"facts": FACTS | {"guest": HOST["guest"] | {"qemu": "new"}}}, "a version of QEMU's"),
    "no memory": ({"facts": FACTS | {"guest": HOST["guest"] | {"ram": -1}}}, "guest.ram is -1"),
}


@pytest.mark.parametrize("name", ODD_OFFERS)
def test_what_is_wrong_with_an_offer_is_told_by_its_place(name: str) -> None:
    change, words = ODD_OFFERS[name]
    with pytest.raises(Misshapen) as caught:
        heard(THING | change, OFFER)
    assert words in str(caught.value)


@pytest.mark.parametrize("message", [{}, {"begin": 1}, {"begin": "true"}, {"begin": False}, THING, {"event": "GO"}])
def test_nothing_else_is_the_word_to_begin(message: Facts) -> None:
    with pytest.raises(Misshapen):
        heard(message, BEGIN)


@pytest.mark.parametrize("message", [{}, {"facts": []}, {"facts": {}}, {"refused": "no room"}, THING | {"facts": None}])
def test_what_is_no_answer(message: Facts) -> None:
    with pytest.raises(Misshapen):
        heard(message, ANSWER)


# --- the steps


NEGOTIATES = {Action.SEND_ANSWER, Action.SEND_BEGIN}
"""They send messages of their own shape, before the first step."""


def sent_by(table: Mapping[Any, Mapping[Event, tuple[Any, tuple[Action, ...]]]]) -> set[Event]:
    """What a side that follows this table may send."""
    actions = {action for row in table.values() for _, actions in row.values() for action in actions} - NEGOTIATES
    return {Event[action.name.removeprefix("SEND_")] for action in actions if action.name.startswith("SEND_")}


CAN_KNOW = {Source: sent_by(DESTINATION), Destination: sent_by(SOURCE)}


def test_what_an_action_sends_is_what_its_name_says() -> None:
    sends = {action for action in Action if action.name.startswith("SEND_")} - NEGOTIATES
    assert {action: f"SEND_{event.name}" for action, event in STEPS.items()} == {each: each.name for each in sends}


@pytest.mark.parametrize("side", CAN_KNOW)
@pytest.mark.parametrize("event", Event)
def test_a_side_is_told_only_what_the_other_can_know(side: type[Source] | type[Destination], event: Event) -> None:
    """By the other's table: that the guest runs here, the source cannot say, nor the destination that GO was sent."""
    message = heard({"event": event.name}, lambda value, where: None)
    if event in CAN_KNOW[side]:
        is_end = event in (Event.ABORT, Event.REFUSED, Event.UNSURE)
        heard_event, cause = step_of(message, side)
        assert heard_event is event
        assert str(cause) == ("the other host gave up, without a reason" if is_end else "None")
    else:
        with pytest.raises(PeerError, match="is not a step of a migration"):
            step_of(message, side)


@pytest.mark.parametrize("event", [[], ["GO"], {}, None, 7, "go", "GO\n", "CANCEL", ["GO"] * 9000])
def test_an_event_that_is_none_is_told_in_a_line(event: object) -> None:
    for side in HEARD_BY:
        with pytest.raises(PeerError, match="the other host sent something that is not a step") as caught:
            step_of({"event": event}, side)
        assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


def test_a_reason_is_shortened_and_does_nothing_to_a_terminal() -> None:
    event, cause = step_of({"event": "REFUSED", "reason": "\x1b]0;owned\x07\r\n" + "x" * (MAX_MESSAGE - 99)}, Source)
    assert event is Event.REFUSED and len(str(cause)) < 1100 and str(cause).isprintable()
    with pytest.raises(PeerError):
        step_of({"event": "REFUSED", "reason": ["x"]}, Source)
