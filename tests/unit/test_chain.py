"""chain, Link and Over: stages in their places, who signs an error, and the order of closing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from statepipe.errors import IntegrityError, InterruptedBySignal, StatepipeError
from statepipe.stage import FLUSH, Buffer, Link, Over, Stage, cancel, chain, close, links
from statepipe.threads import ahead


def upper(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
    for buffer in upstream:
        yield bytes(buffer).upper()


def doubled(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
    for buffer in upstream:
        yield bytes(buffer) * 2


def failing(error: BaseException, after: int = 1) -> Stage:
    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        for _ in range(after):
            yield next(upstream)
        raise error

    return stage


def test_stages_stand_in_order() -> None:
    def marked(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        for buffer in upstream:
            yield bytes(buffer) + b"."

    flow = chain(iter([b"a", b"b"]), [("doubled", doubled), ("marked", marked)])
    assert list(flow) == [b"aa.", b"bb."]


def test_no_stage_is_the_source_itself() -> None:
    source = iter([b"a"])
    assert chain(source, []) is source


def test_links_count_what_they_put_out() -> None:
    first = Link("doubled", doubled, iter([b"abc", FLUSH, b"de"]))
    second = Link("doubled", doubled, first)
    assert b"".join(second) == b"abcabcabcabcdededede"
    assert (first.bytes, second.bytes) == (10, 20)


def test_a_flush_mark_passes() -> None:
    assert list(chain(iter([b"a", FLUSH, b"b", FLUSH]), [("upper", upper)])) == [b"A", FLUSH, b"B", FLUSH]


@pytest.mark.parametrize("position", range(3))
def test_an_error_is_signed_by_the_first_link_it_passes(position: int) -> None:
    stages = [("one", doubled), ("two", doubled), ("three", upper)]
    stages[position] = ("bad", failing(IntegrityError("no"), after=2))
    with pytest.raises(IntegrityError) as caught:
        list(chain(iter([b"abc", b"def"]), stages))
    assert caught.value.stage == "bad"
    assert caught.value.offset == (None, 12, 24)[position]


def test_what_an_error_knows_already_is_kept() -> None:
    error = IntegrityError("no", stage="inner", offset=7)
    with pytest.raises(IntegrityError):
        list(chain(iter([b"abc"]), [("one", doubled), ("bad", failing(error))]))
    assert (error.stage, error.offset) == ("inner", 7)
    error = IntegrityError("no", offset=0)
    with pytest.raises(IntegrityError):
        list(chain(iter([b"abc"]), [("one", doubled), ("bad", failing(error))]))
    assert (error.stage, error.offset) == ("bad", 0)


def test_an_error_is_signed_across_threads() -> None:
    def placed(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        yield from ahead(upstream, 2)

    flow = chain(iter([b"abc", b"d"]), [("one", doubled), ("bad", failing(StatepipeError("no"))), ("placed", placed)])
    with pytest.raises(StatepipeError) as caught:
        list(flow)
    assert (caught.value.stage, caught.value.offset) == ("bad", 6)


def test_a_signal_is_no_fault_of_the_stage_it_came_in() -> None:
    with pytest.raises(InterruptedBySignal) as caught:
        list(chain(iter([b"a"]), [("bad", failing(InterruptedBySignal(15)))]))
    assert (caught.value.stage, caught.value.offset) == (None, None)


def test_other_exceptions_pass_untouched() -> None:
    with pytest.raises(ZeroDivisionError):
        list(chain(iter([b"a"]), [("bad", failing(ZeroDivisionError()))]))


def noting(name: str, closed: list[str], error: BaseException | None = None) -> tuple[str, Stage]:
    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        try:
            for buffer in upstream:
                yield bytes(buffer)
        finally:
            closed.append(name)
            if error:
                raise error

    return name, stage


def test_closing_goes_from_the_sink_to_the_source() -> None:
    closed: list[str] = []
    flow = chain(iter([b"a", b"b"]), [noting(name, closed) for name in ("first", "second", "third")])
    next(flow)
    close(flow)
    assert closed == ["third", "second", "first"]


def test_a_stage_that_fails_to_close_does_not_keep_the_others_open() -> None:
    closed: list[str] = []
    failure = IntegrityError("at the close")
    stages = [noting("first", closed), noting("second", closed, failure), noting("third", closed)]
    flow = chain(iter([b"a", b"b"]), stages)
    next(flow)
    with pytest.raises(IntegrityError, match="at the close"):
        close(flow)
    assert closed == ["third", "second", "first"]


def test_a_placed_stage_closes_what_is_above_it_from_its_own_thread() -> None:
    threads: list[threading.Thread] = []

    def above(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        try:
            yield from upstream
        finally:
            threads.append(threading.current_thread())

    def placed(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        with closing(ahead(upstream, 1)) as items:
            yield from items

    flow = chain(iter([b"a", b"b", b"c"]), [("above", above), ("placed", placed)])
    next(flow)
    close(flow)
    assert len(threads) == 1 and threads[0] is not threading.current_thread()


def test_cancel_reaches_the_source_through_links_and_overs() -> None:
    cancelled: list[str] = []

    class Upstream:
        def cancel(self) -> None:
            cancelled.append("upstream")

    flow = chain(Over(Upstream(), iter([b"a"])), [("one", upper), ("two", upper)])
    cancel(flow)
    assert cancelled == ["upstream"]


def test_over_closes_its_generator_before_its_upstream() -> None:
    order: list[str] = []

    def generator() -> Iterator[int]:
        try:
            yield 1
        finally:
            order.append("generator")

    class Upstream:
        def close(self) -> None:
            order.append("upstream")

    over = Over(Upstream(), generator())
    assert next(over) == 1
    over.close()
    assert order == ["generator", "upstream"]


def test_what_cannot_be_closed_or_cancelled_is_left_alone() -> None:
    close(iter([1]))
    cancel(iter([1]))


def test_the_links_of_a_chain_stand_in_order() -> None:
    flow = chain(iter([b"a"]), [("first", upper), ("second", upper)])
    assert [link.name for link in links(flow)] == ["first", "second"]
    assert links(iter([b"a"])) == []


def test_an_error_tells_what_its_stage_put_out() -> None:
    with pytest.raises(StatepipeError) as caught:
        list(chain(iter([b"abc", b"de"]), [("one", doubled), ("bad", failing(StatepipeError("no")))]))
    assert (caught.value.offset, caught.value.out) == (6, 6)


def test_cancel_reaches_what_a_stage_waits_for() -> None:
    """A stage that waits for something of its own (time, another program) is woken as its source is."""
    woken = threading.Event()

    class Waiting:
        def __iter__(self) -> Waiting:
            return self

        def __next__(self) -> Buffer:
            assert woken.wait(30)
            raise StopIteration

        def cancel(self) -> None:
            woken.set()

    flow = chain(iter([b"a"]), [("waits", lambda upstream: Waiting()), ("above", upper)])
    thread = threading.Thread(target=lambda: list(flow))
    thread.start()
    cancel(flow)
    thread.join(30)
    assert not thread.is_alive()
