"""Saved guests: write a state file, read one, and ask what is in it.

`save` and `load` work on streams. `save_guest` and `load_guest` drive a QEMU through its QMP socket. All of them raise
StatepipeError and its kinds; then there is no new file, and no guest runs that did not run before, unless the error's
hint says that QEMU was told to run it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from statepipe import stage
from statepipe.ends.fd import FdSource
from statepipe.ends.output import new_output
from statepipe.errors import NoKeyError
from statepipe.library import filters
from statepipe.library.context import context as own_context
from statepipe.library.filters import Passphrase
from statepipe.objectstore.settings import Reading
from statepipe.pipeline.pipeline import NamedStage
from statepipe.qemu.guard import Said
from statepipe.stage import Buffer
from statepipe.stages.context import Context
from statepipe.stages.packing import choose
from statepipe.state.file import Keys, open_state
from statepipe.state.loading import State, prepare
from statepipe.state.source import StateFile
from statepipe.threads import held
from statepipe.typed import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from typing import Literal

    from statepipe.formats.age.envelope import Identity

Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved state: bytes of QEMU's stream, bytes of the file, and the guest's run state, if known."""

    bytes: int
    size: int
    run_state: str | None


def save(
    source: FdSource,
    path: Path,
    *,
    codec: str = "zstd",
    stages: Sequence[NamedStage] = (),
    encrypt: Sequence[NamedStage] = (),
) -> Saved:
    """Save a migration stream as a state file, which exists only once the stream is proved complete.

    `stages` follow the plain stream and must not change it (`checksum`, `progress`). `encrypt` is at most the stage of
    `encrypt`. Raises TruncatedError for a stream that is cut short, IntegrityError for anything else.
    """
    from statepipe.state.saving import Plan, save_stream

    plan = Plan(choose(codec).packing(time.monotonic), stages, encrypt)
    with new_output(os.fspath(path)) as sink:
        saved = save_stream(plan, source, sink, None, lambda: None)
    return Saved(saved.stream.offset, saved.size, saved.stream.run_state)


def save_guest(
    qmp: str,
    path: Path,
    *,
    then: Literal["stay", "cont", "quit"] = "stay",
    codec: str = "zstd",
    stages: Sequence[NamedStage] = (),
    encrypt: Sequence[NamedStage] = (),
    context: Context | None = None,
) -> Saved:
    """Save the guest behind the QMP socket `qmp`, and leave it paused, running (`cont`) or ended (`quit`).

    If the save fails, the guest goes on as before. If this process is killed, a guardian process restores the guest.
    """
    from statepipe.recovery.program import guard_words
    from statepipe.state.save_qmp import SaveRequest, save_by_qmp

    world = context or own_context()
    request = SaveRequest(os.fspath(path), choose(codec).packing(time.monotonic), stages, encrypt, then)
    outcome = save_by_qmp(qmp, request, world.warn, guard_words("save", "sender"))
    if outcome.doubts:
        world.warn(outcome.doubts)
    return Saved(outcome.saved.stream.offset, outcome.saved.size, outcome.run_state)


class LoadedState:
    """A state file as a source of QEMU's stream, which ends only once all of it is verified.

    `bytes` counts the bytes read. `doubts` says what cannot be verified, or is None. Use it as a context manager, which
    you leave once the pipeline has ended.
    """

    def __init__(self, file: StateFile, state: State) -> None:
        self.bytes = 0
        self.doubts = state.doubts
        self._file, self._state = file, state
        self._flow = stage.chain(file, state.stages())

    @property
    def run_state(self) -> str | None:
        """The guest's run state at the save; of a foreign stream it is known once the stream has passed."""
        return self._state.run_state

    def __iter__(self) -> Iterator[Buffer]:
        return self

    def __next__(self) -> Buffer:
        buffer = next(self._flow)
        self.bytes += len(buffer)
        return buffer

    def cancel(self) -> None:
        """Wake a thread that waits for bytes."""
        stage.cancel(self._flow)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with held():
            self.cancel()
            stage.close(self._flow)
            self._file.__exit__()


def load(
    path: Path,
    *,
    identities: str | Sequence[str] = (),
    passphrase: Passphrase = None,
    disks: Mapping[str, str] | None = None,
    force: Sequence[str] = (),
    context: Context | None = None,
) -> LoadedState:
    """Open a state file, or a migration stream in any codec, as a source.

    `disks` maps disks at the save to where they are now, `force` names disks to accept although they changed. Raises
    IntegrityError and TruncatedError for a file that is damaged at either end, NoKeyError, and StatepipeError for a
    disk that has changed since the save.
    """
    world = context or own_context()
    file = open_state(os.fspath(path), _keys(path, identities, passphrase, world))
    try:
        state = prepare(file)
        state.refuse_changed_disks(None, _said(disks, force), world.warn)
        return LoadedState(file, state)
    except BaseException:
        file.__exit__()
        raise


def load_guest(
    path: Path,
    qmp: str,
    *,
    identities: str | Sequence[str] = (),
    passphrase: Passphrase = None,
    disks: Mapping[str, str] | None = None,
    force: Sequence[str] = (),
    context: Context | None = None,
) -> None:
    """Load a state into the QEMU behind the QMP socket `qmp`, which was started with `-incoming defer`.

    The guest runs afterwards if it ran when it was saved. If the load fails, a QEMU that has received nothing
    still waits; otherwise it is told to quit, unless it was told to run the guest.
    """
    from statepipe.state.load_qmp import Telling, load_into_waiting

    world = context or own_context()
    tell = Telling(world.warn, lambda state: None, lambda: None)
    keys = _keys(path, identities, passphrase, world)
    load_into_waiting(os.fspath(path), qmp, keys, _said(disks, force), tell)


def inspect(
    path: Path,
    *,
    identities: str | Sequence[str] = (),
    passphrase: Passphrase = None,
    context: Context | None = None,
) -> dict[str, Any]:
    """Return what a state file contains, as `statepipe inspect --json` prints it, from its two ends alone."""
    from statepipe.state.inspect import inspect

    return inspect(os.fspath(path), _keys(path, identities, passphrase, context or own_context()))


def verify_state(
    path: Path,
    *,
    identities: str | Sequence[str] = (),
    passphrase: Passphrase = None,
    context: Context | None = None,
) -> dict[str, Any]:
    """Read a whole state file, and return what was verified, as `statepipe verify-state --json` prints it.

    Raises IntegrityError or TruncatedError for a file that is not as it was written.
    """
    from statepipe.state.verify import verify_state

    return verify_state(os.fspath(path), _keys(path, identities, passphrase, context or own_context()))


def _said(disks: Mapping[str, str] | None, force: Sequence[str]) -> Said:
    return Said([f"{old}={new}" for old, new in (disks or {}).items()], force)


def _keys(path: Path, identities: str | Sequence[str], passphrase: Passphrase, world: Context) -> Keys:
    def of_age() -> Sequence[Identity]:
        from statepipe.stages import agekeys

        files, secret = filters.several(identities), filters.secret_of(passphrase)
        found = agekeys.identities(files, secret(), world)
        if not found:
            raise NoKeyError(f"{os.fspath(path)} is encrypted", hint="give identities= or passphrase=")
        return found

    def openpgp() -> stage.Stage:
        return filters.decrypt(identities, passphrase=passphrase, context=world)

    return Keys(of_age, openpgp, Reading(tell=world.warn))
