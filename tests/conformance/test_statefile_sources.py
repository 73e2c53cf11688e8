"""What load, verify-state and inspect make of files that are no state file, or that cannot be read."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.stages.codec import compress
from statepipe.state.verify import verify_state
from tests.qemu.harness import run_statepipe, statepipe_command
from tests.statefiles import NO_KEYS, cut, load, noisy_stream, state_file
from tests.unit.formats.test_statefile_damage import FILE as WHOLE
from tests.unit.formats.test_statefile_damage import flipped, swap_frames

STREAM = noisy_stream()
FILE = state_file(cut(STREAM, 3))
END = STREAM.rindex(b"\0\x06\0\0")

VERBS = ["load", "verify-state", "inspect"]
POISON = b"!"


def zstd(data: bytes, *options: str) -> bytes:
    return subprocess.run(["zstd", "-cq", *options], input=data, capture_output=True, check=True).stdout


FOREIGN: dict[str, Callable[[], bytes]] = {
    "raw": lambda: STREAM,
    "zst": lambda: zstd(STREAM),
    "zst without checksum": lambda: zstd(STREAM, "--no-check"),
    "zst in two frames": lambda: zstd(STREAM[:9000]) + zstd(STREAM[9000:]),
    "gz": lambda: gzip.compress(STREAM),
    "gz in two members": lambda: gzip.compress(STREAM[:9000]) + gzip.compress(STREAM[9000:]),
    "bz2": lambda: bz2.compress(STREAM),
    "xz": lambda: lzma.compress(STREAM),
    "lz4": lambda: lz4.frame.compress(STREAM, content_checksum=True),
    "statepipe compress": lambda: b"".join(compress()(iter([STREAM]))),
}


@pytest.fixture(params=FOREIGN.values(), ids=FOREIGN.keys())
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "stream"
    path.write_bytes(request.param())
    return path


def test_a_stream_of_other_making_is_loaded_and_its_doubts_are_said(foreign: Path) -> None:
    loaded = load(foreign)
    assert loaded.error is None and loaded.data == STREAM
    assert loaded.doubts is not None and "not a state file" in loaded.doubts
    facts = verify_state(str(foreign), NO_KEYS)
    assert facts["format"].startswith("migration stream, ")
    assert facts["digest"] == (b"statepipe" in foreign.read_bytes()[:64])


def test_the_command_warns_of_a_stream_of_other_making(foreign: Path) -> None:
    done = run_statepipe("load", foreign, text=False)
    assert (done.returncode, done.stdout) == (0, STREAM)
    assert done.stderr.startswith(b"statepipe: load: warning: ")


def test_a_cut_stream_of_other_making_never_ends(foreign: Path) -> None:
    data = foreign.read_bytes()
    for size in range(4, len(data), max(len(data) // 150, 1)):
        foreign.write_bytes(data[:size])
        loaded = load(foreign)
        assert isinstance(loaded.error, TruncatedError), (size, loaded.error)
        assert STREAM.startswith(loaded.data) and len(loaded.data) <= END


@pytest.mark.parametrize("form", ["raw", "zst", "gz"])
def test_a_stream_of_other_making_with_more_behind_it_never_ends(tmp_path: Path, form: str) -> None:
    path = tmp_path / "stream"
    more = STREAM + bytes(5000)
    path.write_bytes({"raw": more, "zst": zstd(more), "gz": gzip.compress(more)}[form])
    loaded = load(path)
    assert isinstance(loaded.error, IntegrityError) and "continues" in str(loaded.error)
    assert len(loaded.data) <= END


NOT_OURS: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"Q",
    "random bytes": bytes(range(7, 256)) * 100,
    "text": b"#!/bin/sh\n",
    "qcow2": b"QFI\xfb" + bytes(500),
    "libvirt's save image": b"LibvirtQemudSave" + bytes(76) + b"<domain/>\0" + bytes(1000) + STREAM,
    "libvirt's partial image": b"LibvirtQemudPart" + bytes(76),
    "zeros": bytes(8192),
    "zst of something else": zstd(b"a letter" * 1000),
    "gz of something else": gzip.compress(b"a letter" * 1000),
    "gz of nothing": gzip.compress(b""),
    "zst of nothing": zstd(b""),
    "plain compress of something else": b"".join(compress()(iter([b"a letter"]))),
    "zstd's magic alone": b"\x28\xb5\x2f\xfd",
    "gzip's magic alone": b"\x1f\x8b",
    "bzip2's magic alone": b"BZh",
    "xz of something else": lzma.compress(b"a letter" * 1000),
    "lz4 of nothing": lz4.frame.compress(b""),
    "an older stream": b"QEVM\0\0\0\x02" + bytes(100),
}


@pytest.mark.parametrize("data", NOT_OURS.values(), ids=NOT_OURS.keys())
def test_what_is_no_saved_state_is_damage_and_only_poison_leaves(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        verify_state(str(path), NO_KEYS)
    loaded = load(path)
    assert isinstance(loaded.error, IntegrityError) and loaded.error.offset is not None
    assert loaded.data == b""


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["empty", "random bytes", "libvirt's save image", "gz of something else"])
def test_the_command_exits_with_3_for_what_is_no_saved_state(tmp_path: Path, verb: str, name: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(NOT_OURS[name])
    done = run_statepipe(verb, path, text=False)
    assert done.returncode == 3
    assert done.stdout == (POISON if verb == "load" else b"")
    assert done.stderr.splitlines()[0].startswith(f"statepipe: {verb}: ".encode())
    assert b"Traceback" not in done.stderr


DAMAGED = [
    *(WHOLE[:-1], WHOLE[: len(WHOLE) // 2], flipped(WHOLE, 200 * 8), flipped(WHOLE, len(WHOLE) * 4), swap_frames(2, 3)),
]


@pytest.mark.parametrize("verb", ["load", "verify-state"])
@pytest.mark.parametrize("data", DAMAGED)
def test_the_command_exits_with_3_and_says_where(tmp_path: Path, verb: str, data: bytes) -> None:
    path = tmp_path / "state"
    path.write_bytes(data)
    done = run_statepipe(verb, path, text=False)
    said = done.stderr.decode()
    assert done.returncode == 3, said
    assert said.startswith(f"statepipe: {verb}: ") and "error: " in said and "byte " in said
    assert "Traceback" not in said and len(said.splitlines()) <= 2
    if verb == "verify-state":
        assert done.stdout == b""
    assert b"\0\x06\0\0" not in done.stdout


def test_a_failed_load_leaves_a_file_as_it_is(tmp_path: Path) -> None:
    """The poison is for a QEMU behind a pipe."""
    (tmp_path / "file").write_bytes(b"no state")
    with (tmp_path / "out").open("wb") as out:
        done = run_statepipe("load", tmp_path / "file", capture_output=False, stdout=out, stderr=subprocess.DEVNULL)
    assert done.returncode == 3
    assert (tmp_path / "out").read_bytes() == b""


def test_a_failure_is_told_even_if_the_reader_of_its_poison_is_gone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no state")
    read, write = os.pipe()
    os.close(read)
    try:
        done = run_statepipe("load", tmp_path / "file", capture_output=False, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert done.returncode == 3
    assert "is not a saved state" in done.stderr


# --- what cannot be read


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_file_is_a_foreseen_failure(tmp_path: Path, verb: str) -> None:
    done = run_statepipe(verb, tmp_path / "none")
    assert done.returncode == 1
    assert "No such file or directory" in done.stderr and done.stdout == (POISON.decode() if verb == "load" else "")


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_is_a_foreseen_failure(tmp_path: Path, verb: str) -> None:
    done = run_statepipe(verb, tmp_path)
    assert done.returncode == 1
    assert "is not a regular file" in done.stderr


def test_a_pipe_is_a_foreseen_failure_and_not_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = run_statepipe("load", tmp_path / "pipe", timeout=30)
    assert done.returncode == 1
    assert "is not a regular file" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_of_another_user_is_a_foreseen_failure(tmp_path: Path, verb: str) -> None:
    path = tmp_path / "state"
    path.write_bytes(FILE)
    path.chmod(0)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*drop, *statepipe_command(), verb, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "Permission denied" in done.stderr and "permissions" in done.stderr


def test_no_file_at_all_is_a_usage_error() -> None:
    assert run_statepipe("load").returncode == 2
