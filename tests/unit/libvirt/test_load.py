"""load --domain that is interrupted: what is said of the domain is said once libvirt is done with it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from statepipe.libvirt.target import Target
from statepipe.libvirt.virsh import Virsh
from tests.qemu.harness import PATIENCE, statepipe_command, wait_for
from tests.statefiles import DOMAIN, cut, noisy_stream, state_file

LIBVIRT = """case "$*" in
*uri) echo qemu:///session;;
*dominfo*) echo 'Name: webä1'; echo 'State: shut off';;
*restore*)
    image=$(printf '%s\\n' "$@" | sed -n 's/^--file=//p')
    echo >restoring
    while [ -e "$image" ]; do sleep 0.05; done
    sleep 1.5
    echo >done
    exit 1;;
*domstate*) if [ -e done ]; then echo 'shut off (failed)'; else echo 'paused (starting up)'; fi;;
esac"""
"""Of a busy host: it takes more than a second to give the domain up, once the image is withdrawn."""


def test_ctrl_c_tells_the_domains_state_once_libvirt_has_given_it_up(
    virsh: Callable[[str], Virsh], tmp_path: Path
) -> None:
    virsh(LIBVIRT)
    (tmp_path / "state").write_bytes(state_file(cut(noisy_stream(), 2), domain=DOMAIN))
    words = [*statepipe_command(), "load", "--domain", tmp_path / "state"]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for("virsh restore", (tmp_path / "restoring").exists)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=PATIENCE)[1]
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGINT
    assert "hint: the domain web\xe41 is shut off (failed)" in said


def test_a_domain_that_libvirt_still_starts_is_no_result(virsh: Callable[[str], Virsh]) -> None:
    virsh("echo 'paused (starting up)'")
    words = Target(Virsh("qemu:///session"), "vm1", "a uuid").became(0)
    assert words == (
        "libvirt is not done with the domain vm1 yet, which is paused (starting up); ask it later: "
        "virsh --connect=qemu:///session domstate --reason vm1"
    )
    virsh("echo 'paused (user)'")
    assert Target(Virsh(None), "vm1", "a uuid").became(0) == "the domain vm1 is paused (user)"
