"""What QEMU was left set to, by libvirt, a person or another migration, makes no save or load that cannot be used."""

from __future__ import annotations

from pathlib import Path

from tests.qemu.harness import EXEC, Guest, assert_continues, assert_runs_on, run_statepipe
from tests.qemu.loading import MEMORY
from tests.qemu.saving import assert_whole

TLS = ["-object", "tls-creds-anon,id=t,endpoint=client", "-object", "tls-creds-anon,id=s,endpoint=server"]


def shared_memory(path: Path) -> list[str]:
    """The guest's memory in a file, which x-ignore-shared leaves out of a stream."""
    backend = f"memory-backend-file,id=m,size={MEMORY}M,mem-path={path},share=on"
    return ["-object", backend, "-machine", "pc,memory-backend=m", *TLS]


def test_a_save_and_a_load_are_plain_and_put_all_back(tmp_path: Path, states: Path, qemu72: str) -> None:
    file = states / "s"
    args = shared_memory(tmp_path / "ram")
    with Guest(tmp_path, qemu=qemu72, memory=MEMORY, fill=8, dirty=0, args=args) as guest:
        guest.wait_ticks(2)
        guest.capabilities(x_ignore_shared=True, compress=True)
        guest.qmp("migrate-set-parameters", tls_creds="t")
        before = guest.settings()
        done = run_statepipe("save", "--qmp", guest.socket, file)
        assert done.returncode == 0, done.stderr
        assert guest.settings() == before and guest.run_state() == "postmigrate"
        text, image = guest.serial(), guest.image
    assert_whole(file)
    args = shared_memory(tmp_path / "another")
    with Guest(tmp_path, qemu=qemu72, memory=MEMORY, args=args, image=image, incoming="defer") as other:
        other.capabilities(multifd=True)
        other.qmp("migrate-set-parameters", tls_creds="s")
        before = other.settings()
        done = run_statepipe("load", "--qmp", other.socket, file)
        assert done.returncode == 0, done.stderr
        assert other.settings() == before
        other.wait_ticks(3)
        assert_continues(text, other.serial())


def test_what_qemu_alone_could_not_load_is_not_saved_by_exec(tmp_path: Path, states: Path, qemu72: str) -> None:
    with Guest(tmp_path, qemu=qemu72, memory=MEMORY, fill=8, dirty=0) as guest:
        guest.wait_ticks(2)
        for name in ("compress", "x-ignore-shared", "postcopy-ram"):
            guest.capabilities(**{name: True})
            guest.qmp("migrate", uri=f"exec:exec {EXEC} save {states}/s")
            assert guest.wait_status()["status"] == "failed", guest.stderr()
            assert f"not a complete state: the stream was made with {name}" in guest.stderr()
            assert_runs_on(guest)
            guest.capabilities(**{name: False})
        assert not list(states.iterdir())
