"""statepipe: carry the state of running virtual machines through pipes, and report truthfully how it went.

As a library it offers what __all__ names (docs/api.md). Each is imported when it is first asked for, so that `import
statepipe` costs nothing. Importing or using it changes nothing else in the program: no signal handler, no setting.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # type checkers take it for true; the import of typing costs 3 ms

if TYPE_CHECKING:
    from statepipe.ends.fd import Nowhere
    from statepipe.errors import (
        IntegrityError,
        InterruptedBySignal,
        NoKeyError,
        PeerError,
        QemuError,
        QemuGone,
        QemuRefused,
        QemuSilent,
        ReaderGone,
        StatepipeError,
        TruncatedError,
        UsageError,
    )
    from statepipe.library.context import context
    from statepipe.library.ends import from_fd, from_file, from_socket, to_fd, to_file, to_socket
    from statepipe.library.filters import (
        checksum,
        compress,
        decompress,
        decrypt,
        encrypt,
        external,
        get,
        progress,
        put,
        tee,
        throttle,
        verify,
    )
    from statepipe.library.states import LoadedState, Saved, inspect, load, load_guest, save, save_guest, verify_state
    from statepipe.pipeline.pipeline import NamedStage, Pipeline, Verdict
    from statepipe.stage import FLUSH, Buffer, Cancelled, Stage, chain, close

__version__ = "0.1.0"

_ERRORS = (
    "IntegrityError InterruptedBySignal NoKeyError PeerError QemuError QemuGone QemuRefused QemuSilent ReaderGone "
    "StatepipeError TruncatedError UsageError"
)
_FILTERS = "checksum compress decompress decrypt encrypt external get progress put tee throttle verify"
_STATES = "LoadedState Saved inspect load load_guest save save_guest verify_state"

_PLACES = {
    "ends.fd": "Nowhere",
    "errors": _ERRORS,
    "library.context": "context",
    "library.ends": "from_fd from_file from_socket to_fd to_file to_socket",
    "library.filters": _FILTERS,
    "library.states": _STATES,
    "pipeline.pipeline": "NamedStage Pipeline Verdict",
    "stage": "FLUSH Buffer Cancelled Stage chain close",
}
"""Modules and the names that are to be had from here."""

_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names.split()}

__all__ = [  # the same names, for type checkers and editors
    "FLUSH",
    "Buffer",
    "Cancelled",
    "IntegrityError",
    "InterruptedBySignal",
    "LoadedState",
    "NamedStage",
    "NoKeyError",
    "Nowhere",
    "PeerError",
    "Pipeline",
    "QemuError",
    "QemuGone",
    "QemuRefused",
    "QemuSilent",
    "ReaderGone",
    "Saved",
    "Stage",
    "StatepipeError",
    "TruncatedError",
    "UsageError",
    "Verdict",
    "__version__",
    "chain",
    "checksum",
    "close",
    "compress",
    "context",
    "decompress",
    "decrypt",
    "encrypt",
    "external",
    "from_fd",
    "from_file",
    "from_socket",
    "get",
    "inspect",
    "load",
    "load_guest",
    "progress",
    "put",
    "save",
    "save_guest",
    "tee",
    "throttle",
    "to_fd",
    "to_file",
    "to_socket",
    "verify",
    "verify_state",
]


def __getattr__(name: str) -> object:
    """Import a name of the library when it is asked for (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'statepipe' has no attribute '{name}'")
    value: object = getattr(import_module(f"statepipe.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
