"""The verbs send and recv: from parsed values to transfer/sendrecv.py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from statepipe.cli.filters import build_words
from statepipe.cli.grammar import refuse_word
from statepipe.cli.messages import say, warn
from statepipe.errors import UsageError
from statepipe.telling import nobody
from statepipe.units import number_in

if TYPE_CHECKING:
    from statepipe.ends.address import Address
    from statepipe.session.options import ConnectionPlan

Values = dict[str, Any]


def run_send(name: str, values: Values) -> int:
    """Standard input to an address."""
    if os.isatty(0):
        raise UsageError("standard input is a terminal, not a stream", hint="use < FILE, or a pipe")
    from statepipe.ends.address import SSH
    from statepipe.transfer.sendrecv import send

    plan = _plan(name, values)
    if plan.address.scheme == SSH and plan.address.path in ("", "/"):
        raise UsageError(f"'{plan.address}' names no file", hint="write ssh://HOST/PATH; PATH is a file, from the root")
    _doubt(name, send(plan, lambda text: warn(name, text)))
    return 0


def run_recv(name: str, values: Values) -> int:
    """From an address to standard output, or into a file."""
    values = values | {"output": None} if values["output"] == "-" else values
    if values["session_stdio"] or values["attach"] is not None:
        return _recv_inside(values)
    if values["address"] is None:
        raise UsageError("an address is needed, where to listen", hint="see: statepipe recv --help")
    from statepipe.transfer.sendrecv import recv_to_file, recv_to_stdout

    def tell(text: str) -> None:
        say(f"statepipe: recv: {text}")

    if values["output"] is not None:
        _doubt(name, recv_to_file(_plan(name, values), values["output"], tell))
    elif os.isatty(1):
        raise UsageError("standard output is a terminal", hint="use > FILE, a pipe, or --output FILE")
    else:
        _doubt(name, recv_to_stdout(_plan(name, values), tell))
    return 0


def _recv_inside(values: Values) -> int:
    """What ssh runs for a sender: a session, or one more link of it."""
    from statepipe.session.attach import hand_over
    from statepipe.transfer.insidessh import recv_inside

    if values["address"] is not None:
        raise UsageError("inside ssh there is no address to listen at")
    if values["attach"] is not None:
        hand_over(values["attach"])
    elif values["output"] is None:
        raise UsageError("inside ssh a stream goes into a file", hint="say which with --output FILE")
    else:
        recv_inside(seconds_of(values["timeout"]), seconds_of(values["retry"]), values["output"])
    return 0


def _doubt(name: str, proved: bool) -> None:
    if not proved:
        warn(name, "plain connections do not prove that a stream is whole, and this one does not do so itself")


def _plan(name: str, values: Values) -> ConnectionPlan:
    return plan_of(name, values["address"], values["words"], values, seconds_of(values["timeout"]))


def plan_of(name: str, address: str, words: Sequence[str], values: Values, silence: float | None) -> ConnectionPlan:
    """A plan from an address, words and the options that each verb between hosts has: `name`. Raises UsageError."""
    from statepipe.ends.address import UNIX, parse_address
    from statepipe.ends.net import Patience
    from statepipe.session.options import ConnectionPlan

    refuse_word(address, "address", f"tls://{address}")
    where, creds, peer = parse_address(address), values["tls_creds"], values["peer"]
    _refuse_strays(where.scheme, values)
    if where.scheme == UNIX and peer:  # looked up once: later it is asked of each who comes
        from statepipe.ends.peercred import uid_of

        peer = str(uid_of(peer))
    retry = seconds_of(values.get("retry"))
    also = [_also(text, where.port) for text in values.get("also") or ()]
    return ConnectionPlan(
        where,
        build_words(words),
        Patience(silence, (retry or 0) if "retry" in values else None),
        values.get("insecure", False),
        values.get("bind"),
        creds,
        peer,
        retry,
        _links(values.get("links"), 1 + len(also)),
        _ssh(values.get("ssh")),
        values.get("remote_command") or "statepipe",
        also,
        values.get("allow_empty", False),
        say=nobody if _is_inside(values) else lambda text: say(f"statepipe: {name}: {text}"),
    )


def _is_inside(values: Values) -> bool:
    """Whether ssh has started us: then the other end of it tells people what there is to tell."""
    return bool(values.get("session_stdio")) or values.get("come") == "-"


def _also(text: str, port: int) -> Address:
    """One more address of the host, with the first one's port if it names none. Raises UsageError."""
    from statepipe.ends.address import TLS, parse_address

    address = parse_address(text, port)
    if address.scheme != TLS:
        raise UsageError(f"--also is for one more tls:// address, not for '{text}'", hint="write HOST or HOST:PORT")
    return address


def _refuse_strays(scheme: str, values: Values) -> None:
    """Options of another kind of address. Raises UsageError."""
    from statepipe.ends.address import SSH, TLS, UNIX

    users = scheme == UNIX and "qmp" in values  # where a guest moves, its peer is a user of this host
    if scheme != TLS and (values["tls_creds"] or (values["peer"] and not users)):
        raise UsageError("--tls-creds is for tls:// addresses" if users else "--tls-creds and --peer are for tls://")
    if scheme != TLS and values.get("also"):
        raise UsageError("--also is for tls:// addresses")
    if scheme not in (TLS, SSH) and values.get("links"):
        raise UsageError("--links is for tls:// and ssh:// addresses")
    if scheme != SSH and (values.get("ssh") or values.get("remote_command")):
        raise UsageError("--ssh and --remote-command are for ssh:// addresses")
    if scheme == SSH and (values.get("bind") or "output" in values):
        what = "recv listens by itself" if "output" in values else "--bind is for others: ssh has -b"
        raise UsageError(f"with ssh:// addresses {what}", hint="send ssh://HOST/PATH starts the receiver there")


def _ssh(text: str | None) -> list[str]:
    """The words of a command line, split as a shell would. Raises UsageError."""
    import shlex

    try:
        return shlex.split(text or "") or ["ssh"]
    except ValueError as error:
        raise UsageError(f"cannot split the ssh command: {error}", hint="look at its quotes") from error


def _links(text: str | None, addresses: int) -> int:
    """How many; as many as there are addresses unless it is said. Raises UsageError."""
    from statepipe.session.protocol.frames import MAX_LINKS

    if text is None:
        return min(addresses, MAX_LINKS)
    if (number := number_in(text, 1, MAX_LINKS)) is None:
        raise UsageError(f"'{text[:40]}' is no number of links", hint=f"give one from 1 to {MAX_LINKS}")
    return number


def seconds_of(text: str | None) -> float | None:
    """The number in an option, None where it was not given. Raises UsageError."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= 1e6:
        raise UsageError(f"'{text}' is not a number of seconds")
    return seconds
