"""progress: figures for people, and never in the way of the data."""

from __future__ import annotations

import io
import os
import threading

import pytest

from statepipe.stage import FLUSH
from statepipe.stages.progress import progress


def test_it_shows_name_bytes_and_total() -> None:
    out = io.StringIO()
    buffers = [bytes(1024), FLUSH, bytes(3072)]
    assert list(progress(out, 4096, "guest")(iter(buffers))) == buffers
    last = out.getvalue().split("\r")[-1]
    assert last.startswith("guest: 100%") and "4.00k/4.00k" in last


def test_without_a_size_there_is_no_percentage() -> None:
    out = io.StringIO()
    list(progress(out)(iter([bytes(2048)])))
    assert "2.00kB" in out.getvalue() and "%" not in out.getvalue()


def test_it_starts_no_thread() -> None:
    before = set(threading.enumerate())
    flow = progress(io.StringIO())(iter([b"abc", b"def"]))
    next(flow)
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("reader", ["gone", "full"])
def test_nobody_to_look_at_it_does_not_stop_the_data(reader: str) -> None:
    if reader == "full":
        writing = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, writing = os.pipe()
        os.close(reading)
    out = open(writing, "w", buffering=1)  # noqa: SIM115 (its close fails)
    try:
        assert list(progress(out)(iter([b"abc", b"def"]))) == [b"abc", b"def"]
    finally:
        os.dup2(null := os.open(os.devnull, os.O_WRONLY), writing)
        os.close(null)
        out.close()
