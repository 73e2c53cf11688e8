"""Files as another process sees them: under its root, in its mount namespace, in its folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statepipe.qemu.view import View


@contextmanager
def boxed(*words: object, folder: Path) -> Iterator[View]:
    """The view of a process that is started by these words, and says when it is there."""
    command = [*map(str, words), "sh", "-c", "echo there; read end"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            if process.stdout.readline() != "there\n":
                pytest.skip(f"no such box here: {process.stderr.read()}")
            yield View(process.pid)
        finally:
            process.stdin.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`in` is to be mounted over `out`; both have an `image`, and `in` has links to it."""
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image").write_text(name)
    (tmp_path / "in" / "absolute").symlink_to(tmp_path / "out" / "image")
    (tmp_path / "in" / "relative").symlink_to("../out/image")
    return tmp_path


def test_a_mount_that_only_it_has_is_looked_through(tree: Path) -> None:
    mount = f'mount --bind "{tree}/in" "{tree}/out" && exec "$@"'
    with boxed("unshare", "-Urm", "sh", "-c", mount, "sh", folder=tree) as view:
        for name in ("image", "absolute", "relative"):
            path = f"{tree}/out/{name}"
            assert view.real(path) == f"{tree}/out/image"
            with view.place(path) as place:
                assert Path(place).read_text() == "in"
        assert view.lacks(f"{tree}/out/none")
        assert view.full("out/image") == f"{tree}/out/image"
    assert (tree / "out" / "image").read_text() == "out"


def test_a_process_that_sees_what_we_see_calls_files_as_we_do(tree: Path) -> None:
    with boxed(folder=tree / "in") as view:
        with view.place(f"{tree}/out/image") as place:
            assert place == f"{tree}/out/image"
        assert view.real(f"{tree}/in/absolute") == f"{tree}/out/image"
        assert view.full("image") == f"{tree}/in/image"


def test_only_a_file_that_was_seen_to_be_lacking_lacks(tree: Path) -> None:
    """A folder that is not ours to look into, a name relative to who knows what, a process that nobody knows: of these
    nothing is known."""
    (tree / "in").chmod(0o700)
    with boxed(folder=tree / "in") as view:
        assert view.lacks(f"{tree}/in/none") and not view.lacks(f"{tree}/in/image")
        assert not view.lacks("none")
        assert not view.lacks(f"{tree}/in/image/none")
    assert not View(0).lacks(f"{tree}/in/none")
    if os.geteuid() == 0:
        drop = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", LACKS, str(tree / "in" / "none")]
        assert subprocess.run(drop, capture_output=True, text=True, check=True).stdout == "False\n"


LACKS = "import os, sys; from statepipe.qemu.view import View; print(View(os.getpid()).lacks(sys.argv[1]))"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes another user's link")
def test_a_stranger_s_link_is_not_followed_in_there(tree: Path) -> None:
    link = tree / "in" / "strange"
    link.symlink_to("image")
    os.lchown(link, 4242, 4242)
    mount = f'mount --bind "{tree}/in" "{tree}/out" && exec "$@"'
    with boxed("unshare", "-m", "sh", "-c", mount, "sh", folder=tree) as view:
        assert view.real(f"{tree}/out/strange") is None
        with pytest.raises(PermissionError), view.place(f"{tree}/out/strange"):
            pass


DAEMON = "import os, sys; f = open('./disks/../disks/image'); os.chdir('/'); print('there', flush=True); input()"


def test_what_a_daemon_opened_before_it_left_its_folder_is_known(tree: Path) -> None:
    """As QEMU does with -daemonize."""
    (tree / "disks").symlink_to("in")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", DAEMON], cwd=tree, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"there\n"
        view = View(process.pid)
        assert view.full("image") == view.full("./in/image") == f"{tree}/in/image"
        assert view.full("none") == "/none"
        process.stdin.close()


def test_links_without_an_end_lead_nowhere(tree: Path) -> None:
    (tree / "in" / "loop").symlink_to(tree / "out" / "loop")
    mount = f'mount --bind "{tree}/in" "{tree}/out" && exec "$@"'
    with boxed("unshare", "-Urm", "sh", "-c", mount, "sh", folder=tree) as view:
        assert view.real(f"{tree}/out/loop") is None
        with pytest.raises(OSError, match="symbolic links"), view.place(f"{tree}/out/loop"):
            pass


def test_a_folder_that_becomes_a_link_meanwhile_leads_nowhere_else(tree: Path) -> None:
    """As somebody in there may do, to have us look at a file out here."""
    (tree / "in" / "disks").mkdir()
    (tree / "in" / "disks" / "image").write_text("its own")
    mount = f'mount --bind "{tree}/in" "{tree}/out" && exec "$@"'
    with boxed("unshare", "-Urm", "sh", "-c", mount, "sh", folder=tree) as view:
        with view.place(f"{tree}/out/disks/image") as place:
            (tree / "in" / "disks").rename(tree / "in" / "old")
            (tree / "in" / "disks").symlink_to(tree / "out")
            assert Path(place).read_text() == "its own"
        with view.place(f"{tree}/out/disks/image") as place:
            assert Path(place).read_text() == "in", "a link is followed as it is followed in there"
    assert (tree / "out" / "image").read_text() == "out"


@pytest.mark.parametrize("path", ["out/none", "out/image/image", "none/none/image"])
def test_what_is_not_there_has_a_name_and_no_place(tree: Path, path: str) -> None:
    mount = f'mount --bind "{tree}/in" "{tree}/out" && exec "$@"'
    with boxed("unshare", "-Urm", "sh", "-c", mount, "sh", folder=tree) as view:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(OSError, match=r"No such file|Not a directory"), view.place(f"{tree}/{path}"):
            pass
        assert view.real(f"{tree}/{path}") == f"{tree}/{path}"
        assert view.real(f"{tree}/none/none/../../out/relative") == f"{tree}/out/image"
        assert os.listdir("/proc/self/fd") == before


def test_the_folder_of_a_process_that_nobody_knows_is_not_ours() -> None:
    view = View(0)
    assert view.full("image") is None
    assert view.full("/image") == "/image"
    assert view.real("image") == os.path.realpath("image")
