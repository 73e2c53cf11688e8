"""save and load --domain beside a virsh that is killed, lies, or writes more than it is asked for.

Only what libvirt itself does decides about the guest. The programs in the place of virsh call the real one, but for
the words that they stand for.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.libvirt.harness import PATH, Domain, Libvirt, started
from tests.libvirt.saving import Save, assert_nothing_left, virsh_of
from tests.qemu.harness import statepipe_command, wait_for

Instead = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def shared() -> Iterator[Libvirt]:
    """A libvirtd for all tests of a process."""
    with started("session") as libvirt:
        yield libvirt


@pytest.fixture
def domain(shared: Libvirt) -> Iterator[Domain]:
    """A domain of the test's own."""
    domain = shared.domain(memory=32, fill=2, dirty=1)
    yield domain
    shared.virsh("destroy", domain.name, check=False)
    shared.virsh("undefine", domain.name)


@pytest.fixture
def instead(tmp_path: Path) -> Instead:
    """`instead(**scripts)`: an environment in which the shell's words stand for a command of virsh."""

    def environment(**scripts: str) -> dict[str, str]:
        cases = "".join(f"*{command}*) {script} ;;\n" for command, script in scripts.items())
        program = tmp_path / "virsh"
        real = shutil.which("virsh")
        program.write_text(
            f'#!/bin/sh\nreal={real}\nfile="${{*##*--file=}}"\ncase "$*" in\n{cases}esac\nexec $real "$@"\n'
        )
        program.chmod(0o755)
        tmp_path.chmod(0o755)
        return {"PATH": f"{tmp_path}:{PATH}"}

    return environment


def run(libvirt: Libvirt, more: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    """statepipe in this environment."""
    return libvirt.run(
        "env", *[f"{name}={value}" for name, value in more.items()], *statepipe_command(), *words, check=False
    )


def test_a_domain_that_was_started_anew_is_not_the_one_that_was_saved(shared: Libvirt, domain: Domain) -> None:
    """As somebody who looks after it does, or libvirtd's autostart. The saved guest has only its file."""
    save = Save(shared, domain, "throttle:2M", strike=(signal.SIGSTOP, "before Job.ask"))
    wait_for("image", lambda: [path.name for path in (shared.folder / "run").rglob("save-*/*")] == ["image"])
    os.kill(virsh_of(save), signal.SIGKILL)  # so libvirt must be asked
    save.wait_at_step()
    wait_for("end of the domain", lambda: domain.state() == "shut off (saved)")
    shared.virsh("start", domain.name)
    save.go()
    assert save.end() == 0, save.stderr
    assert "the domain vm1 is now shut off (and was started again since)" in save.stderr
    shared.virsh("destroy", domain.name)
    shared.statepipe("verify-state", save.file, check=True)
    assert_nothing_left(save)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 0", "libvirt did not finish the save"),
        ("exit 1", "libvirt: virsh failed without a message"),
        (': >"$file"; exit 0', "libvirt did not finish the save"),
        ('echo garbage >"$file"; exit 0', "libvirt did not finish the save"),
        ('cat /dev/zero >"$file"; exit 0', "this is not libvirt's save image"),
    ],
)
def test_a_virsh_that_does_not_save_leaves_the_domain_running(
    shared: Libvirt, domain: Domain, instead: Instead, script: str, told: str
) -> None:
    done = run(shared, instead(save=script), "save", "--domain", domain.name, domain.files / "state")
    assert done.returncode in (3, 6) and told in done.stderr, done.stderr
    assert "the domain vm1 runs on: running" in done.stderr
    assert not (domain.files / "state").exists()
    domain.assert_runs_on()


def test_a_load_after_which_the_domain_is_shut_off_is_no_success(
    shared: Libvirt, domain: Domain, instead: Instead
) -> None:
    state = domain.files / "state"
    shared.statepipe("save", "--domain", domain.name, state, check=True)
    done = run(shared, instead(restore='cat "$file" >/dev/null; exit 0'), "load", "--domain", state)
    assert done.returncode == 6, done.stderr
    assert "libvirt has restored the domain vm1, but now it is shut off (saved)" in done.stderr
    assert "keep the file" in done.stderr


def test_what_virsh_writes_for_debugging_is_no_answer(shared: Libvirt, domain: Domain) -> None:
    more = {"LIBVIRT_DEBUG": "1", "VIRSH_DEBUG": "0"}
    done = run(shared, more, "save", "--domain", domain.name, domain.files / "state")
    assert done.returncode == 0 and "is now shut off (saved)" in done.stderr, done.stderr
    assert domain.state() == "shut off (saved)"
