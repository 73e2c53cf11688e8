"""Encrypted states: read at both ends as plain ones are, and not a byte of them that is not proved."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from statepipe.ends.source import FileSource
from statepipe.errors import IntegrityError, NoKeyError, TruncatedError
from statepipe.formats.age.envelope import Identity
from statepipe.formats.age.x25519 import X25519Identity
from statepipe.stages.agekeys import read_identities
from statepipe.state.file import Keys
from statepipe.state.inspect import inspect
from statepipe.state.sealed import sealed_by_age
from statepipe.state.verify import verify_state
from tests.agefiles import KEY_FILE, sealed
from tests.conformance.running import run
from tests.statefiles import cut, load, noisy_stream, state_file, unasked
from tests.world import world

STREAM = noisy_stream()
PLAIN = state_file(cut(STREAM, 8))
END = STREAM.rindex(b"\0\x06\0\0")


def my_identities() -> Sequence[Identity]:
    return read_identities(str(KEY_FILE), world())


OURS = Keys(my_identities, unasked)
STRANGERS = Keys(lambda: [X25519Identity.generate()], unasked)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "state.age"
    path.write_bytes(sealed(PLAIN))
    return path


def armored(path: Path) -> Path:
    if shutil.which("age") is None:
        pytest.skip("age is not installed: tools/setup test")
    text = path.with_suffix(".asc")
    plain = run("decrypt", "-i", str(KEY_FILE), data=path.read_bytes()).stdout
    recipient = run("keygen", "-y", str(KEY_FILE)).stdout.decode().strip()
    text.write_bytes(subprocess.run(["age", "-a", "-r", recipient], input=plain, capture_output=True).stdout)
    return text


def test_it_loads_as_a_plain_one_does(file: Path) -> None:
    loaded = load(file, keys=OURS)
    assert (loaded.error, loaded.data) == (None, STREAM)


def test_an_armored_one_is_decrypted_twice_and_loads(file: Path) -> None:
    loaded = load(armored(file), keys=OURS)
    assert (loaded.error, loaded.data) == (None, STREAM)


def test_inspect_and_verify_say_that_it_is_encrypted(file: Path) -> None:
    facts = inspect(str(file), OURS)
    assert facts["format"] == "statepipe state, encrypted (age)"
    assert (facts["size"], facts["trailer"]["bytes"]) == (file.stat().st_size, len(STREAM))
    assert verify_state(str(file), OURS)["digest"]
    assert "(age, armored)" in verify_state(str(armored(file)), OURS)["format"]


def test_no_more_is_read_than_is_asked_for(tmp_path: Path) -> None:
    """A byte in the middle of 20 MB costs a chunk there, one at the end and the header."""
    plain = random.Random(3).randbytes(20 << 20)
    path = tmp_path / "large.age"
    path.write_bytes(sealed(plain))

    class Counting(FileSource):
        taken = 0

        def tail(self, offset: int, size: int) -> bytes:
            data = super().tail(offset, size)
            self.taken += len(data)
            return data

    file = Counting(str(path))
    with sealed_by_age(file, "age", my_identities()) as source:
        assert source.tail(10 << 20, 5) == plain[10 << 20 :][:5]
        assert source.size() == len(plain)
    assert file.taken <= (4 << 10) + 2 * ((64 << 10) + 16)


def test_a_stranger_gets_nothing(file: Path) -> None:
    for path in (file, armored(file)):
        loaded = load(path, keys=STRANGERS)
        assert isinstance(loaded.error, NoKeyError) and not loaded.data
        for look in (inspect, verify_state):
            with pytest.raises(NoKeyError):
                look(str(path), STRANGERS)


def test_every_cut_is_found_before_a_byte_leaves(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for size in {*range(0, 400, 7), *range(400, len(whole), 19973), len(whole) - 1}:
        cut_file = tmp_path / "cut"
        cut_file.write_bytes(whole[:size])
        loaded = load(cut_file, keys=OURS)
        assert isinstance(loaded.error, IntegrityError) and not loaded.data, size


def test_flipped_bits_never_let_the_end_out(file: Path, tmp_path: Path) -> None:
    chance, whole = random.Random(11), file.read_bytes()
    for _ in range(60):
        at, bit = chance.randrange(len(whole)), chance.randrange(8)
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        (tmp_path / "flipped").write_bytes(damaged)
        loaded = load(tmp_path / "flipped", keys=OURS)
        assert isinstance(loaded.error, IntegrityError | NoKeyError), (at, bit)
        assert loaded.data == STREAM[: len(loaded.data)] and len(loaded.data) <= END, (at, bit)


def test_an_armored_one_that_was_cut_lets_nothing_out(file: Path, tmp_path: Path) -> None:
    whole = armored(file).read_bytes()
    for size in (40, 1000, len(whole) // 2, len(whole) - 20):
        (tmp_path / "cut").write_bytes(whole[:size])
        loaded = load(tmp_path / "cut", keys=OURS)
        assert isinstance(loaded.error, IntegrityError) and not loaded.data


def test_a_whole_age_file_around_half_a_state_is_no_state(tmp_path: Path) -> None:
    (tmp_path / "half.age").write_bytes(sealed(PLAIN[: len(PLAIN) // 2]))
    loaded = load(tmp_path / "half.age", keys=OURS)
    assert isinstance(loaded.error, TruncatedError) and not loaded.data


# --- as commands


def save(path: Path, *arguments: str) -> bytes:
    done = run("save", *arguments, str(path), data=STREAM)
    assert done.returncode == 0, done.stderr
    return path.read_bytes()


def recipient() -> str:
    return run("keygen", "-y", str(KEY_FILE)).stdout.decode().strip()


@pytest.mark.parametrize("way", ["option", "word", "file", "configuration", "environment"])
def test_every_way_to_say_who_can_open(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, key = tmp_path / "state", recipient()
    (tmp_path / "keys").write_text(f"# mine\n{key}\n")
    (tmp_path / "config.toml").write_text(f'recipients = ["{key}"]\nidentities = ["{KEY_FILE}"]\ncodec = "zstd:3"\n')
    arguments = {"option": ["-r", key], "word": [f"encrypt:{key}"], "file": ["-R", str(tmp_path / "keys")]}
    if way == "environment":
        monkeypatch.setenv("STATEPIPE_RECIPIENTS", key)
    if way == "configuration":
        monkeypatch.setenv("STATEPIPE_CONFIG", str(tmp_path / "config.toml"))
    assert save(path, *arguments.get(way, [])).startswith(b"age-encryption.org/v1\n")
    assert path.stat().st_mode & 0o777 == 0o600
    identity = [] if way == "configuration" else ["-i", str(KEY_FILE)]
    assert run("load", *identity, str(path)).stdout == STREAM
    done = run("inspect", *identity, str(path))
    assert b"encrypted (age)" in done.stdout
    if way == "configuration":
        assert not save(path, "--plain").startswith(b"age")


def test_standard_tools_read_it(tmp_path: Path) -> None:
    if shutil.which("age") is None or shutil.which("zstd") is None:
        pytest.skip("age or zstd is not installed: tools/setup test")
    save(tmp_path / "state", "-r", recipient())
    pipe = f"age -d -i {KEY_FILE} {tmp_path}/state | zstd -dc"
    assert subprocess.run(["/bin/sh", "-c", pipe], capture_output=True).stdout == STREAM


SLIPS = [
    (["-r", "age1x", "--plain"], 2, "encrypted once"),
    (["-r", "age1x", "encrypt:age1y"], 2, "encrypted once"),
    (["encrypt:armor,age1x"], 2, "cannot be armored"),
    (["-r", "age1x"], 2, "age1x"),
    (["encrypt"], 2, "needs a recipient"),
]


@pytest.mark.parametrize(("arguments", "status", "words"), SLIPS)
def test_a_slip_saves_nothing(tmp_path: Path, arguments: list[str], status: int, words: str) -> None:
    done = run("save", *arguments, str(tmp_path / "state"), data=STREAM)
    assert (done.returncode, words in done.stderr.decode()) == (status, True), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["load", "inspect", "verify-state"])
def test_without_a_key_the_file_is_named_and_the_way_out(file: Path, verb: str) -> None:
    done = run(verb, str(file))
    assert (done.returncode, done.stdout) == (4, b"!" if verb == "load" else b"")
    assert b"is encrypted, and no key was given" in done.stderr and b"hint: give -i FILE" in done.stderr


def test_a_plain_file_asks_for_no_key(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(PLAIN)
    done = run("inspect", "-i", str(tmp_path / "no such key"), str(tmp_path / "state"))
    assert done.returncode == 0
