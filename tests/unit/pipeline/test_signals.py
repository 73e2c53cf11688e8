"""Signals as exceptions: one is enough, the ignored stay ignored, and held ones wait."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from statepipe.ends.address import parse_address
from statepipe.ends.file import FileSink
from statepipe.ends.net import Patience, SocketSource
from statepipe.errors import InterruptedBySignal
from statepipe.pipeline.signals import ENDING, as_exceptions, forget_late, held
from statepipe.session.options import ConnectionPlan, Visit
from statepipe.transfer.sendrecv import receive

every_signal = pytest.mark.parametrize("number", ENDING)


@pytest.fixture(autouse=True)
def handlers_are_put_back() -> Iterator[None]:
    """Whoever started the tests may have had some ignored, as nohup does."""
    inherited = [signal.signal(number, signal.SIG_DFL) for number in ENDING]
    yield
    assert [signal.getsignal(number) for number in ENDING] == [signal.SIG_DFL] * len(ENDING)
    for number, handler in zip(ENDING, inherited, strict=True):
        signal.signal(number, handler)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(ENDING)


@every_signal
def test_it_ends_with_128_and_its_number(number: signal.Signals) -> None:
    with pytest.raises(InterruptedBySignal, match=f"stopped by {number.name}") as caught, as_exceptions():
        signal.raise_signal(number)
    assert caught.value.exit_code == 128 + number


@every_signal
def test_those_that_follow_are_ignored_while_things_are_put_in_order(number: signal.Signals) -> None:
    tidied = False
    with pytest.raises(InterruptedBySignal), as_exceptions():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(number)
            tidied = True
    assert tidied


def test_one_that_was_ignored_stays_so() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with as_exceptions():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@every_signal
def test_a_held_one_waits(number: signal.Signals) -> None:
    steps = []
    with pytest.raises(InterruptedBySignal), as_exceptions():
        with held():
            signal.raise_signal(number)
            steps.append("together")
        steps.append("never")
    assert steps == ["together"]


def test_holds_can_stand_in_one_another() -> None:
    steps = []
    with pytest.raises(InterruptedBySignal), as_exceptions(), held():
        with held():
            signal.raise_signal(signal.SIGINT)
        steps.append("still held")
    assert steps == ["still held"]


def unnoticed(number: signal.Signals) -> threading.Thread:
    """The signal comes where it interrupts nothing: to another thread, which is as if to the main one too early."""

    def take() -> None:
        signal.pthread_kill(threading.get_ident(), number)

    return threading.Thread(target=take)


def full_pipe(writing: int) -> None:
    while True:
        os.write(writing, bytes(4096))


@every_signal
@pytest.mark.parametrize("call", ["lock", "read", "write"])
def test_a_call_that_lasts_for_ever_is_interrupted(number: signal.Signals, call: str) -> None:
    reading, writing = os.pipe()
    lock = threading.Lock()
    lock.acquire()
    calls = {"lock": lock.acquire, "read": lambda: os.read(reading, 1), "write": lambda: full_pipe(writing)}
    thread = unnoticed(number)
    try:
        with pytest.raises(InterruptedBySignal) as caught, as_exceptions():
            thread.start()
            calls[call]()
    finally:
        thread.join()
        os.close(reading)
        os.close(writing)
    assert caught.value.exit_code == 128 + number


def test_nothing_is_left_of_it() -> None:
    before = threading.enumerate(), os.listdir("/proc/self/fd"), signal.set_wakeup_fd(-1)
    with as_exceptions():
        pass
    with pytest.raises(InterruptedBySignal), as_exceptions():
        signal.raise_signal(signal.SIGINT)
    assert (threading.enumerate(), os.listdir("/proc/self/fd"), signal.set_wakeup_fd(-1)) == before


@pytest.mark.parametrize("call", ["lock", "read"])
def test_one_that_asks_is_answered_while_the_main_thread_waits(call: str) -> None:
    reading, writing = os.pipe()
    lock = threading.Lock()
    lock.acquire()

    def tell() -> None:
        os.write(writing, b"x")
        lock.release()

    try:
        with as_exceptions(tell):
            thread = unnoticed(signal.SIGUSR1)
            thread.start()
            if call == "lock":
                assert lock.acquire(timeout=30)
            assert os.read(reading, 1) == b"x"
            thread.join()
    finally:
        os.close(reading)
        os.close(writing)


def test_one_that_asks_is_ignored_again_afterwards() -> None:
    """As main's entry has it: outside, it would end the process."""
    told = threading.Event()
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with as_exceptions(told.set):
            signal.raise_signal(signal.SIGUSR1)
            assert told.wait(30)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


@every_signal
def test_one_that_came_too_late_is_forgotten(number: signal.Signals) -> None:
    """What was done is done, and no status may deny it."""
    with as_exceptions(), held():
        signal.raise_signal(number)
        forget_late()
    with pytest.raises(InterruptedBySignal), as_exceptions(), held():
        signal.raise_signal(number)


def test_a_receiver_whose_file_is_there_is_not_stopped_any_more(tmp_path: Path) -> None:
    """Though it may wait long for the sender to hear of it."""
    ours, theirs = socket.socketpair()
    theirs.sendall(b"all of it")
    theirs.close()
    plan = ConnectionPlan(parse_address("tcp://127.0.0.1:1"), [], Patience())
    with ours, SocketSource(ours, "a sender", Patience()) as source, FileSink(str(tmp_path / "f")) as sink:
        visit = Visit(source, lambda buffer: None, lambda: signal.raise_signal(signal.SIGTERM))
        with as_exceptions():
            receive(plan, visit, sink)
    assert (tmp_path / "f").read_bytes() == b"all of it"
