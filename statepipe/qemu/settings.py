"""How QEMU is to migrate, for as long as it takes: its capabilities and parameters, and their way back.

A stream of ours is one stream that any other QEMU loads as it is started. What QEMU was set to before, by libvirt, by a
person, by a migration that broke off, may make another one of it: without the shared memory (x-ignore-shared), with
pages that only a QEMU set alike can read (compress), over more connections than one (multifd), behind a TLS handshake
that nobody answers (tls-creds). So whatever is on and not known to be harmless is turned off meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from statepipe.errors import InterruptedBySignal, QemuError, QemuGone, StatepipeError
from statepipe.qemu.monitor import Monitor

HARMLESS = (
    *("auto-converge", "dirty-bitmaps", "dirty-limit", "events", "late-block-activate", "rdma-pin-all", "return-path"),
    *("validate-uuid", "xbzrle", "zero-blocks"),
)
"""Capabilities of QEMU 7.2 to 10.0 with which a stream may be made, and loaded by a QEMU that has none of them."""

PLAIN: Mapping[str, Any] = {"tls-creds": "", "mode": "normal"}
"""Parameters that would make another thing of a migration: TLS over whatever it goes through, or cpr (8.2)."""


@contextmanager
def put_back(monitor: Monitor, before: Mapping[str, Any]) -> Iterator[None]:
    """On leaving, set what `adjust` has returned, whatever failed within. Raises QemuError."""
    try:
        yield
    except BaseException as error:
        restore_after(error, monitor, before)
        raise
    try:
        restore(monitor, before)
    except QemuGone:  # and its settings with it
        pass
    except InterruptedBySignal as late:
        restore_after(late, monitor, before)
        raise
    except QemuError as error:
        error.advise("all else is done: only its migration settings are not as before", first=True)
        raise


def adjust(
    monitor: Monitor,
    capabilities: Mapping[str, bool],
    parameters: Mapping[str, Any],
    harmless: Collection[str] = HARMLESS,
    known: Callable[[dict[str, Any]], object] = lambda before: None,
) -> dict[str, Any]:
    """Set capabilities and parameters as wanted, and off what else is on and not `harmless`; what they were before,
    for `restore` and `put_back`. `known` hears that before anything is changed.

    A capability that this QEMU does not know and that is wanted off is off. Raises QemuError.
    """
    before = _settings(monitor, capabilities, parameters, harmless)
    known(before)
    try:
        _adjust(monitor, before, parameters)
    except BaseException as error:
        restore_after(error, monitor, before)
        raise
    return before


def made_ready(monitor: Monitor, capabilities: Collection[str]) -> dict[str, Any]:
    """Have a QEMU that waits for a guest take one stream, with these capabilities as far as it knows them; what it was
    set to before, for `restore`. Raises QemuError."""
    known = {item["capability"] for item in monitor.execute("query-migrate-capabilities")}
    return adjust(monitor, dict.fromkeys(known.intersection(capabilities), True), {})


def _adjust(monitor: Monitor, before: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Raises QemuError."""
    set_capabilities(monitor, {name: not state for name, state in before["capabilities"].items()})
    _set_parameters(monitor, {name: PLAIN[name] for name in before["parameters"] if name in PLAIN} | dict(parameters))


def restore_after(error: BaseException, monitor: Monitor, before: Mapping[str, Any]) -> None:
    """The error that is on its way stays the cause; its hint tells of settings that QEMU would not take back."""
    if isinstance(error, InterruptedBySignal):
        monitor.hurry()
    try:
        restore(monitor, before)
    except QemuError as refused:
        if isinstance(error, QemuGone) or isinstance(refused, QemuGone):  # and its settings with it
            return
        if isinstance(error, StatepipeError):
            error.advise(f"QEMU's migration settings are not as before: {refused}")


def _settings(
    monitor: Monitor, capabilities: Mapping[str, bool], parameters: Mapping[str, Any], harmless: Collection[str]
) -> dict[str, Any]:
    """What is now otherwise than wanted. One that QEMU does not have is refused when it is set, unless wanted off."""
    states = {item["capability"]: item["state"] for item in monitor.execute("query-migrate-capabilities")}
    values = monitor.execute("query-migrate-parameters")
    wanted = {name: False for name, on in states.items() if on and name not in harmless} | dict(capabilities)
    spoiling = [name for name, plain in PLAIN.items() if values.get(name, plain) != plain]
    return {
        "capabilities": {name: not on for name, on in wanted.items() if states.get(name, False) != on},
        "parameters": {name: values[name] for name in (*parameters, *spoiling) if name in values},
    }


def restore(monitor: Monitor, before: Mapping[str, Any]) -> None:
    """Set what `adjust` has returned. Raises QemuError."""
    set_capabilities(monitor, before["capabilities"])
    _set_parameters(monitor, before["parameters"])


def restored(monitor: Monitor, before: Mapping[str, Any]) -> str | None:
    """As `restore`, where all else is done and no word of QEMU's can make that undone: what is to be said of it."""
    try:
        restore(monitor, before)
    except QemuGone:  # and its settings with it
        return None
    except QemuError as error:
        return f"QEMU's migration settings are not as before: {error}"
    return None


def are_restored(monitor: Monitor, before: Mapping[str, Any]) -> bool:
    """Whether QEMU says that they are as they were. Raises QemuError."""
    states = {item["capability"]: item["state"] for item in monitor.execute("query-migrate-capabilities")}
    values = monitor.execute("query-migrate-parameters")
    return bool(before["capabilities"].items() <= states.items() and before["parameters"].items() <= values.items())


def set_capabilities(monitor: Monitor, states: Mapping[str, bool]) -> None:
    """Raises QemuError for one that this QEMU does not know, or a combination that it does not take."""
    # Off before on: QEMU refuses combinations, and checks the whole list at once only within one command.
    if states:
        items = [{"capability": name, "state": state} for name, state in sorted(states.items(), key=lambda i: i[1])]
        monitor.execute("migrate-set-capabilities", capabilities=items)


def _set_parameters(monitor: Monitor, values: Mapping[str, Any]) -> None:
    if values:
        monitor.execute("migrate-set-parameters", **values)
