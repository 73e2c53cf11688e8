"""tunnel --libvirt: what a migration of libvirt needs, through one tunnel: the daemon, QEMU's memory, and disks.

The near end runs where the guest is. It opens the tunnel in a session of its own, whose end is the tunnel's, and then
listens at three sockets. Each connection to one of them has a session of its own, as in every tunnel. Its first message
names the target. The far end connects to that before the next connection of the same socket is accepted, because the
order of QEMU's connections counts.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from statepipe.ends.address import SSH
from statepipe.ends.dial import listening, place_of
from statepipe.ends.named import Named
from statepipe.ends.ration import Refusals
from statepipe.errors import PeerError, StatepipeError
from statepipe.pipeline.job import at_work
from statepipe.session.links import Acceptor, Dial, dialled
from statepipe.session.messages import Messages
from statepipe.session.options import ConnectionPlan
from statepipe.session.overtls import END_CHECK, door, timing
from statepipe.session.protocol.channels import MIN_WINDOW
from statepipe.session.protocol.frames import Role, Violation
from statepipe.session.session import FAREWELL, Session, Timing
from statepipe.telling import Tell
from statepipe.threads import beside
from statepipe.transfer.endpoints import trust_of
from statepipe.tunnel.connection import Connection
from statepipe.tunnel.connections import CONNECTIONS, Connections, share
from statepipe.tunnel.libvirthost import SYSTEM, Host, labelled, own_folder, this_host, virsh_line
from statepipe.tunnel.targets import OPENED, TARGETS, WISH, Targets, compared, hear
from statepipe.tunnel.tunnel import STDIO, Insistent, accept_each, tls_dials

CHANNELS = 2
"""What the program writes, and messages."""

HELLO = 10.0
"""Seconds in which a session must say what it is for."""

ANSWER = 30.0
"""Seconds in which the far end connects to a target, or opens a tunnel: its own limit is 20."""

MakeDial = Callable[[], tuple[Dial, AbstractContextManager[object]]]


class LibvirtRequest(NamedTuple):
    """The other end's address, or where to listen for it; the guest, at the near end only.

    `folder` and `daemon` replace this host's defaults. `once`: end with the last connection.
    """

    plan: ConnectionPlan
    domain: str | None
    folder: str | None = None
    daemon: str | None = None
    once: bool = False


def run_libvirt_tunnel(request: LibvirtRequest, say: Tell, show: Tell) -> None:
    """Carry a guest's migration until a signal, or with `once` until the last connection has ended.

    `show` gets the command that migrates the guest. Raises StatepipeError.
    """
    host = this_host(request.folder, request.daemon)
    connections = Connections(say, once=request.once)
    if request.domain is not None:
        _near(request, request.domain, host, connections, say, show)
    elif request.plan.address.scheme == SSH:
        _inside(request, host, connections)
    else:
        _far(request, host, connections, say)
    connections.judge()


# --- where the guest is


def _near(request: LibvirtRequest, domain: str, host: Host, connections: Connections, say: Tell, show: Tell) -> None:
    ident, plan = os.urandom(4).hex(), request.plan
    paths = host.paths(ident, domain)
    first, later = _dials(plan, host)
    patience = replace(timing(plan), tell=connections.news)
    over = threading.Event()
    with ExitStack() as stack:
        tunnel, answer = stack.enter_context(_opened(plan, first, patience, {"tunnel": ident, "domain": domain}))
        compared(paths, answer, tunnel.name)
        stack.enter_context(own_folder(host, ident, listens=False))
        listeners = [stack.enter_context(_listener(host, path)) for path in paths]
        stack.callback(connections.end)
        stack.enter_context(at_work(connections))
        troubles: list[StatepipeError] = []
        for to, listener in zip(TARGETS, listeners, strict=True):
            begin = partial(_begin, plan, later, patience, connections, over, ident, to)
            work = partial(_accept, listener, connections, say, begin, over, troubles)
            stack.enter_context(beside("listener", work, partial(_end, over, connections)))
        say(f"the other end leads to {answer['daemon']}; migrate the guest with this line, and options as needed:")
        show(virsh_line(host, domain, paths))
        _attend(tunnel, connections, troubles, say)


def _end(over: threading.Event, connections: Connections) -> None:
    over.set()
    connections.end()


def _attend(tunnel: Session, connections: Connections, troubles: list[StatepipeError], say: Tell) -> None:
    """Wait until the last connection has ended, for a request with `once`.

    Raises the error that ended a listener or the tunnel, after the open connections have ended.
    """
    while not connections.is_over:
        connections.look()
        tunnel.wait_until(lambda: tunnel.failure is not None or bool(troubles), END_CHECK)
        if troubles:
            raise troubles[0]
        if tunnel.failure is not None:
            if connections.are_open:
                say(
                    f"the other end is gone: {tunnel.failure}; the open connections have a chance, then the tunnel ends"
                )
            connections.outlast()
            raise tunnel.failure


@contextmanager
def _opened(
    plan: ConnectionPlan, make_dial: MakeDial, patience: Timing, wish: dict[str, str]
) -> Iterator[tuple[Session, dict[str, str]]]:
    """Open the tunnel; give its session and the far end's answer. Raises StatepipeError."""
    dial, ending = make_dial()
    session = dialled(
        dial, Role.LIBVIRT, str(plan.address), patience, links=plan.links, window=MIN_WINDOW, channels=CHANNELS
    )
    messages = Messages(session)
    with session, ending:
        try:
            session.meet()
        except PeerError as error:
            if not session.wire.opened:
                error.advise("a statepipe without tunnel --libvirt there ends the connection, too")
            raise
        messages.tell(wish)
        answer = hear(messages, OPENED, ANSWER)
        try:
            yield session, answer
        finally:
            with suppress(PeerError):  # it is the end, and the other one notices it anyway
                messages.end()
                messages.hear(FAREWELL)
                session.part(FAREWELL)


def _dials(plan: ConnectionPlan, host: Host) -> tuple[MakeDial, MakeDial]:
    """Return what makes the dial of the tunnel's session, and what makes those of its connections."""
    if plan.address.scheme != SSH:
        make = tls_dials(plan)
        return make, make
    from statepipe.session.overssh import SshDial, times

    ssh = SshDial(plan, ["tunnel", "--libvirt", *times(plan), "--folder", host.folder, STDIO])
    return lambda: (ssh, ssh), lambda: (Insistent(dial := ssh.another()), dial)


@contextmanager
def _listener(host: Host, path: str) -> Iterator[Named]:
    """Listen at a path. QEMU's user may connect, but to the daemon only root or ourselves. Raises StatepipeError."""
    try:
        with labelled():
            listener = Named(path, 0o600)
        with listener:
            if host.kind == SYSTEM and os.path.basename(path) != "libvirtd":
                os.chown(path, host.user, host.group)
            yield listener
    except OSError as error:
        raise StatepipeError(f"cannot listen at {path}: {os.strerror(error.errno or 0)}") from error


def _accept(
    listener: Named,
    connections: Connections,
    say: Tell,
    begin: Callable[[socket.socket], object],
    over: threading.Event,
    troubles: list[StatepipeError],
) -> None:
    """Accept the connections of one socket; an error is added to `troubles`."""
    try:
        accept_each(listener, connections, say, begin, lambda: over.is_set() or connections.is_over)
    except StatepipeError as error:
        troubles.append(error)


def _begin(
    plan: ConnectionPlan,
    make_dial: MakeDial,
    patience: Timing,
    connections: Connections,
    over: threading.Event,
    ident: str,
    to: str,
    program: socket.socket,
) -> None:
    """Begin a connection, and wait until the far end is connected to its target, or it has failed."""
    dial, ending = make_dial()
    window = share(connections.windows())
    session = dialled(
        dial, Role.LIBVIRT, str(plan.address), patience, links=plan.links, window=window, channels=CHANNELS
    )
    messages = Messages(session)
    connection = connections.open(session, ending)
    connection.what = to
    connections.launch(connection, partial(connection.carry, program))
    try:
        if over.is_set():
            raise PeerError("the tunnel was ended")
        messages.tell({"tunnel": ident, "to": to})
        messages.end()
        if messages.hear(ANSWER) is not None:
            raise Violation("a message that nobody expects")
    except StatepipeError as error:  # reported by `carry`
        connection.break_off(error)


# --- where the guest goes


def _far(request: LibvirtRequest, host: Host, connections: Connections, say: Tell) -> None:
    """Accept tunnels and their connections from authorised peers."""
    plan, turned_away, targets = request.plan, Refusals(say), Targets(host)
    with listening(plan.address, insecure=False) as listener:
        say(f"listening at {place_of(listener, plan.address)}")
        acceptor = _acceptor(plan, turned_away, connections)
        try:
            with (
                at_work(connections),
                door(listener, trust_of(plan, server=True, say=say), acceptor, turned_away),
            ):
                while not connections.is_over:
                    connections.look()
                    with suppress(PeerError):  # none has come
                        _take(acceptor.wait(END_CHECK), targets, connections)
        finally:
            connections.end()


def _inside(request: LibvirtRequest, host: Host, connections: Connections) -> None:
    """Serve the one tunnel of the process that started us through ssh. Raises StatepipeError."""
    from statepipe.transfer.insidessh import first_patience, inside, turned_away

    plan, targets = request.plan, Targets(host)
    acceptor = _acceptor(plan, turned_away, connections)
    with inside(acceptor):
        try:
            _take(acceptor.wait(first_patience(plan)), targets, connections)
            with at_work(connections):
                while connections.are_open:
                    connections.look()
                    with suppress(PeerError):
                        _take(acceptor.wait(END_CHECK), targets, connections)
        finally:
            connections.end()


def _acceptor(plan: ConnectionPlan, turned_away: Callable[[str, PeerError], object], say: Connections) -> Acceptor:
    patience = replace(timing(plan), tell=say.news)
    return Acceptor(Role.LIBVIRT, patience, turned_away, again=True, many=CONNECTIONS, share=share, channels=CHANNELS)


def _take(session: Session, targets: Targets, connections: Connections) -> None:
    """Serve a session in a thread of its own."""
    messages = Messages(session)
    connection = connections.open(session)
    connections.launch(connection, partial(_serve, connection, messages, targets, connections.news))


def _serve(
    connection: Connection, messages: Messages, targets: Targets, news: Callable[[object, str], None]
) -> StatepipeError | None:
    """Do what the near end wants of a session: open a tunnel, or carry a connection. Return what broke it."""
    session = connection.session
    try:
        wish = hear(messages, WISH, HELLO)
        if "domain" in wish:
            _hold(connection, messages, targets, wish, news)
            return None
        connection.what = to = wish.get("to", "")
        if messages.hear(HELLO) is not None:
            raise Violation("a message that nobody expects")
        program = targets.connect(session.name, wish["tunnel"], to)
    except StatepipeError as error:
        return connection.refuse(error)
    messages.end()
    return connection.carry(program)


def _hold(
    connection: Connection,
    messages: Messages,
    targets: Targets,
    wish: dict[str, str],
    news: Callable[[object, str], None],
) -> None:
    """Keep a tunnel open until the near end closes it. Raises StatepipeError."""
    domain, name = wish["domain"], connection.session.name
    connection.what = f"the tunnel for {domain[:100]}"
    with targets.opened(name, wish["tunnel"], domain) as answer:
        messages.tell(answer)
        news(("opened", connection), f"a tunnel for the guest {domain} is open to {name}")
        if messages.hear() is not None:
            raise Violation("a message that nobody expects")
        messages.end()
        connection.session.part(FAREWELL)
    connection.leave()
    news(("closed", connection), f"the tunnel for the guest {domain} has ended")
