"""send and recv over a plain connection: what nc does, with a verdict.

The sender half-closes and waits for the receiver's close, which comes only once the bytes are where they belong (for
a file: on the disk and under its name). On both sides, any failure is a reset. Both follow a stream that can prove
itself complete (stages/prove.py). The kernel moves one that cannot, and that no stage changes (pipeline/bypass.py).
"""

from __future__ import annotations

import os
import stat

from statepipe.descriptors import demand_readable
from statepipe.ends.address import SSH, TLS
from statepipe.ends.fd import FdSink, FdSource, write_all
from statepipe.ends.output import Measuring, Output, new_output
from statepipe.ends.relay import Backflow
from statepipe.errors import PeerError, StatepipeError
from statepipe.formats.qemu.returnpath import shut
from statepipe.pipeline.job import at_work
from statepipe.pipeline.pipeline import Pipeline
from statepipe.pipeline.signals import forget_late, held
from statepipe.session.options import ConnectionPlan, Visit
from statepipe.stage import Cancelled
from statepipe.stages.prove import Proof
from statepipe.telling import Tell
from statepipe.transfer.endpoints import outgoing, visited

IDLE = 1000
"""Milliseconds of silence after which a sending QEMU gets a sign of life (stages/watch.py)."""

# --- send


def send(plan: ConnectionPlan, warn: Tell) -> bool:
    """Send standard input; return whether it is proved to have arrived complete. Raises StatepipeError.

    What the receiver sends back is QEMU's return path, if we are its exec: filter. It goes to standard output, unless
    that is a terminal.
    """
    demand_readable(0, "standard input")
    proof = Proof()
    with FdSource(0, "standard input") as source, outgoing(plan, warn) as (returning, sink):
        back = Backflow(returning, lambda buffer: os.isatty(1) or write_all(1, buffer), source.cancel)
        back.start()
        try:
            sink.until_closed = lambda: back.wait(plan.patience.silence)
            pipeline = Pipeline(source, [("stream", proof), *plan.words], sink)
            with at_work(pipeline):  # also while the receiver finishes
                pipeline.run()
        except Cancelled:
            back.wait(None)  # raises what broke it
            raise
        finally:
            back.stop()
    proved = proof.holds or plan.address.scheme in (TLS, SSH)
    if not proved and not sink.bytes:  # a unix socket has no reset, which would have reported it
        warn("nothing was sent, and a receiver of ours ignores such a connection unless it has --allow-empty")
    return proved


# --- recv


def recv_to_file(plan: ConnectionPlan, path: str, say: Tell, *, overwrite: bool) -> bool:
    """Receive a stream into a file or an object, which exists only if it is complete. Raises StatepipeError.

    A file is replaced; an object only with `overwrite`. Returns whether the stream is proved complete. A sending QEMU
    is answered as by save: its migration completes only if the file does.
    """
    with new_output(path, overwrite=overwrite, tell=say) as sink, visited(plan, say, IDLE) as visit:
        return receive(plan, visit, sink) or plan.address.scheme == TLS


def receive(plan: ConnectionPlan, visit: Visit, sink: Output) -> bool:
    """Write a sender's stream to a file and commit it; return whether the stream proved itself complete.

    Raises StatepipeError.
    """

    def answer(message: bytes) -> bool:
        try:
            visit.send(message)
        except (OSError, PeerError):
            return False
        return True

    proof = Proof(answer)
    if isinstance(sink, Measuring):
        sink.measure = proof.expected
    try:
        Pipeline(visit.source, [("stream", proof), *plan.words], sink).pour()
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


def recv_to_stdout(plan: ConnectionPlan, say: Tell) -> bool:
    """Receive a stream to standard output; return whether it is proved complete. Raises StatepipeError.

    If a sending QEMU waits for answers, it gets what arrives at standard input: the answers of the QEMU whose exec:
    filter we are.
    """

    def begin() -> None:
        mode = os.fstat(0).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise StatepipeError(
                "QEMU waits for answers, which a receiver to standard output cannot give",
                hint="receive into a file, with --output FILE, or turn the capability return-path off",
            )
        back.start()

    with visited(plan, say) as visit, FdSource(0, "standard input") as stdin:
        back = Backflow(stdin, visit.send)
        proof = Proof(asked=begin)
        try:
            Pipeline(visit.source, [("stream", proof), *plan.words], FdSink(1, "standard output")).run()
        finally:
            back.stop()
        visit.finish()
    return proof.holds or plan.address.scheme == TLS
