"""How QEMU is to migrate, for as long as it takes: its capabilities and parameters, and their way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from statepipe.errors import InterruptedBySignal, QemuError, QemuGone, StatepipeError
from statepipe.qemu.monitor import Monitor


@contextmanager
def adjusted(
    monitor: Monitor, capabilities: Mapping[str, bool], parameters: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Within it, capabilities and parameters are as wanted; afterwards as they were, which is what it gives.

    A capability that this QEMU does not know and that is wanted off is off. Raises QemuError.
    """
    before = _settings(monitor, capabilities, parameters)
    try:
        set_capabilities(monitor, {name: capabilities[name] for name in before["capabilities"]})
        _set_parameters(monitor, parameters)
        yield before
    except BaseException as error:
        if isinstance(error, InterruptedBySignal):
            monitor.hurry()
        _restore_after(error, monitor, before)
        raise
    try:
        restore(monitor, before)
    except QemuGone:  # and its settings with it
        pass
    except QemuError as error:
        error.hint = "; ".join(
            filter(None, ["all else is done: only its migration settings are not as before", error.hint])
        )
        raise


def _restore_after(error: BaseException, monitor: Monitor, before: Mapping[str, Any]) -> None:
    """The error that is on its way stays the cause; its hint tells of settings that QEMU would not take back."""
    try:
        restore(monitor, before)
    except QemuError as refused:
        if isinstance(error, QemuGone):  # and its settings with it, which that says
            return
        if isinstance(error, StatepipeError):
            error.hint = "; ".join(
                filter(None, [error.hint, f"QEMU's migration settings are not as before: {refused}"])
            )


def _settings(monitor: Monitor, capabilities: Mapping[str, bool], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What is now otherwise than wanted. One that QEMU does not have is refused when it is set, unless wanted off."""
    states = {item["capability"]: item["state"] for item in monitor.execute("query-migrate-capabilities")}
    values = monitor.execute("query-migrate-parameters")
    return {
        "capabilities": {
            name: states.get(name, False) for name, on in capabilities.items() if states.get(name, False) != on
        },
        "parameters": {name: values[name] for name in parameters if name in values},
    }


def restore(monitor: Monitor, before: Mapping[str, Any]) -> None:
    """Set what `adjusted` gave. Raises QemuError."""
    set_capabilities(monitor, before["capabilities"])
    _set_parameters(monitor, before["parameters"])


def set_capabilities(monitor: Monitor, states: Mapping[str, bool]) -> None:
    """Raises QemuError for one that this QEMU does not know, or a combination that it does not take."""
    # Off before on: QEMU refuses combinations, and checks the whole list at once only within one command.
    if states:
        items = [{"capability": name, "state": state} for name, state in sorted(states.items(), key=lambda i: i[1])]
        monitor.execute("migrate-set-capabilities", capabilities=items)


def _set_parameters(monitor: Monitor, values: Mapping[str, Any]) -> None:
    if values:
        monitor.execute("migrate-set-parameters", **values)
