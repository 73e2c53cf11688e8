"""The verb pair: the code shown or asked for, and what came of it; and the pins that there are."""

from __future__ import annotations

import os
import sys
from ipaddress import ip_address
from typing import Any

from statepipe.cli.context import ask
from statepipe.cli.messages import clean, say, show, warn
from statepipe.ends.address import TLS, Address, parse_address
from statepipe.errors import StatepipeError, UsageError
from statepipe.private import read_private
from statepipe.telling import nobody

Values = dict[str, Any]

CODE_LENGTH = 6
"""Letters and digits of a code at least."""

CODE_LIMIT = 1024
"""Bytes read of a file that holds a code."""


def run_pair(name: str, values: Values) -> int:
    """Listen and show a code, or connect and ask for it; or list the pins, or remove one."""
    if values["list"] or values["remove"] is not None:
        return _on_pins(values)
    if not values["listen"] and values["address"] is None:
        raise UsageError("pair needs the other host, or --listen on the host that the other connects to")
    address = parse_address(values["address"] or "tls://:20490")
    paired = (_listen if values["listen"] else _connect)(address, values)
    show(f"paired with {clean(paired.name)}: its key is {paired.fingerprint}, ours is {paired.ours}")
    return 0


PAIRING = {"address": "an address", "listen": "--listen", "name": "--name", "code_file": "--code-file"}
"""What belongs to a pairing, and to nothing else."""


def _on_pins(values: Values) -> int:
    """--list, --remove. Raises UsageError, StatepipeError."""
    stray = [said for key, said in PAIRING.items() if values[key] not in (None, False)]
    if values["list"] and values["remove"] is not None:
        stray.append("--remove")
    if stray:
        alone = "--list" if values["list"] else "--remove NAME"
        raise UsageError(f"pair {alone} pairs nobody: {stray[0]} has no place there", hint=f"statepipe pair {alone}")
    if values["list"]:
        return _list()
    from statepipe.trust.pins import pins, shown, unpin

    key = unpin(values["remove"], _warn)
    show(f"removed the pin of {clean(values['remove'])}{f': its key was {key}' if key else ''}")
    if key and (others := [name for name, its in pins(nobody).items() if its == key]):
        _warn(f"the same key is pinned as {shown(others)}, too: who has it is still believed")
    return 0


def _list() -> int:
    """A line for each: the name, a tab, the fingerprint."""
    from statepipe.trust.pins import pins

    found = pins(_warn)
    if found:
        show("\n".join(f"{clean(name)}\t{key}" for name, key in found.items()))
    else:
        say("statepipe: pair: no peer is pinned here")
    return 0


def _warn(text: str) -> None:
    warn("pair", text)


def _listen(address: Address, values: Values) -> Any:
    from statepipe.trust.pair import pair_listening
    from statepipe.trust.pins import check_name
    from statepipe.trust.spake import new_code

    if values["name"]:
        check_name(values["name"])  # now, and not when the code is used up
    code = _from_file(values["code_file"]) if values["code_file"] else new_code()

    def ready(port: int) -> None:
        say(f"statepipe: pair: listening at port {port}")
        if not values["code_file"]:
            say(f"statepipe: pair: {_where_to_type(address, port)}")
            say(f"statepipe: pair: and there, when asked, this code: {code}")

    def choose(called: str, key: str, host: str) -> str:
        return values["name"] or _name(clean(called), key, host)

    def tell(text: str) -> None:
        say(f"statepipe: pair: {text}")

    return pair_listening(address, code, choose, ready, tell)


def _where_to_type(address: Address, port: int) -> str:
    """Return the command for the other side, with a name at which we listen."""
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


def _name(called: str, key: str, host: str) -> str:
    """A name for who has been paired. What it calls itself is its own word, so a person decides; else its address.

    The code is used up by now, so a name that cannot be is asked for again.
    """
    from statepipe.trust.pins import check_name

    say(f"statepipe: pair: the host at {host} calls itself {called}; its key is {key}")
    if not (os.isatty(0) and os.isatty(2)):
        return host
    while True:
        print(f"Name to pin it under [{clean(host)}]: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        try:
            return check_name(line.strip() or host)
        except UsageError as error:
            if not line:
                raise
            say(f"statepipe: pair: {error} ({error.hint})")


def _connect(address: Address, values: Values) -> Any:
    from statepipe.trust.pair import pair_connecting

    def code() -> str:
        if values["code_file"]:
            return _from_file(values["code_file"])
        while not _is_code(typed := ask("Code shown on the other host", "--code-file")):
            say(f"statepipe: pair: a code has {CODE_LENGTH} letters and digits or more: try again")
        return typed

    return pair_connecting(address, code, values["name"])


def _from_file(path: str) -> str:
    """A code from a file or, as /dev/fd/N, a descriptor.

    Raises StatepipeError, also where others may read the file: who has the code is believed to be the other host.
    """
    try:
        code = read_private(path, CODE_LIMIT).decode("ascii", "replace").strip()
    except OSError as error:
        raise StatepipeError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error
    if not _is_code(code):
        hint = "--code-file takes the code that statepipe pair --listen shows, or one that you give to both"
        raise StatepipeError(f"{path} holds no code of at least {CODE_LENGTH} letters and digits", hint=hint)
    return code


def _is_code(text: str) -> bool:
    """Return whether it can be a code: what cannot be one must not use up the attempt."""
    return sum(map(str.isalnum, text)) >= CODE_LENGTH
