"""The verbs send and recv, and the plan that all verbs between hosts make of an address and options."""

from __future__ import annotations

import os
from collections.abc import Sequence

from statepipe.cli.filters import build_words
from statepipe.cli.grammar import refuse_strays, refuse_word
from statepipe.cli.messages import say, warn
from statepipe.cli.verb import Values
from statepipe.ends.configfile import load_records
from statepipe.errors import UsageError
from statepipe.objectstore.scheme import is_address
from statepipe.telling import nobody
from statepipe.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from statepipe.session.options import ConnectionPlan


def run_send(name: str, values: Values) -> int:
    """Send standard input to an address."""
    if os.isatty(0):
        raise UsageError("standard input is a terminal", hint="use < FILE, or a pipe")
    from statepipe.ends.address import SSH
    from statepipe.transfer.sendrecv import send

    plan = plan_of(name, values["address"], values["words"], values, values["timeout"])
    if plan.address.scheme == SSH and plan.address.path in ("", "/"):
        raise UsageError(f"'{plan.address}' names no file", hint="write ssh://HOST/PATH; PATH is absolute")
    _warn_unless(send(plan, lambda text: warn(name, text)), name)
    return 0


def run_recv(name: str, values: Values) -> int:
    """Receive from an address, to standard output or into a file; or as the program that ssh started."""
    values = values | {"output": None} if values["output"] == "-" else values
    output = values["output"]
    inside = values["session_stdio"] or values["attach"] is not None
    if inside and values["address"] is not None:
        raise UsageError("inside ssh there is no address to listen at", hint="leave the address out")
    if values["attach"] is not None:
        from statepipe.session.attach import hand_over

        hand_over(values["attach"])
        return 0
    if inside:
        from statepipe.transfer.insidessh import recv_inside

        if output is None:
            raise UsageError("inside ssh a stream is received into a file", hint="name it with --output FILE")
        recv_inside(values["timeout"], values["retry"], output)
        return 0
    if values["overwrite"] and (output is None or not is_address(output)):
        raise UsageError("--overwrite is for an object", hint="leave it out: a file is replaced anyway")
    if values["address"] is None:
        raise UsageError("recv needs an address to listen at", hint="for example: statepipe recv tls://:20490 > FILE")
    if values["address"].startswith("ssh:"):
        raise UsageError("recv does not listen at ssh://", hint="send ssh://HOST/PATH starts the receiver itself")
    if output is None and os.isatty(1):
        raise UsageError("standard output is a terminal", hint="use > FILE, a pipe, or --output FILE")
    from statepipe.transfer.sendrecv import recv_to_file, recv_to_stdout

    def tell(text: str) -> None:
        say(f"statepipe: recv: {text}")

    plan = plan_of(name, values["address"], values["words"], values, values["timeout"])
    if output is None:
        proved = recv_to_stdout(plan, tell)
    else:
        proved = recv_to_file(plan, output, tell, overwrite=values["overwrite"])
    _warn_unless(proved, name)
    return 0


def _warn_unless(proved: bool, name: str) -> None:
    if not proved:
        warn(name, "plain connections do not prove that a stream is whole, and this stream does not prove it itself")


def plan_of(name: str, address: str, words: Sequence[str], values: Values, silence: float | None) -> ConnectionPlan:
    """Return a plan from an address, words and the options of the verb `name`. Raises UsageError.

    `silence`: seconds without a word from the peer before giving up.
    """
    from statepipe.ends.address import TLS, UNIX, parse_address
    from statepipe.ends.config import LARGE
    from statepipe.ends.net import Patience
    from statepipe.session.options import ConnectionPlan
    from statepipe.session.protocol.frames import MAX_LINKS

    refuse_word(address, "address", f"tls://{address}")
    where, peer = parse_address(address), values["peer"]
    refuse_strays(name, values, f"{where.scheme}://")
    if where.scheme == UNIX and peer:  # looked up now; each visitor is compared with it
        from statepipe.ends.peercred import uid_of

        peer = str(uid_of(peer))
    also = [parse_address(text, where.port) for text in values.get("also") or ()]
    for other in also:
        if other.scheme != TLS:
            raise UsageError(f"--also takes another tls:// address, not '{other}'", hint="write HOST or HOST:PORT")
    records = values.get("records") or (load_records() if where.scheme == TLS else None) or LARGE
    # ssh starts a command with standard input and output; the other end of it has the messages for people.
    inside = values.get("session_stdio") or values.get("come") == "-"
    return ConnectionPlan(
        where,
        build_words(words),
        Patience(silence, (values["retry"] or 0) if "retry" in values else None),
        values.get("insecure", False),
        values.get("bind"),
        values["tls_creds"],
        peer,
        values.get("retry"),
        values.get("links") or min(1 + len(also), MAX_LINKS),
        values.get("ssh") or ["ssh"],
        values.get("remote_command") or "statepipe",
        also,
        values.get("allow_empty", False),
        records=records,
        say=nobody if inside else lambda text: say(f"statepipe: {name}: {text}"),
    )
