"""send and recv over a plain connection: what nc does, with a verdict.

The sender half-closes and waits for the receiver's close, which comes only once the bytes are where they belong (for
a file: on the disk and under its name); any failure is a reset, on both sides. A stream that can prove itself is
followed by both (stages/prove.py). One that cannot, and that no stage changes, never enters this process.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Union

from statepipe.descriptors import demand_readable
from statepipe.ends.address import SSH, TLS
from statepipe.ends.fd import FdSink, FdSource, failure, reader_gone, write_all
from statepipe.ends.net import SocketSink, SocketSource, is_network
from statepipe.ends.output import Output, new_output
from statepipe.ends.relay import Backflow, can_relay, relay
from statepipe.errors import PeerError, StatepipeError
from statepipe.formats.qemu.returnpath import shut
from statepipe.pipeline.job import at_work
from statepipe.pipeline.pipeline import NamedStage, Pipeline
from statepipe.pipeline.signals import forget_late, held
from statepipe.session.options import Plan, Visit
from statepipe.stage import Buffer, Cancelled, Stage
from statepipe.stages.prove import Proof, is_undecided, prove, proves_itself
from statepipe.telling import Tell
from statepipe.transfer.endpoints import outgoing, visited

if TYPE_CHECKING:
    from statepipe.session.streams import SessionSink, SessionSource

IDLE = 1000
"""Milliseconds of silence after which a sending QEMU gets a sign of life (stages/watch.py)."""

AnySource = Union[FdSource, "SessionSource"]
AnySink = Union[FdSink, SocketSink, "SessionSink"]


class Looked:
    """A source whose first bytes have been looked at, and still come."""

    def __init__(self, source: AnySource) -> None:
        self.source = source
        self.taken: list[Buffer] = []
        while is_undecided(self.head) and (buffer := next(source, None)) is not None:
            self.taken.append(buffer)
        self.bytes = source.bytes

    @property
    def head(self) -> bytes:
        """What has been looked at and not been taken since."""
        return b"".join(self.taken)

    def __iter__(self) -> Iterator[Buffer]:
        return self

    def __next__(self) -> Buffer:
        buffer = self.taken.pop(0) if self.taken else next(self.source)
        self.bytes = self.source.bytes
        return buffer

    def cancel(self) -> None:
        """As the source's own."""
        self.source.cancel()


# --- send


def send(plan: Plan, warn: Tell) -> bool:
    """Send standard input; whether it proved itself whole. Raises StatepipeError.

    What the receiver sends back goes to standard output, unless that is a terminal: it is QEMU's return path, where
    we are its exec: filter.
    """
    demand_readable(0, "standard input")
    proof = Proof()
    with FdSource(0, "standard input") as source, outgoing(plan, warn) as (returning, make_sink):
        back = Backflow(returning, _to_stdout, source.cancel)
        back.start()
        try:
            with make_sink(lambda: back.wait(plan.patience.silence)) as sink:
                _carry(source, [("stream", prove(proof))], plan.words, sink, sink.commit)
        except Cancelled:
            back.wait(None)  # raises what broke it
            raise
        finally:
            back.stop()
    proved = proof.holds or plan.address.scheme in (TLS, SSH)
    if not proved and not sink.bytes:  # a unix socket knows no reset, which would have said so
        warn("nothing was sent, and a receiver of ours takes that for nobody unless it has --allow-empty")
    return proved


def _to_stdout(buffer: Buffer) -> None:
    if not os.isatty(1):
        write_all(1, buffer)


def _carry(
    source: AnySource,
    followers: Sequence[NamedStage],
    words: Sequence[NamedStage],
    sink: AnySink,
    finish: Callable[[], None] = lambda: None,
) -> None:
    """From the source to the sink, and `finish`, which may wait for the other side: it is still asked how it goes.

    Through the kernel alone where there is nothing to follow and nothing to do.
    """
    looked = Looked(source)
    if words or proves_itself(looked.head):
        pipeline = Pipeline(looked, [*followers, *words], sink)
    elif isinstance(source, FdSource) and isinstance(sink, FdSink | SocketSink) and can_relay(source.fd, sink.fd):
        _relay(looked, source, sink)
        return finish()
    else:
        pipeline = Pipeline(looked, [], sink)
    with at_work(pipeline):
        pipeline.pour()
        finish()


def _relay(looked: Looked, source: FdSource, sink: SocketSink | FdSink) -> None:
    while looked.taken:
        sink.write(next(looked))

    def moved(count: int) -> None:
        looked.bytes = source.bytes = source.bytes + count
        sink.bytes += count

    try:
        with at_work(Pipeline(looked, [], sink)):  # which it is, but for who moves the bytes
            relay(source, sink.fd, moved)
    except OSError as error:
        raise _explain(error, source, sink) from error


def _explain(error: OSError, source: FdSource, sink: SocketSink | FdSink) -> StatepipeError:
    """Whose error it was: a relay has one system call for both ends."""
    if isinstance(sink, FdSink):
        if isinstance(error, BrokenPipeError):
            return reader_gone(sink.name)
        if isinstance(source, SocketSource) and is_network(error):
            return source.lost(error)
        return failure(f"write {sink.name}", error)
    ours = is_network(error) or isinstance(error, BrokenPipeError)
    return sink.lost(error) if ours else failure(f"read {source.name}", error)


# --- recv


def recv_to_file(plan: Plan, path: str, say: Tell) -> bool:
    """Receive one stream into a file that exists only once it is there whole; whether it proved itself so.

    A QEMU that sends it is answered as by save: its migration completes only if the file does. Raises StatepipeError.
    """
    with new_output(path) as sink, visited(plan, say, IDLE) as visit:
        return receive(plan, visit, sink) or plan.address.scheme == TLS


def receive(plan: Plan, visit: Visit, sink: Output) -> bool:
    """From a sender who came in to a file, and commit it; whether the stream proved itself. Raises StatepipeError."""
    proof = Proof()

    def answer(message: bytes) -> bool:
        return _answer(visit, message)

    try:
        Pipeline(visit.source, [("stream", prove(proof, answer)), *plan.words], sink).pour()
        sink.sync()
        with held():
            sink.commit()
            told = not proof.return_path or answer(shut(0))
            visit.finish()
            forget_late()
    except BaseException:
        if proof.return_path:
            answer(shut(1))
        raise
    if not told:
        hint = f"{sink.name} holds the whole state; if QEMU still runs the guest, remove the file"
        raise PeerError("QEMU went away before it could be told that its state is here", hint=hint)
    return proof.holds


def _answer(visit: Visit, message: bytes) -> bool:
    try:
        visit.send(message)
    except (OSError, PeerError):
        return False
    return True


def recv_to_stdout(plan: Plan, say: Tell) -> bool:
    """Receive one stream to standard output; whether it proved itself whole. Raises StatepipeError.

    A QEMU that sends it and waits for answers gets those that come on standard input: from another QEMU, whose
    exec: filter we are.
    """
    proof = Proof()
    with visited(plan, say) as visit, FdSource(0, "standard input") as stdin:
        back = Backflow(stdin, visit.send)
        followers = [("stream", prove(proof)), ("return path", _answered(proof, back))]
        try:
            _carry(visit.source, followers, plan.words, FdSink(1, "standard output"))
        finally:
            back.stop()
        visit.finish()
    return proof.holds or plan.address.scheme == TLS


def _answered(proof: Proof, back: Backflow) -> Stage:
    """A stage that begins to carry answers back once they are waited for."""

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        begun = False
        for buffer in upstream:
            if proof.return_path and not begun:
                _begin(back)
                begun = True
            yield buffer

    return stage


def _begin(back: Backflow) -> None:
    mode = os.fstat(0).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise StatepipeError(
            "QEMU waits for answers, and standard output cannot tell what became of its stream",
            hint="receive into a file, with --output FILE, or turn the capability return-path off",
        )
    back.start()
