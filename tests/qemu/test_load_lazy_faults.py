"""load --lazy whose file, disk, memory or QEMU fails: it says where the guest is, and the guest goes on."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, run_statepipe, statepipe_command, wait_for
from tests.qemu.lazily import RESUME, SLOW, Lazy, assert_went_on, marks
from tests.qemu.loading import MEMORY, Saved, assert_never_ran, qemu_pid, run_load
from tests.qemu.striking import ROOT, steps_of, striking
from tests.statefiles import DATA, layout

# --- a file that is damaged, cut, or replaced


def flipped(saved: Saved, folder: Path, share: float) -> Path:
    """A copy of the state with a bit flipped in the data frame at that share of the file."""
    file = folder / "state"
    data = bytearray(saved.file.read_bytes())
    goal = int(len(data) * share)
    frame = next(piece for piece in layout(bytes(data)) if piece.magic == DATA and piece.end > goal)
    data[(frame.start + frame.end) // 2] ^= 1
    file.write_bytes(data)
    return file


def test_at_a_damaged_frame_the_guest_is_stopped_and_goes_on_from_a_good_copy(tmp_path: Path, noisy: Saved) -> None:
    """The frame is one that the guest does not touch."""
    file = flipped(noisy, tmp_path, 0.8)
    with Lazy(tmp_path, Saved(file, noisy.image, noisy.before, noisy.qemu)) as lazy:
        resume = lazy.here()
        assert lazy.status() == 3
        said = lazy.stderr()
        assert f"{file}" in said and "pc.ram" in said and " 0x" in said and "the guest is paused, with " in said
        for where in ([], ["elsewhere"], ["here"]):
            looked = run_statepipe("resolve", "--qmp", resume[resume.index("--qmp") + 1], *where)
            assert looked.returncode == (6 if where else 0), looked.stderr
            assert f"statepipe {shlex.join(resume[:-1])} FILE" in looked.stdout + looked.stderr
        shutil.copy(noisy.file, file)
        done = run_statepipe(*resume)
        assert done.returncode == 0 and "the guest is running while" in done.stderr, done.stderr
        assert_went_on(noisy, lazy)


def test_the_guest_waits_for_a_damaged_page_that_it_touches(tmp_path: Path, noisy72: Saved) -> None:
    file = flipped(noisy72, tmp_path, 0.08)
    saved = Saved(file, noisy72.image, noisy72.before, noisy72.qemu)
    with Lazy(tmp_path, saved, "--throttle", "32K") as lazy:  # so that the guest touches it before it would be sent
        resume = lazy.here()
        wait_for("word", lambda: "QEMU does not answer while it waits for a damaged page" in lazy.stderr())
        run_statepipe("rate", str(lazy.pid), "unlimited")
        assert lazy.status() == 3
        assert "and waits for a page that is damaged, at 0x" in lazy.stderr()
        shutil.copy(noisy72.file, file)
        assert run_statepipe(*resume).returncode == 0
        assert_went_on(noisy72, lazy)


def test_qemu_does_not_answer_while_the_guest_waits_for_a_damaged_page(tmp_path: Path, noisy72: Saved) -> None:
    """From its answer to `cont` on: the damage is reported, and not the silence. Its main loop can wait for that page,
    too; here it is stopped."""
    file, record = flipped(noisy72, tmp_path, 0.08), tmp_path / "record"
    saved = Saved(file, noisy72.image, noisy72.before, noisy72.qemu)
    with Lazy(tmp_path, saved, program=striking(signal.SIGSTOP, "after Monitor.execute cont", record)) as lazy:
        wait_for("cont", lambda: "after Monitor.execute cont" in steps_of(record))
        pid = wait_for("QEMU", lambda: qemu_pid(tmp_path))
        wait_for("a page that does not come", lambda: all(waits_for_a_page(pid) for _ in range(200)))
        os.kill(pid, signal.SIGSTOP)
        Path(f"{record}.go").touch()
        try:
            wait_for("word", lambda: "QEMU does not answer while it waits for a damaged page" in lazy.stderr(), 25)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert lazy.status() == 3, lazy.stderr()
        said = lazy.stderr()
        assert f"{file}" in said and "and waits for a page that is damaged, at 0x" in said, said
        shutil.copy(noisy72.file, file)
        assert run_statepipe(*shlex.split(said.rpartition(RESUME)[2].splitlines()[0])).returncode == 0
        assert_went_on(noisy72, lazy)


def waits_for_a_page(pid: int) -> bool:
    """Whether a thread of this QEMU does: the kernel's function in which it sleeps says so."""
    return any("handle_userfault" in task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/wchan"))


def test_verify_first_refuses_a_damaged_file_before_qemu_is_started(tmp_path: Path, noisy72: Saved) -> None:
    file = flipped(noisy72, tmp_path, 0.8)
    done = run_load(tmp_path, Saved(file, noisy72.image, noisy72.before, noisy72.qemu), "--lazy", "--verify-first")
    assert done.returncode == 3 and not (tmp_path / "serial").exists()


def test_a_file_that_is_cut_under_way_is_put_back_and_the_load_continued(tmp_path: Path, noisy72: Saved) -> None:
    file = tmp_path / "state"
    shutil.copy(noisy72.file, file)
    with Lazy(tmp_path, Saved(file, noisy72.image, noisy72.before, noisy72.qemu), "--throttle", SLOW) as lazy:
        resume = lazy.here()
        os.truncate(file, file.stat().st_size // 2)
        assert lazy.status() in (1, 3)
        hints = [line for line in lazy.stderr().splitlines() if "hint" in line]
        assert "of its memory loaded; do not end its QEMU" in hints[0] and RESUME in hints[0]
        shutil.copy(noisy72.file, file)
        assert run_statepipe(*resume).returncode == 0
        assert_went_on(noisy72, lazy)


def own_copy(saved: Saved, folder: Path) -> Saved:
    """The same guest in a file that the test may change."""
    return Saved(Path(shutil.copy(saved.file, folder / "state")), saved.image, saved.before, saved.qemu)


def unlinked(file: Path) -> None:
    file.unlink()


def replaced(file: Path) -> None:
    other = file.with_suffix(".other")
    other.write_bytes(b"another state")
    os.replace(other, file)


@pytest.mark.parametrize("change", [unlinked, replaced])
def test_a_file_that_was_removed_is_loaded_to_its_end(
    tmp_path: Path, noisy72: Saved, change: Callable[[Path], None]
) -> None:
    """Only the running statepipe can still read it: so it does not end before the guest has its memory."""
    saved = own_copy(noisy72, tmp_path)
    with Lazy(tmp_path, saved, "--throttle", SLOW) as lazy:
        lazy.here()
        change(saved.file)
        lazy.signal(signal.SIGTERM)
        wait_for("word", lambda: "not before all memory is loaded" in lazy.stderr(), 20)
        assert run_statepipe("rate", str(lazy.pid), "unlimited").returncode == 0
        assert lazy.status() == 128 + signal.SIGTERM
        assert "with all of its memory loaded" in lazy.stderr(), lazy.stderr()
        assert RESUME not in lazy.stderr().partition("stopped by")[2]
        assert_went_on(noisy72, lazy)


def test_a_file_that_is_overwritten_under_way(tmp_path: Path, noisy72: Saved) -> None:
    saved = own_copy(noisy72, tmp_path)
    with Lazy(tmp_path, saved, "--throttle", SLOW) as lazy:
        resume = lazy.here()
        with saved.file.open("r+b") as file:
            file.seek(saved.file.stat().st_size // 2)
            file.write(bytes(saved.file.stat().st_size // 2))
        run_statepipe("rate", str(lazy.pid), "unlimited")
        assert lazy.status() == 3, lazy.stderr()
        said = lazy.stderr()  # the guest may have touched a damaged page before it was stopped
        assert "the guest is paused, with " in said or "and waits for a page that is damaged, at 0x" in said, said
        again = run_statepipe(*resume)
        assert again.returncode == 3
        shutil.copy(noisy72.file, saved.file)
        assert run_statepipe(*resume).returncode == 0
        assert_went_on(noisy72, lazy)


@pytest.mark.parametrize("when", ["1+", "5+", "9+", "14+"])
def test_a_disk_that_fails(tmp_path: Path, noisy72: Saved, when: str) -> None:
    """Before the guest runs, and while its memory is loaded."""
    file = noisy72.file
    strace = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-P", str(file), "-e", "trace=pread64"]
    program = [*strace, "-e", f"inject=pread64:error=EIO:when={when}", *statepipe_command()]
    with Lazy(tmp_path, noisy72, program=program) as lazy:
        status = lazy.status()
        said = lazy.stderr()
        assert status == 1 and f"cannot read {file}: Input/output error" in said, said
        if RESUME in said:
            assert "the guest is running, with" in said or "its guest may be running, with" in said
            done = run_statepipe(*shlex.split(said.rstrip().rpartition(RESUME)[2]))
            assert done.returncode == 0, done.stderr
            assert_went_on(noisy72, lazy)
        else:
            assert_never_ran(tmp_path)


# --- memory that runs out

ASKED = 'name == "pages asked for"'
"""The thread that answers requests."""


def short_of_memory(mark: Path, who: str, command: str) -> list[str]:
    """statepipe whose threads `who` have no memory to decode a frame, once this command is about to be given to QEMU;
    or from its start, if `mark` is there."""
    code = f"""
import os, sys, threading
sys.path.insert(0, {str(ROOT)!r})
from statepipe.cli.main import entry
from statepipe.qemu.monitor import Monitor
from statepipe.state.pagestore import PageStore
reads, executes = PageStore.read, Monitor.execute

def read(self, number):
    name = threading.current_thread().name
    if os.path.exists({str(mark)!r}) and {who}:
        raise MemoryError
    return reads(self, number)

def execute(self, command, **arguments):
    if command == {command!r}:
        open({str(mark)!r}, "w").close()
    return executes(self, command, **arguments)

PageStore.read, Monitor.execute = read, execute
entry()
"""
    return [sys.executable, "-P", "-c", code]


@pytest.mark.parametrize("who", ["True", ASKED])
def test_without_memory_for_the_devices_the_guest_does_not_run(tmp_path: Path, noisy72: Saved, who: str) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    with Lazy(tmp_path, noisy72, program=short_of_memory(mark, who, "none")) as lazy:
        assert lazy.status() == 1
        assert "error: there is not enough memory" in lazy.stderr() and "ulimit -v" in lazy.stderr()
        assert RESUME not in lazy.stderr()
        assert_never_ran(tmp_path)


@pytest.mark.parametrize("who", [ASKED, f"not {ASKED}"])
def test_without_memory_for_the_rest_the_guest_waits_and_goes_on(tmp_path: Path, noisy: Saved, who: str) -> None:
    """It asks for pages as soon as it runs, and QEMU may or may not answer while it waits for them."""
    program = short_of_memory(tmp_path / "mark", f"({who})", "cont")
    with Lazy(tmp_path, noisy, "--throttle", "32K", program=program) as lazy:
        assert lazy.status() == 1
        error, hint = lazy.stderr().splitlines()[-2:]
        assert error == "statepipe: load: error: there is not enough memory", lazy.stderr()
        assert "of 34 MiB of its memory loaded; do not end its QEMU" in hint, hint
        words = shlex.split(hint.rpartition(RESUME)[2])
        done = run_statepipe(*words, "--throttle", "unlimited")
        assert done.returncode == 0 and "all memory is loaded" in done.stderr, done.stderr
        assert_went_on(noisy, lazy)


# --- a QEMU that takes its time


def impatient(step: str, record: Path) -> list[str]:
    """statepipe that stops at this step, and reports a wait for the devices after half a second."""
    program = striking(signal.SIGSTOP, step, record)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from statepipe.lazy import loading; loading.WORD = 0.5; "
    return [*program[:2], "-c", f"{code}from tests.qemu.striking import main; main(sys.argv[1:])", *program[3:]]


@pytest.mark.parametrize("limit", [[], ["--timeout", "5"]])
def test_a_qemu_that_loads_no_devices_is_reported_and_not_waited_for_longer_than_allowed(
    tmp_path: Path, noisy72: Saved, limit: list[str]
) -> None:
    step, record = "after Monitor.execute stop", tmp_path / "steps"  # the last command before the devices are sent
    with Lazy(tmp_path, noisy72, *limit, program=impatient(step, record)) as lazy:
        wait_for(step, lambda: step in steps_of(record))
        pid = qemu_pid(tmp_path)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        Path(f"{record}.go").touch()
        if limit:
            assert lazy.status() == 1 and f"{noisy72.file} was not loaded after 5 s" in lazy.stderr()
            assert_never_ran(tmp_path)
        else:
            wait_for("word of the wait", lambda: "has not loaded the devices for 0.5 s" in lazy.stderr())
            os.kill(pid, signal.SIGCONT)
            assert_went_on(noisy72, lazy)


def test_settings_of_qemu_are_restored_by_whoever_continues(tmp_path: Path, noisy72: Saved) -> None:
    """They are kept in QEMU: only the statepipe that was killed had seen them."""
    with Guest(tmp_path, qemu=noisy72.qemu, memory=MEMORY, image=noisy72.image, incoming="defer") as guest:
        guest.capabilities(multifd=True, late_block_activate=True)
        before = guest.settings()
        words = ["load", "--lazy", "--throttle", SLOW, "--qmp", guest.socket, str(noisy72.file)]
        load = subprocess.Popen([*statepipe_command(), *words], stdin=subprocess.DEVNULL)
        try:
            wait_for("the guest", lambda: guest.run_state() == "running")
            assert guest.settings() != before
        finally:
            load.kill()
            load.wait()
        done = run_statepipe("load", "--resume", "--qmp", guest.socket, noisy72.file)
        assert done.returncode == 0, done.stderr
        assert guest.settings() == before
        assert not marks(guest.qmp("qom-list", path="/objects"))
