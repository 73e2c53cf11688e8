"""A program in the place of virsh."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from statepipe.libvirt.virsh import Virsh


@pytest.fixture
def virsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Virsh]:
    """`virsh(script)`: the shell's words stand for the program virsh; what it is given is in `words`."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)

    def make(script: str) -> Virsh:
        program = tmp_path / "virsh"
        program.write_text(f'#!/bin/sh\nprintf \'%s\\n\' "$LC_ALL" "$@" >>{tmp_path}/words\n{script}\n')
        program.chmod(0o755)
        return Virsh(None)

    return make
