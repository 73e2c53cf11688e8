"""Two tables against every order of events: no two guests, none lost.

The model below is two QEMUs, two coordinators that follow the tables, a guardian for each, and messages in between.
Whatever QEMU is told it does and answers later, in any order with all else, also when nobody waits any more. Every step
that could happen next is tried from every state that can be reached, faults and signals included, so what is asserted
holds for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from statepipe.migration.negotiation import STEPS
from statepipe.recovery.handover import (
    DESTINATION,
    HURRIED,
    RECOVERY,
    SOURCE,
    Action,
    Destination,
    Event,
    Side,
    Source,
)

SENDING = (Source.PRECOPY, Source.PROMISED, Source.HANDING, Source.ACCEPTED)
"""QEMU sends, and may report that it failed."""

OUT = {**STEPS, Action.SEND_ANSWER: Event.ANSWER, Action.SEND_BEGIN: Event.BEGIN}
"""What the other side hears when an action sends: the steps, and what comes before them."""


class World(NamedTuple):
    """Both hosts.

    `qemu`, the source's: "paused" is pre-switchover, "handed" postmigrate, "cancelled" is told to undo it, "resuming"
    told to run. `other`, the destination's: "none" is not started, "loaded" paused with the whole guest, "starting"
    told to run, "dying" told to end. `ran`: the guest has run there. `mute`: whose monitor is no more. `signalled`: who
    is to end.
    `astray`: another client has let the guest run there before its time; no other fault comes after that.
    """

    source: Source | None = Source.OFFERING
    target: Destination | None = Destination.EXPECTING
    qemu: str = "runs"
    other: str = "none"
    ran: bool = False
    sent: bool = False
    to_target: tuple[Event, ...] = (Event.OFFER,)
    to_source: tuple[Event, ...] = ()
    journal: Source = Source.OFFERING
    torn: bool = False
    broken: bool = False
    lost: tuple[bool, bool] = (False, False)
    mute: tuple[bool, bool] = (False, False)
    signalled: tuple[bool, bool] = (False, False)
    astray: bool = False


replace = World._replace


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
    """QEMU has the command; what it makes of it comes later."""
    if action in OUT:
        silent = world.torn or world.source is None
        return world if silent else replace(world, to_target=(*world.to_target, OUT[action]))
    if action is Action.CONTINUE and world.qemu == "paused":
        return replace(world, qemu="handing")
    if action is Action.CANCEL and world.qemu in ("runs", "paused"):
        return replace(world, qemu="cancelled")
    if action is Action.CANCEL and world.qemu == "handing":
        return replace(world, qemu="cancelled late")
    if action is Action.RESUME and world.qemu == "handed" and not world.mute[0]:
        return replace(world, qemu="resuming")
    return world


def tell_target(world: World, event: Event) -> World:
    if world.target is None:
        return world
    side = Side(world.target, DESTINATION)
    actions = side.hear(event)
    world = replace(world, target=side.state)
    for action in actions:
        if action is Action.SEND_ANSWER and world.other == "none":
            world = replace(world, other="incoming")
        if action in OUT:
            world = world if world.torn else replace(world, to_source=(*world.to_source, OUT[action]))
        else:
            world = act_on_target(world, action)
    return world


def act_on_target(world: World, action: Action) -> World:
    if action is Action.START and world.other == "loaded":
        return replace(world, other="starting")
    if action in (Action.END, Action.END_OURS) and world.other not in ("dead", "none"):
        return replace(world, other="dying")
    return world


def progress(world: World) -> Iterator[World]:
    """What happens sooner or later if no fault comes between, and however late."""
    yield from messages(world)
    yield from source_qemu(world)
    yield from target_qemu(world)


def messages(world: World) -> Iterator[World]:
    if world.to_target:
        yield tell_target(replace(world, to_target=world.to_target[1:]), world.to_target[0])
    if world.to_source:
        yield tell_source(replace(world, to_source=world.to_source[1:]), world.to_source[0])
    left = world.target is not None and Side(world.target, DESTINATION).ended and not world.to_source
    if (world.torn or left) and not world.lost[0]:
        yield tell_source(replace(world, lost=(True, world.lost[1])), Event.LOST)
    left = world.source is not None and Side(world.source, SOURCE).ended and not world.to_target
    if (world.torn or left) and not world.lost[1]:
        yield tell_target(replace(world, lost=(world.lost[0], True)), Event.LOST)


def source_qemu(world: World) -> Iterator[World]:
    """What QEMU does, and, unless it is mute, what it says of it."""
    if world.qemu == "runs" and world.source in (Source.PRECOPY, Source.PROMISED) and not world.mute[0]:
        yield tell_source(replace(world, qemu="paused"), Event.PRE_SWITCHOVER)
    if world.qemu in ("handing", "cancelled late"):  # it may have been through
        yield said(replace(world, qemu="handed", sent=True), Event.COMPLETED)
    if world.qemu == "handing":
        yield replace(world, sent=True)
    if world.qemu.startswith("cancelled"):
        yield said(replace(world, qemu="runs"), Event.FAILED)
    if world.qemu == "resuming" or (world.qemu == "runs" and world.source is Source.RESUMING):
        yield said(replace(world, qemu="runs"), Event.RESUMED)
    if world.qemu == "handed" and world.source is Source.CANCELLING:
        yield said(world, Event.COMPLETED)
    if world.qemu == "runs" and world.source is Source.CANCELLING:
        yield said(world, Event.FAILED)
    if world.source in (Source.CANCELLING, Source.RESUMING):  # whoever tells it to do something finds that out
        if world.qemu == "dead":
            yield tell_source(world, Event.GONE)
        elif world.mute[0]:
            yield tell_source(world, Event.MUTE)
    if world.qemu == "dead" and not world.sent and not world.broken:
        yield tell_source(replace(world, broken=True), Event.BROKEN)


def said(world: World, event: Event) -> World:
    return world if world.mute[0] else tell_source(world, event)


def target_qemu(world: World) -> Iterator[World]:
    if world.other == "incoming" and world.sent and world.target is Destination.INCOMING and not world.mute[1]:
        yield tell_target(replace(world, other="loaded"), Event.COMPLETED)
    if world.other == "starting":
        after = replace(world, other="runs", ran=True)
        yield after if world.mute[1] else tell_target(after, Event.RUNNING)
    if world.astray and world.target is Destination.ENDING and world.other != "dead":
        yield tell_target(world, Event.STRAYED)  # QEMU is asked before it is seen to have ended
    elif world.other == "dying":
        yield tell_target(replace(world, other="dead"), Event.ENDED)
    if world.other == "dead" and world.target is Destination.ENDING:
        yield tell_target(world, Event.ENDED)


def faults(world: World) -> Iterator[World]:
    """What may come between at any moment."""
    if not world.torn:
        yield replace(world, torn=True, to_source=(), to_target=())
    yield from source_faults(world)
    yield from target_faults(world)


def source_faults(world: World) -> Iterator[World]:
    if world.qemu in ("runs", "handing") and world.source in SENDING:
        yield tell_source(replace(world, qemu="runs"), Event.FAILED)
    if world.qemu == "resuming":
        yield tell_source(replace(world, qemu="handed"), Event.STRANDED)
    if world.source is None:
        return
    yield tell_source(replace(world, signalled=(True, world.signalled[1])), Event.CANCEL)
    if world.signalled[0] or world.source in HURRIED:
        yield tell_source(world, Event.OVERDUE)
    yield killed(world)
    if world.qemu != "dead":
        yield tell_source(replace(world, qemu="dead"), Event.GONE)
        if not world.mute[0]:
            yield tell_source(replace(world, mute=(True, world.mute[1])), Event.MUTE)


def target_faults(world: World) -> Iterator[World]:
    if world.target is None:
        return
    if world.other == "loaded" and world.target is Destination.INCOMING and not any(world.mute):
        yield tell_target(replace(world, astray=True, ran=True, other="runs"), Event.FAILED)
    if world.other == "loaded" and world.target is Destination.WAITING and not any(world.mute):
        yield tell_target(replace(world, astray=True, ran=True, other="runs"), Event.CANCEL)
    yield tell_target(replace(world, signalled=(world.signalled[0], True)), Event.CANCEL)
    if world.signalled[1] or world.target in HURRIED:
        yield tell_target(world, Event.OVERDUE)
    yield target_killed(world)
    yield replace(target_gone(world), other="dead")  # with its QEMU: the host went down
    if world.other == "starting":
        yield tell_target(replace(world, other="loaded"), Event.FAILED)
    if world.other == "loaded" and world.target is Destination.STARTING:  # it had ended before it was told
        yield tell_target(replace(world, other="dead"), Event.ENDED)
    if world.other in ("incoming", "loaded", "starting", "dying"):
        yield tell_target(replace(world, other="dead"), Event.GONE)
    if world.other == "starting":
        yield tell_target(replace(world, other="dead", ran=True), Event.GONE)
    if world.other != "dead" and not world.mute[1]:
        yield tell_target(replace(world, mute=(world.mute[0], True)), Event.MUTE)


def steps(world: World) -> Iterator[World]:
    """Everything that could happen next."""
    yield from progress(world)
    if not world.astray:
        yield from faults(world)


def killed(world: World) -> World:
    """The source's coordinator is: whoever looks after it follows what it noted."""
    world = replace(world, source=None, torn=True, to_source=(), to_target=())
    for action in RECOVERY[world.journal]:
        if action is Action.RESUME:  # the guardian has waited for what became of the migration
            world = replace(world, qemu="runs") if world.qemu.startswith("cancelled") else world
        world = act_on_source(world, action)
    return world


def target_gone(world: World) -> World:
    return replace(world, target=None, torn=True, to_source=(), to_target=())


def target_killed(world: World) -> World:
    """The destination's is: so does its guardian, while QEMU still does what it was told before."""
    state = world.target
    assert state is not None
    world = target_gone(world)
    for action in RECOVERY[state]:
        world = act_on_target(world, action)
    return world


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


@pytest.fixture(scope="module")
def at_rest(worlds: set[World]) -> list[World]:
    """Those in which all has been said and done."""
    return [world for world in worlds if not any(after != world for after in progress(world))]


RUNNING = ("runs", "resuming", "cancelled", "cancelled late")
"""The source's guest runs, or QEMU may run it at any moment."""


def test_two_guests_never_run(worlds: set[World]) -> None:
    both = [world for world in worlds if world.qemu in RUNNING and world.other in ("runs", "starting")]
    assert all(world.astray for world in both), both  # another client's doing, for as long as it takes to end that QEMU


def test_a_guest_that_has_run_there_never_runs_here_again(worlds: set[World]) -> None:
    """Its disks are no longer those that the source's memory belongs to."""
    again = [world for world in worlds if world.ran and world.qemu in RUNNING and not world.astray]
    assert not again, again[0]


@pytest.mark.parametrize("way", [[], [Event.ACCEPTED], [Event.COMPLETED]], ids=["handing", "accepted", "handed"])
def test_a_guest_that_has_run_there_before_its_time_is_run_here_by_a_person_alone(way: list[Event]) -> None:
    side, done = Side(Source.OFFERING, SOURCE), []
    for event in (Event.ANSWER, Event.PRE_SWITCHOVER, Event.READY, *way, Event.UNSURE, Event.LOST, Event.CANCEL):
        done += side.hear(event)
    if side.state is Source.DOUBTED:
        done += side.hear(Event.COMPLETED)
    assert side.state is Source.UNDECIDED and not {Action.RESUME, Action.CANCEL, Action.SEND_GO} & set(done)


def test_never_ran_is_said_of_no_guest_that_did(worlds: set[World]) -> None:
    never = (Destination.ENDING, Destination.ENDED, Destination.UNENDED)
    looking = Destination.ENDING  # QEMU is asked last whether another client has let its guest run
    said = [world for world in worlds if world.target in never and not (world.astray and world.target is looking)]
    wrong = [world for world in said if world.ran]
    assert not wrong, wrong[0]


def test_what_an_end_says_of_a_qemu_is_so(worlds: set[World]) -> None:
    for world in worlds:
        assert world.target is not Destination.ENDED or world.other == "dead", world
        assert world.target is not Destination.RUNS or world.other in ("runs", "dead"), world
        assert world.source is not Source.DEAD or world.qemu == "dead" or world.mute[0], world
        assert world.source is not Source.MOVED or world.ran, world
        assert world.target is not Destination.STRAYED or world.ran, world


def test_a_guest_is_lost_only_with_the_qemu_that_held_it(at_rest: list[World]) -> None:
    """Where all has been said and done, one guest runs; or what is said is that nobody can know; or its QEMU died."""
    for world in at_rest:
        running = [world.qemu, world.other].count("runs")
        killed_late = world.source is None and world.journal in (Source.COMMITTED, Source.UNDECIDED)
        told = killed_late or world.source in (Source.UNDECIDED, Source.UNANSWERED)
        stands = world.qemu == "handed" and (world.source in (Source.KEPT, None))  # `resolve here` runs it
        died = world.qemu == "dead" and (world.other != "loaded" or world.signalled[0])
        assert running == 1 or told or stands or died or world.ran, world


def test_a_guest_that_stands_still_here_was_not_given_away(at_rest: list[World]) -> None:
    for world in at_rest:
        if world.source is Source.KEPT and world.qemu == "handed" and not world.astray:
            assert world.other not in ("runs", "starting") and not world.ran, world


def test_nobody_waits_for_ever(at_rest: list[World]) -> None:
    for world in at_rest:
        assert world.source is None or Side(world.source, SOURCE).ended, world
        assert world.target is None or Side(world.target, DESTINATION).ended, world


def test_an_undecided_end_keeps_the_guest_somewhere(worlds: set[World]) -> None:
    for world in worlds:
        if world.source is Source.UNDECIDED and world.qemu != "dead":
            assert world.qemu == "handed"


def test_the_way_without_faults_ends_on_the_destination(worlds: set[World]) -> None:
    moved = [world for world in worlds if world.source is Source.MOVED]
    assert moved and all(world.ran and world.qemu in ("handed", "dead") for world in moved)


def test_what_one_side_sends_the_other_knows() -> None:
    heard = {event for table in (SOURCE, DESTINATION) for row in table.values() for event in row}
    assert set(OUT.values()) <= heard


def test_every_state_is_reached(worlds: set[World]) -> None:
    assert {world.source for world in worlds} - {None} == set(Source)
    assert {world.target for world in worlds} - {None} == set(Destination)


def test_before_it_begins_nothing_can_touch_the_guest(worlds: set[World]) -> None:
    for world in worlds:
        if world.source in (Source.OFFERING, Source.UNTOUCHED):
            assert world.qemu in ("runs", "dead") and not world.sent and not world.ran, world


def test_a_check_leaves_its_guest_and_no_qemu(at_rest: list[World]) -> None:
    """It leaves where a migration begins: to the tables, a source that was cancelled."""
    for world in at_rest:
        if world.source is Source.UNTOUCHED and world.target is not None:
            assert world.target is Destination.DECLINED and world.other in ("none", "dead"), world
    assert any(world.source is Source.UNTOUCHED and world.target is Destination.DECLINED for world in at_rest)


def test_from_go_on_a_signal_takes_nothing_back() -> None:
    assert Event.CANCEL not in SOURCE[Source.COMMITTED]
    assert Event.CANCEL not in DESTINATION[Destination.STARTING] and Event.LOST not in DESTINATION[Destination.STARTING]


def test_each_state_has_its_recovery() -> None:
    assert set(RECOVERY) == {*Source, *Destination}


@pytest.mark.parametrize("state", Source)
def test_recovery_never_runs_a_guest_that_was_given_away(state: Source) -> None:
    nothing_to_undo = (Source.OFFERING, Source.UNTOUCHED)
    given_away = (Source.MOVED, Source.COMMITTED, Source.UNDECIDED, Source.DEAD)
    assert (RECOVERY[state] == ()) == (state in (*nothing_to_undo, Source.DOUBTED, *given_away))


@pytest.mark.parametrize("state", Destination)
def test_recovery_runs_a_guest_only_once_it_was_given_away(state: Destination) -> None:
    assert (RECOVERY[state] == (Action.START,)) == (state is Destination.STARTING)
