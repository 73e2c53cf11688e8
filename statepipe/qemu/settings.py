"""QEMU's migration capabilities and parameters: set for one migration, and restored.

Any QEMU can load a stream of ours as it is started. Settings that libvirt, a person or a failed migration left behind
would prevent that: streams without the shared memory (x-ignore-shared), pages that only a QEMU with the same setting
can read (compress), several connections (multifd), a TLS handshake that nothing answers (tls-creds). So every setting
that is on and not known to be harmless is turned off meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from statepipe.errors import InterruptedBySignal, QemuError, QemuGone, StatepipeError
from statepipe.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it takes 25 ms, in which a QEMU can start
    from statepipe.qemu.monitor import Monitor

HARMLESS = (
    *("auto-converge", "dirty-bitmaps", "dirty-limit", "events", "late-block-activate", "rdma-pin-all", "return-path"),
    *("validate-uuid", "xbzrle", "zero-blocks"),
)
"""Capabilities of QEMU 7.2 to 11.1 that may be on for a stream that a QEMU without them is to load."""

PLAIN: Mapping[str, Any] = {"tls-creds": "", "mode": "normal"}
"""Parameters, and the values with which a migration is a plain one: no TLS, and no cpr (8.2)."""


@contextmanager
def put_back(monitor: Monitor, before: Mapping[str, Any]) -> Iterator[None]:
    """On leaving, restore what `adjust` returned, also after an error. Raises QemuError."""
    try:
        yield
    except BaseException as error:
        restore_after(error, monitor, before)
        raise
    try:
        restore(monitor, before)
    except QemuGone:  # its settings ended with it
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
    """Set capabilities and parameters, and turn off what else is on and not `harmless`; return the previous values, for
    `restore` and `put_back`. `known` is called with them before anything is changed.

    A capability that this QEMU does not have counts as off. Raises QemuError.
    """
    states = {item["capability"]: item["state"] for item in monitor.execute("query-migrate-capabilities")}
    values = monitor.execute("query-migrate-parameters")
    wanted = {name: False for name, on in states.items() if on and name not in harmless} | dict(capabilities)
    spoiling = [name for name, plain in PLAIN.items() if values.get(name, plain) != plain]
    before = {
        "capabilities": {name: not on for name, on in wanted.items() if states.get(name, False) != on},
        "parameters": {name: values[name] for name in (*parameters, *spoiling) if name in values},
    }
    known(before)
    try:
        set_capabilities(monitor, {name: not state for name, state in before["capabilities"].items()})
        plain = {name: PLAIN[name] for name in before["parameters"] if name in PLAIN}
        _set_parameters(monitor, plain | dict(parameters))
    except BaseException as error:
        restore_after(error, monitor, before)
        raise
    return before


def made_ready(monitor: Monitor, capabilities: Collection[str]) -> dict[str, Any]:
    """Prepare a QEMU to receive one stream, with those of the capabilities that it has; return the previous values.

    Raises QemuError.
    """
    known = {item["capability"] for item in monitor.execute("query-migrate-capabilities")}
    return adjust(monitor, dict.fromkeys(known.intersection(capabilities), True), {})


def restore_after(error: BaseException, monitor: Monitor, before: Mapping[str, Any]) -> None:
    """Restore the settings while `error` propagates; if that fails, the hint of `error` says so."""
    if isinstance(error, InterruptedBySignal):
        monitor.hurry()
    try:
        restore(monitor, before)
    except QemuError as refused:
        if isinstance(error, QemuGone) or isinstance(refused, QemuGone):  # its settings ended with it
            return
        if isinstance(error, StatepipeError):
            error.advise(f"QEMU's migration settings are not as before: {refused}")


def restore(monitor: Monitor, before: Mapping[str, Any]) -> None:
    """Set what `adjust` returned. Raises QemuError."""
    set_capabilities(monitor, before["capabilities"])
    _set_parameters(monitor, before["parameters"])


def restored(monitor: Monitor, before: Mapping[str, Any]) -> str | None:
    """Do as `restore` after work that is complete whatever QEMU answers: return the failure as a warning, or None."""
    try:
        restore(monitor, before)
    except QemuGone:  # its settings ended with it
        return None
    except QemuError as error:
        return f"QEMU's migration settings are not as before: {error}"
    return None


def are_restored(monitor: Monitor, before: Mapping[str, Any]) -> bool:
    """Return whether QEMU reports the previous settings. Raises QemuError."""
    states = {item["capability"]: item["state"] for item in monitor.execute("query-migrate-capabilities")}
    values = monitor.execute("query-migrate-parameters")
    return bool(before["capabilities"].items() <= states.items() and before["parameters"].items() <= values.items())


def set_capabilities(monitor: Monitor, states: Mapping[str, bool]) -> None:
    """Raises QemuError for a capability that this QEMU does not have, or a combination that it does not accept."""
    # Off before on: QEMU refuses combinations, and checks the whole list at once only within one command.
    if states:
        items = [{"capability": name, "state": state} for name, state in sorted(states.items(), key=lambda i: i[1])]
        monitor.execute("migrate-set-capabilities", capabilities=items)


def _set_parameters(monitor: Monitor, values: Mapping[str, Any]) -> None:
    if values:
        monitor.execute("migrate-set-parameters", **values)
