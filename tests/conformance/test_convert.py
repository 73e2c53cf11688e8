"""The command convert: its words and options, its messages, and what it refuses."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from statepipe.formats.libvirtimage import ZSTD, beginning, parse_header
from tests.agefiles import KEY_FILE, RECIPIENT
from tests.conformance.running import STATEPIPE, run
from tests.statefiles import DOMAIN, cut, noisy_stream, state_file

STREAM = noisy_stream()
IMAGE = beginning(DOMAIN) + STREAM


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "web.save"
    path.write_bytes(IMAGE)
    return path


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new"


def test_there_and_back(image: Path, new: Path) -> None:
    done = run("convert", "checksum:blake3", str(image), str(new))
    assert done.returncode == 0
    digest, *lines = done.stderr.decode().splitlines()
    assert len(digest.split()[0]) == 64
    assert lines[0].startswith(f"statepipe: convert: {new}: 28.5 KiB of state in ")
    assert lines[0].endswith("; the domain web\xe41") and "warning" in lines[1] and len(lines) == 2
    back = new.with_name("back")
    assert run("convert", "--to-image", str(new), str(back)).returncode == 0
    assert back.read_bytes() == IMAGE and stat.S_IMODE(back.stat().st_mode) == 0o600


def test_words_and_recipients_are_those_of_save(image: Path, new: Path) -> None:
    assert run("convert", "compress:zstd:19", "-r", RECIPIENT, str(image), str(new)).returncode == 0
    assert new.read_bytes().startswith(b"age-encryption.org/v1")
    key = ["-i", str(KEY_FILE)]
    shown = run("inspect", "--json", *key, str(new)).stdout
    assert b'"compress:zstd:19",\n      "encrypt"' in shown and b'"name": "web\\u00e41"' in shown
    done = run("convert", *key, "--to-image", str(new), str(new.with_name("back")))
    assert done.returncode == 0 and new.with_name("back").read_bytes() == IMAGE
    assert run("convert", "--to-image", str(new), str(new.with_name("no"))).returncode == 4


def test_what_zstd_reads_of_an_image_is_the_stream(image: Path, new: Path) -> None:
    assert run("convert", "--to-image=zstd", str(image), str(new)).returncode == 0
    header = parse_header(new.read_bytes())
    assert header.format == ZSTD
    done = subprocess.run(["zstd", "-dc"], input=new.read_bytes()[header.payload_at :], capture_output=True, check=True)
    assert done.stdout == STREAM


def test_pipes_at_both_ends(image: Path) -> None:
    done = run("convert", "-", "-", data=image.read_bytes())
    assert done.returncode == 0
    again = run("convert", "--to-image", "-", "-", data=done.stdout)
    assert again.returncode == 0 and again.stdout == IMAGE


def test_a_managed_save_is_found_by_the_domains_name(image: Path, new: Path, tmp_path: Path) -> None:
    folder = tmp_path / "libvirt/qemu/save"
    folder.mkdir(parents=True)
    image.rename(folder / "web1.save")
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "STATEPIPE_CONFIG": "/dev/null"}
    words = ["convert", "--domain", "web1", "--connect", "qemu:///session"]
    assert run(*words, "checksum", str(new), env=environment).returncode == 0
    assert run("verify-state", str(new)).returncode == 0
    missing = run("convert", "--domain", "web2", "--connect", "qemu:///session", str(new), env=environment)
    assert missing.returncode == 1 and b"web2 has no managed save" in missing.stderr


def test_a_managed_save_and_a_file_exclude_each_other(image: Path, new: Path) -> None:
    done = run("convert", "--domain", "web1", str(image), str(new))
    assert done.returncode == 2 and b"exclude each other" in done.stderr


REFUSED = {
    "no file": (["{new}"], b"convert needs a FILE and the NEW file"),
    "only a filter": (["progress", "{new}"], b"convert needs a FILE and the NEW file"),
    "an encrypted image": (["--to-image", "-r", RECIPIENT, "{image}", "{new}"], b"cannot be encrypted"),
    "a sealed image": (["--to-image", f"encrypt:{RECIPIENT}", "{image}", "{new}"], b"cannot be encrypted"),
    "a packed raw image": (["--to-image", "compress:zstd:3", "{image}", "{new}"], b"a raw image is not compressed"),
    "another level": (["--to-image=raw", "zstd:3", "{image}", "{new}"], b"a raw image is not compressed"),
    "another format": (["--to-image=lzop", "{image}", "{new}"], b"cannot be 'lzop'"),
    "another codec": (["compress:gzip", "{image}", "{new}"], b"a state file is always zstd"),
    "a filter that changes it": (["decompress", "{image}", "{new}"], b"convert does not take the filter"),
    "a connection alone": (["--connect", "qemu:///system", "{image}", "{new}"], b"--connect URI needs --domain"),
    "another host": (["--domain", "web1", "--connect", "qemu+ssh://h/system", "{new}"], b"another host"),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_command_line_is_told_so(words: list[str], message: bytes, image: Path, new: Path) -> None:
    done = run("convert", *(word.format(image=image, new=new) for word in words))
    assert done.returncode == 2 and message in done.stderr and b"hint" in done.stderr
    assert not new.exists()


def test_recipients_of_the_configuration_forbid_an_image_unless_told(image: Path, new: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'recipients = ["{RECIPIENT}"]\n')
    environment = {**os.environ, "STATEPIPE_CONFIG": str(tmp_path / "config.toml")}
    done = run("convert", "--to-image", str(image), str(new), env=environment)
    assert done.returncode == 2 and b"the configuration names recipients" in done.stderr and not new.exists()
    assert run("convert", "--to-image", "--plain", str(image), str(new), env=environment).returncode == 0
    new.unlink()
    assert run("convert", str(image), str(new), env=environment).returncode == 0
    assert new.read_bytes().startswith(b"age-encryption.org")


def test_a_passphrase_encrypts_a_state_and_opens_what_becomes_an_image(image: Path, new: Path, tmp_path: Path) -> None:
    (tmp_path / "word").write_text("correct horse\n")
    (tmp_path / "word").chmod(0o600)
    given = ["--passphrase-file", str(tmp_path / "word")]
    assert run("convert", *given, str(image), str(new)).returncode == 0
    assert new.read_bytes().startswith(b"age-encryption.org")
    back = tmp_path / "back"
    assert run("convert", *given, "--to-image", str(new), str(back)).returncode == 0
    assert back.read_bytes() == IMAGE


def test_another_xml_is_read_from_a_file(new: Path, tmp_path: Path) -> None:
    state, xml = tmp_path / "plain.state", tmp_path / "domain.xml"
    state.write_bytes(state_file(cut(STREAM, 2)))
    xml.write_text("<domain><name>other</name></domain>")
    done = run("convert", "--to-image", str(state), str(new))
    assert done.returncode == 1 and b"was not saved through libvirt" in done.stderr and not new.exists()
    done = run("convert", "--to-image", "--xml", str(xml), str(state), str(new))
    assert done.returncode == 0 and done.stderr.strip().endswith(b"the domain other")
    xml.write_text("<network/>")
    done = run("convert", "--to-image", "--xml", str(xml), str(state), str(new))
    assert done.returncode == 1 and b"is not the XML of a domain" in done.stderr


@pytest.mark.parametrize("option", [[], ["--to-image"], ["--to-image=zstd"]], ids=["state", "raw", "zstd"])
def test_a_disk_that_fills_leaves_nothing_and_the_older_file(image: Path, new: Path, option: list[str]) -> None:
    older = state_file(cut(STREAM, 2))
    new.write_bytes(older)
    limited = ["prlimit", "--fsize=16384", *STATEPIPE, "convert", *option, str(image), str(new)]
    done = subprocess.run(limited, capture_output=True)
    assert done.returncode == 1 and b"File too large" in done.stderr
    assert new.read_bytes() == older and sorted(new.parent.iterdir()) == [new, image]
