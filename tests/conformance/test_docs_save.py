"""What save writes, read by a reader that was made from docs/state-file.md alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agefiles import RECIPIENT, opened
from tests.conformance.running import STREAM as PLAIN
from tests.conformance.running import run
from tests.documents import rows, section
from tests.minireader import read
from tests.streams import record
from tests.unit.formats.test_docs_statefile import NAME, OF_HEADER, OF_INDEX, OF_TRAILER


@pytest.mark.parametrize("word", ["compress:zstd:-7", "compress:zstd:1", "compress:zstd:19", "compress:zstd:auto"])
def test_a_reader_made_from_the_document_reads_what_save_writes(word: str, tmp_path: Path) -> None:
    path = tmp_path / "state"
    assert run("save", word, str(path), data=PLAIN).returncode == 0
    it = read(path.read_bytes())
    assert it.stream == PLAIN and it.header["stages"] == [word]
    assert set(it.header) <= set(OF_HEADER) and set(it.trailer) <= set(OF_TRAILER)
    assert set(it.trailer["index"]) == set(OF_INDEX) - {"unserved"}
    first, second = (PLAIN.index(record(0x08, page, "pc.ram")) + 15 for page in (0, 1))
    zeros = {("pc.ram", page): None for page in range(2, 64)}
    assert it.pages == {("pc.ram", 0): first, ("pc.ram", 1): second, **zeros}
    told = section(NAME, "12. The page index").split("The contents of each frame")[1].split("The devices begin")[0]
    assert it.outline is not None and [f"`{key}`" for key in it.outline] == [row[0] for row in rows(told)]


def test_an_encrypted_state_is_a_state_file_in_an_age_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    assert run("save", "-r", RECIPIENT, str(path), data=PLAIN).returncode == 0
    it = read(opened(path.read_bytes()))
    assert it.stream == PLAIN and it.header["stages"] == ["compress:zstd:1", "encrypt"]
