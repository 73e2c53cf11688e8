"""load --lazy: the guest runs at once, its memory is loaded while it runs, and no failure loses either."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import agefiles
from tests.qemu.harness import Guest, assert_continues, run_statepipe, statepipe_command, wait_for
from tests.qemu.lazily import NOISE, SLOW, Lazy, assert_went_on, marks, memory_of, setting
from tests.qemu.loading import (
    MEMORY,
    Load,
    Saved,
    assert_never_ran,
    end_qemu,
    loaded,
    qemu_command,
    qemu_pid,
    run_load,
)

# --- a load without trouble


def test_the_guest_goes_on_and_all_memory_is_loaded(tmp_path: Path, noisy: Saved) -> None:
    with loaded(tmp_path, noisy, "--lazy") as guest:
        guest.wait_ticks(3)
        wait_for("all memory", lambda: "all memory is loaded" in guest.stderr())
        assert guest.run_state() == "running" and guest.migration()["status"] == "completed"
        assert_continues(noisy.before, guest.serial())
        assert not marks(guest.qmp("qom-list", path="/objects"))
        on = [row["capability"] for row in guest.qmp("query-migrate-capabilities") if row["state"]]
        assert "postcopy-ram" not in on
        guest.qmp("quit")
        assert guest.wait() == 0
        first, last = guest.stderr().splitlines()
        assert first.startswith(f"statepipe: load: {noisy.file}: the guest is running while its memory is loaded; if")
        assert last.startswith(f"statepipe: load: {noisy.file}: all memory is loaded: ")


def test_its_memory_is_that_of_an_ordinary_load(tmp_path: Path, noisy: Saved) -> None:
    memories = []
    for options in (["--lazy"], []):
        folder = tmp_path / f"load{len(options)}"
        folder.mkdir()
        with loaded(folder, noisy, *options, args=["-S"]) as guest:
            wait_for("all memory", lambda: re.search("all memory is loaded|loaded and verified", guest.stderr()))
            assert guest.run_state() == "paused" and guest.serial() == ""
            memories.append(memory_of(guest, folder / "memory"))
    assert random.Random(7).randbytes(NOISE)[: NOISE // 2] in memories[0], "the noise was not loaded"
    assert memories[0] == memories[1]


def test_into_a_qemu_that_waits(tmp_path: Path, noisy72: Saved) -> None:
    with Guest(tmp_path, qemu=noisy72.qemu, memory=MEMORY, image=noisy72.image, incoming="defer") as guest:
        before = guest.settings()
        done = run_statepipe("load", "--lazy", "--qmp", guest.socket, "--verify-first", noisy72.file)
        assert done.returncode == 0, done.stderr
        guest.wait_ticks(2)
        assert_continues(noisy72.before, guest.serial())
        assert guest.settings() == before


@pytest.mark.parametrize("way", ["started", "waiting"])
def test_a_paused_guest_stays_paused(tmp_path: Path, paused72: Saved, way: str) -> None:
    """Also in a QEMU that waits without -S, which by itself would run any guest."""
    with contextlib.ExitStack() as stack:
        if way == "started":
            guest = stack.enter_context(loaded(tmp_path, paused72, "--lazy"))
            wait_for("all memory", lambda: "all memory is loaded" in guest.stderr())
        else:
            words = {"qemu": paused72.qemu, "memory": MEMORY, "image": paused72.image, "incoming": "defer"}
            guest = stack.enter_context(Guest(tmp_path, **words))  # type: ignore[arg-type]
            done = run_statepipe("load", "--lazy", "--qmp", guest.socket, paused72.file)
            assert done.returncode == 0 and "the guest is paused while" in done.stderr, done.stderr
        assert guest.run_state() == "paused" and guest.serial() == ""
        guest.qmp("cont")
        guest.wait_ticks(2)
        assert_continues(paused72.before, guest.serial())


def test_detached_it_returns_once_all_memory_is_loaded(tmp_path: Path, noisy72: Saved) -> None:
    command = qemu_command(tmp_path, noisy72)
    try:
        done = run_statepipe("load", "--lazy", "--detach", noisy72.file, "--", *command, capture_output=False)
        assert done.returncode == 0
        wait_for("2 ticks", lambda: (tmp_path / "serial").read_text().count("\n") >= 2)
        assert_continues(noisy72.before, (tmp_path / "serial").read_text())
    finally:
        end_qemu(tmp_path)


def test_a_stream_of_qemus_own_is_loaded_lazily_with_the_usual_warning(tmp_path: Path, paused72: Saved) -> None:
    with loaded(tmp_path, paused72.damaged(tmp_path, paused72.stream()), "--lazy") as guest:
        wait_for("all memory", lambda: "all memory is loaded" in guest.stderr())
        assert "not a state file" in guest.stderr()
        assert guest.run_state() == "paused" and guest.serial() == ""


@pytest.mark.parametrize("form", ["encrypted", "several recipients", "passphrase", "zstd -19", "zstd of another make"])
def test_other_files_of_the_same_guest(tmp_path: Path, paused72: Saved, form: str) -> None:
    file, options = tmp_path / "state", []
    whole = paused72.file.read_bytes()
    if form == "encrypted":
        options = ["-i", str(agefiles.KEY_FILE)]
        file.write_bytes(agefiles.sealed(whole))
    elif form == "several recipients":
        other = subprocess.run(["age-keygen"], capture_output=True, check=True, text=True).stdout
        theirs = next(line for line in other.splitlines() if "public key" in line).split()[-1]
        words = ["age", "-r", theirs, "-r", agefiles.RECIPIENT]
        options = ["-i", str(agefiles.KEY_FILE)]
        file.write_bytes(subprocess.run(words, input=whole, capture_output=True, check=True).stdout)
    elif form == "passphrase":
        (tmp_path / "passphrase").touch(0o600)
        (tmp_path / "passphrase").write_text("correct horse\n")
        options = ["--passphrase-file", str(tmp_path / "passphrase")]
        words = [*statepipe_command(), "encrypt", *options]
        file.write_bytes(subprocess.run(words, input=whole, capture_output=True, check=True).stdout)
    else:
        words = ["zstd", "-q", "-19"] if form == "zstd -19" else ["zstd", "-q", "-3", "-B1M", "--no-check"]
        file.write_bytes(subprocess.run(words, input=paused72.stream(), capture_output=True, check=True).stdout)
    saved = Saved(file, paused72.image, paused72.before, paused72.qemu)
    with loaded(tmp_path, saved, "--lazy=auto", *options) as guest:
        wait_for("the guest", lambda: any(text in guest.stderr() for text in ("memory is loaded: ", "and verified")))
        guest.qmp("cont")
        guest.wait_ticks(2)
        assert_continues(saved.before, guest.serial())
        assert ("all memory is loaded: " in guest.stderr()) == ("zstd" not in form), guest.stderr()


# --- while it is under way


def test_what_is_under_way_can_be_seen_slowed_down_and_not_cancelled(tmp_path: Path, noisy72: Saved) -> None:
    with Lazy(tmp_path, noisy72, "--throttle", SLOW) as lazy:
        lazy.here()
        lazy.wait_ticks(2)
        seen = run_statepipe("ps").stdout
        assert "pages, " in seen and "asked for" in seen and "s left" in seen
        jobs = {job["id"]: job for job in json.loads(run_statepipe("ps", "--json").stdout)}
        figures = jobs[str(lazy.pid)]["lazy"]
        lacking = (figures["pages_total"] - figures["pages"]) * 4096
        assert figures["rate"] == 2 << 20 and figures["seconds_left"] >= round(lacking / figures["rate"], 1)
        refused = run_statepipe("cancel", str(lazy.pid))
        assert refused.returncode == 1 and "the guest runs already" in refused.stderr
        assert "all memory" not in lazy.stderr()
        assert run_statepipe("rate", str(lazy.pid), "unlimited").returncode == 0
        lazy.complete()
        assert_went_on(noisy72, lazy)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_load_that_was_ended_is_continued(tmp_path: Path, noisy: Saved, number: signal.Signals) -> None:
    with Lazy(tmp_path, noisy, "--throttle", SLOW) as lazy:
        resume = lazy.here()
        lazy.signal(number)
        status = lazy.status()
        if number is signal.SIGTERM:
            assert status == 128 + signal.SIGTERM
            assert "the guest is running, with " in lazy.stderr() and "do not end its QEMU" in lazy.stderr()
        shown = f"statepipe {shlex.join(resume[:-1])} FILE"
        wait_for("QEMU to listen", lambda: shown in run_statepipe("ps", "--json").stderr)
        done = run_statepipe(*resume)
        assert done.returncode == 0, done.stderr
        assert shown not in run_statepipe("ps").stderr
        assert "all memory is loaded" in done.stderr
        assert_went_on(noisy, lazy)


def test_the_command_that_continues_names_the_keys_again(tmp_path: Path, noisy72: Saved) -> None:
    keys, file = tmp_path / "my keys", tmp_path / "sealed"
    keys.write_bytes(agefiles.KEY_FILE.read_bytes())
    keys.chmod(0o600)
    file.write_bytes(agefiles.sealed(noisy72.file.read_bytes()))
    sealed = Saved(file, noisy72.image, noisy72.before, noisy72.qemu)
    with Lazy(tmp_path, sealed, "--throttle", SLOW, "-i", str(keys)) as lazy:
        resume = lazy.here()
        lazy.signal(signal.SIGKILL)
        lazy.status()
        done = run_statepipe(*resume)
        assert done.returncode == 0 and "all memory is loaded" in done.stderr, done.stderr
        assert_went_on(sealed, lazy)


def test_a_qemu_that_was_stopped_is_waited_for_and_said_to_be(tmp_path: Path, noisy72: Saved) -> None:
    with Lazy(tmp_path, noisy72, "--throttle", SLOW) as lazy:
        resume = lazy.here()
        lazy.signal(signal.SIGKILL)
        lazy.status()
        listens = f"statepipe {shlex.join(resume[:-1])} FILE"
        wait_for("QEMU to listen", lambda: listens in run_statepipe("ps", "--json").stderr)
        pid = qemu_pid(tmp_path)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            lazy.restart([*statepipe_command(), *resume])
            wait_for("warning", lambda: "QEMU does not answer at its new connection" in lazy.stderr())
            lazy.signal(signal.SIGINT)
            assert lazy.status() == 128 + signal.SIGINT
            assert f"continue with: statepipe {shlex.join(resume)}" in lazy.stderr()
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_for("QEMU to listen", lambda: listens in run_statepipe("ps", "--json").stderr)
        done = run_statepipe(*resume)
        assert done.returncode == 0 and "all memory is loaded" in done.stderr, done.stderr
        assert_went_on(noisy72, lazy)


def test_a_load_that_is_killed_at_random_again_and_again_comes_to_its_end(tmp_path: Path, noisy72: Saved) -> None:
    chance = random.Random(15)
    with Lazy(tmp_path, noisy72, "--throttle", "8M") as lazy:
        resume = lazy.here()
        for _ in range(4):
            lazy.wait_ticks(chance.randrange(3))
            lazy.signal(signal.SIGKILL)
            lazy.status()
            lazy.restart([*statepipe_command(), *resume, "--throttle", "8M"])
            lazy.here()
        lazy.complete()
        assert lazy.status() == 0
        assert_went_on(noisy72, lazy)


def test_another_state_or_another_qemu_is_not_continued(tmp_path: Path, noisy72: Saved, state72: Saved) -> None:
    with Lazy(tmp_path, noisy72, "--throttle", SLOW) as lazy:
        resume = lazy.here()
        busy = run_statepipe(*resume)
        assert busy.returncode == 6 and "another statepipe still loads" in busy.stderr
        lazy.signal(signal.SIGKILL)
        lazy.status()
        other = run_statepipe(*[str(state72.file) if word == str(noisy72.file) else word for word in resume])
        assert other.returncode == 1 and "QEMU waits for the memory of another state" in other.stderr
        assert run_statepipe(*resume).returncode == 0
        again = run_statepipe(*resume)
        assert again.returncode == 0 and "nothing is left to continue" in again.stderr, again.stderr
        assert "the guest is running" in again.stderr


def test_a_qemu_that_ends_is_reported_as_its_parent_does(tmp_path: Path, noisy72: Saved) -> None:
    with Lazy(tmp_path, noisy72, "--throttle", SLOW) as lazy:
        lazy.here()
        os.kill(qemu_pid(tmp_path) or 0, signal.SIGKILL)
        assert lazy.status() == 128 + signal.SIGKILL
        assert "QEMU ended before all of the guest's memory was loaded" in lazy.stderr()


def test_after_ctrl_c_a_qemu_that_ends_is_not_said_to_wait(tmp_path: Path, noisy72: Saved) -> None:
    """At a terminal, both receive the signal."""
    with Lazy(tmp_path, noisy72, "--throttle", SLOW) as lazy:
        lazy.here()
        os.kill(qemu_pid(tmp_path) or 0, signal.SIGINT)
        lazy.signal(signal.SIGINT)
        lazy.status()
        assert "do not end its QEMU" not in lazy.stderr(), lazy.stderr()
        wait_for("end of QEMU", lambda: qemu_pid(tmp_path) is None)


def test_ended_before_the_guest_runs_nothing_has_happened(tmp_path: Path, noisy72: Saved) -> None:
    with Load(tmp_path, noisy72, "--lazy", noisy72.file, "--", *qemu_command(tmp_path, noisy72), delay=100) as load:
        load.reach(0.0)
        load.signal(signal.SIGTERM)
        assert load.status() == 128 + signal.SIGTERM
    assert_never_ran(tmp_path)


def test_the_status_tells_of_pages_and_waits(tmp_path: Path, noisy72: Saved) -> None:
    with (tmp_path / "status").open("w") as status:
        command = ["load", "--lazy", "--status-fd", str(status.fileno()), "--detach", noisy72.file, "--"]
        try:
            words = [*command, *qemu_command(tmp_path, noisy72)]
            done = run_statepipe(*words, pass_fds=[status.fileno()], capture_output=False)
            assert done.returncode == 0
        finally:
            end_qemu(tmp_path)
    last = json.loads((tmp_path / "status").read_text().splitlines()[-1])
    assert last["verdict"] == "done"
    lazy = last["lazy"]
    assert lazy["pages"] == lazy["pages_total"] > NOISE // 4096 and lazy["asked"] > 0
    assert 0 <= lazy["zeros"] <= lazy["asked"]
    assert 0 < lazy["wait_median_ms"] <= lazy["wait_worst_ms"]


# --- where memory cannot be loaded late

WITHOUT = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
"""Runs a program without the right to have userfaultfd(2); root's /dev/userfaultfd is left to it."""


@contextmanager
def unprivileged(folder: Path, saved: Saved, *options: str) -> Iterator[subprocess.CompletedProcess[str]]:
    command = [*WITHOUT, *statepipe_command(), "load", *options, "--detach", str(saved.file)]
    err = folder / "err"
    try:
        with err.open("w") as stderr, setting():
            done = subprocess.run(
                [*command, "--", *qemu_command(folder, saved)], stdin=subprocess.DEVNULL, stderr=stderr, timeout=60
            )
        yield subprocess.CompletedProcess(command, done.returncode, "", err.read_text())
    finally:
        end_qemu(folder)


def test_without_userfaultfd_the_message_names_the_setting(tmp_path: Path, noisy72: Saved) -> None:
    with unprivileged(tmp_path, noisy72, "--lazy") as done:
        assert done.returncode == 6
        assert "sysctl vm.unprivileged_userfaultfd=1" in done.stderr and "--lazy=auto" in done.stderr
    assert_never_ran(tmp_path)


def test_lazy_auto_loads_all_memory_first_then(tmp_path: Path, noisy72: Saved) -> None:
    with unprivileged(tmp_path, noisy72, "--lazy=auto") as done:
        assert done.returncode == 0, done.stderr
        assert "warning: all memory is loaded first: " in done.stderr
        wait_for("2 ticks", lambda: (tmp_path / "serial").read_text().count("\n") >= 2)
        assert_continues(noisy72.before, (tmp_path / "serial").read_text())


def test_the_device_of_newer_kernels_is_enough_for_a_newer_qemu(tmp_path: Path, noisy10: Saved) -> None:
    if not os.path.exists("/dev/userfaultfd"):
        pytest.skip("this kernel has no /dev/userfaultfd")
    with unprivileged(tmp_path, noisy10, "--lazy") as done:
        assert done.returncode == 0, done.stderr
        assert "all memory is loaded" in done.stderr


def test_memory_in_a_file_on_a_disk_is_refused_before_it_is_too_late(tmp_path: Path, noisy72: Saved) -> None:
    memory = f"memory-backend-file,id=pc.ram,size={MEMORY}M,mem-path={tmp_path}/ram,share=on"
    done = run_load(tmp_path, noisy72, "--lazy", args=["-object", memory, "-machine", "memory-backend=pc.ram"])
    assert done.returncode == 6 and "the guest's memory 'pc.ram' is a file on " in done.stderr, done.stderr
    assert_never_ran(tmp_path)
