"""The command as a process: help, exit codes, results that nobody takes, what a start does not load, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from statepipe.cli.verbs import VERBS
from tests.conformance.running import STATEPIPE, STREAM, assert_one_error, run, started, wait_until_read


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A saved state."""
    path = tmp_path / "state"
    assert run("save", str(path), data=STREAM).returncode == 0
    return path


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_every_verb_has_help(verb: str) -> None:
    done = run(verb, "--help")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(f"usage: statepipe {verb}".encode())


FORESEEN = [
    (["verify", "--from", "/nonexistent"], 1),
    (["load", "/nonexistent"], 1),
    (["load", "/"], 1),
    (["load", "/dev/null"], 1),
    (["inspect", "/nonexistent"], 1),
    (["verify-state", "/nonexistent"], 1),
    (["save", "/nonexistent/f"], 1),
    (["save", "/dev/null"], 1),
    (["decompress"], 3),
    (["verify", "00" * 32], 3),
    (["pipe", "compress", "decompress", "decompress"], 3),
    (["save", "--qmp", "/nonexistent", "f"], 6),
]


@pytest.mark.parametrize(("line", "code"), FORESEEN, ids=str)
def test_the_exit_code_says_what_it_was(line: list[str], code: int, tmp_path: Path) -> None:
    done = run(*line, data=b"neither this nor that", cwd=tmp_path)
    assert done.returncode == code
    verb = line[0] if line[0] != "pipe" else "pipe: decompress"
    assert_one_error(done.stderr, verb)
    assert done.stdout == (b"!" if line[0] == "load" else b"")
    assert not os.listdir(tmp_path)


def test_a_name_cannot_speak_to_the_terminal(tmp_path: Path, state: Path) -> None:
    """Control characters, invalid bytes and reversed text of a file's name come out as question marks."""
    bad = b"\x1b[31m\r\x07\n\xff\xe2\x80\xae"
    name = os.fsencode(tmp_path) + b"/" + bad
    error = run("load", os.fsdecode(name + b"none")).stderr
    os.rename(state, name)
    for verb in ("inspect", "verify-state"):
        done = run(verb, os.fsdecode(name))
        assert done.returncode == 0
        for text in (done.stdout, error):
            assert not any(part in text for part in (b"\x1b", b"\r", b"\x07", b"\xff", b"\xe2\x80\xae"))
            assert b"?[31m???" in text
        assert os.fsencode(json.loads(run(verb, os.fsdecode(name), "--json").stdout)["file"]) == name


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
def test_it_speaks_in_any_locale(locale: str, state: Path) -> None:
    environment = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for line in (["--help"], ["inspect", str(state)], ["compress", "--help"]):
        done = run(*line, env=environment)
        assert (done.returncode, done.stderr) == (0, b"")


RESULTS = [["--help"], ["--version"], ["compress", "--help"], ["inspect", "STATE"], ["verify-state", "STATE", "--json"]]


@pytest.mark.parametrize("line", RESULTS, ids=" ".join)
def test_a_result_that_nobody_takes_is_no_success(line: list[str], state: Path) -> None:
    line = [str(state) if word == "STATE" else word for word in line]
    with open("/dev/full", "wb") as full:
        done = run(*line, stdout=full)
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    assert lines[0].endswith("error: cannot write standard output: No space left on device") and len(lines) == 2
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as gone:
        done = run(*line, stdout=gone)
    assert (done.returncode, done.stderr) == (141, b"")


def test_where_no_passphrase_can_be_asked_for_the_option_without_is_named() -> None:
    words = [*STATEPIPE, "encrypt", "-p"]
    done = subprocess.run(words, input=b"", capture_output=True, start_new_session=True, timeout=30)
    assert done.returncode == 1 and b"hint: give it in a file that only you can read: --passphrase-file" in done.stderr


# ---- what a start loads


HEAVY = {"asyncio", "qemu", "cryptography", "gnupg", "tqdm", "ssl", "subprocess", "concurrent", "multiprocessing"}

WATCHED = """
import os, sys
def leave(code):
    sys.stderr.write(" ".join(sorted({name.partition(".")[0] for name in sys.modules})))
    sys.stderr.flush()
    exit_(code)
exit_, os._exit = os._exit, leave
from statepipe.cli.main import entry
entry()
"""


def loaded(*line: str, data: bytes = b"") -> set[str]:
    done = subprocess.run([sys.executable, "-c", WATCHED, *line], input=data, capture_output=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.decode().splitlines()[-1].split())


CODECS = [["compress", codec] for codec in ("gzip", "bzip2", "xz", "lz4")]
CHEAP = [["compress"], *CODECS, ["pipe", "compress", "decompress"], ["--version"], ["--help"], ["save", "FILE"]]


@pytest.mark.parametrize("line", CHEAP, ids=" ".join)
def test_a_start_loads_nothing_heavy(line: list[str], tmp_path: Path) -> None:
    line = [str(tmp_path / "f") if word == "FILE" else word for word in line]
    allowed = {"subprocess"} if line[0] == "save" else set()
    assert not loaded(*line, data=STREAM) & HEAVY - allowed


def test_a_codec_does_not_load_the_others() -> None:
    """bz2 and lzma are not asked for: shutil brings them."""
    native = {"zstandard", "deflate", "isal", "lz4", "xxhash"}
    own = {"zstd": {"zstandard"}, "gzip": {"deflate", "isal"}, "xz": set(), "lz4": {"lz4", "xxhash"}}
    for codec, libraries in own.items():
        assert loaded("compress", codec) & native == libraries


def test_help_needs_no_parser() -> None:
    assert not loaded("--help") & {"argparse", "zstandard", "blake3", "hashlib"}


def test_the_check_sees_what_is_loaded() -> None:
    assert "zstandard" in loaded("compress") and "argparse" in loaded("compress", "--help")


# ---- the processes around


def test_a_signal_at_any_moment_leaves_no_traceback() -> None:
    """From the first byte read on. Before, Python itself decides what SIGINT does."""
    for count in (1, 1000, 300_000):
        with started([*STATEPIPE, "pipe", "compress", "decompress", "checksum"], stdout=subprocess.DEVNULL) as process:
            assert process.stdin and process.stderr
            process.stdin.write(bytes(count))
            wait_until_read(process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
            assert_one_error(process.stderr.read(), "pipe", "stopped by SIGTERM")


def test_standard_descriptors_that_are_closed_are_not_given_to_files(tmp_path: Path) -> None:
    """Messages for people and QEMU, which go to descriptors 1 and 2, must not get into the state file."""
    stream = tmp_path / "stream"
    stream.write_bytes(STREAM)
    path = tmp_path / "state"
    with open(stream, "rb") as source:
        shell = ["/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh", *STATEPIPE, "save", str(path)]
        subprocess.run(shell, stdin=source, check=False)
    assert run("verify-state", str(path)).returncode == 0


def test_several_files_are_each_verified_and_told_of(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.write_bytes(STREAM)
    cut.write_bytes(STREAM[:-1])
    done = run("verify-state", str(whole), str(cut), str(whole))
    assert done.returncode == 3
    assert [line.split(": ")[0] for line in done.stdout.decode().splitlines()] == [str(whole)] * 2
    assert f"statepipe: verify-state: error: {cut}: " in done.stderr.decode()
    assert run("verify-state", str(whole), str(whole)).returncode == 0
    assert run("verify-state", stdin=subprocess.DEVNULL).returncode == 2


def test_a_slip_in_an_incoming_exec_command_still_ends_the_qemu_that_waits() -> None:
    done = subprocess.run([*STATEPIPE, "load", "--forc", "file"], capture_output=True, timeout=30)
    assert done.returncode == 2
    assert done.stdout == b"!"


@pytest.mark.parametrize("tail", (["--forc", "--", "qemu"], ["--forc", "--qmp", "socket"]))
def test_a_slip_where_no_qemu_waits_on_standard_output_writes_nothing_there(tail: list[str]) -> None:
    done = subprocess.run([*STATEPIPE, "load", "file", *tail], capture_output=True, timeout=30)
    assert done.returncode == 2
    assert done.stdout == b""


FORGOTTEN = {
    ("save", "--qmp", "/none", "progress"): "./progress",
    ("save", "checksum", "zstd:3"): "./zstd:3",
    ("save", "tee:copy"): "./tee:copy",
    ("send", "compress"): "tls://compress",
    ("recv", "decompress"): "tls://decompress",
    ("migrate", "--qmp", "/none", "zstd:auto"): "tls://zstd:auto",
}


@pytest.mark.parametrize("words", FORGOTTEN, ids=" ".join)
def test_a_word_takes_no_forgotten_names_place(words: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*words, data=STREAM, cwd=tmp_path)
    assert done.returncode == 2
    assert_one_error(done.stderr, words[0], f"'{words[-1]}' is a filter, and no ")
    assert FORGOTTEN[words] in done.stderr.decode().splitlines()[1]
    assert os.listdir(tmp_path) == []


def test_a_file_may_have_a_words_name(tmp_path: Path) -> None:
    for name in "./progress", "progress":  # which is there by then
        assert run("save", name, data=STREAM, cwd=tmp_path).returncode == 0
    assert os.listdir(tmp_path) == ["progress"]


# ---- what is no state


@pytest.mark.parametrize("verb", ["inspect", "verify-state", "load"])
def test_a_file_that_is_no_state_is_told_so(tmp_path: Path, verb: str) -> None:
    (tmp_path / "f").write_bytes(b"QFI\xfb\0\0\0\3")
    done = run(verb, str(tmp_path / "f"))
    assert done.returncode == 3
    assert f"{tmp_path}/f is not a saved state: it begins like a disk image in qcow2 (".encode() in done.stderr


def test_what_is_in_a_compressed_file_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(run("compress", "gzip", data=b"root:x:0:0:root").stdout)
    done = run("inspect", str(tmp_path / "f"))
    assert done.returncode == 3
    assert b"not a QEMU migration stream: it begins with the text 'root:x:0:0:root' (" in done.stderr


def test_a_save_that_has_no_guest_is_told_what_it_needs(tmp_path: Path) -> None:
    """A script's standard input is /dev/null, or a pipe that ends at once."""
    with open("/dev/null", "rb") as nothing:
        done = run("save", str(tmp_path / "f"), stdin=nothing)
    assert done.returncode == 2 and b"from a script or a shell, add --qmp SOCKET" in done.stderr
    done = run("save", str(tmp_path / "f"))
    assert (
        done.returncode == 3 and b"hint: no bytes arrived: QEMU has not begun; to save a running guest" in done.stderr
    )
    assert not list(tmp_path.iterdir())
