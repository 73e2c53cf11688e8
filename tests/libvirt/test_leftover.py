"""save and load --domain that are killed together with their guardian, as by the end of a control group: the next
statepipe lets libvirt go on, and removes what they left."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.libvirt.harness import Libvirt, is_alive
from tests.libvirt.saving import Save, assert_nothing_left, assert_runs_on, assert_saved, children
from tests.qemu.harness import wait_for
from tests.qemu.striking import striking


def test_the_next_command_frees_a_libvirt_that_waits_for_a_killed_save(session: Libvirt) -> None:
    """libvirt comes late, and opens a FIFO that nobody reads."""
    domain = session.domain()
    save = Save(session, domain, strike=(signal.SIGSTOP, "after Guardian.note ASKED"))
    save.wait_at_step()
    os.kill(session.pid, signal.SIGSTOP)
    try:
        save.go()
        wait_for("virsh", lambda: children(save.process.pid, "virsh"))
        kill(save.process)
    finally:
        os.kill(session.pid, signal.SIGCONT)
    save.end()
    wait_for("libvirt's open", lambda: waits_for_partner(session.pid))
    assert [path.name[:5] for path in folders(session)] == ["save-"]
    assert not domain_answers(session)
    session.statepipe("ps", check=True)
    assert_runs_on(save)


def test_the_next_save_removes_what_a_killed_one_left(session: Libvirt) -> None:
    """libvirt has asked to commit, and its write has failed."""
    domain = session.domain()
    save = Save(session, domain, strike=(signal.SIGSTOP, "after Intake.await_question"))
    save.wait_at_step()
    kill(save.process)
    save.end()
    domain.assert_runs_on()
    assert len(folders(session)) == 1 and not save.file.exists()
    again = Save(session, domain)
    assert again.end() == 0, again.stderr
    assert_saved(again)


def test_a_save_at_work_keeps_what_it_needs(session: Libvirt) -> None:
    domain = session.domain()
    save = Save(session, domain, strike=(signal.SIGSTOP, "after Intake.await_question"))
    save.wait_at_step()
    session.statepipe("ps", check=True)
    save.go()
    assert save.end() == 0, save.stderr
    assert_saved(save)


def test_the_next_command_frees_a_libvirt_that_waits_for_a_killed_load(session: Libvirt) -> None:
    domain = session.domain()
    save = Save(session, domain)
    assert save.end() == 0, save.stderr
    record = domain.files / "load-steps"
    command = striking(signal.SIGSTOP, "after Offer.__enter__", record)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with session.popen(*command, "load", "--domain", save.file, **pipes) as load:
        wait_for("step", lambda: record.exists() and "after Offer.__enter__" in record.read_text())
        os.kill(session.pid, signal.SIGSTOP)
        try:
            Path(f"{record}.go").touch()
            wait_for("virsh", lambda: children(load.pid, "virsh"))
            kill(load)
        finally:
            os.kill(session.pid, signal.SIGCONT)
        load.communicate()
    wait_for("libvirt's open", lambda: waits_for_partner(session.pid))
    session.statepipe("ps", check=True)
    wait_for("end of the restore", lambda: domain.state().startswith("shut off"))
    assert folders(session) == []
    assert_nothing_left(save)
    session.statepipe("load", "--domain", save.file, check=True)
    domain.assert_runs_on()


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a statepipe and its guardian; not virsh, which libvirt has the job from."""
    guardians = children(process.pid, "python")
    assert len(guardians) == 1
    os.kill(process.pid, signal.SIGSTOP)  # it sees nothing of its guardian's end
    os.kill(guardians[0], signal.SIGKILL)
    process.kill()
    process.wait()
    wait_for("end of the guardian", lambda: not is_alive(guardians[0]))


def waits_for_partner(pid: int) -> bool:
    """Whether a thread of a process is in an open of a FIFO that has no other end."""
    with suppress(OSError):
        return any("partner" in (task / "wchan").read_text() for task in Path(f"/proc/{pid}/task").iterdir())
    return False


def domain_answers(libvirt: Libvirt) -> bool:
    """Whether libvirt tells the state of a domain, for which it waits 2 s."""
    words = ["timeout", "2", "virsh", "-q", "-c", libvirt.uri, "domstate", "vm1"]
    return libvirt.run(*words, check=False).returncode == 0


def folders(libvirt: Libvirt) -> list[Path]:
    """Those of saves and loads in the runtime folder."""
    found = (libvirt.folder / "run" / "statepipe").glob("*")
    return [path for path in found if path.name.startswith(("save-", "load-"))]
