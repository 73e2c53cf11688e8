"""The verbs send and recv: from parsed values to commands/plain.py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from statepipe.cli.filters import build_words
from statepipe.cli.messages import say, warn
from statepipe.errors import UsageError

if TYPE_CHECKING:
    from statepipe.commands.plan import Plan

Values = dict[str, Any]


def run_send(name: str, values: Values) -> int:
    """Standard input to an address."""
    if os.isatty(0):
        raise UsageError("standard input is a terminal, not a stream", hint="use < FILE, or a pipe")
    from statepipe.commands.plain import send

    _doubt(name, send(_plan(values)))
    return 0


def run_recv(name: str, values: Values) -> int:
    """From an address to standard output, or into a file."""
    from statepipe.commands.plain import recv_to_file, recv_to_stdout

    def tell(text: str) -> None:
        say(f"statepipe: recv: {text}")

    if values["output"] is not None:
        _doubt(name, recv_to_file(_plan(values), values["output"], tell))
    elif os.isatty(1):
        raise UsageError("standard output is a terminal", hint="use > FILE, a pipe, or --output FILE")
    else:
        _doubt(name, recv_to_stdout(_plan(values), tell))
    return 0


def _doubt(name: str, proved: bool) -> None:
    if not proved:
        warn(name, "plain connections do not prove that a stream is whole, and this one does not do so itself")


def _plan(values: Values) -> Plan:
    return plan_of(values["address"], values["words"], values, seconds_of(values["timeout"]))


def plan_of(address: str, words: Sequence[str], values: Values, silence: float | None) -> Plan:
    """A plan from an address, words and the options that every verb between hosts has. Raises UsageError."""
    from statepipe.commands.plan import Plan
    from statepipe.ends.address import TLS, parse_address
    from statepipe.ends.net import Patience

    where, creds, peer, links = parse_address(address), values["tls_creds"], values["peer"], values.get("links")
    retry = seconds_of(values.get("retry"))
    if where.scheme != TLS and (creds or peer or links):
        raise UsageError("--tls-creds, --peer and --links are for tls:// addresses")
    if creds and peer:
        raise UsageError("--peer is for pinned keys; with --tls-creds the certificates say who is who")
    patience, insecure = Patience(silence, retry or 0), values.get("insecure", False)
    return Plan(where, build_words(words), patience, insecure, values.get("bind"), creds, peer, retry, _links(links))


def _links(text: str | None) -> int:
    """Raises UsageError."""
    from statepipe.formats.frames import MAX_LINKS

    if text is not None and (not text.isdecimal() or not 1 <= int(text) <= MAX_LINKS):
        raise UsageError(f"'{text}' is not a number of links, 1 to {MAX_LINKS}")
    return int(text or 1)


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
