"""external: programs that do everything a program can do to a pipe, and what the verdict is each time."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from statepipe.cli.filtertable import Filter
from statepipe.cli.grammar import parse_word
from statepipe.errors import IntegrityError, StatepipeError, UsageError
from statepipe.stage import FLUSH, Buffer, Cancelled, cancel, close
from statepipe.stages.external import external
from tests.conformance.running import (
    PATIENCE,
    STATEPIPE,
    assert_one_error,
    children,
    run,
    started,
    wait,
    wait_until_read,
)
from tests.conformance.test_stages import threads_and_descriptors
from tests.world import world

MUCH = b"0123456789abcdef" * (4 << 16)
"""Four mebibytes: more than every pipe on the way together."""


def words(*arguments: str) -> list[str]:
    return ["external", "--", *arguments]


def sh(script: str) -> list[str]:
    return words("/bin/sh", "-c", script)


def python(script: str) -> list[str]:
    return words(sys.executable, "-c", f"import os, sys\n{script}")


def fine(done: subprocess.CompletedProcess[bytes]) -> bytes:
    assert (done.returncode, done.stderr) == (0, b"")
    out: bytes = done.stdout
    return out


# --- whatever it reads and writes, nobody waits in a circle


def test_it_writes_much_before_it_reads() -> None:
    assert len(fine(run(*sh("head -c 4000000 /dev/zero; cat"), data=MUCH))) == 4_000_000 + len(MUCH)


def test_it_reads_everything_before_it_writes() -> None:
    assert fine(run(*words("sort"), data=b"b\na\n" * 500_000)) == b"a\n" * 500_000 + b"b\n" * 500_000


def test_it_writes_more_than_it_reads() -> None:
    assert len(fine(run(*words("sed", "p;p;p;p"), data=b"a line\n" * 200_000))) == 7_000_000


def test_it_writes_nothing(tmp_path: Path) -> None:
    assert fine(run(*sh(f"cat > {tmp_path}/copy"), data=MUCH)) == b""
    assert (tmp_path / "copy").read_bytes() == MUCH


def test_it_closes_its_output_and_reads_on(tmp_path: Path) -> None:
    assert fine(run(*sh(f"echo done; exec >&-; exec cat > {tmp_path}/copy"), data=MUCH)) == b"done\n"
    assert (tmp_path / "copy").read_bytes() == MUCH


def test_it_says_much() -> None:
    done = run(*sh("head -c 3000000 /dev/zero | tr '\\0' x >&2; cat"), data=MUCH)
    assert (done.returncode, done.stdout, done.stderr) == (0, MUCH, b"x" * 3_000_000)


def test_it_needs_no_input_where_there_is_none() -> None:
    assert fine(run(*words("echo", "here"))) == b"here\n"


# --- an end that leaves input unread is none, unless it may


LEAVE = [
    words("echo", "here"),
    words("head", "-c", "5"),
    sh("exec <&-; echo here"),
    sh("head -c 3000000 > /dev/null; echo here"),
]


@pytest.mark.parametrize("command", LEAVE)
def test_it_leaves_input_unread(command: list[str]) -> None:
    done = run(*command, data=b"hello" * 1_000_000)
    assert (done.returncode, done.stdout[:1]) == (1, b"h")
    assert_one_error(done.stderr, "external", "exited with status 0, but left a part of its input unread")


@pytest.mark.parametrize("command", LEAVE)
def test_it_may_leave_input_unread(command: list[str]) -> None:
    verb, *rest = command
    assert fine(run(verb, "--may-stop", *rest, data=b"hello" * 1_000_000))[:1] == b"h"


def test_the_source_is_not_waited_for_once_it_may_stop() -> None:
    with started([*STATEPIPE, "external", "--may-stop", "--", "head", "-c", "5"]) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"hello and more")
        assert process.stdout.read() == b"hello"
        assert process.wait(PATIENCE) == 0


def test_it_ends_where_its_input_does_without_looking_for_the_end() -> None:
    assert fine(run(*words("head", "-c", "5"), data=b"hello")) == b"hello"


def test_more_that_comes_after_it_has_ended_was_not_read() -> None:
    with started([*STATEPIPE, *words("head", "-c", "5")]) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"hello")
        assert process.stdout.read(5) == b"hello"
        wait(process, lambda: not children(process.pid) or is_zombie(children(process.pid)[0]))
        process.stdin.write(b"more")
        assert process.wait(PATIENCE) == 1
        assert process.stderr and b"unread" in process.stderr.read()


def is_zombie(pid: str) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"


# --- how it ends is the verdict


def test_a_status_is_told_with_its_last_words() -> None:
    done = run(*sh("cat; echo one >&2; echo two >&2; printf 'th\\033ree\\n\\nfour' >&2; exit 3"), data=b"data")
    assert (done.returncode, done.stdout) == (1, b"data")
    said = done.stderr.decode()
    assert said.startswith("one\ntwo\n"), "what it says goes on to us"
    last = said.splitlines()[-1]
    assert "statepipe: external: error: /bin/sh -c " in last and "… failed with exit status 3: two / " in last
    assert "th?ree / four (at byte 4 in, 4 out)" in last


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGPIPE, 35])
def test_a_signal_is_told_by_its_name(number: int) -> None:
    done = run(*sh(f"kill -{int(number)} $$"), data=MUCH)
    name = number.name if isinstance(number, signal.Signals) else "signal 35"
    assert (done.returncode, done.stdout) == (1, b"")
    assert_one_error(done.stderr, "external", f"was killed by {name}")


def test_its_words_are_bounded() -> None:
    done = run(*python("sys.stderr.write(('x' * 5000 + '\\n') * 50); sys.exit(1)"))
    assert len(done.stderr.splitlines()[-1]) < 1000


def test_words_come_while_it_runs() -> None:
    with started([*STATEPIPE, *sh("echo ready >&2; cat")]) as process:
        assert process.stderr and process.stdin
        assert process.stderr.readline() == b"ready\n"
        process.stdin.close()
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("program", "why"), [("no-such-program", "No such file"), ("/etc/passwd", "Permission denied")]
)
def test_it_cannot_be_started(program: str, why: str) -> None:
    done = run(*words(program), data=MUCH)
    assert done.returncode == 1
    assert_one_error(done.stderr, "external", f"cannot start {program}: {why}")
    assert b"PATH" in done.stderr


def test_an_argument_with_a_nul_cannot_be_given() -> None:
    with pytest.raises(StatepipeError, match=r"cannot start cat: .*null"):
        list(external(["cat", "a\0b"], None, world())(iter([b""])))


def test_a_failure_within_the_shells_pipeline_counts() -> None:
    done = run("external", "--shell", "(cat; exit 5) | cat", data=b"data")
    assert (done.returncode, done.stdout) == (1, b"data")
    assert b"failed with exit status 5" in done.stderr


# --- what it leaves behind


def test_a_grandchild_that_holds_its_output_is_an_error_and_ended(tmp_path: Path) -> None:
    """Whether all of the output is there, nobody can know."""
    os.mkfifo(tmp_path / "held")
    command = [*STATEPIPE, *sh(f"exec 3> {tmp_path}/held; sleep 1000 & cat")]
    with started(command) as process, open(tmp_path / "held", "rb") as held:
        assert process.stdin and process.stderr
        process.stdin.close()
        assert process.wait(PATIENCE) == 1
        assert_one_error(process.stderr.read(), "external", "a process that it started keeps its output open")
        assert held.read() == b"", "it lives on"


def test_a_grandchild_that_holds_only_its_words_is_no_concern(tmp_path: Path) -> None:
    """As the master connection that ssh leaves behind. It is not ours to end."""
    os.mkfifo(tmp_path / "held")
    command = [*STATEPIPE, *sh(f"(echo $$; exec sleep 1000) > {tmp_path}/held & cat")]
    with started(command) as process, open(tmp_path / "held", "rb") as held:
        group = int(held.readline())
        try:
            assert process.communicate(b"data", PATIENCE) == (b"data", b"")
            assert process.returncode == 0
        finally:
            os.killpg(group, signal.SIGKILL)
        assert held.read() == b""


def test_a_failure_ends_all_that_it_started(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")
    command = [*STATEPIPE, *sh(f"exec 3> {tmp_path}/held; sleep 1000 & exit 7")]
    with started(command) as process, open(tmp_path / "held", "rb") as held:
        assert process.wait(PATIENCE) == 1
        assert held.read() == b""


def test_one_that_will_not_end_is_killed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")
    script = f"trap '' TERM; (while :; do sleep 1000; done) > {tmp_path}/held & echo up; while :; do sleep 1000; done"
    with started([*STATEPIPE, *sh(script)]) as process, open(tmp_path / "held", "rb") as held:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143
        assert held.read() == b""


def test_one_that_is_stopped_is_ended() -> None:
    with started([*STATEPIPE, *sh("echo up; kill -STOP $$")]) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert_one_error(process.stderr.read(), "external", "stopped by SIGINT")


# --- what it gets


def test_it_gets_three_descriptors_and_no_signals_of_ours() -> None:
    reading, writing = os.pipe()
    try:
        os.set_inheritable(writing, True)
        done = run(
            *words("/bin/sh", "-c", "ls /proc/self/fd; grep -E 'SigBlk|SigIgn' /proc/self/status"), pass_fds=[writing]
        )
    finally:
        os.close(reading)
        os.close(writing)
    fds = [line for line in done.stdout.split() if line.isdigit()][:5]
    assert [int(fd) for fd in fds if len(fd) < 5] == [0, 1, 2, 3], "three, and the one that ls lists them by"
    assert b"SigBlk:\t0000000000000000" in done.stdout
    ignored = int(done.stdout.split(b"SigIgn:\t")[1].split()[0], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1)


def test_it_runs_in_a_session_of_its_own() -> None:
    out = fine(run(*python("print(os.getsid(0) == os.getpid() == os.getpgid(0))")))
    assert out == b"True\n"


# --- words


@pytest.mark.parametrize(
    ("word", "command", "shell"),
    [
        ("external:tr -d 'a b'", ["tr", "-d", "a b"], None),
        ("external:cut -d,, -f1", ["cut", "-d,", "-f1"], None),
        ("external:may-stop,head -n 1", ["head", "-n", "1"], None),
        ("external:shell=cut -d,, -f1 | wc -l", [], "cut -d, -f1 | wc -l"),
    ],
)
def test_a_word_is_split_as_a_shell_would(word: str, command: list[str], shell: str | None) -> None:
    row, values = parse_word(word)
    assert isinstance(row, Filter)
    assert (values["command"], values["shell"], values["may_stop"]) == (command, shell, "may-stop" in word)


@pytest.mark.parametrize("word", ["external:tr a,b", "external:'open"])
def test_a_word_that_cannot_be_split(word: str) -> None:
    with pytest.raises(UsageError, match=r"in the word '.*line"):
        parse_word(word)


@pytest.mark.parametrize(("command", "shell"), [([], None), (["cat"], "cat")])
def test_one_program_must_be_named(command: list[str], shell: str | None) -> None:
    with pytest.raises(UsageError, match="needs either a program or"):
        external(command, shell, world())


def test_options_of_the_program_are_its_own() -> None:
    done = run("external", "--", "cat", "--", "--may-stop")
    assert done.returncode == 1 and b"cat: --may-stop: No such file" in done.stderr


# --- as a stage


def test_its_upstreams_failure_never_looks_like_an_end(tmp_path: Path) -> None:
    """What would be done at the end of the input is not done."""
    error = IntegrityError("it is corrupt")

    def source() -> Iterator[Buffer]:
        yield MUCH
        raise error

    before = threads_and_descriptors()
    script = f"trap 'exit 1' TERM; cat >/dev/null && touch {tmp_path}/complete"
    flow = external(["/bin/sh", "-c", script], None, world())(source())
    with pytest.raises(IntegrityError) as caught:
        list(flow)
    assert caught.value is error
    assert not (tmp_path / "complete").exists()
    del flow, caught
    error.__traceback__ = None
    assert threads_and_descriptors() == before


FILL = """
import fcntl, signal, struct, termios, time
while struct.unpack("i", fcntl.ioctl(0, termios.FIONREAD, bytes(4)))[0] < fcntl.fcntl(0, fcntl.F_GETPIPE_SZ):
    time.sleep(0.001)
open("{}", "w").close()
signal.pause()
"""
"""Tells by a FIFO when its input is full."""


class Blocked:
    """A source that never gives anything, and can be woken."""

    def __init__(self) -> None:
        self.asked, self.woken = threading.Event(), threading.Event()

    def __iter__(self) -> Blocked:
        return self

    def __next__(self) -> Buffer:
        self.asked.set()
        assert self.woken.wait(PATIENCE)
        raise StopIteration

    def cancel(self) -> None:
        self.woken.set()


def test_it_fails_while_its_source_is_blocked() -> None:
    flow = external(["/bin/sh", "-c", "echo no >&2; exit 9"], None, world())(Blocked())
    with pytest.raises(StatepipeError, match="exit status 9: no"):
        list(flow)


def test_a_cancel_from_another_thread_wakes_it() -> None:
    source = Blocked()
    before = threads_and_descriptors()
    flow = external(["cat"], None, world())(source)
    canceller = threading.Thread(target=lambda: (source.asked.wait(PATIENCE), cancel(flow)))
    canceller.start()
    with pytest.raises(Cancelled):
        list(flow)
    canceller.join()
    close(flow)
    assert threads_and_descriptors() == before


def test_a_cancel_wakes_it_while_its_input_is_full(tmp_path: Path) -> None:
    """Seen from within the program: nothing more has come for it, and it has taken nothing."""
    os.mkfifo(tmp_path / "full")
    flow = external([sys.executable, "-c", FILL.format(tmp_path / "full")], None, world())(iter([MUCH]))

    def wait_and_cancel() -> None:
        (tmp_path / "full").read_bytes()
        cancel(flow)

    canceller = threading.Thread(target=wait_and_cancel)
    canceller.start()
    with pytest.raises(Cancelled):
        list(flow)
    canceller.join()


def test_cancelled_before_it_is_started_it_never_is(tmp_path: Path) -> None:
    flow = external(["touch", str(tmp_path / "started")], None, world())(iter([]))
    cancel(flow)
    with pytest.raises(Cancelled):
        next(flow)
    assert not (tmp_path / "started").exists()


def test_a_flush_mark_goes_round_it_and_follows_what_it_puts_out() -> None:
    heard = threading.Event()

    def source() -> Iterator[Buffer]:
        yield b"a line\n"
        yield FLUSH
        assert heard.wait(PATIENCE)

    flow = external(["cat"], None, world())(source())
    out = [bytes(next(flow))]
    while not (out[-1] == b"" and b"".join(out) == b"a line\n"):
        out.append(bytes(next(flow)))
    heard.set()
    assert b"".join(flow) == b""


def test_what_it_says_goes_where_messages_go() -> None:
    said = io.StringIO()
    assert list(external(["/bin/sh", "-c", "printf '\\303\\251\\377' >&2"], None, world(said))(iter([]))) == []
    assert said.getvalue() == "é\\xff"


def test_it_waits_for_its_input_as_it_is_told(tmp_path: Path) -> None:
    """Its own input is the pipe's: what is read by it is not read twice."""
    with started([*STATEPIPE, "pipe", "external:cat", "external:cat"]) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"x" * 1000)
        wait_until_read(process)
        assert process.stdout.read(1000) == b"x" * 1000
        process.stdin.close()
        assert process.wait(PATIENCE) == 0


# --- whoever started us


IGNORING = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
"""As some daemons and window managers do: then the kernel tells nobody how a program has ended."""


@pytest.mark.parametrize(("script", "code", "output"), [("cat", 0, b"data"), ("cat; exit 3", 1, b"data")])
def test_a_parent_that_ignores_its_childrens_end(script: str, code: int, output: bytes) -> None:
    command = [sys.executable, "-c", IGNORING, *STATEPIPE, *sh(script)]
    done = subprocess.run(command, input=b"data", capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (code, output), done.stderr
    assert (b"failed with exit status 3" in done.stderr) == bool(code)
    assert b"Traceback" not in done.stderr
