"""The command line in this process: verbs, help, lines that cannot be meant, messages."""

from __future__ import annotations

import os
import signal
from importlib import import_module

import pytest

from statepipe import __version__
from statepipe.cli import messages
from statepipe.cli.main import main
from statepipe.cli.verbs import EXIT_CODES, VERBS
from statepipe.errors import (
    IntegrityError,
    InterruptedBySignal,
    ReaderGone,
    StatepipeError,
    TruncatedError,
    UsageError,
)
from tests.conformance.running import assert_one_error

Captured = pytest.CaptureFixture[str]


def test_every_verb_has_its_function() -> None:
    for verb in VERBS:
        module, _, function = verb.run.partition(":")
        assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_lists_verbs_and_exit_codes(word: str, capsys: Captured) -> None:
    assert main([word]) == 0
    out, err = capsys.readouterr()
    assert all(f"\n  {verb.name} " in out for verb in VERBS) and not err
    assert all(f"{code} {meaning}" in out for code, meaning in EXIT_CODES)


def test_no_verb_at_all_is_helped_on_standard_error(capsys: Captured) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("usage: statepipe VERB")


def test_the_version(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"statepipe {__version__}\n"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("", ""),
        ("frobnicate", ""),
        ("Compress", "did you mean compress? "),
        ("--compress", "the verb comes first, its options after it; "),
        ("compres", "did you mean compress? "),
        ("compress:zstd", "did you mean compress? "),
        ("laod", "did you mean load? "),
        ("restore", "did you mean load? "),
        ("--hel", "did you mean --help? "),
        ("-version", "did you mean --version? "),
    ],
)
def test_an_unknown_verb(word: str, meant: str, capsys: Captured) -> None:
    assert main([word]) == 2
    error = f"statepipe: error: there is no verb '{word}'\nstatepipe: hint: {meant}see: statepipe --help\n"
    assert capsys.readouterr() == ("", error)


@pytest.mark.parametrize(("option", "meant"), [("--qpm=/q", "did you mean --qmp? "), ("--frobnicate", "")])
def test_an_unknown_option(option: str, meant: str, capsys: Captured) -> None:
    assert main(["save", option, "file"]) == 2
    assert capsys.readouterr().err.endswith(f"\nstatepipe: hint: {meant}see: statepipe save --help\n")


USAGE = [
    ["compress", "lzma"],
    ["compress", "zstd:23"],
    ["compress", "zstd:x"],
    ["compress", "--no-such"],
    ["decompress", "x", "y"],
    ["checksum", "crc32"],
    ["verify"],
    ["verify", "xyz"],
    ["verify", "00" * 32, "--from", "f"],
    ["progress", "--size", "much"],
    ["progress", "--size", "9" * 500],
    ["pipe", "no-such"],
    ["pipe", "compress:lzma"],
    ["pipe", "pipe:compress"],
    ["save"],
    ["save", "decompress", "f"],
    ["save", "compress:gzip", "f"],
    ["compress", "gzip:0"],
    ["compress", "bzip2:10"],
    ["compress", "xz:-1"],
    ["compress", "lz4:13"],
    ["save", "no-such", "f"],
    ["save", "--then", "stay", "f"],
    ["save", "--live", "f"],
    ["load", "f", "--detach"],
    ["load", "f", "--qmp", "s", "--", "qemu"],
    ["inspect", "a", "b"],
    ["compress", "zstd:auto", "--max", "9" * 5000],
    ["migrate", "--qmp", "/none", "exec:exec statepipe save /f"],
    ["migrate", "--qmp", "/none", "exec:zstd | /usr/bin/statepipe  save - > f"],
    ["send", "tls://127.0.0.1:1", "--links", "9" * 5000],
    ["migrate", "--qmp", "/none", "tls://127.0.0.1:1", "--downtime-limit", "9" * 5000],
    ["receive", "tls://127.0.0.1:0", "--serve", "\u0663" * 5000, "--", "qemu"],
    ["migrate", "--qmp", f"tcp:h:{'9' * 5000}", "tls://127.0.0.1:1"],
]


@pytest.mark.parametrize("line", USAGE, ids=lambda line: " ".join(line)[:60])
def test_a_line_that_cannot_be_meant(line: list[str], capsys: Captured) -> None:
    """Exit 2, one error, a hint, before a byte is read or a file made."""
    assert main(line) == 2
    out, err = capsys.readouterr()
    assert not out
    assert_one_error(err.encode(), line[0])
    assert "hint: " in err or "both" in err
    assert not os.path.lexists("f")


# ---- messages


def told(error: StatepipeError, capsys: Captured, verb: str | None = "load") -> list[str]:
    messages.explain(verb, error)
    out, err = capsys.readouterr()
    assert not out
    return err.splitlines()


DAMAGED = "statepipe: hint: what was read is damaged or incomplete: take another copy of it"


@pytest.mark.parametrize(
    ("verb", "error", "hint"),
    [
        ("decompress", IntegrityError("x"), [DAMAGED]),
        ("verify-state: vm1.state", TruncatedError("x"), [DAMAGED]),
        ("decrypt", IntegrityError("x", hint="its own"), ["statepipe: hint: its own"]),
        ("decompress", StatepipeError("x"), []),
        ("save", IntegrityError("x"), []),
        ("recv", IntegrityError("x"), []),
        (None, IntegrityError("x"), []),
    ],
)
def test_a_file_that_is_damaged_has_a_hint(
    verb: str | None, error: StatepipeError, hint: list[str], capsys: Captured
) -> None:
    """Unlike a stream that QEMU or another host sends: of that there is no other copy."""
    assert told(error, capsys, verb)[1:] == hint


def test_an_error_names_stage_offset_and_hint(capsys: Captured) -> None:
    error = IntegrityError("broken", stage="decompress", offset=7, hint="try again")
    lines = ["statepipe: load: decompress: error: broken (at byte 7)", "statepipe: hint: try again"]
    assert told(error, capsys) == lines


@pytest.mark.parametrize("stage", ["watch", "alone", "hold", "digest", "return path"])
def test_a_stage_that_nobody_has_typed_is_not_named(stage: str, capsys: Captured) -> None:
    assert told(IntegrityError("broken", stage=stage), capsys) == ["statepipe: load: error: broken", DAMAGED]


def test_what_is_said_already_is_not_repeated(capsys: Captured) -> None:
    assert told(UsageError("no", stage="load"), capsys) == ["statepipe: load: error: no"]
    damaged = ["statepipe: load: error: broken at byte 7", DAMAGED]
    assert told(IntegrityError("broken at byte 7", offset=7), capsys) == damaged
    assert told(UsageError("no"), capsys, verb=None) == ["statepipe: error: no"]


def test_a_name_with_the_word_byte_does_not_hide_the_offset(capsys: Captured) -> None:
    assert told(IntegrityError("kilobytes.zst is broken", offset=7), capsys)[0].endswith("broken (at byte 7)")


def test_the_offset_out_is_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(IntegrityError("broken", offset=7, out=3), capsys)[0].endswith("broken (at byte 7 in, 3 out)")
    assert told(IntegrityError("broken at byte 7", offset=7, out=3), capsys)[0].endswith("at byte 7 (3 bytes out)")


def test_one_error_is_one_line(capsys: Captured) -> None:
    assert told(UsageError("a\nb\tc\x1b"), capsys) == ["statepipe: load: error: a?b?c?"]


def test_a_reader_that_left_is_told_nothing(capsys: Captured) -> None:
    assert told(ReaderGone("the reader of standard output has closed it"), capsys) == []
    assert told(InterruptedBySignal(signal.SIGTERM), capsys) == ["statepipe: load: error: stopped by SIGTERM"]
