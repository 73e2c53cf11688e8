"""What a QEMU makes for itself on a host: known from its command line, left out for a look, not taken from another."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from statepipe.errors import QemuError
from statepipe.qemu.listening import Bound, Listened
from statepipe.qemu.places import clashes, for_a_look, places, seen
from statepipe.qemu.view import View

MAKING = [
    (["-serial", "file:/l"], "/l", ["-serial", "null"]),
    (["--serial", "mon:unix:/s,server=on,wait=off"], "/s", ["--serial", "null"]),
    (["-parallel", "pipe:/f"], "/f", ["-parallel", "null"]),
    (["-debugcon", "file:/d"], "/d", ["-debugcon", "null"]),
    (["-qmp", "unix:/q,server,nowait"], "/q", []),
    (["-monitor", "unix:/m,server=on"], "/m", []),
    (["-gdb", "unix:/g,server=on"], "/g", []),
    (["-pidfile", "/p"], "/p", []),
    (["-D", "/t"], "/t", []),
    (["-vnc", "unix:/v"], "/v", []),
    (["-display", "vnc=unix:/v,password=off"], "/v", []),
    (["-audiodev", "wav,id=a,path=/w,out.frequency=8000"], "/w", ["-audiodev", "none,id=a"]),
    (["-audio", "driver=wav,model=hda,path=/w"], "/w", ["-audio", "none,model=hda"]),
    (["-chardev", "file,id=c,path=/l,append=on"], "/l", ["-chardev", "null,id=c"]),
    (["-chardev", "file,id=c,path=/a,,b"], "/a,b", ["-chardev", "null,id=c"]),
    (["-chardev", "socket,id=c,path=/s,server=on,mux=on"], "/s", ["-chardev", "null,id=c,mux=on"]),
    (["-chardev", "socket,id=c,path=/s,logfile=/l"], "/l", ["-chardev", "null,id=c"]),
    (["-chardev", "ringbuf,id=c,logfile=/l"], "/l", ["-chardev", "null,id=c"]),
    (["-audiodev", '{"driver": "wav", "id": "a", "path": "/w"}'], "/w", ["-audiodev", "none,id=a"]),
    (["-audiodev", "{'driver': 'wav', 'id': 'it\\'s', 'path': '/w'}"], "/w", ["-audiodev", "none,id=it's"]),
    (["-chardev", "file,id=c,path=/a,,,append=on"], "/a,", ["-chardev", "null,id=c"]),
    (["-spice", "unix=on,addr=/s,disable-ticketing=on"], "/s", []),
    (["-mem-path", "/none/m"], "/none/m", []),
    (["-trace", "events=/e,file=/t"], "/t", []),
    (
        ["-netdev", "stream,id=n,server=on,addr.type=unix,addr.path=/s"],
        "/s",
        ["-netdev", "hubport,id=n,hubid=4096"],
    ),
    (
        ["-netdev", '{"type": "dgram", "id": "n", "local": {"type": "unix", "path": "/s"}}'],
        "/s",
        ["-netdev", "hubport,id=n,hubid=4096"],
    ),
    (["-object", "filter-dump,id=f,netdev=n,file=/dump"], "/dump", []),
    (
        ["-object", "memory-backend-file,id=m,size=1G,mem-path=/none/m,share=on"],
        "/none/m",
        ["-object", "memory-backend-ram,id=m,size=1G"],
    ),
    (
        ["-object", '{"qom-type": "memory-backend-file", "id": "m", "size": 4096, "mem-path": "/none/m"}'],
        "/none/m",
        ["-object", "memory-backend-ram,id=m,size=4096"],
    ),
]


@pytest.mark.parametrize(("words", "path", "quiet"), MAKING, ids=lambda value: str(value)[:40])
def test_what_is_made_is_known_and_left_out_for_a_look(words: list[str], path: str, quiet: list[str]) -> None:
    command = ["qemu", *words, "-m", "64"]
    assert [place.path for place in places(command)] == [path]
    assert for_a_look(command) == ["qemu", *quiet, "-m", "64", "-display", "none", "-monitor", "none"]


@pytest.mark.parametrize(
    ("words", "quiet"),
    [
        (["-serial", "tcp::4444,server"], ["-serial", "null"]),
        (["-serial", "stdio"], ["-serial", "null"]),
        (["-chardev", "socket,id=c,host=::1,port=1,server=on"], ["-chardev", "null,id=c"]),
        (["-netdev", "user,id=n,hostfwd=tcp::2222-:22"], ["-netdev", "user,id=n"]),
        (["-netdev", "socket,id=n,listen=:1234"], ["-netdev", "hubport,id=n,hubid=4096"]),
        (
            ["-netdev", '{"type": "user", "id": "n", "hostfwd": [{"str": "tcp::2222-:22"}]}'],
            ["-netdev", '{"type": "user", "id": "n"}'],
        ),
        (
            ["-netdev", "{'type': 'user', 'id': 'n', 'hostfwd': [{'str': 'tcp::2222-:22'}]}"],
            ["-netdev", '{"type": "user", "id": "n"}'],
        ),
        (["-netdev", "tap,id=n,ifname=tap0"], ["-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no"]),
        (["-nic", "tap,script=/up,model=e1000"], ["-nic", "tap,model=e1000,script=no,downscript=no"]),
        (["-spice", "port=5930"], []),
        (["-chardev", "spicevmc,id=c,name=vdagent"], ["-chardev", "null,id=c"]),
        (["-daemonize"], []),
        (["-vnc", ":1"], []),
        (["-s"], []),
    ],
)
def test_ports_and_scripts_are_left_out_too(words: list[str], quiet: list[str]) -> None:
    assert for_a_look(["qemu", *words]) == ["qemu", *quiet, "-display", "none", "-monitor", "none"]


@pytest.mark.parametrize(
    "words",
    [
        ["-serial", "none"],
        ["-serial", "chardev:c"],
        ["-chardev", "socket,id=c,path=/run/disk.sock"],
        ["-chardev", "null,id=c"],
        ["-netdev", "tap,id=n,fd=7"],
        ["-netdev", "bridge,id=n,br=br0"],
        ["-nic", "user,model=e1000"],
        ["-drive", "file=/d,if=virtio"],
        ["-device", "virtio-serial"],
        ["-object", "memory-backend-ram,id=m,size=1G"],
        ["disk.img"],
        ["-append", "{no JSON"],
    ],
)
def test_what_makes_nothing_stays(words: list[str]) -> None:
    assert for_a_look(["qemu", *words])[1:-4] == words
    assert not list(places(["qemu", *words]))


@pytest.mark.parametrize("value", ["{'driver': 'wav'", '{"a":' * 5000 + "1" + "}" * 5000], ids=["cut", "deep"])
def test_json_that_nobody_understands_is_not_looked_at_with(value: str) -> None:
    with pytest.raises(QemuError, match=r"^-audiodev .* is not valid JSON for QEMU"):
        for_a_look(["qemu", "-audiodev", value])


def test_a_file_that_both_hosts_see_is_another_s_and_one_of_the_same_name_is_not(tmp_path: Path) -> None:
    for host in ("here", "there"):
        (tmp_path / host).mkdir()
        (tmp_path / host / "log").touch()
    (tmp_path / "there" / "shared").symlink_to(tmp_path / "here")
    command = ["qemu", "-serial", "file:log", "-serial", "file:none", "-serial", "file:/dev/null"]
    source = seen(command, View(0), f"{tmp_path}/here", held=True)
    assert not list(clashes(source, seen(command, View(0), f"{tmp_path}/there", held=False)))
    [(row, why)] = clashes(source, seen(command, View(0), f"{tmp_path}/there/shared", held=False))
    assert (row["path"], row["option"]) == (f"{tmp_path}/there/shared/log", "-serial")
    assert "both hosts see it" in why


CONFIG = """
# written by hand
[device "disk"]
  driver = "virtio-blk-pci"
[chardev "c"]
  backend = "file"
  path = "/l,1"
[object]
  qom-type = "filter-dump"
  file = "/dump"
[mon]
  chardev = "c"
"""


def test_what_a_configuration_file_names_is_known(tmp_path: Path) -> None:
    (tmp_path / "qemu.cfg").write_text(CONFIG)
    found = seen(["qemu", "-readconfig", "qemu.cfg"], View(0), str(tmp_path), held=False)
    assert [(row["path"], row["option"]) for row in found] == [("/l,1", "-chardev"), ("/dump", "-object filter-dump")]


def test_a_configuration_file_that_makes_nothing_is_looked_at_with(tmp_path: Path) -> None:
    (tmp_path / "qemu.cfg").write_text(CONFIG.partition("[chardev")[0])
    command = ["qemu", "-readconfig", "qemu.cfg"]
    assert for_a_look(command, str(tmp_path))[:3] == command


@pytest.mark.parametrize(
    ("text", "why"),
    [(CONFIG, "QEMU would use files or sockets of this host: -chardev file,id=c"), (None, "cannot be read")],
)
def test_a_qemu_of_which_nobody_knows_what_it_makes_is_not_looked_at(
    tmp_path: Path, text: str | None, why: str
) -> None:
    if text is not None:
        (tmp_path / "qemu.cfg").write_text(text)
    with pytest.raises(QemuError, match=f"-readconfig {tmp_path}/qemu.cfg for a check: .*{why}"):
        for_a_look(["qemu", "-readconfig", "qemu.cfg"], str(tmp_path))


def test_a_folder_for_memory_without_a_name_is_everybody_s(tmp_path: Path) -> None:
    command = ["qemu", "-object", f"memory-backend-file,id=m,size=1G,mem-path={tmp_path},share=on"]
    source = seen(command, View(0), str(tmp_path), held=True)
    assert not list(clashes(source, seen(command, View(0), str(tmp_path), held=False)))


def test_a_socket_that_was_bound_by_a_relative_name_is_known(tmp_path: Path) -> None:
    """As QEMU does with the name that its command line has."""
    bind = "import os, socket, sys; s = socket.socket(socket.AF_UNIX); os.chdir(sys.argv[1]); s.bind('q'); s.listen()"
    script = f"{bind}; print(flush=True); input()"
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as listener:
        assert listener.stdin is not None and listener.stdout is not None
        assert listener.stdout.readline() == b"\n"
        [(_, why)] = clashes([], seen(["qemu", "-qmp", "unix:q,server=on"], View(0), str(tmp_path), held=False))
        listener.stdin.close()
    assert why == "another process listens there"


def test_the_name_of_a_socket_that_is_gone_is_not_another_s(tmp_path: Path) -> None:
    """The kernel tells it of whoever still listens there, at a file that has no name any more."""
    path = str(tmp_path / "q")
    with socket.socket(socket.AF_UNIX) as before, socket.socket(socket.AF_UNIX) as other:
        before.bind(path)
        before.listen()
        os.unlink(path)
        other.bind(path)
        assert not list(clashes([], seen(["qemu", "-qmp", f"unix:{path},server=on"], View(0), "/", held=False)))


def test_a_file_of_the_same_number_elsewhere_is_another_socket(tmp_path: Path) -> None:
    """On another file system; where that tells stat of a device that the kernel has not, the name has to do."""
    path = tmp_path / "q"
    path.touch()
    status = path.stat()
    here, there = (os.major(status.st_dev), os.minor(status.st_dev)), (0, 0)
    inode = status.st_ino & 0xFFFFFFFF

    def has(inode: int, device: tuple[int, int], name: str) -> bool:
        return Listened(files=frozenset([Bound(inode, device, name)])).has(str(path), status)

    assert has(inode, here, "bound") and has(inode, there, "q")
    assert not has(inode, there, "bound") and not has(inode + 1, here, "q")


def test_a_socket_that_somebody_listens_at_is_not_to_be_had(tmp_path: Path) -> None:
    command = ["qemu", "-qmp", "unix:q,server=on"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "q"))
        assert not list(clashes([], seen(command, View(0), str(tmp_path), held=False))), "nobody listens yet"
        listener.listen()
        [(_, why)] = clashes([], seen(command, View(0), str(tmp_path), held=False))
    assert why == "another process listens there"
    assert not list(clashes([], seen(command, View(0), str(tmp_path), held=True))), "it is its own"
