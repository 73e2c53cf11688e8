"""A guest with an operating system: page tables, a scheduler, files in its memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.linux import Missing, linux_arguments
from tests.qemu.harness import Guest, assert_continues, run_statepipe
from tests.qemu.loading import Saved, loaded

BOOT = 180
"""Seconds until its first tick at the most, on a busy machine."""


def test_linux_is_saved_and_goes_on(tmp_path: Path, qemu72: str) -> None:
    """While it runs, so that pages are sent again; then in another QEMU."""
    try:
        arguments = linux_arguments(tmp_path, fill=4)
    except Missing as why:
        pytest.skip(f"no Linux guest: {why}")
    file = tmp_path / "state"
    with Guest(tmp_path, qemu=qemu72, memory=160, args=arguments) as guest:
        guest.wait_ticks(2, BOOT)
        done = run_statepipe("save", "--qmp", guest.socket, "--then", "quit", file)
        assert done.returncode == 0, done.stderr
        saved = Saved(file, guest.image, guest.serial(), qemu72)
    with loaded(tmp_path, saved, args=arguments, memory=160) as guest:
        guest.wait_ticks(2)
        assert_continues(saved.before, guest.serial())
