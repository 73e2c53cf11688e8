"""pair, and what follows from it: two hosts, each with settings of its own, on one machine."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from statepipe.errors import PeerError
from statepipe.trust.certificates import fingerprint, make_self
from statepipe.trust.spake import CONFIRM_SIZE, KEPT, READY, Pairing, RemoteHost, new_code
from tests import warm
from tests.conformance.running import PATIENCE, STATEPIPE, started, wait
from tests.conformance.test_plain import NOISE, collect
from tests.openfiles import open_files
from tests.qemu.harness import EXEC
from tests.terminal import at_terminal

Process = subprocess.Popen[bytes]
Done = subprocess.CompletedProcess[str]


def env(folder: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CONFIG_HOME": str(folder)}


@contextmanager
def listening(
    folder: Path, *words: str, at: str = "tls://127.0.0.1:0", **options: Any
) -> Iterator[tuple[Process, int, str]]:
    """A `pair --listen`, its port and the code it shows."""
    command = [*STATEPIPE, "pair", "--listen", at, *words]
    with started(command, stdin=subprocess.DEVNULL, env=env(folder), **options) as process:
        port = int(process.stderr.readline().split()[-1])
        process.stderr.readline()
        yield process, port, process.stderr.readline().split()[-1].decode()


def connect(folder: Path, port: int, code: str, *words: str, host: str = "127.0.0.1") -> Done:
    reading, writing = os.pipe()
    with os.fdopen(reading) as read, os.fdopen(writing, "w") as write:
        write.write(f"{code}\n")
        write.close()
        command = [*STATEPIPE, "pair", f"{host}:{port}", "--code-file", f"/dev/fd/{read.fileno()}", *words]
        more = {"pass_fds": [read.fileno()], "env": env(folder), "timeout": PATIENCE}
        return warm.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **more)


def pinned(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / "statepipe" / "peers").glob("*")}


def pair(one: Path, other: Path) -> None:
    """`one` knows the other as 'other'; the other knows it as 127.0.0.1."""
    with listening(one, "--name", "other") as (process, port, code):
        done = connect(other, port, code)
        status, out, _ = collect(process)
    assert (done.returncode, status) == (0, 0), done.stderr
    keys = re.findall(r"SHA256:\S{43}", done.stdout), re.findall(r"SHA256:\S{43}", out.decode())
    assert len(keys[0]) == 2 and keys[0] == keys[1][::-1], "each says its key and the other's"


@pytest.fixture
def hosts(tmp_path: Path) -> tuple[Path, Path]:
    pair(tmp_path / "one", tmp_path / "other")
    return tmp_path / "one", tmp_path / "other"


@contextmanager
def receiving(folder: Path, *words: str) -> Iterator[tuple[Process, int]]:
    command = [*STATEPIPE, "recv", "tls://127.0.0.1:0", "--timeout", "5", *words]
    with started(command, stdin=subprocess.DEVNULL, env=env(folder)) as receiver:
        yield receiver, int(receiver.stderr.readline().split()[-1])


def send(folder: Path, port: int, *words: str) -> subprocess.CompletedProcess[bytes]:
    command = [*STATEPIPE, "send", *words, f"127.0.0.1:{port}"]
    return warm.run(command, input=NOISE[:50000], capture_output=True, env=env(folder), timeout=PATIENCE)


def test_each_pins_the_others_key(hosts: tuple[Path, Path]) -> None:
    one, other = hosts
    own = [(each / "statepipe" / "own-cert.pem").read_text() for each in hosts]
    assert pinned(one) == {"other.pem": own[1]} and pinned(other) == {"127.0.0.1.pem": own[0]}
    for path in [*one.rglob("*.pem"), *other.rglob("*.pem")]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_then_a_stream_passes(hosts: tuple[Path, Path]) -> None:
    one, other = hosts
    with receiving(one) as (receiver, port):
        assert send(other, port).returncode == 0
        assert collect(receiver) == (0, NOISE[:50000], b"")


def test_a_peer_can_be_named_on_both_sides(hosts: tuple[Path, Path]) -> None:
    one, other = hosts
    with receiving(one, "--peer", "other") as (receiver, port):
        assert send(other, port, "--peer", "127.0.0.1").returncode == 0
        assert collect(receiver)[0] == 0


def test_who_is_not_pinned_is_turned_away(hosts: tuple[Path, Path], tmp_path: Path) -> None:
    """A third host that knows the receiver's key, while the receiver does not know its."""
    third = tmp_path / "third" / "statepipe"
    (third / "peers").mkdir(parents=True)
    (third / "peers" / "127.0.0.1.pem").write_text((hosts[0] / "statepipe" / "own-cert.pem").read_text())
    with receiving(hosts[0]) as (receiver, port):
        done = send(tmp_path / "third", port)
        assert done.returncode == 5 and b"statepipe: send: error: " in done.stderr
        status, out, said = collect(receiver)
    assert (status, out) == (5, b"") and b"turned away 127.0.0.1: " in said


def test_a_receiver_with_another_key_is_refused(hosts: tuple[Path, Path], tmp_path: Path) -> None:
    _, other = hosts
    pair(tmp_path / "impostor", tmp_path / "somebody")
    with receiving(tmp_path / "impostor") as (receiver, port):
        done = send(other, port)
        assert done.returncode == 5 and b"no trust between us" in done.stderr
        assert collect(receiver)[:2] == (5, b"")


def test_an_unknown_host_is_not_even_connected_to(hosts: tuple[Path, Path]) -> None:
    done = send(hosts[0], 1)
    assert done.returncode == 5 and b"no peer is pinned here as '127.0.0.1'" in done.stderr
    assert b"hint: if it is pinned under another name, give that with --peer NAME: other; else" in done.stderr


def test_a_wrong_code_ends_both_and_pins_nothing(tmp_path: Path) -> None:
    with listening(tmp_path / "one") as (process, port, code):
        wrong = code[:-1] + ("0" if code[-1] != "0" else "1")
        done = connect(tmp_path / "other", port, wrong)
        status, _, said = collect(process)
    assert (done.returncode, status) == (5, 5)
    assert "the codes differ" in done.stderr and b"the codes differ" in said
    assert not pinned(tmp_path / "one") and not pinned(tmp_path / "other")


def hello(**changes: object) -> bytes:
    """A hello in its frame, with changes to its fields."""
    fields = json.loads(Pairing("1", "x", make_self("x")[0].decode(), first=False).hello) | changes
    data = json.dumps(fields).encode()
    return len(data).to_bytes(4, "big") + data


ODD = {
    "nothing": b"",
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "an empty object": b"\0\0\0\2{}",
    "a length beyond all": b"\xff\xff\xff\xff",
    "no length": bytes(4),
    "an element off the curve": hello(spake2="42" + 32 * "07"),
    "an element of zero": hello(spake2="42" + "01" + 31 * "00"),
    "an element of another length": hello(spake2="42" + 31 * "00"),
    "an element of the same side": hello(spake2="41" + 32 * "07"),
    "no element": hello(spake2="xyz"),
    "a number for a name": hello(name=7),
    "a name beyond all": hello(name="x" * 1000),
    "no certificate": hello(certificate="none"),
    "deep JSON": (4000).to_bytes(4, "big") + b"[" * 4000,
}


@pytest.mark.parametrize("what", ODD)
def test_who_says_no_proper_hello_is_told_of_and_ends_nothing(tmp_path: Path, what: str) -> None:
    """Also where it stays connected, and more of it than may: the true one comes, and is let in."""
    with listening(tmp_path / "one", "--name", "other") as (process, port, code), ExitStack() as stack:
        for _ in range(3):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            stranger.sendall(ODD[what])
            stranger.shutdown(socket.SHUT_WR)
        for _ in range(40):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        done = connect(tmp_path / "other", port, code)
        status, _, said = collect(process)
    assert (done.returncode, status) == (0, 0), (done.stderr, said)
    assert b"statepipe: pair: turned away 127.0.0.1: " in said and b"Traceback" not in said
    assert set(pinned(tmp_path / "one")) == {"other.pem"}


def test_what_the_other_host_calls_itself_is_shown_and_is_not_its_name_here(tmp_path: Path) -> None:
    with listening(tmp_path / "one") as (process, port, code):
        assert connect(tmp_path / "other", port, code).returncode == 0
        status, out, said = collect(process)
    assert status == 0 and b"paired with 127.0.0.1: " in out
    assert f"the host at 127.0.0.1 calls itself {socket.gethostname()}; its key is SHA256:".encode() in said
    assert set(pinned(tmp_path / "one")) == {"127.0.0.1.pem"}


def test_at_every_address_a_host_of_ipv4_is_known_by_its_own(tmp_path: Path) -> None:
    """Where IPv6 is on, it comes in as ::ffff:127.0.0.1 there."""
    with listening(tmp_path / "one", at="tls://:0") as (process, port, code):
        assert connect(tmp_path / "other", port, code).returncode == 0
        status, out, said = collect(process)
    assert status == 0 and b"paired with 127.0.0.1: " in out, said
    assert set(pinned(tmp_path / "one")) == {"127.0.0.1.pem"}


def test_a_host_of_ipv6_is_known_by_its_address(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this host has no IPv6")
    with listening(tmp_path / "one", at="tls://[::1]:0") as (process, port, code):
        done = connect(tmp_path / "other", port, code, host="[::1]")
        status, _, said = collect(process)
    assert (done.returncode, status) == (0, 0), (done.stderr, said)
    assert set(pinned(tmp_path / "one")) == set(pinned(tmp_path / "other")) == {"::1.pem"}


def test_of_a_hello_without_a_length_nothing_is_kept(tmp_path: Path) -> None:
    """However much follows: who sends it is sent away."""
    with listening(tmp_path / "one", "--name", "other") as (process, port, code):
        with socket.create_connection(("127.0.0.1", port)) as stranger, pytest.raises(ConnectionError):
            for _ in range(256):
                stranger.sendall(bytes(1 << 20))
        assert connect(tmp_path / "other", port, code).returncode == 0
        assert collect(process)[0] == 0


def test_a_name_that_cannot_be_is_refused_before_the_code_is_tried(tmp_path: Path) -> None:
    with listening(tmp_path / "one", "--name", "other") as (process, port, code):
        done = connect(tmp_path / "other", port, code, "--name", "../x")
        assert done.returncode == 2 and "cannot be a peer's name" in done.stderr
        assert connect(tmp_path / "other", port, code).returncode == 0
        assert collect(process)[0] == 0


def test_a_slip_in_the_name_that_is_typed_is_asked_again(tmp_path: Path) -> None:
    """The other host waits until it is known under a name."""
    code_in(tmp_path)
    ours, theirs = os.openpty()
    with os.fdopen(ours, "r+b", buffering=0) as terminal:
        command = [*STATEPIPE, "pair", "--listen", "tls://127.0.0.1:0", "--code-file", str(tmp_path / "code")]
        with started(command, stdin=theirs, stderr=theirs, env=env(tmp_path / "one")) as process:
            os.close(theirs)
            port = int(read_until(terminal, "\n").split()[-1])
            with ThreadPoolExecutor(1) as pool:
                there = pool.submit(connect, tmp_path / "other", port, "1234-5678")
                read_until(terminal, "[127.0.0.1]: ")
                terminal.write(b"my/host\n")
                assert "'my/host' cannot be a peer's name" in read_until(terminal, "[127.0.0.1]: ")
                terminal.write(b"other\n")
                assert there.result().returncode == 0
            assert process.wait(PATIENCE) == 0
    assert set(pinned(tmp_path / "one")) == {"other.pem"}


def read_until(terminal: IO[bytes], what: str) -> str:
    seen = b""
    while what.encode() not in seen:
        seen += terminal.read(1)
    return seen.decode()


def test_what_cannot_be_a_code_is_asked_for_again(tmp_path: Path) -> None:
    """An empty line must not use up the attempt."""
    with listening(tmp_path / "one", "--name", "other") as (process, port, code):
        prompts = [("other host: ", ""), ("other host: ", "12"), ("other host: ", code)]
        command = f"XDG_CONFIG_HOME={tmp_path / 'other'} {EXEC} pair 127.0.0.1:{port}"
        status, seen = at_terminal(command, prompts, tmp_path)
        assert (status, collect(process)[0]) == (0, 0), seen
    assert seen.count("a code has at least 6 letters and digits: try again") == 2


@pytest.mark.parametrize(
    ("at", "line"),
    [
        ("tls://localhost:0", "on this host, as no other can connect to localhost, type: statepipe pair localhost:{}"),
        ("tls://127.0.0.1:0", "on this host, as no other can connect to 127.0.0.1, type: statepipe pair 127.0.0.1:{}"),
        ("tls://0.0.0.0:0", f"on the other host type: statepipe pair {os.uname().nodename}:{{}}"),
        ("tls://:0", f"on the other host type: statepipe pair {os.uname().nodename}:{{}}"),
    ],
)
def test_the_other_host_is_given_an_address_at_which_something_listens(at: str, line: str, tmp_path: Path) -> None:
    command = [*STATEPIPE, "pair", "--listen", at]
    with started(command, stdin=subprocess.DEVNULL, env=env(tmp_path)) as process:
        port = int(process.stderr.readline().split()[-1])
        assert process.stderr.readline().decode() == f"statepipe: pair: {line.format(port)}\n"


def test_another_key_does_not_take_a_pinned_ones_place(hosts: tuple[Path, Path], tmp_path: Path) -> None:
    before = pinned(hosts[0])
    with listening(hosts[0], "--name", "other") as (process, port, code):
        done = connect(tmp_path / "third", port, code)
        status, _, said = collect(process)
    assert status == 1 and b"another key is pinned here as 'other'" in said
    assert pinned(hosts[0]) == before
    assert done.returncode == 5 and "nothing is pinned here" in done.stderr
    assert not pinned(tmp_path / "third"), "neither side has the other's key"


def test_a_key_that_who_connects_cannot_keep_is_kept_by_neither(hosts: tuple[Path, Path], tmp_path: Path) -> None:
    before = pinned(hosts[1])
    with listening(tmp_path / "third", "--name", "other") as (process, port, code):
        done = connect(hosts[1], port, code)
        status, _, said = collect(process)
    assert done.returncode == 1 and "another key is pinned here as '127.0.0.1'" in done.stderr
    assert status == 5 and b"nothing is pinned here" in said
    assert pinned(hosts[1]) == before and not pinned(tmp_path / "third")


def confirmed(connection: socket.socket, code: str, certificate: bytes) -> Pairing:
    """The side that connects, up to the listener's word that it can keep this certificate."""
    side = Pairing(code, "other", certificate.decode(), first=False)
    connection.sendall(len(side.hello).to_bytes(4, "big") + side.hello)
    confirm = side.take_hello(read_exactly(connection, int.from_bytes(read_exactly(connection, 4), "big")))
    connection.sendall(confirm)
    side.take_confirm(read_exactly(connection, CONFIRM_SIZE))
    side.take_word(read_exactly(connection, CONFIRM_SIZE), READY)
    return side


def test_of_two_that_pair_under_one_name_at_once_one_is_refused(tmp_path: Path) -> None:
    """Both found the name free. The second took the first one's place without a word."""
    one, keys = tmp_path / "one", [make_self("a")[0], make_self("b")[0]]
    with ExitStack() as stack:
        listeners = [stack.enter_context(listening(one, "--name", "other")) for _ in keys]
        sides = []
        for (_, port, code), key in zip(listeners, keys, strict=True):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.settimeout(PATIENCE)
            sides.append((connection, confirmed(connection, code, key)))
        said = []
        for (process, _, _), (connection, side) in zip(listeners, sides, strict=True):
            connection.sendall(side.word(KEPT))
            said.append(collect(process)[::2])
    assert [status for status, _ in said] == [0, 1], said
    assert b"another key is pinned here as 'other'" in said[1][1]
    assert pinned(one) == {"other.pem": keys[0].decode()}


def on_pins(folder: Path, *words: str) -> Done:
    command = [*STATEPIPE, "pair", *words]
    options = {"capture_output": True, "text": True, "env": env(folder), "timeout": PATIENCE}
    return warm.run(command, stdin=subprocess.DEVNULL, **options)


def test_where_nobody_can_be_asked_the_option_for_the_code_is_named(tmp_path: Path) -> None:
    command = [*STATEPIPE, "pair", "127.0.0.1:1"]
    options = {"capture_output": True, "text": True, "env": env(tmp_path), "timeout": PATIENCE}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command[-1] = f"127.0.0.1:{listener.getsockname()[1]}"
        done = subprocess.run(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    assert done.returncode == 1 and "no terminal to ask at" in done.stderr and "--code-file FILE" in done.stderr


def test_a_pin_that_is_none_is_named_and_the_rest_listed(hosts: tuple[Path, Path]) -> None:
    one, _ = hosts
    peers = one / "statepipe" / "peers"
    lines = (peers / "other.pem").read_text().splitlines(keepends=True)
    (peers / "cut.pem").write_text("".join(lines[:3]))
    (peers / "edited.pem").write_text("".join([*lines[:2], "ssh-ed25519 AAAA\n", *lines[3:]]))
    (peers / "empty.pem").touch()
    (peers / "folder.pem").mkdir()
    os.mkfifo(peers / "pipe.pem")
    done = on_pins(one, "--list")
    assert done.returncode == 0 and done.stdout.startswith("other\tSHA256:") and done.stdout.count("\n") == 1
    why = {"cut": "it ends after line 3", "edited": "line 3 is not a certificate's", "folder": "Is a directory"}
    why |= {"empty": "it is empty", "pipe": "it is empty"}
    for name, words in why.items():
        assert f"the pinned certificate of {name} cannot be read ({peers}/{name}.pem: {words})" in done.stderr


def test_a_removed_pin_whose_key_is_still_believed_is_told(hosts: tuple[Path, Path]) -> None:
    one, _ = hosts
    peers = one / "statepipe" / "peers"
    (peers / "again.pem").write_text((peers / "other.pem").read_text())
    done = on_pins(one, "--remove", "other")
    assert done.returncode == 0
    assert "warning: the same key is also pinned as again, and is still trusted under that name" in done.stderr
    assert on_pins(one, "--remove", "again").stderr == ""


def test_pins_are_listed_and_removed(hosts: tuple[Path, Path]) -> None:
    one, other = hosts
    key = fingerprint((other / "statepipe" / "own-cert.pem").read_bytes())
    done = on_pins(one, "--list")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"other\t{key}\n", "")
    done = on_pins(one, "--remove", "Other")
    assert (done.returncode, done.stdout) == (0, f"removed the pin of Other: its key was {key}\n"), done.stderr
    assert not pinned(one)
    done = on_pins(one, "--list")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "statepipe: pair: no peer is pinned here\n")
    done = on_pins(one, "--remove", "other")
    assert done.returncode == 1 and "no peer is pinned here as 'other'" in done.stderr


def test_a_pin_that_cannot_be_read_is_told_of_and_can_be_removed(hosts: tuple[Path, Path]) -> None:
    peers = hosts[0] / "statepipe" / "peers"
    (peers / "half.pem").write_text("garbage")
    done = on_pins(hosts[0], "--list")
    assert done.returncode == 0 and done.stdout.startswith("other\t") and done.stdout.count("\n") == 1
    assert "warning: the pinned certificate of half cannot be read" in done.stderr
    done = on_pins(hosts[0], "--remove", "half")
    assert (done.returncode, done.stdout) == (0, "removed the pin of half\n"), done.stderr
    assert set(pinned(hosts[0])) == {"other.pem"}


def test_a_pin_is_not_removed_while_another_changes_them(hosts: tuple[Path, Path]) -> None:
    """Which one it took away is told once it has: what was pinned before it came to that is not it."""
    peers, key = hosts[0] / "statepipe" / "peers", make_self("later")[0]
    lock = os.open(peers, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with started([*STATEPIPE, "pair", "--remove", "other"], env=env(hosts[0])) as process:
            wait(process, lambda: str(peers) in open_files(process.pid).values())
            (peers / "other.pem").write_bytes(key)
            fcntl.flock(lock, fcntl.LOCK_UN)
            status, out, said = collect(process)
    finally:
        os.close(lock)
    assert (status, said) == (0, b"") and f"its key was {fingerprint(key)}".encode() in out


LEAVES = {"before it is ready": 0, "once it is ready": 1, "without its last word": 2}


@pytest.mark.parametrize("words", LEAVES.values(), ids=LEAVES)
def test_who_is_left_alone_with_a_key_forgets_it(tmp_path: Path, words: int) -> None:
    """The other side confirms, and leaves after so many of the words between the two."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        done = pool.submit(connect, tmp_path / "one", server.getsockname()[1], "1234-5678")
        with server.accept()[0] as connection:
            side = Pairing("1234-5678", "other", THEIRS, first=True)
            size = int.from_bytes(read_exactly(connection, 4), "big")
            confirm = side.take_hello(read_exactly(connection, size))
            connection.sendall(len(side.hello).to_bytes(4, "big") + side.hello + confirm)
            side.take_confirm(read_exactly(connection, CONFIRM_SIZE))
            if words > 0:
                connection.sendall(side.word(READY))
            if words > 1:
                side.take_word(read_exactly(connection, CONFIRM_SIZE), KEPT)
        assert done.result().returncode == 5
    assert "nothing is pinned here" in done.result().stderr
    assert not pinned(tmp_path / "one")


def read_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return data


def code_in(folder: Path, mode: int = 0o600) -> Path:
    path = folder / "code"
    path.write_text("1234-5678")
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602])
def test_a_code_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """Who has the code is believed to be the other host."""
    code = code_in(tmp_path, mode)
    command = [*STATEPIPE, "pair", "--listen", "127.0.0.1:0", "--code-file", str(code)]
    done = warm.run(command, capture_output=True, text=True, env=env(tmp_path), timeout=PATIENCE)
    assert done.returncode == 1
    assert f"{code} can be read or written by others: its mode is {mode:04o}" in done.stderr
    assert f"hint: chmod 600 {code}" in done.stderr


def test_the_code_is_not_in_any_argument(tmp_path: Path) -> None:
    with listening(tmp_path / "one", fresh=True) as (process, _, code):
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    assert code.encode() not in command and re.fullmatch(r"\d{4}-\d{4}", code)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], 2),
        (["ftp://h:1"], 2),
        (["--listen", "127.0.0.1:0", "--code-file", "short"], 1),
        (["--listen", "127.0.0.1:0", "--code-file", "none"], 1),
        (["--listen", "127.0.0.1:0", "--name", ".."], 2),
        (["--list", "--listen"], 2),
        (["--list", "--remove", "x"], 2),
        (["--remove", "x", "127.0.0.1"], 2),
        (["--remove", "../own-cert"], 1),
    ],
)
def test_slips(tmp_path: Path, words: list[str], status: int) -> None:
    (tmp_path / "short").write_text("12")
    command = [*STATEPIPE[:1], "-P", *STATEPIPE[1:], "pair", *words]
    done = warm.run(command, capture_output=True, env=env(tmp_path), cwd=tmp_path, timeout=PATIENCE)
    assert done.returncode == status, done.stderr


# --- the exchange itself


THEIRS = make_self("b")[0].decode()


def attempt(code: str, other: str) -> tuple[Pairing, Pairing]:
    return Pairing(code, "a", make_self("a")[0].decode(), first=True), Pairing(other, "b", THEIRS, first=False)


def test_how_the_code_is_written_does_not_matter() -> None:
    one, other = attempt("1234-5678", " 12345678\n")
    confirm, answer = one.take_hello(other.hello), other.take_hello(one.hello)
    assert one.take_confirm(answer) == RemoteHost("b", THEIRS) and other.take_confirm(confirm).name == "a"


def test_a_certificate_changed_on_its_way_is_noticed() -> None:
    one, other = attempt("1234-5678", "1234-5678")
    one.take_hello(json.dumps(json.loads(other.hello) | {"certificate": make_self("c")[0].decode()}).encode())
    with pytest.raises(PeerError):
        one.take_confirm(other.take_hello(one.hello))


def test_a_hello_sent_back_to_its_sender_is_refused() -> None:
    one, _ = attempt("1234-5678", "1234-5678")
    with pytest.raises(PeerError):
        one.take_confirm(one.take_hello(one.hello))


def test_codes_are_not_repeated() -> None:
    assert len({new_code() for _ in range(50)}) == 50


def test_a_fingerprint_is_the_keys() -> None:
    one, other = make_self("a")[0], make_self("a")[0]
    assert fingerprint(one) == fingerprint(one) != fingerprint(other)
