"""What is believed of a process that may not be what it says, and how its words reach another host unchanged."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from statepipe.errors import QemuError, StatepipeError
from statepipe.processes import Process
from statepipe.qemu.commandline import anew
from statepipe.qemu.facts import host_facts
from statepipe.qemu.memory import memory
from statepipe.qemu.process import (
    COMMAND_LIMIT,
    Running,
    demand_equal,
    inspect_process,
    is_qemu,
    listening_qemu,
    qemu_under,
)
from statepipe.threads import held

NOBODY = 65534


@pytest.fixture
def lookalike(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose program is called as QEMU is, and which pretends to be another."""
    program = tmp_path / "qemu-x"
    shutil.copy(shutil.which("cat") or "", program)
    with subprocess.Popen(
        ["id", "-"], executable=program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b".")
        assert process.stdout.read(1) == b"."  # it has begun, and its command line is there
        yield process


def test_the_program_is_the_kernel_s_word_and_not_the_command_line_s(
    lookalike: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    found = inspect_process(lookalike.pid)
    assert found is not None and found.command[0] == "id" and found.program == str(tmp_path / "qemu-x")


def test_a_mapped_file_whose_name_looks_like_the_end_of_a_line_hides_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "a\u2028b\x0c c\r d"
    file.write_bytes(bytes(1 << 16))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 1 << 16):
        assert memory(os.getpid(), 1 << 16) is not None


def test_who_listens_is_only_a_process_of_the_same_user(lookalike: subprocess.Popen[bytes]) -> None:
    """Its number may be that of another's QEMU by now."""
    assert listening_qemu(lookalike.pid, os.geteuid())
    assert listening_qemu(lookalike.pid, 0)
    assert not listening_qemu(lookalike.pid, os.geteuid() + 1)
    assert not listening_qemu(os.getpid(), os.geteuid())


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("{'type': 'tap', 'id': 'n', 'fd': '7'}", "handed descriptors"),
        ('{"type": "tap", "fds": "7:8"}', "handed descriptors"),
        ("{'driver': 'file', 'filename': '/dev/fdset/2'}", "handed descriptors"),
        ("{'type': 'user'", "statepipe does not understand"),
        ("{'type': 'user', 'id': 'n'}", ""),
    ],
)
def test_descriptors_are_seen_in_json_too(value: str, why: str, tmp_path: Path) -> None:
    program = shutil.copy(shutil.which("cat") or "", tmp_path / "qemu-x")
    with subprocess.Popen(
        ["qemu", "-", "--", "-netdev", value],
        executable=program,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b".")
        assert process.stdout.read(1) == b"."
        said = refusal(process.pid)
    assert why in said if why else not said


def refusal(pid: int) -> str:
    """Why its command line is not believed; empty if it is."""
    try:
        demand_equal(pid)
    except QemuError as error:
        return str(error)
    return ""


def in_a_child(work: Callable[[], str]) -> str:
    """What it says in a process of its own, whose rights it may change."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        try:
            os.write(writing, work().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


def become(groups: Sequence[int]) -> None:
    """Nobody, who is in these groups."""
    os.setgroups(groups)
    os.setgid(NOBODY)
    os.setuid(NOBODY)


@pytest.mark.skipif(os.geteuid() != 0, reason="other groups take root to enter")
@pytest.mark.parametrize(("its", "ours"), [([], [4242]), ([4242], [4242]), ([4242], [])])
def test_who_is_in_fewer_groups_is_not_believed(its: list[int], ours: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        program = shutil.copy(shutil.which("cat") or "", f"{folder}/qemu-x")
        with subprocess.Popen(
            [program], preexec_fn=lambda: become(its), cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:

            def look() -> str:
                become(ours)
                return refusal(process.pid)

            why = in_a_child(look)
    assert ("it has left groups that statepipe is in" in why) if set(ours) - set(its) else not why


def test_who_is_in_another_network_is_not_believed(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("no right to make a network namespace")
    program = shutil.copy(shutil.which("cat") or "", tmp_path / "qemu-x")
    with subprocess.Popen(
        ["unshare", "-n", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b".")
        assert process.stdout.read(1) == b"."
        assert "another namespace" in refusal(process.pid)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["-name", "vm1"], "vm1"),
        (["-name", "vm1,process=x"], "vm1"),
        (["-name", "guest=vm1,debug-threads=on"], "vm1"),
        (["--name", "debug-threads=on,guest=a,,b"], "a,b"),
        (["-name", "debug-threads=on"], None),
        (["-m", "64"], None),
    ],
)
def test_the_name_is_what_qemu_takes_for_it(words: list[str], name: str | None) -> None:
    assert Running(1, "qemu", ("qemu", *words), (), "/").name == name


def test_a_command_line_without_end_is_none(tmp_path: Path) -> None:
    words = ["x" * 1000] * (COMMAND_LIMIT // 1000 + 1)
    with subprocess.Popen(["cat", "-", *words], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        found = inspect_process(process.pid)
        assert found is not None and found.command == ()


@pytest.mark.parametrize("name", ["show-cursor", "enable-hax", "no-kvm-irqchip", "localtime"])
def test_nor_does_one_of_an_older_qemu_take_the_next_word(name: str) -> None:
    assert anew(["qemu", f"-{name}", "-S", "-m", "64"]) == ["qemu", f"-{name}", "-m", "64"]


def test_a_value_that_looks_like_an_option_is_kept() -> None:
    kept = [
        "qemu",
        "-qmp",
        "chardev:statepipe-resumed",
        "-append",
        "-S",
        "-name",
        "-daemonize",
        "-nodefaults",
        "disk.img",
        "-device",
        "--incoming",
    ]
    dropped = ["-S", "--daemonize", "-incoming", "-S", "-chardev", "socket,id=statepipe-monitor-0,fd=5"]
    dropped += ["-qmp", "chardev:statepipe-monitor-0", "-chardev", "socket,id=statepipe-resume,path=/r,server=on"]
    dropped += ["-qmp", "chardev:statepipe-resume"]
    assert anew([*kept, *dropped]) == kept
    assert anew([kept[0], *dropped, *kept[1:]]) == kept


@pytest.mark.parametrize("name", ["../../../../etc/passwd", "..", "a/b", "x" * 100])
def test_a_tap_s_name_leads_to_no_other_file(name: str) -> None:
    assert host_facts([f"tap,id=n,ifname={name},script=no"])["taps"] == {}


def said(command: Sequence[str], folder: str | None = None) -> str:
    """What a program of ours says at its standard output."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as words:
        process = Process(command, {0: 0, 1: writing, 2: 2}, folder=folder)
        os.close(writing)
        try:
            return words.read()
        finally:
            process.reap()


def test_a_program_starts_in_a_folder_with_its_words_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, elsewhere = tmp_path / "-a 'folder'", tmp_path / "elsewhere"
    for folder in (there, elsewhere / there.name):
        folder.mkdir(parents=True)
    (there / "tell").write_text('#!/bin/sh\npwd\nprintf "<%s>" "$@"\n')
    (there / "tell").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CDPATH", str(elsewhere))
    odd = ["a b", "$HOME", "'", '"', "\\", "-n", "*", "é\n"]
    assert said(["./tell", *odd], folder=there.name) == f"{there}\n" + "".join(f"<{word}>" for word in odd)
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(("program", "folder"), [("true", "nowhere"), ("./nothing", "."), ("no-such-program", ".")])
def test_what_cannot_start_in_a_folder_is_said_at_once(tmp_path: Path, program: str, folder: str) -> None:
    with pytest.raises(StatepipeError, match=f"cannot start {program}: No"):
        Process([program], {0: 0, 1: 1, 2: 2}, folder=str(tmp_path / folder))


@pytest.mark.parametrize("folder", [None, "/"])
def test_a_program_has_no_signal_blocked_that_we_hold(folder: str | None) -> None:
    with held():
        mask = said(["grep", "^SigBlk:", "/proc/self/status"], folder=folder)
    assert int(mask.split()[1], 16) == 0


def test_an_end_that_was_told_to_another_is_an_error() -> None:
    """Some library in this process may wait for any child."""
    process = Process(["true"], {})
    os.waitpid(process.pid, 0)
    with pytest.raises(StatepipeError, match="the exit status of true is unknown"):
        process.status()
    process.reap()
    assert process.has_ended()


def test_below_a_wrapper_a_tool_is_not_taken_for_qemu(tmp_path: Path) -> None:
    """A wrapper can serve a disk to its QEMU."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    for name in ("qemu-nbd", "qemu-system-x86_64"):
        shutil.copy(sleep, tmp_path / name)
    script = 'qemu-nbd 60 & qemu-system-x86_64 60 & echo "$!"; wait'
    words = ["sh", "-c", script]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}) as wrapper:
        assert wrapper.stdout is not None
        qemu = int(wrapper.stdout.readline())
        children = [*map(int, Path(f"/proc/{wrapper.pid}/task/{wrapper.pid}/children").read_text().split())]
        try:
            for pid in children:  # until both are the programs that they are to be
                while not is_qemu(pid):
                    os.sched_yield()
            assert children[0] != qemu and qemu_under(wrapper.pid) == qemu
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
