"""Two tables against every order of events: no two guests, none lost.

The model below is two QEMUs, two coordinators that follow the tables, and messages in between. Every step that could
happen next is tried from every state that can be reached, faults included, so what is asserted holds for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from statepipe.formats.handover import DESTINATION, SOURCE, Action, Destination, Event, Side, Source, recovery

OUT = {
    Action.SEND_ASK: Event.ASK,
    Action.SEND_GO: Event.GO,
    Action.SEND_ABORT: Event.ABORT,
    Action.SEND_READY: Event.READY,
    Action.SEND_ACCEPTED: Event.ACCEPTED,
    Action.SEND_RUNNING: Event.RUNNING,
    Action.SEND_REFUSED: Event.REFUSED,
}


@dataclass(frozen=True)
class World:
    """Both hosts. QEMUs: "paused" is pre-switchover, "handed" postmigrate, "loaded" paused with the whole guest."""

    source: Source | None = Source.PRECOPY
    target: Destination | None = Destination.INCOMING
    qemu: str = "runs"
    other: str = "incoming"
    sent: bool = False
    to_target: tuple[Event, ...] = ()
    to_source: tuple[Event, ...] = ()
    journal: Source = Source.PRECOPY
    torn: bool = False
    broken: bool = False
    lost: tuple[bool, bool] = (False, False)


def tell_source(world: World, event: Event) -> World:
    if world.source is None:
        return world
    side = Side(world.source, SOURCE)
    actions = side.hear(event)
    world = replace(world, source=side.state, journal=side.state)
    for action in actions:
        world = act_on_source(world, action)
    return world


def act_on_source(world: World, action: Action) -> World:
    if action in OUT:
        return world if world.torn else replace(world, to_target=(*world.to_target, OUT[action]))
    if action is Action.CONTINUE and world.qemu == "paused":
        return replace(world, qemu="handing")
    if action is Action.CANCEL and world.qemu in ("runs", "paused"):
        return replace(world, qemu="cancelled")
    if action is Action.CANCEL and world.qemu == "handing":
        return replace(world, qemu="cancelled late")
    if action is Action.RESUME and world.qemu in ("handed", "paused", "handing"):
        return replace(world, qemu="runs")
    return world


def tell_target(world: World, event: Event) -> World:
    if world.target is None:
        return world
    side = Side(world.target, DESTINATION)
    actions = side.hear(event)
    world = replace(world, target=side.state)
    for action in actions:
        if action in OUT and not world.torn:
            world = replace(world, to_source=(*world.to_source, OUT[action]))
        elif action is Action.START and world.other == "loaded":
            world = replace(world, other="starting")
        elif action is Action.END:
            world = replace(world, other="dead")
    return world


def progress(world: World) -> Iterator[World]:
    """What happens sooner or later if no fault comes between."""
    if world.to_target:
        yield tell_target(replace(world, to_target=world.to_target[1:]), world.to_target[0])
    if world.to_source:
        yield tell_source(replace(world, to_source=world.to_source[1:]), world.to_source[0])
    if world.torn and not world.lost[0]:
        yield tell_source(replace(world, lost=(True, world.lost[1])), Event.LOST)
    if world.torn and not world.lost[1]:
        yield tell_target(replace(world, lost=(world.lost[0], True)), Event.LOST)
    if world.qemu == "runs" and world.source is Source.PRECOPY:
        yield tell_source(replace(world, qemu="paused"), Event.PRE_SWITCHOVER)
    if world.qemu == "handing":
        yield tell_source(replace(world, qemu="handed", sent=True), Event.COMPLETED)
        yield replace(world, sent=True)
    if world.qemu == "cancelled late":  # QEMU may have been through
        yield tell_source(replace(world, qemu="handed", sent=True), Event.COMPLETED)
    if world.qemu.startswith("cancelled"):
        yield tell_source(replace(world, qemu="runs"), Event.FAILED)
    if world.qemu == "dead" and not world.sent and not world.broken:
        yield tell_source(replace(world, broken=True), Event.BROKEN)
    if world.other == "incoming" and world.sent and world.target is Destination.INCOMING:
        yield tell_target(replace(world, other="loaded"), Event.COMPLETED)
    if world.other == "starting":
        yield tell_target(replace(world, other="runs"), Event.RUNNING)


def faults(world: World) -> Iterator[World]:
    """What may come between at any moment."""
    if not world.torn:
        yield replace(world, torn=True, to_source=(), to_target=())
    if world.qemu in ("runs", "handing") and world.source in (Source.PRECOPY, Source.HANDING, Source.ACCEPTED):
        yield tell_source(replace(world, qemu="runs"), Event.FAILED)
    if world.source is not None:
        yield tell_source(world, Event.CANCEL)
        yield killed(world)
        if world.qemu != "dead":
            yield tell_source(replace(world, qemu="dead"), Event.GONE)
    if world.other == "starting":
        yield tell_target(replace(world, other="loaded"), Event.FAILED)
    if world.target is not None and world.other in ("incoming", "loaded", "starting"):
        yield tell_target(replace(world, other="dead"), Event.GONE)
        yield replace(world, target=None, other="dead", torn=True, to_source=(), to_target=())  # with its child


def steps(world: World) -> Iterator[World]:
    """Everything that could happen next."""
    yield from progress(world)
    yield from faults(world)


def killed(world: World) -> World:
    """The source's coordinator is: whoever looks after it follows its journal."""
    return recovered(replace(world, source=None, torn=True, to_source=(), to_target=()))


def recovered(world: World) -> World:
    """QEMU told what the journal makes of it, and its answer."""
    for action in recovery(world.journal):
        world = act_on_source(world, action)
    return replace(world, qemu="runs") if world.qemu.startswith("cancelled") else world


def explore() -> set[World]:
    seen, ahead = set[World](), [World()]
    while ahead:
        world = ahead.pop()
        if world not in seen:
            seen.add(world)
            ahead += steps(world)
    return seen


@pytest.fixture(scope="module")
def worlds() -> set[World]:
    return explore()


def test_two_guests_never_run(worlds: set[World]) -> None:
    assert not [world for world in worlds if world.qemu == "runs" and world.other in ("runs", "starting")]


def test_a_guest_is_lost_only_with_the_qemu_that_held_it(worlds: set[World]) -> None:
    """Where all has been said and done, one guest runs; or GO had left and nobody can know; or its QEMU has died."""
    for world in worlds:
        if any(after != world for after in progress(world)):
            continue
        running = [world.qemu, world.other].count("runs")
        killed_late = world.source is None and world.journal in (Source.COMMITTED, Source.UNDECIDED)
        told = killed_late or world.source is Source.UNDECIDED
        assert running == 1 or told or (world.qemu == "dead" and world.other != "loaded"), world


def test_nobody_waits_for_ever(worlds: set[World]) -> None:
    for world in worlds:
        if not any(after != world for after in progress(world)):
            assert world.source is None or Side(world.source, SOURCE).ended, world
            assert world.target is None or Side(world.target, DESTINATION).ended, world


def test_an_undecided_end_keeps_the_guest_somewhere(worlds: set[World]) -> None:
    for world in worlds:
        if world.source is Source.UNDECIDED and world.qemu != "dead":
            assert world.qemu == "handed"


def test_the_way_without_faults_ends_on_the_destination(worlds: set[World]) -> None:
    moved = [world for world in worlds if world.source is Source.MOVED]
    assert moved and all(world.other == "runs" and world.qemu in ("handed", "dead") for world in moved)


def test_what_one_side_sends_the_other_knows(worlds: set[World]) -> None:
    heard = {event for table in (SOURCE, DESTINATION) for row in table.values() for event in row}
    assert set(OUT.values()) <= heard


def test_every_state_is_reached(worlds: set[World]) -> None:
    assert {world.source for world in worlds} - {None} == set(Source)
    assert {world.target for world in worlds} - {None} == set(Destination)


@pytest.mark.parametrize("state", Source)
def test_recovery_never_runs_a_guest_that_was_given_away(state: Source) -> None:
    assert (recovery(state) == ()) == (state in (Source.MOVED, Source.COMMITTED, Source.UNDECIDED, Source.DEAD))
