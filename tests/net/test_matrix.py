"""The fault matrix of send and recv: 24 faults, and where each is tested. What is tested nowhere else, is here.

Who fails ends with its status and one line, the other one too; a file appears only whole; no byte of a stranger's is
taken for a stream.
"""

from __future__ import annotations

import ast
import itertools
import os
import random
import re
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conformance.running import PATIENCE, assert_one_error, run, started, wait
from tests.conformance.test_plain import NOISE, collect
from tests.conformance.test_tls import Process, receiving, send, sender
from tests.net.crossing import arrived
from tests.net.relay import Faults, relay
from tests.net.test_failed_ends import feed, one_line
from tests.net.test_session_tls import folder

__all__ = ["folder"]

TESTS = Path(__file__).parents[1]

DISK, HERE, ENDS = "net/test_matrix_disk.py", "net/test_matrix.py", "net/test_failed_ends.py"
TLS, PLAIN, FAULTS = "conformance/test_tls.py", "conformance/test_plain.py", "net/test_faults.py"

MATRIX: dict[str, tuple[str, ...]] = {
    "1 no space at the first write": (f"{DISK}::test_no_room_for_the_first_byte",),
    "2 no space midway": (
        f"{ENDS}::test_a_full_disk",
        "net/test_ssh.py::test_a_full_disk_there_is_the_senders_failure",
    ),
    "3 no space at fsync": (f"{DISK}::test_no_room_at_fsync",),
    "4 limit on the file's size": (
        f"{TLS}::test_a_receiver_that_fails_is_the_senders_failure",
        f"{PLAIN}::test_a_receiver_with_a_full_disk_leaves_nothing_and_its_sender_hears_of_it",
    ),
    "5 error of read": (f"{DISK}::test_an_input_that_fails",),
    "6 error of write, fsync, close, rename": (
        f"{DISK}::test_a_device_that_fails",
        f"{DISK}::test_an_error_of_close_says_nothing_of_what_is_on_the_disk",
        f"{DISK}::test_an_error_of_close_does_not_hide_what_failed_before",
        f"{DISK}::test_a_socket_that_fails_is_made_anew",
        f"{DISK}::test_a_socket_that_fails_for_good",
        f"{DISK}::test_an_answer_that_nobody_takes_holds_nothing_up",
    ),
    "7 interrupted and short calls": (f"{DISK}::test_calls_that_do_less_or_nothing",),
    "8 slow disk, slow reader": (
        f"{DISK}::test_a_slow_disk_is_waited_for_in_little_memory",
        f"{FAULTS}::test_a_reader_that_stops_stops_the_sender_within_the_window",
    ),
    "9 closed output": (
        f"{ENDS}::test_a_reader_that_dies",
        f"{PLAIN}::test_a_reader_of_ours_that_goes_away_is_quiet",
        f"{DISK}::test_an_output_that_is_closed_from_the_start",
    ),
    "10 full output": (f"{DISK}::test_an_output_that_is_full", f"{PLAIN}::test_a_full_standard_output_is_told"),
    "11 SIGKILL": (
        f"{HERE}::test_one_that_is_ended_at_any_point",
        f"{TLS}::test_a_sender_that_is_killed_is_no_end",
        f"{ENDS}::test_a_receiver_that_is_killed",
    ),
    "12 SIGTERM, SIGINT, SIGHUP": (f"{HERE}::test_one_that_is_ended_at_any_point",),
    "13 the source ends early": (
        f"{ENDS}::test_a_producer_that_dies_without_an_end_mark",
        f"{PLAIN}::test_one_that_is_cut_is_refused_by_the_receiver",
        "qemu/test_plain.py::test_a_cancelled_migration_leaves_no_file",
    ),
    "14 an empty source: a stream like others here, and no state to load": (
        f"{TLS}::test_it_arrives",
        f"{HERE}::test_nothing_is_a_stream_and_no_state",
    ),
    "19 a peer that is not who it should be": (
        f"{TLS}::test_a_client_is_turned_away_and_the_next_let_in",
        f"{TLS}::test_a_server_is_refused_before_a_byte_is_sent",
        f"{TLS}::test_an_anonymous_client_is_turned_away",
        "net/test_hostile.py::test_a_stranger_is_refused_and_disturbs_nobody",
    ),
    "20 TLS 1.2, clear text, garbage, port scan": (
        f"{TLS}::test_tls_1_2_is_turned_away",
        f"{TLS}::test_who_speaks_no_tls_is_turned_away",
        f"{TLS}::test_a_server_that_speaks_no_tls",
        f"{HERE}::test_a_server_of_tls_1_2",
        "net/test_hostile.py::test_none_of_them_takes_the_place_of_who_is_waited_for",
    ),
    "21 RST, FIN midway": (
        f"{TLS}::test_cut_connections_are_made_anew",
        f"{HERE}::test_connections_that_end_early_are_made_anew",
        f"{HERE}::test_links_that_always_break_are_given_up",
        f"{PLAIN}::test_a_reset_is_no_end",
    ),
    "22 flip, loss, replay on the wire": (
        f"{HERE}::test_connections_that_end_early_are_made_anew",
        f"{HERE}::test_links_that_always_break_are_given_up",
        f"{PLAIN}::test_a_flipped_bit_in_a_container_is_seen",
        f"{FAULTS}::test_a_lossy_network_loses_nothing",
        "net/test_hostile_peers.py::test_who_speaks_no_session_disturbs_nobody",
    ),
    "23 partition": (
        f"{FAULTS}::test_a_cut_costs_its_time",
        f"{FAULTS}::test_one_whose_other_host_is_gone_gives_up",
    ),
    "24 the filters killed, or QEMU": (
        "qemu/test_tunnel_ends.py::*",
        "qemu/test_migrate_faults.py::test_one_guest_runs_on",
        "qemu/test_plain.py::test_a_cancelled_migration_leaves_no_file",
    ),
}
"""By fault, numbered as in the matrix. 15 to 18 are of files, which neither send nor recv opens: they are load's."""


@pytest.mark.parametrize("fault", MATRIX)
def test_each_has_its_tests(fault: str) -> None:
    for path, name in (place.split("::") for place in MATRIX[fault]):
        tree = ast.parse((TESTS / path).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in names or (name == "*" and any(each.startswith("test_") for each in names)), (path, name)


# --- 11, 12: ended at any point

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL]
SHORT = {
    ("sender", signal.SIGTERM),
    ("sender", signal.SIGKILL),
    ("receiver", signal.SIGINT),
    ("receiver", signal.SIGHUP),
}


SEEDS = range(5)


def moment(side: str, number: signal.Signals, seed: int) -> object:
    quick = (side, number) in SHORT and seed == 0
    return pytest.param(side, number, seed, marks=[] if quick else pytest.mark.faults)


MOMENTS = [moment(*each) for each in itertools.product(("sender", "receiver"), SIGNALS, SEEDS)]


@pytest.mark.parametrize(("side", "number", "seed"), MOMENTS)
def test_one_that_is_ended_at_any_point(
    folder: str, tmp_path: Path, side: str, number: signal.Signals, seed: int
) -> None:
    """The other one hears why, or that there is no link any more; the older file stays."""
    out, point = tmp_path / "out", random.Random(f"{side} {number} {seed}").randrange(4 * len(NOISE))
    out.write_bytes(b"older")
    words = ["--tls-creds", folder, "--retry", "2" if number is signal.SIGKILL else "20"]  # to be waited for
    with receiving(*words, "-o", out) as (receiver, port), started(sender(port, *words)) as sending:
        thread = feed(sending, NOISE * 8, keep_open=True)
        wait(receiver, lambda: nameless(receiver, out) >= point)
        ended, left = (sending, receiver) if side == "sender" else (receiver, sending)
        ended.send_signal(number)
        status, said = one_line(left, "send" if left is sending else "recv")
        assert ended.wait(PATIENCE) == (-number if number is signal.SIGKILL else 128 + number)
        last_words = ended.stderr.read().decode()
        thread.join()
    assert status == 5
    if number is signal.SIGKILL:
        assert said.startswith("no link to ") and last_words == ""
    else:
        assert f"failed: stopped by {number.name}" in said
        assert f"stopped by {number.name}" in last_words and last_words.count("\n") == 1, last_words
    assert os.listdir(tmp_path) == ["out"] and out.read_bytes() == b"older"


def nameless(receiver: Process, path: Path) -> int:
    """Bytes in the file that the receiver writes, not in the older one."""
    count = arrived(receiver, path)
    return 0 if count == len(b"older") else count


# --- 14: nothing


def test_nothing_is_a_stream_and_no_state(folder: str, tmp_path: Path) -> None:
    with receiving("--tls-creds", folder, "-o", tmp_path / "out") as (receiver, port):
        assert send(port, "--tls-creds", folder, data=b"") == (0, b"")
        assert collect(receiver) == (0, b"", b"")
    done = run("load", str(tmp_path / "out"))
    assert done.returncode == 3 and b"is not a saved state: it is empty" in done.stderr


# --- 20: a server of old


@contextmanager
def old_server(folder: str) -> Iterator[tuple[int, list[object]]]:
    """A server of TLS 1.2 with a good certificate, and what became of the handshake, once it is left."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(f"{folder}/server-cert.pem", f"{folder}/server-key.pem")
    became: list[object] = []

    def serve() -> None:
        connection, _ = listener.accept()
        try:
            with context.wrap_socket(connection, server_side=True) as secure:
                became.append(secure.recv(1))
        except OSError as error:
            became.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], became
        thread.join(PATIENCE)


def test_a_server_of_tls_1_2(folder: str) -> None:
    with old_server(folder) as (port, became):
        status, said = send(port, "--tls-creds", folder)
    assert status == 5
    assert_one_error(said, "send", "does not speak TLS 1.3")
    assert len(became) == 1 and isinstance(became[0], ssl.SSLError)


# --- 21, 22: on the wire

WIRE: dict[str, Callable[[Callable[[], int]], Faults]] = {
    "reset": lambda count: Faults(cut_after=count),
    "hung up": lambda count: Faults(cut_after=count, politely=True),
    "flipped": lambda count: Faults(flip_after=count),
}


@pytest.mark.parametrize("fault", ["hung up", "flipped"])
def test_connections_that_end_early_are_made_anew(folder: str, tmp_path: Path, fault: str) -> None:
    """By a FIN that TLS did not announce, or as TLS has found a flipped bit."""
    words, faults = ["--tls-creds", folder], WIRE[fault](lambda: 2 << 20)
    with receiving(*words, "-o", tmp_path / "out") as (receiver, port), relay(port, faults) as at:
        assert send(at.port, *words, data=NOISE * 2) == (0, b"")
        assert collect(receiver) == (0, b"", b"")
        assert at.cuts + at.flips >= 3
    assert (tmp_path / "out").read_bytes() == NOISE * 2


@pytest.mark.parametrize(
    "fault", [pytest.param(each, marks=[pytest.mark.faults] * (each != "flipped")) for each in WIRE]
)
def test_links_that_always_break_are_given_up(folder: str, tmp_path: Path, fault: str) -> None:
    """Each comes up, and breaks before a frame of it is through: whether a second one came up is chance."""
    words, faults = ["--tls-creds", folder, "--retry", "0.5"], WIRE[fault](lambda: 40_000)
    with (
        receiving(*words, "-o", tmp_path / "out") as (receiver, port),
        relay(port, faults) as at,
        started(sender(at.port, *words)) as sending,
    ):
        thread = feed(sending, NOISE)
        for process, verb, peer in ((sending, "send", "tls://127.0.0.1:"), (receiver, "recv", "localhost")):
            status, said = one_line(process, verb)
            assert status == 5, said
            dead, useless = f"no link to {peer}", f"connections to {peer}.* open, but no data got through"
            assert re.match(f"({dead}|{useless}).* for 0.5 s", said), said
        thread.join()
        assert at.cuts + at.flips > 1
    assert os.listdir(tmp_path) == []
