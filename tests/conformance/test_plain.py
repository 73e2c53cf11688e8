"""send and recv over plain connections: with nc and socat at the other end, and with ends that fail."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from statepipe.ends.address import Address, parse_address
from statepipe.errors import UsageError
from tests import streams
from tests.conformance.running import PATIENCE, STATEPIPE, STREAM, assert_one_error, run, started, wait
from tests.refusing import refusing

NOISE = hashlib.shake_128(b"plain").digest((5 << 20) + 17)
UNPROVED = b"statepipe: %s: warning: plain connections do not prove that a stream is whole"


@contextmanager
def receiving(
    *words: str, address: str = "tcp://127.0.0.1:0", before: Sequence[str] = (), **options: object
) -> Iterator[tuple[Receiver, int]]:
    """A recv that listens, and its port; `before` stands before its command line."""
    command = [*before, *STATEPIPE, "recv", address, "--timeout", "30", *words]
    with started(command, stdin=subprocess.DEVNULL, **options) as it:
        line = it.stderr.readline()
        found = re.fullmatch(rb"statepipe: recv: listening at port (\d+)\n", line)
        assert found, line + it.stderr.read()
        yield it, int(found[1])


Receiver = subprocess.Popen[bytes]
Done = tuple[int, bytes, bytes]


def both(receiver: Receiver, command: Sequence[str], data: bytes) -> tuple[Done, Done]:
    """What became of a sender with that input, and of the receiver, while both run."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed: tools/setup test")
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        with started(command, stdin=file) as sender:
            theirs = collect(receiver)
            return collect(sender), theirs


def sending(port: int, *words: str) -> list[str]:
    return [*STATEPIPE, "send", *words, "--timeout", "30", f"tcp://127.0.0.1:{port}"]


def collect(receiver: Receiver) -> tuple[int, bytes, bytes]:
    """Its status, output and messages, once it has ended."""
    out, said = receiver.communicate(timeout=PATIENCE)
    return receiver.returncode, out, said


@contextmanager
def listening_peer(tmp_path: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """nc or socat on a unix socket, once that is there."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed: tools/setup test")
    with started(command, stdin=subprocess.DEVNULL) as process:
        wait(process, (tmp_path / "s").exists)
        yield process


def connect(port: int, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    connection = socket.socket(family)
    connection.settimeout(PATIENCE)
    connection.connect(("::1" if family == socket.AF_INET6 else "127.0.0.1", port))
    return connection


def send(address: str, *words: str, data: bytes = NOISE) -> subprocess.CompletedProcess[bytes]:
    return run("send", *words, "--timeout", "30", address, data=data)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as it:
        it.settimeout(PATIENCE)
        yield it


def to(listener: socket.socket) -> str:
    return f"tcp://127.0.0.1:{listener.getsockname()[1]}"


# --- byte for byte, with others


@pytest.mark.parametrize("size", [0, 1, 3, 4, 4096, len(NOISE)])
def test_to_ourselves(size: int) -> None:
    with receiving("--allow-empty") as (receiver, port):
        ours, theirs = both(receiver, sending(port), NOISE[:size])
    assert (ours[:2], theirs[:2]) == ((0, b""), (0, NOISE[:size]))
    assert UNPROVED % b"send" in ours[2] and theirs[2].startswith(UNPROVED % b"recv")


def test_from_a_pipe() -> None:
    with receiving() as (receiver, port):
        ours, theirs = both(receiver, ["sh", "-c", 'cat | "$@"', "sh", *sending(port)], NOISE)
    assert (ours[0], theirs[:2]) == (0, (0, NOISE))


def test_from_a_file_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(NOISE)
    with open(tmp_path / "out", "wb") as out, receiving(stdout=out) as (receiver, port):
        with open(tmp_path / "in", "rb") as source:
            assert run("send", f"tcp://127.0.0.1:{port}", stdin=source).returncode == 0
        assert receiver.wait(PATIENCE) == 0
    assert (tmp_path / "out").read_bytes() == NOISE


def test_from_nc() -> None:
    with receiving() as (receiver, port):
        theirs, ours = both(receiver, ["nc", "-N", "127.0.0.1", str(port)], NOISE)
    assert (theirs[0], ours[:2]) == (0, (0, NOISE))


def test_from_socat() -> None:
    with receiving(address="tcp://[::1]:0") as (receiver, port):
        theirs, ours = both(receiver, ["socat", "-u", "-", f"TCP6:[::1]:{port}"], NOISE)
    assert (theirs[0], ours[:2]) == (0, (0, NOISE))


@pytest.mark.parametrize("program", ["nc", "socat"])
def test_to_others(program: str, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    command = ["nc", "-lU", path] if program == "nc" else ["socat", "-u", f"UNIX-LISTEN:{path}", "-"]
    with listening_peer(tmp_path, *command) as process:
        ours, theirs = both(process, [*STATEPIPE, "send", f"unix://{path}"], NOISE)
    assert (ours[0], theirs[:2]) == (0, (0, NOISE))


def test_what_comes_back_goes_to_standard_output(listener: socket.socket) -> None:
    with started([*STATEPIPE, "send", to(listener)]) as sender:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"answer")
            assert sender.stdout.read(6) == b"answer"
            sender.stdin.write(b"question")
            sender.stdin.close()
            assert connection.recv(100) == b"question" and connection.recv(100) == b""
            connection.sendall(b", the last")
        assert sender.stdout.read() == b", the last" and sender.wait(PATIENCE) == 0


def test_both_families_reach_one_that_listens_everywhere() -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        with receiving("--insecure", address="tcp://:0") as (receiver, port):
            with connect(port, family) as connection:
                connection.sendall(b"hello")
            assert collect(receiver)[:2] == (0, b"hello")


def test_a_unix_socket_is_its_owners_and_leaves_with_us(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # of one that was killed: it gives way
    with started([*STATEPIPE, "recv", f"unix://{path}"], stdin=subprocess.DEVNULL) as receiver:
        wait(receiver, lambda: path.exists() and path.stat().st_mode & 0o777 == 0o600)
        ours, theirs = both(receiver, [*STATEPIPE, "send", f"unix://{path}", "--retry", "60"], NOISE)
    assert (ours[0], theirs[:2]) == (0, (0, NOISE))
    assert not path.exists()


def test_stages_on_both_sides(tmp_path: Path) -> None:
    with receiving("decompress", "--output", str(tmp_path / "out")) as (receiver, port):
        done = send(f"tcp://127.0.0.1:{port}", "compress:zstd:1")
        assert (done.returncode, collect(receiver)[0]) == (0, 0)
    assert (tmp_path / "out").read_bytes() == NOISE


# --- streams that prove themselves


def container() -> bytes:
    return run("compress", data=NOISE).stdout


@pytest.mark.parametrize("kind", ["migration", "container"])
def test_a_stream_with_an_end_of_its_own_needs_no_warning(kind: str, tmp_path: Path) -> None:
    data = STREAM if kind == "migration" else container()
    with receiving() as (receiver, port):
        assert both(receiver, sending(port), data) == ((0, b"", b""), (0, data, b""))


@pytest.mark.parametrize("calls", [["tee"], ["splice", "sendfile"], ["splice", "sendfile", "tee"]], ids=" ".join)
@pytest.mark.parametrize("piped", [False, True])
def test_a_guests_stream_passes_without_the_calls_that_spare_copies(*, piped: bool, calls: list[str]) -> None:
    sandbox, data = refusing(errno.ENOSYS, *calls), streams.long()
    with receiving(before=sandbox) as (receiver, port):
        piping = ["sh", "-c", 'cat | "$@"', "sh"] if piped else []
        ours, theirs = both(receiver, [*piping, *sandbox, *sending(port)], data)
    assert (ours[0], theirs[:2]) == (0, (0, data)) and UNPROVED % b"recv" not in theirs[2]


@pytest.mark.parametrize("kind", ["migration", "container"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_one_that_is_cut_is_refused_by_the_receiver(kind: str, part: float, tmp_path: Path) -> None:
    data = STREAM if kind == "migration" else container()
    with receiving("--output", str(tmp_path / "out")) as (receiver, port):
        with connect(port) as connection:
            connection.sendall(data[: int(len(data) * part)])
        status, _, said = collect(receiver)
    assert status == 3 and b"error: " in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["migration", "container"])
def test_one_that_is_cut_is_refused_by_the_sender_and_its_receiver_is_told(kind: str, tmp_path: Path) -> None:
    data = STREAM if kind == "migration" else container()
    with receiving("checksum", "--output", str(tmp_path / "out")) as (receiver, port):
        done = send(f"tcp://127.0.0.1:{port}", data=data[: len(data) // 2])
        assert done.returncode == 3
        assert collect(receiver)[0] in (3, 5)
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_in_a_container_is_seen(tmp_path: Path) -> None:
    data = bytearray(container())
    data[len(data) // 2] ^= 1
    with receiving("--output", str(tmp_path / "out")) as (receiver, port):
        with connect(port) as connection:
            connection.sendall(data)
        assert collect(receiver)[0] == 3
    assert not list(tmp_path.iterdir())


# --- ends that fail


def rst(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("words", [[], ["checksum"]])
def test_a_reset_is_no_end(words: list[str], tmp_path: Path) -> None:
    with receiving(*words) as (receiver, port):
        connection = connect(port)
        connection.sendall(b"half of it")
        if words:
            wait(receiver, lambda: True)
        rst(connection)
        status, _, said = collect(receiver)
    assert status == 5 and b"the sender broke the connection off" in said


PROBES = {
    "leaves": lambda probe: probe.close(),
    "half-closes": lambda probe: probe.shutdown(socket.SHUT_WR),
    "is reset": rst,
    "stays without a word": lambda probe: None,
}


@pytest.mark.parametrize("how", PROBES)
def test_who_connects_and_sends_nothing_is_no_sender(how: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"precious")
    with receiving("--output", str(tmp_path / "out")) as (receiver, port), connect(port) as probe:
        PROBES[how](probe)
        assert (tmp_path / "out").read_bytes() == b"precious"
        ours, theirs = both(receiver, sending(port), NOISE)
    assert (ours[0], theirs[0]) == (0, 0)
    assert (b"turned away 127.0.0.1: it sent nothing" in theirs[2]) == (how != "stays without a word")
    assert (tmp_path / "out").read_bytes() == NOISE


@pytest.mark.parametrize("words", [[], ["checksum"]])
def test_nobody_but_a_probe_leaves_what_was_there(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"precious")
    with receiving(*words, "--timeout", "2", "--output", str(tmp_path / "out")) as (receiver, port):
        assert send(f"tcp://127.0.0.1:{port}", data=b"").returncode == 5, "an empty stream did not arrive"
        status, _, said = collect(receiver)
    assert status == 5 and b"no peer connected within 2 s" in said
    assert (tmp_path / "out").read_bytes() == b"precious"


def test_an_empty_stream_that_is_wanted_arrives(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with receiving("--allow-empty", "--output", str(tmp_path / "out")) as (receiver, port):
        rst(connect(port))  # which is no end of a stream
        assert send(f"tcp://127.0.0.1:{port}", data=b"").returncode == 0
        assert collect(receiver)[0] == 0
    assert (tmp_path / "out").read_bytes() == b""


def test_many_who_say_nothing_keep_nobody_out() -> None:
    with ExitStack() as opened, receiving() as (receiver, port):
        for _ in range(100):
            opened.enter_context(connect(port))
        ours, theirs = both(receiver, sending(port), NOISE)
    assert (ours[0], theirs[:2]) == (0, (0, NOISE))


def test_a_receiver_that_closes_early_is_an_error(listener: socket.socket) -> None:
    with started([*STATEPIPE, "send", to(listener)]) as sender:
        connection, _ = listener.accept()
        sender.stdin.write(NOISE[:100])
        assert connection.recv(10)
        rst(connection)
        assert sender.wait(PATIENCE) == 5, "it hears of it although its input is silent"
        assert_one_error(sender.stderr.read(), "send", "broke the connection off")


def test_a_receiver_that_closes_with_bytes_unread_is_an_error(listener: socket.socket) -> None:
    with started([*STATEPIPE, "send", to(listener)]) as sender:
        connection, _ = listener.accept()
        sender.stdin.write(NOISE[:100])
        sender.stdin.close()
        sender.stdin = None
        assert len(connection.recv(10, socket.MSG_WAITALL)) == 10
        connection.close()
        assert collect(sender)[0] == 5


def test_a_silent_sender_is_given_up() -> None:
    with receiving("--timeout", "0.2") as (receiver, port), connect(port) as connection:
        connection.sendall(b"some")
        status, _, said = collect(receiver)
    assert status == 5 and b"the sender has not moved for 0.2 s" in said


def test_a_receiver_that_takes_nothing_is_given_up(listener: socket.socket) -> None:
    done = run("send", "--timeout", "0.2", to(listener), data=NOISE * 4)
    assert done.returncode == 5
    assert_one_error(done.stderr, "send", "has not moved for 0.2 s")


def test_a_receiver_that_never_closes_is_given_up(listener: socket.socket) -> None:
    done = run("send", "--timeout", "0.2", to(listener), data=b"all of it")
    assert done.returncode == 5
    assert_one_error(done.stderr, "send", "has not moved for 0.2 s")


def test_nobody_comes() -> None:
    done = run("recv", "--timeout", "0.2", "tcp://127.0.0.1:0")
    assert done.returncode == 5 and b"no peer connected within 0.2 s" in done.stderr


def test_a_receiver_with_a_full_disk_leaves_nothing_and_its_sender_hears_of_it(tmp_path: Path) -> None:
    limited = ["sh", "-c", 'ulimit -f 2048; exec "$@"', "sh", *STATEPIPE]
    path = str(tmp_path / "out")
    words = ["recv", "tcp://127.0.0.1:0", "--output", path]
    with started([*limited, *words], stdin=subprocess.DEVNULL) as receiver:
        port = int(receiver.stderr.readline().split()[-1])
        assert send(f"tcp://127.0.0.1:{port}").returncode == 5
        status, _, said = collect(receiver)
    assert status == 1 and b"File too large" in said
    assert not list(tmp_path.iterdir())


def test_a_reader_of_ours_that_goes_away_is_quiet() -> None:
    with receiving() as (receiver, port), connect(port) as connection:
        receiver.stdout.close()
        receiver.stdout = None
        connection.sendall(NOISE[:1000])
        status, _, said = collect(receiver)
    assert (status, said) == (141, b"")


def test_a_full_standard_output_is_told() -> None:
    with open("/dev/full", "wb") as full, receiving(stdout=full) as (receiver, port), connect(port) as connection:
        connection.sendall(NOISE[:1000])
        status, _, said = collect(receiver)
    assert status == 1 and b"cannot write standard output" in said


@pytest.mark.parametrize("words", [[], ["checksum"]], ids=["untouched", "through a stage"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_output_that_others_make_non_blocking_is_waited_for(kind: str, words: list[str], tmp_path: Path) -> None:
    """As node, ssh and QEMU do with what they inherit."""
    reading, writing = os.pipe()
    address = "tcp://127.0.0.1:0" if kind == "tcp" else f"unix://{tmp_path}/s"
    command = [*STATEPIPE, "recv", address, *words]
    with (
        started(command, stdin=subprocess.DEVNULL, stdout=writing) as receiver,
        open(reading, "rb") as output,
        tempfile.TemporaryFile() as file,
    ):
        if kind == "tcp":
            address = f"tcp://127.0.0.1:{int(receiver.stderr.readline().split()[-1])}"
        file.write(NOISE)
        file.seek(0)
        with started([*STATEPIPE, "send", "--retry", "60", address], stdin=file) as sender:
            wait(receiver, lambda: not select.select([], [writing], [], 0)[1])  # it is full
            os.set_blocking(writing, False)
            os.close(writing)
            assert output.read() == NOISE
            assert (receiver.wait(PATIENCE), sender.wait(PATIENCE)) == (0, 0)


# --- where to


def test_nobody_listens(listener: socket.socket) -> None:
    address = to(listener)
    listener.close()
    done = run("send", address)
    assert done.returncode == 5
    assert_one_error(done.stderr, "send", f"cannot connect to {address}: Connection refused")


def test_retry_waits_for_a_receiver(tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/s"
    with (
        started([*STATEPIPE, "send", "--retry", "60", address], stdin=subprocess.DEVNULL) as sender,
        started([*STATEPIPE, "recv", "--allow-empty", address], stdin=subprocess.DEVNULL) as receiver,
    ):
        assert (collect(receiver)[0], collect(sender)[0]) == (0, 0)


def test_a_place_that_is_taken(listener: socket.socket) -> None:
    done = run("recv", to(listener))
    assert done.returncode == 5
    assert_one_error(done.stderr, "recv", "Address already in use")


def test_what_has_the_name_of_a_socket_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a file")
    done = run("recv", f"unix://{tmp_path}/s")
    assert done.returncode == 5
    assert_one_error(done.stderr, "recv", "Address already in use")
    assert [each.name for each in tmp_path.iterdir()] == ["s"] and (tmp_path / "s").read_text() == "a file"


def test_a_socket_whose_folder_is_not_there(tmp_path: Path) -> None:
    done = run("recv", f"unix://{tmp_path}/none/s")
    assert done.returncode == 5
    assert_one_error(done.stderr, "recv", "No such file or directory")


def test_an_unknown_host() -> None:
    done = run("send", "tcp://no.such.host.invalid:1")
    assert done.returncode == 5
    assert_one_error(done.stderr, "send", "cannot find tcp://no.such.host.invalid:1")


@pytest.mark.parametrize("command", [["send", "tcp://192.0.2.1:9"], ["recv", "tcp://:0"], ["recv", "tcp://0.0.0.0:0"]])
def test_the_clear_text_stays_on_this_host_unless_told(command: list[str]) -> None:
    done = run(*command)
    assert done.returncode == 2
    assert_one_error(done.stderr, command[0], "is beyond this host")


GOOD = {
    "tcp://127.0.0.1:5000": Address("tcp", "127.0.0.1", 5000),
    "tcp://[::1]:5000": Address("tcp", "::1", 5000),
    "tcp://[fe80::1%eth0]:5000": Address("tcp", "fe80::1%eth0", 5000),
    "tcp://:5000": Address("tcp", "", 5000),
    "tcp://host.example:65535": Address("tcp", "host.example", 65535),
    "tls://host.example:5000": Address("tls", "host.example", 5000),
    "unix:///run/s": Address("unix", path="/run/s"),
}


SHORT = {
    "host": Address("tls", "host", 20490),
    "host:1": Address("tls", "host", 1),
    "[::1]": Address("tls", "::1", 20490),
    ":7": Address("tls", "", 7),
    "tls://host": Address("tls", "host", 20490),
}


@pytest.mark.parametrize("text", SHORT)
def test_addresses_that_leave_something_out(text: str) -> None:
    assert parse_address(text) == SHORT[text]


@pytest.mark.parametrize("text", GOOD)
def test_addresses(text: str) -> None:
    assert parse_address(text) == GOOD[text]
    assert str(GOOD[text]) == text


@pytest.mark.parametrize(
    "text",
    ["", "h:", ":", "tls://", "tcp:h", "tcp://h", "tcp://h:", "tcp://h:65536", "tcp://::1:5", "tcp://[::1]", "tcp://a@b:1",
     "tcp://h:1/x", "unix://s", "unix://", "unix:///" + "x" * 107, "ftp://h:1", "tcp://[h]:1", "tcp://h:1 "],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


@pytest.mark.parametrize("option", [["--timeout", "x"], ["--retry", "-1"], ["--timeout", "nan"]])
def test_slips(option: list[str]) -> None:
    assert run("send", *option, "tcp://127.0.0.1:1").returncode == 2
