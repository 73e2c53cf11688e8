"""What gpg, a journal and another process of the user's may say, however odd: one of our errors, and nothing else."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.cli.jobs import table
from statepipe.errors import StatepipeError
from statepipe.formats.openpgp import ARGUMENTS, LINE, LINES, Status, judge_decryption, judge_encryption
from statepipe.pipeline.jobs import ANSWER_LIMIT, Found, cancel, find_jobs, set_rate
from statepipe.pipeline.runtimefolder import open_folder
from statepipe.recovery.journal import LIMIT, read_journal
from statepipe.recovery.resolve import last_step
from tests.unit.formats.test_openpgp import BOB, GOOD, OPENED, PROVED
from tests.unit.migration.test_negotiation import ODD, variants

# --- gpg's status lines

ODD_LINES: list[bytes] = [
    *(keyword.encode() for keyword in ARGUMENTS),
    *(
        b"INV_RECP x bob",
        "INV_RECP ² bob".encode(),
        b"INV_RECP " + b"9" * 5000,
        b"DECRYPTION_INFO",
        b"DECRYPTION_INFO 2",
    ),
    *(b"VALIDSIG \xff\xfe", b"VALIDSIG /etc", b"ENC_TO \xf0\x9f", b"BADSIG " + b"A" * LINE, b"ERROR pkdecrypt_failed"),
]


def good(*more: bytes) -> Status:
    status = Status()
    lines = [*OPENED, PROVED[0], *GOOD, *PROVED[1:]]
    status.feed(b"".join(b"[GNUPG:] " + line + b"\n" for line in [*(each.encode() for each in lines), *more]))
    return status


@pytest.mark.parametrize("line", ODD_LINES, ids=[repr(line[:30]) for line in ODD_LINES])
def test_a_status_line_that_is_not_understood_makes_nothing_good(line: bytes) -> None:
    """It may have said that all is bad."""
    assert list(judge_decryption(good(), BOB)) == []
    for judge in (lambda status: list(judge_decryption(status, BOB)), lambda status: judge_encryption(status, named)):
        with pytest.raises(
            StatepipeError, match="gpg wrote a status line that statepipe does not understand"
        ) as caught:
            judge(good(line))
        assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def named(name: str) -> set[str]:
    return set()


def test_what_is_said_after_too_many_lines_is_not_passed_over() -> None:
    with pytest.raises(StatepipeError, match="does not understand"):
        list(judge_decryption(good(*[b"PROGRESS x"] * LINES, b"BADSIG AA bob"), BOB))


def test_the_end_of_a_long_line_is_no_line() -> None:
    status = Status()
    for part in (b"[GNUPG:] NOTATION_DATA ", b"x" * LINE, b"[GNUPG:] GOODSIG A\n"):
        status.feed(part)
    assert not status.said("GOODSIG")


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from([*ARGUMENTS, "PLAINTEXT", "NODATA"]), st.text(max_size=12)), max_size=8))
def test_any_status_is_judged(lines: list[tuple[str, str]]) -> None:
    status = Status()
    status.feed("".join(f"[GNUPG:] {word} {rest}\n" for word, rest in lines).encode(errors="replace"))
    for judge in (lambda: list(judge_decryption(status, None)), lambda: judge_encryption(status, named)):
        try:
            judge()
        except StatepipeError:
            continue


# --- journals

FIRST = {"time": 1.5, "side": "source", "peer": "b", "guest": {}}
STEP = {"time": 2.5, "state": "PRECOPY", "meaning": "it runs", "event": None}


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_an_odd_journal_is_refused_or_read(tmp_path: Path) -> None:
    assert last_step(read_journal(written(tmp_path / "journal", FIRST, STEP))) == (
        "PRECOPY: the guest runs here and its memory is being sent"
    )
    refused = 0
    for rows in [*((first, STEP) for first in variants(FIRST)), *((FIRST, step) for step in variants(STEP))]:
        try:
            last = last_step(read_journal(written(tmp_path / "journal", *rows)))
            assert last is None or isinstance(last, str)
        except StatepipeError as error:
            refused += "is not a journal of a migration" in str(error)
    assert refused > 100


NO_JOURNALS = [
    b"",
    b"\n",
    b"{}\n",
    b"[" * 100_000 + b"\n",
    b'{"a":NaN}\n',
    b"\xff\n",
    b'{"side": "s',
    b"9" * 5000 + b"\n",
]


@pytest.mark.parametrize("data", NO_JOURNALS, ids=[repr(data[:20]) for data in NO_JOURNALS])
def test_what_is_no_journal(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(data)
    with pytest.raises(StatepipeError, match="is not a journal of a migration"):
        read_journal(str(path))


def test_a_journal_without_end_and_one_that_nobody_writes(tmp_path: Path) -> None:
    path, pipe = tmp_path / "journal", tmp_path / "pipe"
    path.write_bytes((json.dumps(FIRST).encode() + b"\n") * (LIMIT // 40))
    os.mkfifo(pipe)
    for odd in (path, pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(StatepipeError):
            read_journal(str(odd))


# --- another process at a socket in the runtime folder

RUNNING = {"pid": 7, "verb": "migrate", "what": "x", "seconds": 2.5, "bytes_in": 7, "bytes_out": 8}
RUNNING |= {"stages": [{"name": "watch", "in": 7, "out": 8}], "phase": "precopy"}
RUNNING |= {"migration": {"ram": {"remaining": 1, "total": 2, "dirty-sync-count": 3}, "expected-downtime": 4}}
TUNNEL = RUNNING | {"connections": 1, "connections_total": 2, "links": 1}


@contextmanager
def at_the_socket(runtime: Path, say: Callable[[socket.socket], object]) -> Iterator[str]:
    """Somebody who listens under a job's name and says to each what `say` does."""
    folder = open_folder(str(runtime))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"/proc/self/fd/{folder}/4711")
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    try:
                        say(connection)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield "4711"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            os.close(folder)


ANSWERS: list[bytes] = [
    *(b"\n", b"hello\n", b"[]\n", b"{}\n", b'{"ok": NaN}\n', b"[" * 4000 + b"\n", b"\xff\n", b'{"ok": {}}\n'),
    *(b'{"error": [], "hint": 7}\n', b'{"error": "x", "hint": {}}\n', b'{"ok": ' + b"9" * 5000 + b"}\n"),
    *(b"x" * (ANSWER_LIMIT + 1), b'{"ok": {"pid": 1}}\n', b'{"ok": [[[]]]}\n', b'{"ok": null, "ok": 1}\n'),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=[repr(answer[:30]) for answer in ANSWERS])
def test_an_odd_answer_is_told_of_and_hides_no_others(runtime: Path, answer: bytes) -> None:
    with at_the_socket(runtime, lambda connection: connection.sendall(answer)) as job:
        found = find_jobs()
        assert [(each.id, each.status) for each in found] == [(job, None)]
        assert "gives an answer that this version does not know" in table(found)
        if b"ok" not in answer or b"NaN" in answer or b"999" in answer:
            for ask in (lambda: set_rate(job, 1), lambda: cancel(job)):
                with pytest.raises(StatepipeError, match="4711 gave an answer"):
                    ask()


def test_an_answer_of_a_gigabyte_is_not_read(runtime: Path) -> None:
    sent: list[int] = []

    def pour(connection: socket.socket) -> None:
        for _ in range(1024):
            connection.sendall(bytes(1 << 20))
            sent.append(1 << 20)

    with at_the_socket(runtime, pour):
        assert [each.status for each in find_jobs()] == [None]
    assert sum(sent) <= 4 * ANSWER_LIMIT


def test_odd_statuses_are_shown_or_told_of(runtime: Path) -> None:
    odd: list[Any] = [*variants(RUNNING), *variants(TUNNEL)]
    turn = iter(odd)

    def say(connection: socket.socket) -> None:
        connection.sendall(json.dumps({"ok": next(turn)}).encode() + b"\n")

    with at_the_socket(runtime, say):
        for _ in odd:
            assert table(find_jobs()).isprintable() is False  # lines, and nothing that raises
    shown = table([Found("1", RUNNING)])
    assert "precopy" in shown and "watch" not in shown  # no stage that no user has asked for
    assert "1 connections" in table([Found("1", TUNNEL)])
    assert len(ODD) > 20
