"""load --resume: continue a lazy load whose statepipe was killed, or that failed after the guest ran.

QEMU has kept the guest (postcopy-paused): its processors wait for the pages that they lack. It gets a new connection,
reports which pages it has, and is sent the others. The state must be the one that the load began with (marks.py).

If statepipe was killed after the last page, QEMU has all memory. Then the steps that the load did not reach are done:
run the guest, and restore QEMU's settings.

QEMU's main loop may wait for a page, too; then its monitor does not answer. So if the keeper has QEMU listen already,
the pages are sent first, and the monitor is asked afterwards.

QEMU 7.2 crashes, and loses the guest, if a new connection ends before it was told to continue (seen: SIGSEGV in
qemu_get_byte). So all that it is told is written at once, before anything can interrupt us.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from queue import Empty

from statepipe.errors import InterruptedBySignal, QemuError, QemuRefused, QemuSilent, StatepipeError
from statepipe.formats.qemu import postcopy
from statepipe.formats.qemu.postcopy import Block, Received, Resumed
from statepipe.lazy.keeping import (
    Keeping,
    demand_same,
    find_listening,
    gone,
    other_state,
    resume_command,
    same_state,
)
from statepipe.lazy.loading import servable
from statepipe.lazy.marks import Marks, identity
from statepipe.lazy.opening import blocks_of
from statepipe.lazy.rest import SILENT, STOP, Rest, say_left, unread_damage
from statepipe.lazy.server import BUFFERED, Damaged, Failed, Server
from statepipe.lazy.telling import LazyOptions, LazyTelling
from statepipe.lazy.work import LazyWork
from statepipe.pipeline.job import at_work
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.reach import parse_monitor
from statepipe.qemu.settings import restored
from statepipe.state.file import Keys, open_state
from statepipe.state.loading import prepare
from statepipe.telling import Tell

PAUSED, COMPLETED = "postcopy-paused", "completed"

PATIENCE = 2.0
"""Seconds that QEMU has to notice it. It takes some milliseconds."""

LOOK = 0.02


def is_served(status: str) -> bool:
    """Return whether somebody sends QEMU the guest's memory, or QEMU has not noticed yet that nobody does.

    QEMU 10.2 has one more of these statuses (postcopy-device), and a later one may have others.
    """
    return status.startswith("postcopy-") and status != PAUSED


def resume_load(path: str, address: str, keys: Keys, tell: LazyTelling, options: LazyOptions) -> None:
    """Send the rest of the state to the QEMU whose monitor is at `address`. Raises StatepipeError."""
    command = resume_command(path, address, options.words)
    with ExitStack() as opened:
        store = servable(prepare(opened.enter_context(open_state(path, keys))), tell.warn, options)
        digest = identity(store)
        monitor: Monitor | None = None
        blocks = blocks_of(store, {block.name: postcopy.PAGE_SIZE for block in store.index.outline.blocks})
        first = b"".join([*(postcopy.recv_bitmap(block.name) for block in blocks), postcopy.resume()])
        try:
            if (link := find_listening(address, digest, first)) is None:
                try:
                    monitor = opened.enter_context(closing(Monitor(address, tell=tell.warn)))
                    if (status := _settled_status(monitor)) == COMPLETED:
                        _end_complete(monitor, digest, tell)
                        return
                    link = _recovered(monitor, status, digest, first)
                except QemuSilent as error:
                    if (link := find_listening(address, digest, first)) is None:
                        error.advise(other_state(address, digest) or same_state(digest))
                        raise
                except QemuError as error:
                    error.hint = gone(parse_monitor(address)) or error.hint
                    raise
            opened.enter_context(link)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFERED)
            server = opened.enter_context(closing(Server(store, link, blocks, time.monotonic)))
            server.set_rate(options.rate)
            opened.enter_context(at_work(LazyWork(server, lambda: True)))
            try:
                _agree(server, blocks, tell.warn)
                server.push()
                if monitor is None:
                    monitor = opened.enter_context(closing(Monitor(address, tell=tell.warn)))
            except QemuSilent as error:  # without KVM, a QEMU whose guest waits for a damaged page does not answer
                if (damage := unread_damage(server)) is None:
                    raise
                say_left(damage.error, SILENT, server, damage, command)
                raise damage.error from error
        except InterruptedBySignal as error:
            error.advise(f"the guest is left as it is; continue with: {command}")
            raise
        server.at_trouble(lambda: monitor.hurry(STOP))
        marks, rest = Marks(monitor), Rest(store, monitor, tell, command)
        with rest.of(server, marks):
            marks.find()
            if (keeping := Keeping.beside(monitor, address, digest, tell.warn)) is not None:
                opened.enter_context(closing(keeping))
            if marks.says_to_run:
                monitor.execute("cont")
                marks.runs()
            tell.settled()
            rest.finish(marks.before)
        if keeping is not None:
            keeping.done()


def _settled_status(monitor: Monitor) -> str:
    """Return the status of the migration, once QEMU has had time to notice the end of its connection."""
    deadline = time.monotonic() + PATIENCE
    status = str(monitor.migration()["status"])
    while is_served(status) and (left := deadline - time.monotonic()) > 0:
        status = str(monitor.migration_changed(status, min(left, LOOK))["status"])
    return status


def _end_complete(monitor: Monitor, digest: str, tell: LazyTelling) -> None:
    """Do the steps that the interrupted load did not reach, once QEMU has all memory. Raises StatepipeError.

    Without a mark, nothing is left, and QEMU does not know from which state it was loaded.
    """
    marks = Marks(monitor)
    if (found := marks.find()) is not None:
        demand_same(found, digest)
        if marks.says_to_run:
            monitor.execute("cont")
        if (words := restored(monitor, marks.before)) is not None:
            tell.warn(words)
        marks.remove()
    tell.settled()
    tell.nothing_left(monitor.run_state())


def _recovered(monitor: Monitor, status: str, digest: str, first: bytes) -> socket.socket:
    """Our end of a new connection, with `first` in it, to a QEMU that waits for this state. Raises StatepipeError."""
    if is_served(status):
        raise QemuError("another statepipe still loads this guest's memory", hint="see: statepipe ps")
    if status != PAUSED:
        what = f"QEMU does not wait for the rest of a guest's memory (its migration is {status})"
        raise QemuError(what, hint="--resume is for a lazy load that was interrupted while its guest was there")
    if (found := Marks(monitor).find()) is None:
        raise StatepipeError("QEMU waits for memory that no statepipe has loaded: it bears no mark of a state")
    demand_same(found, digest)
    ours, theirs = socket.socketpair()
    try:
        ours.sendall(first)
        with theirs:
            monitor.give(theirs.fileno(), "statepipe-resume")
            try:
                monitor.execute("migrate-recover", uri="fd:statepipe-resume")
            except QemuRefused:
                with suppress(QemuRefused):
                    monitor.execute("closefd", fdname="statepipe-resume")
                raise
    except BaseException:
        ours.close()
        raise
    return ours


def _agree(server: Server, blocks: Sequence[Block], warn: Tell) -> None:
    """Wait until QEMU has reported which pages it has, and continues. Raises StatepipeError.

    A QEMU that does not answer, perhaps because it was stopped, is waited for: it has been told to continue, and a
    connection that ends earlier could do harm.
    """
    server.begin(b"")
    left = {block.name for block in blocks}
    try:
        news = _good(server, PATIENCE)
    except Empty:
        warn("QEMU does not answer at its new connection, and is waited for; a signal ends that, and harms nothing")
        news = _good(server)
    while news != Resumed(1):
        if isinstance(news, Received):
            left.discard(news.block)
        news = _good(server)
    if left:
        raise QemuError(f"QEMU continues, but has not reported which pages of {', '.join(left)} it has")


def _good(server: Server, patience: float | None = None) -> object:
    """Return the next news. Raises Empty if there is none within `patience` seconds, StatepipeError."""
    news = server.news.get(timeout=patience)
    if isinstance(news, Damaged | Failed):
        if isinstance(news.error, OSError | EOFError):
            raise QemuError(
                "QEMU closed the new connection",
                hint="see what QEMU itself reports, and with statepipe ps whether another statepipe continues the load",
            ) from news.error
        raise news.error
    return news
