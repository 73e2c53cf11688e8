"""docs/api.md's example of save_guest and load_guest, with a guest that moves by it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import statepipe
from tests.documents import text_of
from tests.qemu.harness import Guest, assert_continues
from tests.qemu.loading import MEMORY


def test_a_guest_is_saved_and_loaded(tmp_path: Path, qemu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the page's own words: the first QEMU ends, and the guest goes on in the second."""
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"^```python qemu\n(.*?)^```$", text_of("api.md"), re.DOTALL | re.MULTILINE)
    with (
        Guest(tmp_path, qemu=qemu, memory=MEMORY, dirty=2) as source,
        Guest(tmp_path, qemu=qemu, memory=MEMORY, image=source.image, incoming="defer") as destination,
    ):
        source.wait_ticks(2)
        (tmp_path / "source.qmp").symlink_to(source.socket)
        (tmp_path / "destination.qmp").symlink_to(destination.socket)
        exec(compile(example, "api.md", "exec"), {"__name__": "example"})
        assert source.wait() == 0
        destination.wait_ticks(2)
        assert_continues(source.serial(), destination.serial())
    proved = statepipe.verify_state("guest.state")
    assert proved["digest"] and proved["index"]
