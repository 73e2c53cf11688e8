"""A new file goes where its name leads, over nobody's links but those that can be trusted; nobody else's name is in
its way."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from statepipe.ends.file import FileSink
from statepipe.ends.place import FolderWatch
from statepipe.errors import StatepipeError

NOBODY = 65534


def put(path: Path, data: bytes = b"new") -> None:
    with FileSink(str(path)) as sink:
        sink.write(data)
        sink.commit()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder as /tmp: everybody may write to it, and remove only what is his own."""
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's link")
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def link(path: Path, target: Path | str, owner: int) -> Path:
    path.symlink_to(target)
    os.lchown(path, owner, owner)
    return path


def test_another_users_link_leads_nowhere(shared: Path, tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_bytes(b"root's own")
    treasure.chmod(0o644)
    with pytest.raises(StatepipeError, match=f"a link of user {NOBODY}"):
        put(link(shared / "vm.state", treasure, NOBODY))
    assert treasure.read_bytes() == b"root's own" and stat.S_IMODE(treasure.stat().st_mode) == 0o644


def test_another_users_link_to_a_folder_leads_nowhere(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StatepipeError, match=f"a link of user {NOBODY}"):
        put(link(shared / "sub", tmp_path / "folder", NOBODY) / "vm.state")
    assert not os.listdir(tmp_path / "folder")


def test_a_link_beyond_one_of_ours_is_looked_at_as_well(shared: Path, tmp_path: Path) -> None:
    link(shared / "theirs", tmp_path / "file", NOBODY)
    with pytest.raises(StatepipeError, match=f"a link of user {NOBODY}"):
        put(link(tmp_path / "ours", "shared/theirs", 0))


def test_ones_own_link_and_that_of_the_folders_owner_are_followed(shared: Path, tmp_path: Path) -> None:
    put(link(shared / "ours", tmp_path / "file", 0))
    assert (tmp_path / "file").read_bytes() == b"new"
    os.chown(shared, NOBODY, NOBODY)
    put(link(shared / "owners", tmp_path / "file", NOBODY), b"newer")
    assert (tmp_path / "file").read_bytes() == b"newer"


def test_a_link_in_a_folder_that_not_everybody_writes_to_is_followed(shared: Path, tmp_path: Path) -> None:
    shared.chmod(0o755)
    put(link(shared / "theirs", tmp_path / "file", NOBODY))
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("path", ["../{0}/file", "./file", "{1}/../{0}//file", "{1}/sub/../file", "up/file", "up/down"])
def test_a_way_is_gone_as_the_kernel_goes_it(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "up").symlink_to(".")
    (tmp_path / "down").symlink_to("sub/../file")
    monkeypatch.chdir(tmp_path)
    put(Path(path.format(tmp_path.name, tmp_path)))
    assert (tmp_path / "file").read_bytes() == b"new" and (tmp_path / "down").is_symlink()


@pytest.mark.parametrize(
    "path", ["", "/", ".", "..", "sub/", "sub/..", "loop", "a\0b", "/dev/stdout", "/proc/self/fd/1"]
)
def test_what_names_no_file_is_an_error(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StatepipeError):
        FileSink(path)


def test_a_folder_that_is_moved_meanwhile_keeps_its_file(tmp_path: Path) -> None:
    """What was looked at is what is used."""
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    with FileSink(str(folder / "state")) as sink:
        folder.rename(tmp_path / "moved")
        folder.symlink_to(elsewhere)
        sink.commit()
    assert os.listdir(tmp_path / "moved") == ["state"] and not os.listdir(elsewhere)


WRITER = """
import sys
from statepipe.ends.file import FileSink
with FileSink(sys.argv[1]) as sink:
    sink.commit()
"""


def test_nobody_holds_the_name_that_a_file_has_meanwhile(tmp_path: Path) -> None:
    """Its process id can be guessed."""
    guess = 'mkdir "$0/.state.$$.part" "$0/.state.$$.older.part"; exec "$@"'
    command = ["sh", "-c", guess, tmp_path, sys.executable, "-P", "-c", WRITER, tmp_path / "state"]
    subprocess.run(command, check=True)
    assert (tmp_path / "state").is_file()


def test_what_another_user_left_is_not_ours_to_sweep(shared: Path) -> None:
    theirs = shared / ".state.0123456789ab.part"
    theirs.write_bytes(b"")
    os.chown(theirs, NOBODY, NOBODY)
    put(shared / "state")
    assert sorted(os.listdir(shared)) == [theirs.name, "state"]


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A folder that somebody has open."""
    folder = tmp_path / "folder"
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY)
    yield folder, fd
    os.close(fd)


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("form", ["{}/file", "link/file", "folder/../folder/file"])
def test_a_folder_that_was_moved_is_noticed(
    held: tuple[Path, int], monkeypatch: pytest.MonkeyPatch, replaced: bool, form: str
) -> None:
    folder, fd = held
    monkeypatch.chdir(folder.parent)
    (folder.parent / "link").symlink_to("folder")
    way = FolderWatch(form.format(folder), fd)
    assert not way.leads_elsewhere()
    folder.rename(folder.parent / "moved")
    if replaced:
        folder.mkdir()
    assert way.leads_elsewhere()


def test_a_caller_that_went_elsewhere_himself_does_not_matter(
    held: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fd = held
    monkeypatch.chdir(folder)
    way = FolderWatch("file", fd)
    folder.rename(folder.parent / "moved")
    assert not way.leads_elsewhere()
    monkeypatch.chdir("/")
    assert not way.leads_elsewhere()


def test_a_folder_that_may_not_be_looked_for_has_not_moved(
    held: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fd = held
    (folder.parent / "link").symlink_to("folder")
    way = FolderWatch(f"{folder.parent}/link/file", fd)
    monkeypatch.setattr("statepipe.ends.place.LINKS", 0)
    assert not way.leads_elsewhere()
