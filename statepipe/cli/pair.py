"""The verb pair: show or ask for the code, report the result; and list or remove pins."""

from __future__ import annotations

import os
import sys
from ipaddress import ip_address

from statepipe.cli.context import ask
from statepipe.cli.grammar import refuse_strays
from statepipe.cli.messages import clean, say, show, warn
from statepipe.cli.options import PAIRING
from statepipe.cli.verb import Values
from statepipe.ends.address import TLS, Address, parse_address
from statepipe.errors import StatepipeError, UsageError
from statepipe.private import read_private
from statepipe.telling import nobody
from statepipe.typed import Any

CODE_LENGTH = 6
"""Fewest letters and digits of a code."""

CODE_LIMIT = 1024
"""Most bytes read of a file that contains a code."""


def run_pair(name: str, values: Values) -> int:
    """Listen and show a code, or connect and ask for it; or list the pins, or remove one."""
    action = "pair --list" if values["list"] else "pair --remove" if values["remove"] is not None else PAIRING[0]
    refuse_strays(name, values, action)
    if values["list"]:
        from statepipe.trust.pins import pins

        if found := pins(_warn):
            show("\n".join(f"{clean(peer)}\t{key}" for peer, key in found.items()))
        else:
            say("statepipe: pair: no peer is pinned here")
        return 0
    if values["remove"] is not None:
        from statepipe.trust.pins import pins, shown, unpin

        key = unpin(values["remove"], _warn)
        show(f"removed the pin of {clean(values['remove'])}{f': its key was {key}' if key else ''}")
        if key and (others := [peer for peer, its in pins(nobody).items() if its == key]):
            _warn(f"the same key is also pinned as {shown(others)}, and is still trusted under that name")
        return 0
    if not values["listen"] and values["address"] is None:
        hint = "type statepipe pair --listen on one host, and then the command that it shows on the other"
        raise UsageError("pair needs the address of the other host, or --listen", hint=hint)
    address = parse_address(values["address"] or "tls://:20490")
    paired = (_listen if values["listen"] else _connect)(address, values)
    show(f"paired with {clean(paired.name)}: its key is {paired.fingerprint}, ours is {paired.ours}")
    return 0


def _warn(text: str) -> None:
    warn("pair", text)


def _listen(address: Address, values: Values) -> Any:
    from statepipe.trust.pair import pair_listening
    from statepipe.trust.pins import check_name
    from statepipe.trust.spake import new_code

    if values["name"]:
        check_name(values["name"])  # now, before the code is used up
    code = _from_file(values["code_file"]) if values["code_file"] else new_code()

    def ready(port: int) -> None:
        say(f"statepipe: pair: listening at port {port}")
        if not values["code_file"]:
            say(f"statepipe: pair: {_where_to_type(address, port)}")
            say(f"statepipe: pair: and when it asks for the code, type: {code}")

    def choose(called: str, key: str, host: str) -> str:
        """Return the pin's name. What the other host calls itself is its own claim, so a person decides."""
        if values["name"]:
            return str(values["name"])
        say(f"statepipe: pair: the host at {host} calls itself {clean(called)}; its key is {key}")
        if not (os.isatty(0) and os.isatty(2)):
            return host
        while True:  # the code is used up by now, so another name is asked for if this one cannot be
            print(f"Name to pin it under [{clean(host)}]: ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            try:
                return check_name(line.strip() or host)
            except UsageError as error:
                if not line:
                    raise
                say(f"statepipe: pair: {error} ({error.hint})")

    return pair_listening(address, code, choose, ready, lambda text: say(f"statepipe: pair: {text}"))


def _where_to_type(address: Address, port: int) -> str:
    """Return the command for the other side, with a name of this host."""
    try:
        ip = ip_address(address.host.partition("%")[0] or "::")
        everywhere, is_loopback = ip.is_unspecified, ip.is_loopback
    except ValueError:  # a name
        everywhere, is_loopback = False, address.name == "localhost"
    host = os.uname().nodename if everywhere else address.host
    command = f"statepipe pair {str(Address(TLS, host, port)).removeprefix('tls://')}"
    if is_loopback:
        return f"on this host, as no other can connect to {host}, type: {command}"
    return f"on the other host type: {command}"


def _connect(address: Address, values: Values) -> Any:
    from statepipe.trust.pair import pair_connecting

    def code() -> str:
        if values["code_file"]:
            return _from_file(values["code_file"])
        while not _is_code(typed := ask("Code shown on the other host", "--code-file")):
            say(f"statepipe: pair: a code has at least {CODE_LENGTH} letters and digits: try again")
        return typed

    return pair_connecting(address, code, values["name"])


def _from_file(path: str) -> str:
    """Return a code from a file or, as /dev/fd/N, a descriptor.

    Raises StatepipeError, also if others can read the file: whoever has the code is taken for the other host.
    """
    try:
        code = read_private(path, CODE_LIMIT).decode("ascii", "replace").strip()
    except OSError as error:
        raise StatepipeError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error
    if not _is_code(code):
        hint = "--code-file takes the code that statepipe pair --listen shows, or one that you give to both"
        raise StatepipeError(f"{path} contains no code of at least {CODE_LENGTH} letters and digits", hint=hint)
    return code


def _is_code(text: str) -> bool:
    """Return whether it can be a code: anything else must not use up the only attempt."""
    return sum(map(str.isalnum, text)) >= CODE_LENGTH
