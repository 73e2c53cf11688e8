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

from statepipe.ends.address import SSH
from statepipe.ends.dial import listening, place_of
from statepipe.ends.named import Named
from statepipe.ends.net import Patience
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
from statepipe.session.transport import Transport
from statepipe.telling import Tell
from statepipe.threads import beside
from statepipe.transfer.endpoints import trust_of
from statepipe.tunnel.connection import Connection
from statepipe.tunnel.connections import CONNECTIONS, Connections, share
from statepipe.tunnel.libvirthost import SYSTEM, Host, labelled, own_folder, this_host, virsh_line
from statepipe.tunnel.targets import OPENED, TARGETS, WISH, Targets, compared, hear
from statepipe.tunnel.tunnel import STDIO, Insistent, accept_each, tls_dials
from statepipe.typed import NamedTuple

CHANNELS = 2
"""What the program writes, and messages."""

HELLO = 10.0
"""Seconds in which a session must say what it is for; in addition, it may be without a link as long as any session."""

ANSWER = 30.0
"""As HELLO: seconds in which the far end connects to a target, or opens a tunnel. Its own limit is 20."""

NOT_EXPECTED = "a message that nobody expects"

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
    make_first, make_dial = _dials(plan, host, request.daemon)
    patience = replace(timing(plan), tell=connections.news)
    with ExitStack() as stack:
        wish = {"tunnel": ident, "domain": domain}
        tunnel, answer = stack.enter_context(_opened(plan, make_first, patience, wish))
        compared(paths, answer, tunnel.name)
        stack.enter_context(own_folder(host, ident, listens=False))
        listeners = [stack.enter_context(_listener(host, path)) for path in paths]
        stack.callback(connections.end)
        stack.enter_context(at_work(connections))
        end = _NearEnd(plan, patience, make_dial, ident, connections, say)
        for to, listener in zip(TARGETS, listeners, strict=True):
            stack.enter_context(beside("listener", partial(end.accept, listener, to), end.close))
        say(f"the other end leads to {answer['daemon']}; migrate the guest with this line, and options as needed:")
        show(virsh_line(host, domain, paths))
        end.attend(tunnel)


class _NearEnd:
    """Where connections come in: three sockets, with a thread for each. All of it ends at once."""

    def __init__(
        self,
        plan: ConnectionPlan,
        patience: Timing,
        make_dial: MakeDial,
        ident: str,
        connections: Connections,
        say: Tell,
    ) -> None:
        self._plan, self._patience, self._make_dial, self._ident = plan, patience, make_dial, ident
        self._connections, self._say = connections, say
        self._closed = threading.Event()
        self._troubles: list[StatepipeError] = []

    def accept(self, listener: Named, to: str) -> None:
        """Accept the connections of one socket until the end; an error is kept for `attend`."""
        try:
            accept_each(listener, self._connections, self._say, partial(self._begin, to), self._is_over)
        except StatepipeError as error:
            self._troubles.append(error)

    def _is_over(self) -> bool:
        return self._closed.is_set() or self._connections.is_over

    def _begin(self, to: str, program: socket.socket) -> None:
        """Begin a connection, and wait until the far end is connected to its target, or it has failed."""
        dial, ending = self._make_dial()
        session = _session(self._plan, dial, self._patience, share(self._connections.windows()))
        messages = Messages(session)
        connection = self._connections.open(session, ending)
        connection.what = to
        self._connections.launch(connection, partial(connection.carry, program))
        try:
            if self._closed.is_set():
                raise PeerError("the tunnel was ended")
            messages.tell({"tunnel": self._ident, "to": to})
            messages.end()
            if messages.hear(ANSWER + self._patience.retry) is not None:
                raise Violation(NOT_EXPECTED)
        except StatepipeError as error:  # `carry` reports it
            connection.break_off(error)

    def attend(self, tunnel: Session) -> None:
        """Wait until the last connection has ended, if the tunnel ends with it.

        Raises the error that ended a listener or the tunnel, after the open connections have ended.
        """
        while not self._connections.is_over:
            self._connections.look()
            tunnel.wait_until(lambda: tunnel.failure is not None or bool(self._troubles), END_CHECK)
            if self._troubles:
                raise self._troubles[0]
            if tunnel.failure is not None:
                if self._connections.are_open:
                    self._say(f"the other end is gone: {tunnel.failure}; the tunnel ends with its open connections")
                self._connections.outlast()
                raise tunnel.failure

    def close(self) -> None:
        """End all connections, and accept no more."""
        self._closed.set()
        self._connections.end()


def _session(plan: ConnectionPlan, dial: Dial, patience: Timing, window: int) -> Session:
    name = str(plan.address)
    return dialled(dial, Role.LIBVIRT, name, patience, links=plan.links, window=window, channels=CHANNELS)


@contextmanager
def _opened(
    plan: ConnectionPlan, make_dial: MakeDial, patience: Timing, wish: dict[str, str]
) -> Iterator[tuple[Session, dict[str, str]]]:
    """Open the tunnel; give its session and the far end's answer. Raises StatepipeError."""
    dial, ending = make_dial()
    reached = False

    def reach() -> Transport:
        nonlocal reached
        link = dial()
        reached = True
        return link

    session = _session(plan, reach, patience, MIN_WINDOW)
    messages = Messages(session)
    with session, ending:
        try:
            session.meet()
        except PeerError as error:
            if reached and not isinstance(error, Violation):  # an older one knows no such greeting, and hangs up
                error.hint = "install the same statepipe on both hosts: an older one there does not know --libvirt"
            raise
        messages.tell(wish)
        answer = hear(messages, OPENED, ANSWER + patience.retry)
        try:
            yield session, answer
        finally:
            with suppress(PeerError):  # it is the end, and the other one notices it anyway
                messages.end()
                messages.hear(FAREWELL)
                session.part(FAREWELL)


def _dials(plan: ConnectionPlan, host: Host, daemon: str | None) -> tuple[MakeDial, MakeDial]:
    """Return what makes the dial of the tunnel's session, and what makes those of its connections.

    `daemon` is the socket there, for a far end that ssh starts.
    """
    if plan.address.scheme != SSH:
        waiting = Patience(plan.patience.silence, timing(plan).retry)  # the other end is there: a cut may pass
        return tls_dials(plan), tls_dials(plan._replace(patience=waiting))
    from statepipe.session.overssh import SshDial, times

    there = [] if daemon is None else ["--libvirtd", daemon]
    ssh = SshDial(plan, ["tunnel", "--libvirt", *times(plan), "--folder", host.folder, *there, STDIO])
    return lambda: (ssh, ssh), lambda: (Insistent(dial := ssh.another(), timing(plan).retry), dial)


@contextmanager
def _listener(host: Host, path: str) -> Iterator[Named]:
    """Listen at a path. QEMU's user may connect, but to the daemon only root or ourselves. Raises StatepipeError."""
    with ExitStack() as stack:
        try:
            with labelled():
                listener = stack.enter_context(Named(path, 0o600))
            if host.kind == SYSTEM and os.path.basename(path) != "libvirtd":
                os.chown(path, host.user, host.group)
        except OSError as error:
            raise StatepipeError(f"cannot listen at {path}: {os.strerror(error.errno or 0)}") from error
        yield listener


# --- where the guest goes


def _far(request: LibvirtRequest, host: Host, connections: Connections, say: Tell) -> None:
    """Accept tunnels and their connections from authorised peers."""
    plan, turned_away = request.plan, Refusals(say)
    end = _FarEnd(Targets(host), connections, connections.news)
    with listening(plan.address, insecure=False) as listener:
        say(f"listening at {place_of(listener, plan.address)}")
        acceptor = _acceptor(plan, turned_away, connections)
        try:
            trust = trust_of(plan, server=True, say=say)
            with at_work(connections), door(listener, trust, acceptor, turned_away):
                while not connections.is_over:
                    end.serve_next(acceptor)
        finally:
            connections.end()


def _inside(request: LibvirtRequest, host: Host, connections: Connections) -> None:
    """Serve the one tunnel of the process that started us through ssh. Raises StatepipeError.

    That process reports what becomes of the tunnel.
    """
    from statepipe.transfer.insidessh import first_patience, inside, turned_away

    plan, end = request.plan, _FarEnd(Targets(host), connections, lambda kind, text: None)
    acceptor = _acceptor(plan, turned_away, connections)
    with inside(acceptor):
        try:
            end.serve(acceptor.wait(first_patience(plan)))
            with at_work(connections):
                while connections.are_open:
                    end.serve_next(acceptor)
        finally:
            connections.end()


def _acceptor(plan: ConnectionPlan, turned_away: Callable[[str, PeerError], object], told: Connections) -> Acceptor:
    patience = replace(timing(plan), tell=told.news)
    return Acceptor(Role.LIBVIRT, patience, turned_away, again=True, many=CONNECTIONS, share=share, channels=CHANNELS)


class _FarEnd:
    """Where connections go on. Each session has a thread. `news` is told which tunnels are open."""

    def __init__(self, targets: Targets, connections: Connections, news: Callable[[object, str], None]) -> None:
        self._targets, self._connections, self._news = targets, connections, news

    def serve_next(self, acceptor: Acceptor) -> None:
        """Serve the next session, if one begins within END_CHECK seconds."""
        self._connections.look()
        try:
            session = acceptor.wait(END_CHECK)
        except PeerError:  # none has come
            return
        self.serve(session)

    def serve(self, session: Session) -> None:
        """Do what the near end wants of a session: open a tunnel, or carry a connection."""
        messages = Messages(session)
        connection = self._connections.open(session)
        self._connections.launch(connection, lambda: self._served(connection, messages))

    def _served(self, connection: Connection, messages: Messages) -> StatepipeError | None:
        """Return what broke it."""
        within = HELLO + connection.session.timing.retry
        try:
            wish = hear(messages, WISH, within)
            if "domain" in wish:
                self._hold(connection, messages, wish)
                return None
            connection.what = to = wish.get("to", "")
            if messages.hear(within) is not None:
                raise Violation(NOT_EXPECTED)
            program = self._targets.connect(connection.session.name, wish["tunnel"], to)
        except StatepipeError as error:
            return connection.refuse(error)
        messages.end()
        return connection.carry(program)

    def _hold(self, connection: Connection, messages: Messages, wish: dict[str, str]) -> None:
        """Keep a tunnel open until the near end closes it. Raises StatepipeError."""
        domain, peer = wish["domain"], connection.session.name
        connection.what = f"the tunnel for {domain}"
        with self._targets.opened(peer, wish["tunnel"], domain) as answer:
            messages.tell(answer)
            self._news(("opened", connection), f"a tunnel for the guest {domain} is open to {peer}")
            if messages.hear() is not None:
                raise Violation(NOT_EXPECTED)
        messages.end()  # now that all is removed
        connection.session.part(FAREWELL)
        connection.leave()
        self._news(("closed", connection), f"the tunnel for the guest {domain} has ended")
