"""Encryption beside age, and beside the pipes that people build with it and with gpg."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests import agefiles
from tests.bench.measure import Job
from tests.bench.pairs import ZSTD, Bench, pair, statepipe
from tests.bench.table import Row

KEY = str(agefiles.KEY_FILE)
AGE = ("age", "-r", agefiles.RECIPIENT)


def piped(name: str, script: str, size: int, source: Path) -> Job:
    """Several programs joined by a shell; one that is missing is named instead."""
    tools = [part.split()[0] for part in script.split(" | ")]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return Job(name, (missing[0],) if missing else ("/bin/sh", "-c", script), size, source)


def encrypt(bench: Bench, target: float = 1.3) -> list[Row]:
    """For one X25519 key."""
    plain, size = bench.inputs.plain, bench.inputs.size
    ours = Job("statepipe", statepipe("encrypt", "-r", agefiles.RECIPIENT), size, plain)
    return [pair(bench, "encrypt", ours, Job("age -r", AGE, size, plain), target)]


def decrypt(bench: Bench) -> list[Row]:
    """Both the file that we made."""
    size = bench.inputs.size
    source = bench.inputs.compressed("ours.age", statepipe("encrypt", "-r", agefiles.RECIPIENT))
    ours = Job("statepipe", statepipe("decrypt", "-i", KEY), size, source)
    return [pair(bench, "decrypt", ours, Job("age -d", ("age", "-d", "-i", KEY), size, source), 1.5)]


def sealed(bench: Bench) -> list[Row]:
    """Compressed and encrypted, and back; gzip and gpg get a part, and are compared by the byte."""
    inputs = bench.inputs
    words = ("pipe", "compress:zstd:1", f"encrypt:{agefiles.RECIPIENT}")
    there = Job("statepipe", statepipe(*words), inputs.size, inputs.plain)
    back = Job(
        "statepipe",
        statepipe("pipe", f"decrypt:i={KEY}", "decompress"),
        inputs.size,
        inputs.compressed("ours.zst.age", statepipe(*words)),
    )
    return [
        pair(bench, "compress:zstd:1 encrypt", there, _zstd_and_age(bench), 1.3),
        pair(bench, "compress:zstd:1 encrypt", there, _gzip_and_gpg(bench), 20),
        pair(bench, "decrypt decompress", back, _age_and_unzstd(bench), 1.6),
    ]


def _zstd_and_age(bench: Bench) -> Job:
    return piped("zstd -T0 -1 | age", f"{' '.join(ZSTD)} | {' '.join(AGE)}", bench.inputs.size, bench.inputs.plain)


def _age_and_unzstd(bench: Bench) -> Job:
    inputs = bench.inputs
    if shutil.which("age") is None or shutil.which("zstd") is None:
        return piped("age -d | zstd -d", "age | zstd", inputs.size, inputs.plain)
    source = inputs.compressed("theirs.zst.age", _zstd_and_age(bench).command)
    return piped("age -d | zstd -d", f"age -d -i {KEY} | zstd -q -d -c", inputs.size, source)


def _gzip_and_gpg(bench: Bench) -> Job:
    """With a passphrase: the bytes are encrypted in the same way as for a key."""
    home, part = bench.inputs.folder / "gnupg", bench.inputs.part
    home.mkdir(mode=0o700, exist_ok=True)
    (home / "pass").write_text("a passphrase\n")
    (home / "pass").chmod(0o600)
    gpg = f"gpg -q --batch --homedir {home} --pinentry-mode loopback --passphrase-file {home}/pass -c"
    size = part.stat().st_size
    return piped(f"gzip | gpg of {size / 1e6:.0f} MB", f"gzip -c | {gpg}", size, part)


def openpgp(bench: Bench) -> list[Row]:
    """gpg with us around it, beside gpg alone: what we add should cost nothing."""
    home, size = _home(bench), bench.inputs.size
    if home is None:
        return []
    there = ("env", f"GNUPGHOME={home}")
    plain, source = bench.inputs.plain, bench.inputs.compressed("peer.gpg", (*there, *GPG))
    return [
        pair(
            bench,
            "encrypt gpg:KEY",
            Job("statepipe", (*there, *statepipe("pipe", f"encrypt:gpg:{OWNER}")), size, plain),
            Job("gpg -z0 -e", (*there, *GPG), size, plain),
            0.95,
        ),
        pair(
            bench,
            "decrypt, OpenPGP",
            Job("statepipe", (*there, *statepipe("decrypt")), size, source),
            Job("gpg -d", (*there, "gpg", "-q", "--batch", "-d"), size, source),
            0.95,
        ),
    ]


OWNER = "bench@example.org"

GPG = ("gpg", "-q", "--batch", "-z", "0", "-r", OWNER, "-e")


def _home(bench: Bench) -> Path | None:
    """A home of GnuPG's with one key; its agent ends by itself when the folder goes."""
    home = bench.inputs.folder / "keys"
    if shutil.which("gpg") is None:
        return None
    if not home.exists():
        home.mkdir(mode=0o700)
        command = ["gpg", "-q", "--homedir", str(home), "--batch", "--passphrase", "", "--quick-generate-key", OWNER]
        subprocess.run([*command, "future-default", "default", "never"], check=True)
    return home
