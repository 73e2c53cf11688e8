"""The folder of a cache as others find and leave it: whatever lies there, what is read is right, and none waits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from statepipe.errors import StatepipeError
from statepipe.objectstore.blockcache import BLOCK, BlockCache

DATA = Random(7).randbytes(BLOCK)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> Iterator[BlockCache]:
    with closing(BlockCache(str(tmp_path / "cache"), "name", 64 << 20, said.append)) as made:
        yield made


def folder_of(tmp_path: Path) -> Path:
    return tmp_path / "cache" / f"statepipe-{os.geteuid()}" / "name"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def linked_block(path: Path) -> None:
    path.symlink_to(path.parent / "1")


def folder(path: Path) -> None:
    path.mkdir()


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def another_block(path: Path) -> None:
    os.link(path.parent / "1", path)


def cut(path: Path) -> None:
    path.write_bytes((path.parent / "1").read_bytes()[:-1])


@pytest.mark.parametrize("thing", [fifo, link, linked_block, folder, sparse, another_block, cut])
def test_what_lies_in_the_place_of_a_block_is_not_believed_and_not_waited_for(
    tmp_path: Path, cache: BlockCache, said: list[str], thing: Callable[[Path], None]
) -> None:
    cache.put(1, DATA)
    thing(folder_of(tmp_path) / "0")
    assert cache.get(0, BLOCK) is None
    assert cache.get(1, BLOCK) == DATA
    if thing is not folder:
        cache.put(0, DATA)
        assert (cache.get(0, BLOCK), said) == (DATA, [])


def test_what_is_no_block_does_not_push_blocks_out(tmp_path: Path, cache: BlockCache, said: list[str]) -> None:
    """A file that says that it is huge, or from the future, or a folder."""
    cache.put(1, DATA)
    sparse(folder_of(tmp_path) / "2")
    os.utime(folder_of(tmp_path) / "2", (1 << 33, 1 << 33))
    (folder_of(tmp_path) / "inner").mkdir()
    cache.trim()
    assert (cache.get(1, BLOCK), said) == (DATA, [])


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_cache_is_its_user_s_alone_under_any_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with closing(BlockCache(str(tmp_path / "cache"), "name", 1 << 30, print)) as made:
            made.put(0, DATA)
    finally:
        os.umask(before)
    for path in (tmp_path / "cache").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_link_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"statepipe-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StatepipeError, match="cannot keep a cache in"):
        BlockCache(str(tmp_path / "cache"), "name", 1 << 30, print)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("blocks", range(12))
def test_a_block_that_was_changed_anywhere_is_none(tmp_path: Path, cache: BlockCache, blocks: int) -> None:
    random = Random(blocks)
    cache.put(0, DATA)
    path = folder_of(tmp_path) / "0"
    whole = bytearray(path.read_bytes())
    at = random.randrange(len(whole))
    whole[at] ^= 1 << random.randrange(8)
    path.write_bytes(bytes(whole) + random.randbytes(random.choice([0, 0, 1])))
    assert cache.get(0, BLOCK) is None
    assert not path.exists()
    assert cache.get(0, random.randrange(BLOCK)) is None
