"""load --lazy as a user without rights: what the kernel's setting and its device allow, on this host as it is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, assert_continues, run_statepipe, statepipe_command
from tests.qemu.lazily import SLOW, Lazy, assert_went_on, setting
from tests.qemu.loading import MEMORY, Saved, assert_never_ran

NOBODY = 65534
DEVICE = "/dev/userfaultfd"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of nobody's, which nobody can reach."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    folder = Path(tempfile.mkdtemp(prefix="nobody-"))
    os.chown(folder, NOBODY, NOBODY)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def as_nobody(qemu: str, *before: str) -> list[str]:
    """Words that run a program as nobody, after root has run the shell's commands `before`, in a mount namespace.

    Where Python or the QEMU is in root's home, which is closed to nobody, this one may read everything: that does not
    help to a userfaultfd.
    """
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    reach = ["sh", "-c", '"$0" -c "import statepipe" && "$1" --version', sys.executable, qemu]
    if subprocess.run([*words, *reach], capture_output=True).returncode:
        words += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
    script = " && ".join([*before, 'exec "$@"'])
    return [*(["unshare", "--mount", "sh", "-ec", script, "sh"] if before else []), *words]


def for_nobody(saved: Saved, place: Path) -> tuple[Saved, list[str]]:
    """The same state and disk where nobody may read and write them, and the words that name the disk."""
    for path in (saved.file, saved.image):
        shutil.copy2(path, place / path.name)
        os.chown(place / path.name, NOBODY, NOBODY)
    image = place / saved.image.name
    return Saved(place / saved.file.name, image, saved.before, saved.qemu), ["--disk", f"{saved.image}={image}"]


@contextmanager
def loading(place: Path, saved: Saved, words: Sequence[str], *options: str) -> Iterator[Lazy]:
    """A lazy load by whoever `words` make it."""
    copy, disk = for_nobody(saved, place)
    program = [*words, *statepipe_command()]
    with Lazy(place, copy, *options, *disk, program=program, env={"XDG_RUNTIME_DIR": str(place)}) as lazy:
        yield lazy


def assert_works(place: Path, saved: Saved, words: Sequence[str]) -> None:
    """The guest runs at once; after kill -9 the same user continues."""
    with loading(place, saved, words, "--throttle", SLOW) as lazy:
        resume = lazy.here()
        lazy.signal(signal.SIGKILL)
        lazy.status()
        lazy.restart([*words, *statepipe_command(), *resume])
        lazy.complete()
        assert lazy.status() == 0
        assert_went_on(saved, lazy)


def assert_refused(place: Path, saved: Saved, words: Sequence[str]) -> None:
    """It names the setting to change, before a guest has run."""
    with loading(place, saved, words) as lazy:
        assert lazy.status() == 6
        assert "sysctl vm.unprivileged_userfaultfd=1" in lazy.stderr() and DEVICE in lazy.stderr()
        assert_never_ran(place)


def assert_as_allowed(place: Path, saved: Saved, allowed: str) -> None:
    (assert_works if allowed == "1" else assert_refused)(place, saved, as_nobody(saved.qemu))


def test_the_setting_of_this_host_decides(place: Path, noisy: Saved) -> None:
    with setting() as allowed:
        assert_as_allowed(place, noisy, allowed)


@pytest.mark.faults
@pytest.mark.parametrize("allowed", ["0", "1"])
def test_either_setting_decides(place: Path, noisy: Saved, allowed: str) -> None:
    with setting(allowed):
        assert_as_allowed(place, noisy, allowed)


def open_device(place: Path) -> list[str]:
    """Shell commands that give nobody the device in this mount namespace; the host's stays as it is."""
    if not os.path.exists(DEVICE):
        pytest.skip(f"this kernel has no {DEVICE}")
    number = os.stat(DEVICE).st_rdev
    node = f"{place}/node"
    make = f"mknod -m 666 {node}/node c {os.major(number)} {os.minor(number)}"
    return [f"mkdir -p {node}", f"mount -t tmpfs none {node}", make, f"mount --bind {node}/node {DEVICE}"]


def test_the_device_is_enough_for_a_newer_qemu(place: Path, noisy10: Saved) -> None:
    with setting():
        assert_works(place, noisy10, as_nobody(noisy10.qemu, *open_device(place)))


def test_an_older_qemu_does_not_know_the_device(place: Path, noisy72: Saved) -> None:
    """QEMU itself has to be asked: it refuses the capability."""
    with setting() as allowed:
        if allowed == "1":
            assert_works(place, noisy72, as_nobody(noisy72.qemu, *open_device(place)))
        else:
            assert_refused(place, noisy72, as_nobody(noisy72.qemu, *open_device(place)))


@pytest.mark.faults
def test_a_qemu_of_another_user_is_loaded_with_a_warning(place: Path, noisy72: Saved) -> None:
    """Root loads into nobody's QEMU, which cannot listen in root's runtime folder after an interruption."""
    saved, disk = for_nobody(noisy72, place)
    waiting = Guest(
        place, qemu=saved.qemu, memory=MEMORY, image=saved.image, incoming="defer", wrapper=as_nobody(saved.qemu)
    )
    for path in (*place.iterdir(), Path(waiting.socket).parent):
        os.chown(path, NOBODY, NOBODY)
    with setting("1"), waiting as guest:
        done = run_statepipe("load", "--lazy", *disk, "--qmp", guest.socket, saved.file)
        assert done.returncode == 0, done.stderr
        assert f"perhaps nothing can continue the load: QEMU runs as user {NOBODY}, and can make no" in done.stderr
        guest.wait_ticks(2)
        assert_continues(saved.before, guest.serial())
