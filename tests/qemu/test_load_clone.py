"""load --clone: many guests run from one state, and none of them writes to its disks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from tests import warm
from tests.qemu.harness import Guest, assert_continues, run_statepipe, statepipe_command, wait_for
from tests.qemu.loading import (
    MEMORY,
    Load,
    Saved,
    assert_never_ran,
    end_qemu,
    loaded,
    qemu_command,
    qemu_pid,
    run_load,
    save_guest,
)
from tests.statefiles import DATA, layout

WAYS = [[], ["--lazy"]]
each_way = pytest.mark.parametrize("way", WAYS, ids=["ordinary", "lazy"])

GUESTS = 10


@dataclass(frozen=True, slots=True)
class Disks:
    """A guest with a disk of each kind, saved: `args` are the options for its disks."""

    saved: Saved
    args: Sequence[str]
    folder: Path

    @property
    def written(self) -> list[Path]:
        """The images that it writes to."""
        return [self.saved.image, *(self.folder / name for name in ("a.qcow2", "b.img", "c.qcow2"))]

    def hashes(self) -> dict[str, str]:
        """What all of its images contain."""
        names = [*self.written, self.folder / "base.img"]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


def with_disks(folder: Path, qemu: str) -> Disks:
    """qcow2 by -drive, raw by -blockdev in words, and a chain of backing files as libvirt gives it."""
    (folder / "b.img").write_bytes(bytes(1 << 20))
    (folder / "base.img").write_bytes(b"base" * (1 << 18))
    for words in ("a.qcow2 1M", "-b base.img -F raw c.qcow2"):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words.split()], check=True, cwd=folder)
    values = [
        f"driver=raw,node-name=b,file.driver=file,file.filename={folder}/b.img",
        f"{{'driver':'file','filename':'{folder}/base.img','node-name':'s2','auto-read-only':true}}",
        "{'node-name':'f2','read-only':true,'driver':'raw','file':'s2'}",
        f"{{'driver':'file','filename':'{folder}/c.qcow2','node-name':'s1','cache':{{'direct':false}}}}",
        "{'node-name':'f1','read-only':false,'driver':'qcow2','file':'s1','backing':'f2'}",
    ]
    args = ["-drive", f"file={folder}/a.qcow2,if=none,id=a", "-device", "virtio-blk-pci,drive=a,addr=5"]
    args += [word for value in values for word in ("-blockdev", value)]
    args += ["-device", "virtio-blk-pci,drive=b,addr=6,id=vb", "-device", "virtio-blk-pci,drive=f1,addr=7,id=vc"]
    with Guest(folder, qemu=qemu, memory=MEMORY, fill=8, dirty=2, args=args) as guest:
        guest.wait_ticks(3)
        done = run_statepipe("save", "--qmp", guest.socket, folder / "state")
        assert done.returncode == 0, done.stderr
        return Disks(Saved(folder / "state", guest.image, guest.serial(), qemu), args, folder)


@pytest.fixture(scope="module")
def disks72(tmp_path_factory: pytest.TempPathFactory, qemu72: str) -> Disks:
    """Saved by QEMU 7.2."""
    return with_disks(tmp_path_factory.mktemp("disks72"), qemu72)


@pytest.fixture(scope="module")
def disks10(tmp_path_factory: pytest.TempPathFactory, qemu10: str) -> Disks:
    """Saved by QEMU 10."""
    return with_disks(tmp_path_factory.mktemp("disks10"), qemu10)


@pytest.fixture(scope="module")
def disks11(tmp_path_factory: pytest.TempPathFactory, qemu11: str) -> Disks:
    """Saved by QEMU 11."""
    return with_disks(tmp_path_factory.mktemp("disks11"), qemu11)


@pytest.fixture(params=["disks72", "disks10", "disks11"])
def disks(request: pytest.FixtureRequest) -> Disks:
    """Each of them in turn."""
    found: Disks = request.getfixturevalue(request.param)
    return found


def write(guest: Guest, node: str, letter: int) -> None:
    """Have QEMU write 64 KiB of this byte at 128 KiB of a disk, by the way of the guest's own writes."""
    guest.qmp("human-monitor-command", command_line=f'qemu-io {node} "write -P {letter} 128k 64k"')


def assert_has(overlay: Path, letter: int) -> None:
    """The overlay, read through its chain, has these bytes."""
    words = ["qemu-io", "-r", "-f", "qcow2", "-c", f"read -P {letter} 128k 64k", str(overlay)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "read 65536/65536" in done.stdout and "failed" not in done.stdout, done.stdout


VIRTIO = "-d /machine/peripheral/{}/virtio-backend"
NODES = ("ide0-hd0", "a", VIRTIO.format("vb"), VIRTIO.format("vc"))


@each_way
def test_a_clone_writes_to_overlays_of_every_kind_of_disk(tmp_path: Path, disks: Disks, way: list[str]) -> None:
    before, clones = disks.hashes(), tmp_path / "clones"
    for number in (1, 2):  # the second as if there had never been a first
        folder = clones / str(number)
        clones.mkdir(exist_ok=True)
        with loaded(tmp_path, disks.saved, *way, "--clone", str(folder), args=disks.args) as guest:
            guest.wait_ticks(2)
            assert_continues(disks.saved.before, guest.serial())
            for node in NODES:
                write(guest, node, number)
            overlays = [folder / f"{path.name.removesuffix('.qcow2')}.qcow2" for path in disks.written]
            wait_for("word of the overlays", lambda: "what the guest writes is in " in guest.stderr())
            assert f"what the guest writes is in {', '.join(map(str, overlays))}\n" in guest.stderr()
            guest.qmp("quit")
            guest.wait()
        assert sorted(folder.iterdir()) == sorted(overlays) and folder.stat().st_mode & 0o777 == 0o700
        assert disks.hashes() == before
        for overlay in overlays:
            assert overlay.stat().st_mode & 0o777 == 0o600
            assert_has(overlay, number)


@each_way
@pytest.mark.parametrize("more", ["", ",snapshot=on"], ids=["written", "temporary"])
def test_a_disk_that_no_device_uses_prevents_nothing(tmp_path: Path, state: Saved, way: list[str], more: str) -> None:
    """QEMU takes its lock on it when the guest runs, and names the temporary overlay of the other."""
    unused, folder = tmp_path / "unused.img", tmp_path / "clones"
    unused.write_bytes(bytes(1 << 20))
    args = ["-drive", f"file={unused},format=raw,if=none,id=u{more}"]
    with loaded(tmp_path, state, *way, "--clone", str(folder), args=args) as guest:
        guest.wait_ticks(2)
        assert_continues(state.before, guest.serial())
        if not more:
            write(guest, "u", 1)
        guest.qmp("quit")
        guest.wait()
    assert unused.read_bytes() == bytes(1 << 20)
    if not more:
        assert_has(folder / "unused.img.qcow2", 1)


def test_ten_guests_run_from_one_state_at_once(tmp_path: Path, state: Saved) -> None:
    before = hashlib.sha256(state.image.read_bytes()).hexdigest()
    folders = [tmp_path / str(number) for number in range(GUESTS)]
    with ExitStack() as stack:
        loads = []
        for folder in folders:
            folder.mkdir()
            stack.callback(end_qemu, folder)
            words = ["load", "--lazy", "--detach", "--clone", str(folder / "disks"), str(state.file)]
            command = [*statepipe_command(), *words, "--", *qemu_command(folder, state)]
            with (folder / "stderr").open("w") as stderr:
                loads.append(warm.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr))
        for folder, load in zip(folders, loads, strict=True):
            assert load.wait(120) == 0, (folder / "stderr").read_text()
        pids = {qemu_pid(folder) for folder in folders}
        assert len(pids - {None}) == GUESTS
        seen = [(folder / "serial").read_text().count("\n") for folder in folders]
        for folder, ticks in zip(folders, seen, strict=True):
            wait_for("2 ticks more", lambda folder=folder, ticks=ticks: _ticks(folder) >= ticks + 2)
            assert_continues(state.before, (folder / "serial").read_text())
    assert hashlib.sha256(state.image.read_bytes()).hexdigest() == before


def _ticks(folder: Path) -> int:
    return (folder / "serial").read_text().count("\n")


# --- the disk guard sees the disks, not the overlays


def rest_of(disks: Disks, old: str, new: str) -> list[str]:
    return [word.replace(old, new) for word in disks.args]


def assert_refused(tmp_path: Path, disks: Disks, args: Sequence[str], *said: str, options: Sequence[str] = ()) -> None:
    """The load ends with a message with these words, and leaves nothing."""
    folder = tmp_path / "clones"
    done = run_load(tmp_path, disks.saved, "--clone", folder, *options, args=args)
    assert done.returncode == 1 and all(each in done.stderr for each in said), done.stderr
    assert not folder.exists()
    assert_never_ran(tmp_path)


@each_way
def test_a_disk_that_changed_is_refused(tmp_path: Path, disks: Disks, way: list[str]) -> None:
    changed = tmp_path / "b.img"
    changed.write_bytes(b"x" + bytes((1 << 20) - 1))
    args, moved = rest_of(disks, f"{disks.folder}/b.img", str(changed)), f"{disks.folder}/b.img={changed}"
    words = [*way, "--disk", moved]
    assert_refused(tmp_path, disks, args, "disks changed since the state was saved", str(changed), options=words)
    options = [*words, "--force", str(changed), "--clone", str(tmp_path / "clones")]
    with loaded(tmp_path, disks.saved, *options, args=args) as guest:
        guest.wait_ticks(2)
        assert_continues(disks.saved.before, guest.serial())
    assert changed.read_bytes()[:1] == b"x"


@each_way
def test_disks_that_were_swapped_are_refused(tmp_path: Path, disks: Disks, way: list[str]) -> None:
    there = {"drive=a,addr=5": "drive=a,addr=6", "drive=b,addr=6,id=vb": "drive=b,addr=5,id=vb"}
    swapped = [
        word.replace(old, there[old]) if (old := word.partition(",")[2]) in there else word for word in disks.args
    ]
    said = [f"{disks.folder}/a.qcow2 is at pci.0 06.0, but was at pci.0 05.0"]
    assert_refused(tmp_path, disks, swapped, *said, options=way)


def test_a_disk_that_is_not_the_guest_s_is_refused(tmp_path: Path, disks72: Disks) -> None:
    other = shutil.copy(disks72.folder / "b.img", tmp_path / "other")
    args = rest_of(disks72, f"{disks72.folder}/b.img", str(other))
    assert_refused(tmp_path, disks72, args, f"lacks disks that the guest had: {disks72.folder}/b.img (in its place, at")


@each_way
@pytest.mark.parametrize("name", ["guest-0.img", "base.img"])
def test_an_image_that_is_still_written_is_named_with_the_process(
    tmp_path: Path, disks: Disks, way: list[str], name: str
) -> None:
    """The second is known to QEMU alone. A lazy QEMU 7.2 would run the guest without its lock on it."""
    image = disks.folder / name
    (tmp_path / "first").mkdir()
    with Guest(tmp_path / "first", qemu=disks.saved.qemu, image=image) as guest:
        said = [f"{image} cannot be the base of a clone: another process writes to it", f"(process {guest.pid})"]
        assert_refused(tmp_path, disks, disks.args, *said, options=way)
        assert guest.run_state() == "running"


def test_a_script_that_adds_a_disk_is_refused(tmp_path: Path, state72: Saved) -> None:
    other, script = tmp_path / "other", tmp_path / "qemu-own"
    other.write_bytes(bytes(1 << 20))
    script.write_text(f'#!/bin/sh\nexec {state72.qemu} "$@" -drive file={other},format=raw,if=virtio\n')
    script.chmod(0o755)
    done = run_load(tmp_path, state72, "--clone", tmp_path / "clones", qemu=str(script))
    assert done.returncode == 1 and f"would write to, and that have no overlay: {other}" in done.stderr
    assert not (tmp_path / "clones").exists()
    assert_never_ran(tmp_path)


# --- what is refused before anything starts


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@each_way
def test_what_two_clones_would_share_is_named_with_its_options(tmp_path: Path, state: Saved, way: list[str]) -> None:
    (tmp_path / "second").mkdir()
    forwarded, console = free_port(), free_port()
    log = tmp_path / "log"
    shared = ["-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{forwarded}-:22"]
    shared += ["-chardev", f"socket,id=c,host=127.0.0.1,port={console},server=on,wait=off"]
    shared += ["-chardev", f"file,id=l,path={log}", "-monitor", f"unix:{tmp_path}/m,server=on,wait=off"]
    with loaded(tmp_path, state, *way, "--clone", str(tmp_path / "1"), args=shared) as guest:
        guest.wait_ticks(1)
        written = log.stat()
        pid = qemu_pid(tmp_path)
        options = [*way, "--clone", tmp_path / "2"]
        args = [*shared, "-pidfile", f"{tmp_path}/pid"]
        done = run_load(tmp_path / "second", state, *options, args=args)
        assert done.returncode == 1
        for said in (
            f"it would replace sockets at which another process listens: {tmp_path}/m (-monitor)",
            f"listen at its ports: TCP 127.0.0.1:{forwarded} (-netdev), TCP 127.0.0.1:{console} (-chardev)",
            f"QEMUs write its files: {log} (-chardev): process {pid}, {tmp_path}/pid (-pidfile): process {pid}",
            "hint: if that is the QEMU whose guest was saved, end it; else name others",
        ):
            assert said in done.stderr, done.stderr
        assert not (tmp_path / "2").exists() and not (tmp_path / "second" / "serial").exists()
        assert log.stat().st_mtime_ns == written.st_mtime_ns
        guest.wait_ticks(1)


@each_way
def test_of_two_loads_that_start_at_once_one_gets_the_sockets_and_logs(
    tmp_path: Path, state72: Saved, way: list[str]
) -> None:
    """Before the first QEMU has made them, only the claim of its load shows that they are taken."""
    shared = ["-chardev", f"file,id=l,path={tmp_path}/log", "-monitor", f"unix:{tmp_path}/m,server=on,wait=off"]
    with ExitStack() as stack:
        loads = {}
        for name in ("1", "2"):
            (folder := tmp_path / name).mkdir()
            stack.callback(end_qemu, folder)
            words = ["load", *way, "--detach", "--clone", str(folder / "disks"), str(state72.file)]
            command = [*statepipe_command(), *words, "--", *qemu_command(folder, state72, *shared)]
            with (folder / "stderr").open("w") as stderr:
                loads[folder] = warm.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        status = {folder: load.wait(60) for folder, load in loads.items()}
        said = {folder: (folder / "stderr").read_text() for folder in loads}
        assert sorted(status.values()) == [0, 1], said
        refused = next(folder for folder in loads if status[folder])
        assert "QEMU is not started: " in said[refused], said
        assert f"{tmp_path}/m (-monitor)" in said[refused] and f"{tmp_path}/log (-chardev)" in said[refused], said
        assert not (refused / "disks").exists() and not (refused / "serial").exists()


@each_way
def test_of_two_clones_for_one_folder_one_gets_it(tmp_path: Path, state72: Saved, way: list[str]) -> None:
    """The other one touches nothing of it."""
    clones = tmp_path / "clones"
    with ExitStack() as stack:
        loads = {}
        for name in ("1", "2"):
            (folder := tmp_path / name).mkdir()
            stack.callback(end_qemu, folder)
            words = ["load", *way, "--detach", "--clone", str(clones), str(state72.file)]
            command = [*statepipe_command(), *words, "--", *qemu_command(folder, state72)]
            with (folder / "stderr").open("w") as stderr:
                loads[folder] = warm.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        status = {folder: load.wait(60) for folder, load in loads.items()}
        said = {folder: (folder / "stderr").read_text() for folder in loads}
        assert sorted(status.values()) == [0, 1], said
        first, second = sorted(loads, key=lambda folder: status[folder])
        overlay = clones / f"{state72.image.name}.qcow2"
        assert f"{overlay} exists already" in said[second] and not (second / "serial").exists(), said
        assert [*clones.iterdir()] == [overlay]
        wait_for("2 ticks", lambda: (first / "serial").read_text().count("\n") >= 2)
        assert_continues(state72.before, (first / "serial").read_text())


ODD = (
    "a,b",
    "it's",
    'q"uote',
    "new\nline",
    "back\\slash",
    "$HOME`x`",
    "col:on",
    "a=b",
    "ünï",
    "json:{",
    "-dash",
    "50%",
)
"""Names of disks."""


def odd_disks(folder: Path) -> list[str]:
    """The options for disks of these names, in words and in JSON by turns."""
    args = []
    for number, name in enumerate(ODD):
        (file := folder / name).write_bytes(bytes(1 << 20))
        if number % 2:
            leaf = {"driver": "file", "filename": str(file)}
            node = {"driver": "raw", "node-name": f"d{number}", "file": leaf}
            args += ["-blockdev", json.dumps(node, ensure_ascii=False)]
        else:
            args += ["-drive", f"if=none,id=d{number},format=raw,file={str(file).replace(',', ',,')}"]
        args += ["-device", f"virtio-blk-pci,drive=d{number}"]
    return args


def test_disks_have_any_names(tmp_path: Path, qemu: str) -> None:
    args = odd_disks(tmp_path)
    with Guest(tmp_path, qemu=qemu, memory=MEMORY, fill=8, dirty=2, args=args) as guest:
        guest.wait_ticks(2)
        done = run_statepipe("save", "--qmp", guest.socket, tmp_path / "state")
        assert done.returncode == 0, done.stderr
        saved = Saved(tmp_path / "state", guest.image, guest.serial(), qemu)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in ODD}
    folder = tmp_path / "clones, 'all'"
    with loaded(tmp_path, saved, "--lazy", "--clone", str(folder), args=args) as clone:
        clone.wait_ticks(2)
        assert_continues(saved.before, clone.serial())
        assert {path.name for path in folder.iterdir()} == {f"{name}.qcow2" for name in (*ODD, saved.image.name)}
        backing = clone.qmp("query-named-block-nodes")
        written = {str(row["file"]) for row in backing if not row["ro"] and row["drv"] == "file"}
        assert written == {str(path) for path in folder.iterdir()}
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in ODD} == before


def test_a_disk_whose_name_qemu_cannot_report_is_no_snapshot(tmp_path: Path, qemu72: str) -> None:
    disk = tmp_path / os.fsdecode(b"\xff")
    disk.write_bytes(bytes(1 << 20))
    with Guest(tmp_path, qemu=qemu72, memory=MEMORY, args=["-drive", f"if=virtio,format=raw,file={disk}"]) as guest:
        done = run_statepipe("save", "--qmp", guest.socket, tmp_path / "state")
    assert done.returncode == 1 and "QEMU does not report their names unchanged" in done.stderr, done.stderr
    assert "-snapshot" not in done.stderr and "UTF-8" in done.stderr


def test_an_interface_that_another_qemu_has_is_named(tmp_path: Path, state72: Saved) -> None:
    if not os.access("/dev/net/tun", os.W_OK) or os.geteuid():
        pytest.skip("no tap can be made here")
    name = f"sp{os.getpid()}"[:15]
    tap = ["-netdev", f"tap,id=n,ifname={name},script=no,downscript=no"]
    (tmp_path / "second").mkdir()
    try:
        with loaded(tmp_path, state72, "--clone", str(tmp_path / "1"), args=tap) as guest:
            guest.wait_ticks(1)
            done = run_load(tmp_path / "second", state72, "--clone", tmp_path / "2", args=tap)
            assert f"other QEMUs have its interfaces: {name} (-netdev): process {qemu_pid(tmp_path)}" in done.stderr
    except AssertionError as error:
        if "could not configure /dev/net/tun" in str(error):
            pytest.skip("no tap can be made here")
        raise


@each_way
def test_an_overlay_that_exists_is_never_replaced(tmp_path: Path, state72: Saved, way: list[str]) -> None:
    folder = tmp_path / "clones"
    folder.mkdir()
    overlay = folder / f"{state72.image.name}.qcow2"
    overlay.write_text("of another guest")
    done = run_load(tmp_path, state72, *way, "--clone", folder)
    assert done.returncode == 1
    assert f"{overlay} exists already" in done.stderr and "name another folder with --clone" in done.stderr
    assert overlay.read_text() == "of another guest" and list(folder.iterdir()) == [overlay]
    assert_never_ran(tmp_path)


@pytest.mark.parametrize(
    ("options", "command", "said"),
    [
        (["--qmp", "/s"], [], "--clone DIR needs a QEMU command"),
        (["--resume", "--qmp", "/s"], [], "--clone DIR needs a QEMU command"),
        (["--lazy"], [], "--clone DIR needs a QEMU command"),
        ([], [], "--clone DIR needs a QEMU command"),
        ([], ["sh", "-c", "exec qemu-system-x86_64"], "sh is not a QEMU"),
        (["--lazy"], ["env", "qemu-system-x86_64"], "env is not a QEMU"),
        (
            [],
            ["qemu-system-x86_64", "-drive", "file=nbd://h/d"],
            "--clone cannot give -drive file=nbd://h/d an overlay",
        ),
    ],
)
def test_what_cannot_be_cloned_is_an_error_of_the_command_line(
    tmp_path: Path, state72: Saved, options: list[str], command: list[str], said: str
) -> None:
    words = ["--", *command] if command else []
    done = run_statepipe("load", *options, "--clone", tmp_path / "clones", state72.file, *words)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert not (tmp_path / "clones").exists()


def test_where_it_cannot_be_lazy_the_overlays_are_those_of_the_ordinary_load(tmp_path: Path, qemu72: str) -> None:
    """QEMU tells only after its start that its memory is in a file on a disk."""
    memory = tmp_path / "memory"
    args = ["-object", f"memory-backend-file,id=m,size={MEMORY}M,mem-path={memory}", "-machine", "memory-backend=m"]
    saved = save_guest(tmp_path, qemu72, args=args)
    with loaded(tmp_path, saved, "--lazy=auto", "--clone", str(tmp_path / "clones"), args=args) as guest:
        guest.wait_ticks(2)
        assert_continues(saved.before, guest.serial())
        wait_for("word of the overlay", lambda: "what the guest writes is in " in guest.stderr())
        assert "warning: all memory is loaded first: " in guest.stderr(), guest.stderr()
    assert [path.name for path in (tmp_path / "clones").iterdir()] == [f"{saved.image.name}.qcow2"]


# --- a load that fails leaves nothing


def broken(tmp_path: Path, saved: Saved) -> Saved:
    """The same with a damaged frame in the middle, which no look at its ends notices."""
    data = bytearray(saved.file.read_bytes())
    frames = [frame for frame in layout(bytes(data)) if frame.magic == DATA]
    frame = frames[len(frames) // 2]
    data[(frame.start + frame.end) // 2] ^= 1
    return saved.damaged(tmp_path, bytes(data))


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("options", [[], ["--lazy", "--verify-first"]], ids=["ordinary", "lazy"])
def test_a_damaged_state_leaves_no_overlay(tmp_path: Path, state: Saved, options: list[str], existed: bool) -> None:
    folder = tmp_path / "clones"
    if existed:
        folder.mkdir()
        (folder / "note").touch()
    done = run_load(tmp_path, broken(tmp_path, state), *options, "--clone", folder)
    assert done.returncode == 3, done.stderr
    assert [path.name for path in folder.iterdir()] == ["note"] if existed else not folder.exists()
    assert_never_ran(tmp_path)


@each_way
def test_a_qemu_that_does_not_start_leaves_no_overlay(tmp_path: Path, state: Saved, way: list[str]) -> None:
    done = run_load(tmp_path, state, *way, "--clone", tmp_path / "clones", args=["-device", "no-such-device"])
    assert done.returncode == 6 and "no-such-device" in done.stderr
    assert not (tmp_path / "clones").exists()


@each_way
def test_a_machine_that_is_not_the_guest_s_leaves_no_overlay(tmp_path: Path, state: Saved, way: list[str]) -> None:
    done = run_load(tmp_path, state, *way, "--clone", tmp_path / "clones", memory=MEMORY * 2)
    assert done.returncode and "QEMU" in done.stderr
    assert not (tmp_path / "clones").exists()
    assert_never_ran(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_mid_load_leaves_no_overlay(tmp_path: Path, state72: Saved, number: signal.Signals) -> None:
    folder = tmp_path / "clones"
    with Load(tmp_path, state72, "--clone", folder, state72.file, "--", *qemu_command(tmp_path, state72)) as load:
        wait_for("overlays", lambda: folder.exists() and qemu_pid(tmp_path))
        load.signal(number)
        assert load.status() == 128 + number, load.stderr()
    assert not folder.exists()
    assert_never_ran(tmp_path)


def test_a_full_folder_is_named(tmp_path: Path, state72: Saved, small_disk: Callable[[int], Path]) -> None:
    full = small_disk(1 << 16)
    done = run_load(tmp_path, state72, "--clone", full / "clones")
    assert done.returncode == 1 and "No space left on device" in done.stderr and "hint: " in done.stderr
    assert not (full / "clones").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, state72: Saved) -> None:
    done = run_load(tmp_path, state72, "--clone", tmp_path / "none" / "clones")
    assert done.returncode == 1 and f"cannot make the folder {tmp_path}/none/clones: No such file" in done.stderr
    assert f"mkdir -p {tmp_path}/none\n" in done.stderr
    file = tmp_path / "file"
    file.touch()
    done = run_load(tmp_path, state72, "--clone", file)
    assert done.returncode == 1 and f"{file} is not a folder" in done.stderr
    assert file.read_bytes() == b""


STRANGER = 65534


@pytest.mark.parametrize(
    ("uid", "mode", "below", "said"),
    [
        (STRANGER, 0o755, "", "belongs to user 65534, who could replace them"),
        (STRANGER, 0o755, "clones", "belongs to user 65534, who could replace them"),
        (0, 0o777, "", "every user can write to "),
        (0, 0o777, "clones", "every user can write to "),
    ],
)
def test_a_folder_in_which_another_user_can_replace_overlays_is_refused(
    tmp_path: Path, state72: Saved, uid: int, mode: int, below: str, said: str
) -> None:
    """That user could put a link to one of our files in the place of an overlay."""
    shared, link = tmp_path / "shared", tmp_path / "link"
    shared.mkdir()
    link.symlink_to(shared)
    if uid and os.geteuid():
        pytest.skip("only root can give a folder away")
    if uid:
        os.chown(shared, uid, uid)
    shared.chmod(mode)
    done = run_load(tmp_path, state72, "--clone", link / below)
    assert done.returncode == 1 and said in done.stderr and str(shared) in done.stderr, done.stderr
    assert "hint: name a folder of your own with --clone" in done.stderr
    assert not list(shared.iterdir())
    assert_never_ran(tmp_path)


def test_a_folder_of_the_user_of_sudo_is_used(tmp_path: Path, state72: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, STRANGER, STRANGER)
    monkeypatch.setenv("SUDO_UID", str(STRANGER))
    with loaded(tmp_path, state72, "--clone", str(home / "clones")) as guest:
        guest.wait_ticks(1)
    assert (home / "clones" / f"{state72.image.name}.qcow2").exists()


# --- what tells clones apart


ONE, OTHER = "11111111-2222-3333-4444-555555555555", "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"


@contextmanager
def generation(folder: Path, saved: Saved, guid: str, *way: str) -> Iterator[Guest]:
    """A clone with this generation id."""
    folder.mkdir()
    args = ["-device", f"vmgenid,guid={guid}"]
    with loaded(folder, saved, *way, "--clone", str(folder / "clones"), args=args) as guest:
        guest.wait_ticks(1)
        yield guest


def test_each_clone_has_a_generation_id_of_its_own(tmp_path: Path, qemu: str) -> None:
    """It is not a part of the state: QEMU writes that of its command line into the guest's memory after the load."""
    saved = save_guest(tmp_path, qemu, args=["-device", f"vmgenid,guid={ONE}"])
    for way in WAYS:
        seen = []
        for guid in ("auto", "auto", OTHER):
            folder = tmp_path / f"{len(seen)}{''.join(way)}"
            with generation(folder, saved, guid, *way) as guest:
                seen.append(guest.qmp("query-vm-generation-id")["guid"])
                guest.qmp("stop")
                if way:
                    wait_for("all memory", lambda guest=guest: "all memory is loaded" in guest.stderr())
                guest.qmp("pmemsave", val=0, size=MEMORY << 20, filename=str(folder / "memory"))
            memory = (folder / "memory").read_bytes()
            assert UUID(seen[-1]).bytes_le in memory and UUID(ONE).bytes_le not in memory
        assert len({*seen, ONE}) == 4 and seen[-1] == OTHER
