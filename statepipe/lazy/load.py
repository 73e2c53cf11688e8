"""load --lazy: the guest runs as soon as QEMU has its devices, and its memory is loaded while it runs.

QEMU is started paused, or waits, and gets the capability postcopy-ram. It loads the devices and runs the guest; each
page is sent when the guest touches it, and the others in the background (rest.py). Until QEMU was told to run the
guest, every failure ends QEMU, and the guest has not run. From then on the guest changes its disks, so QEMU is never
ended.

The keeper (keeper.py) is started before QEMU: whenever statepipe is killed, it ends a QEMU that has received nothing.
QEMU takes as long to start as we take to import what is needed only then. So it is started as soon as both ends of the
file are verified, and its disks; the index and the devices are verified while it starts. A file that has to be read
whole is read before.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack, closing

from statepipe.descriptors import named_by
from statepipe.errors import QemuGone
from statepipe.lazy.keeping import Keeping, OwnMonitor, resume_command
from statepipe.lazy.telling import LazyOptions, LazyTelling
from statepipe.pipeline.signals import held, ignore
from statepipe.qemu.commandline import refuse_daemon
from statepipe.qemu.guard import Said
from statepipe.qemu.late_pages import NoLatePages, demand_userfaultfd
from statepipe.qemu.overlays import Clone
from statepipe.qemu.process import DYING, Child
from statepipe.state.file import STDIN, Keys, open_state
from statepipe.state.load_qmp import CutOff, MayRun, ready, refuse_state_as_disk
from statepipe.state.loading import State, prepare
from statepipe.typed import TYPE_CHECKING
from statepipe.wakeups import polled

if TYPE_CHECKING:
    from statepipe.lazy.loading import LazyLoad
    from statepipe.lazy.workingset import FirstPages
    from statepipe.state.pagestore import PageStore


def load_lazily_into_new(
    path: str,
    command: Sequence[str],
    keys: Keys,
    said: Said,
    tell: LazyTelling,
    options: LazyOptions,
    clone: Clone,
    *,
    detach: bool,
) -> int:
    """Load the state lazily into a QEMU that `command` starts, with the overlays of `clone`; return its exit status.

    With `detach`, return 0 once all memory is loaded. Raises StatepipeError: QEMU is then ended, unless the hint says
    where the guest is; NoLatePages where only an ordinary load is possible.
    """
    refuse_daemon(command)
    refuse_state_as_disk(path, command)
    demand_named(path)
    demand_userfaultfd(command)
    child: Child | None = None
    load: LazyLoad | None = None
    own = OwnMonitor(tell.warn)
    try:
        with ExitStack() as opened:
            state = prepare(opened.enter_context(open_state(path, keys)))
            pages = _pages(opened, state, tell, options) if options.verify_first or not state.is_indexed else None
            state.refuse_changed_before(command, said)
            command = ready(command, clone, opened)
            digest = state.digest if pages is None else pages[0].digest
            with held():  # a QEMU that was started must be known to us; enum makes a TypeError of a signal in an import
                keeping, child = _kept(opened, [*command, *own.words], own.address, digest, tell, detach=detach)
                from statepipe.lazy.loading import LazyLoad
                from statepipe.qemu.monitor import Monitor

            store, first = pages or _pages(opened, state, tell, options)
            monitor = opened.enter_context(closing(Monitor(child.monitor, child.pid, tell.warn)))
            done = ignore if detach else child.pass_signals_on
            load = LazyLoad(
                store, first, monitor, tell, options, resume_command(path, own.address, options.words), clone, done
            )
            load.load(said, keeping, runs=not child.stays_paused)
    except BaseException as error:
        if child is None or load is None or not load.is_here:
            clone.undo(tell.warn)
            if child is not None:
                child.end_after(error, "while loading")
                own.remove()
            raise
        if isinstance(error, MayRun | CutOff):
            error.advise(clone.where)
        if not (isinstance(error, QemuGone) and polled(child.ending).poll(DYING)):
            child.let_be(tell.warn)
            raise
        tell.warn(str(error))
    own.remove()
    if detach and not child.ended:
        child.let_be(tell.warn)
        return 0
    return child.wait()


def load_lazily_into_waiting(
    path: str, address: str, keys: Keys, said: Said, tell: LazyTelling, options: LazyOptions
) -> None:
    """Load the state lazily into the QEMU whose monitor is at `address`, started with `-incoming defer`.

    Raises StatepipeError, as `load_lazily_into_new`.
    """
    from statepipe.lazy.loading import LazyLoad
    from statepipe.qemu.monitor import Monitor

    demand_named(path)
    with ExitStack() as opened:
        state = prepare(opened.enter_context(open_state(path, keys)))
        store, first = _pages(opened, state, tell, options)
        monitor = opened.enter_context(closing(Monitor(address, tell=tell.warn)))
        keeping = Keeping.beside(monitor, address, store.digest, tell.warn)
        if keeping is not None:
            opened.enter_context(closing(keeping))
        load = LazyLoad(store, first, monitor, tell, options, resume_command(path, address, options.words), Clone())
        load.load(said, keeping, runs=True)


def demand_named(path: str) -> None:
    """Raises NoLatePages for standard input or another descriptor."""
    if why := unnamed(path):
        raise NoLatePages(why, hint=NAME_IT)


def unnamed(path: str) -> str | None:
    """Return why the state cannot be loaded lazily if it is standard input or another descriptor: after an
    interruption, the guest needs the file."""
    if path == STDIN or named_by(path) is not None:
        name = "standard input" if path == STDIN else path
        return f"{name} cannot be loaded lazily: an interrupted load could not be continued from it"
    return None


NAME_IT = "store the state in a file and name that"


def _kept(
    opened: ExitStack, command: Sequence[str], address: str, digest: str, tell: LazyTelling, *, detach: bool
) -> tuple[Keeping, Child]:
    """Start QEMU, and before it its keeper: whenever we are killed, that one ends a QEMU that has received nothing."""
    spare = socket.socketpair()
    keeping = opened.enter_context(closing(Keeping(spare[0], address, digest, tell.warn, shared=False)))
    child = Child(command, detach, spare=spare)
    opened.enter_context(child.spare)
    return keeping, child


def _pages(
    opened: ExitStack, state: State, tell: LazyTelling, options: LazyOptions
) -> tuple[PageStore, FirstPages | None]:
    """Return the pages of a state, and its working set, whose pages are read from now on."""
    from statepipe.lazy.loading import servable
    from statepipe.lazy.workingset import first_pages

    store = servable(state, tell.warn, options)
    return store, opened.enter_context(first_pages(store, tell.warn))
