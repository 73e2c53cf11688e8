"""virsh: which connections are refused, and what becomes of its answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from statepipe.errors import QemuSilent, StatepipeError, UsageError
from statepipe.libvirt.virsh import DomainState, LibvirtError, LibvirtSilent, NoDomain, Virsh, demand_local, parse_state

UUID = "3fbf76b1-f6fe-43d6-bf76-cd41371924dc"
FOUND = f"""cat <<'END'
qemu:///session

Id:             7
Name:           vm1
UUID:           {UUID}
Managed save:   yes
Messages:       tainted: custom monitor
                UUID: none

running (booted)

END"""


@pytest.mark.parametrize(
    "uri", ["qemu:///system", "qemu:///session", "qemu+unix:///system?socket=/x", "alias", "", None]
)
def test_connections_to_this_host_pass(uri: str | None) -> None:
    demand_local(uri)


@pytest.mark.parametrize(
    "uri", ["qemu+ssh://vmhost/system", "qemu://vmhost/system", "qemu+tcp:///system", "qemu+tls://h/s"]
)
def test_a_connection_to_another_host_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="another host") as caught:
        demand_local(uri)
    assert "ssh" in str(caught.value.hint)


@pytest.mark.parametrize("uri", ["xen:///", "lxc:///system", "test:///default", ":x"])
def test_another_hypervisor_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="QEMU"):
        demand_local(uri)


def test_a_state_has_a_reason() -> None:
    assert parse_state("running (booted)\n\n") == DomainState("running", "booted")
    assert parse_state("shut off") == DomainState("shut off", "")
    assert str(DomainState("running", "save canceled")) == "running (save canceled)"


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ("paused (saving)\\n7\\n", DomainState("paused", "saving")),
        ("shut off (saved)\\n-\\n", DomainState("shut off", "saved")),
        ("running (booted)\\n8\\n", DomainState("shut off", "and was started again since")),
        ("running (booted)\\n-\\n", DomainState("shut off", "")),
    ],
)
def test_a_domain_that_was_started_again_has_another_guest(
    virsh: Callable[[str], Virsh], answer: str, state: DomainState
) -> None:
    assert virsh(f"printf '{answer}'").state_of(UUID, "7", 10) == state


@pytest.mark.parametrize("text", ["", "Running", "was weiss ich", "(booted)", "running\nshut off", "x" * 9999])
def test_what_is_not_understood_is_no_state(text: str) -> None:
    """Above all, it is not a domain that is shut off."""
    with pytest.raises(LibvirtError, match="not the state of a domain") as caught:
        parse_state(text)
    assert len(str(caught.value)) < 1000


def test_messages_of_virsh_are_not_taken_for_its_answer(virsh: Callable[[str], Virsh]) -> None:
    """Such as those that LIBVIRT_DEBUG makes libvirt's library write."""
    noise = "echo '2026-01-01 12:00:00.000+0000: 1: info : libvirt version: 9.0.0' >&2"
    assert virsh(f"{noise}\necho 'shut off (saved)'").state(UUID) == DomainState("shut off", "saved")


@pytest.mark.parametrize("answer", ["", "qemu", "what is this?", "qemu:///system\\nqemu:///session", "q:" + "x" * 9999])
def test_a_connection_without_an_uri_is_none(virsh: Callable[[str], Virsh], answer: str) -> None:
    with pytest.raises(LibvirtError, match="not the URI of a connection") as caught:
        virsh(f"printf '{answer}\\n'").itself()
    assert len(str(caught.value)) < 1000
    assert virsh("echo qemu:///session").itself() == Virsh("qemu:///session")


def test_a_domain_is_found_by_its_name(virsh: Callable[[str], Virsh], tmp_path: Path) -> None:
    found = virsh(FOUND).find("a'b c")
    assert found == (Virsh("qemu:///session"), "vm1", UUID, DomainState("running", "booted"), "7", False)
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:2] == ["C", "--quiet"]
    domain = "--domain='a'\"'\"'b c'"
    assert words[2:] == [f"uri; dominfo {domain}; domstate --reason {domain}"]


@pytest.mark.parametrize(("answer", "is_transient"), [("yes", False), ("no", True)])
def test_a_domain_without_a_definition_is_transient(
    virsh: Callable[[str], Virsh], answer: str, is_transient: bool
) -> None:
    found = virsh(FOUND.replace("UUID:  ", f"Persistent: {answer}\nUUID:  ", 1)).find("vm1")
    assert found.is_transient is is_transient


def test_a_job_that_libvirt_has_already_is_told(virsh: Callable[[str], Virsh]) -> None:
    lock = "cannot acquire state change lock (held by monitor=remoteDispatchDomainSave)"
    with pytest.raises(LibvirtError, match="state change lock") as caught:
        virsh(f"echo 'error: Timed out during operation: {lock}' >&2; exit 1").ask("save")
    assert "another job for the domain, such as another save" in str(caught.value.hint)


def test_a_name_may_hold_other_ends_of_lines(virsh: Callable[[str], Virsh]) -> None:
    name = "a\u2028b\x85c\rd\x0ce"
    assert virsh(FOUND.replace("vm1", name)).find("vm1").name == name
    assert virsh(FOUND.replace("Id:", f"{name}:")).facts(UUID)["Managed save"] == "yes"
    with pytest.raises(LibvirtError, match="domain 'a\u2028b\x85c\rd\x0ce' is not running"):
        virsh(f"printf \"error: domain '{name}' is not running\\n\" >&2; exit 1").ask("save")


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b"])
def test_a_name_that_none_can_have_is_refused(virsh: Callable[[str], Virsh], name: str) -> None:
    with pytest.raises(UsageError, match="no domain"):
        virsh(FOUND).find(name)


def test_the_connection_that_virsh_chooses_is_looked_at(virsh: Callable[[str], Virsh]) -> None:
    with pytest.raises(UsageError, match="another host"):
        virsh(FOUND.replace("qemu:///session", "qemu+ssh://h/system")).find("vm1")


def test_the_default_is_looked_at_before_virsh_dials_it(
    virsh: Callable[[str], Virsh], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = virsh(FOUND)
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "qemu+ssh://h/system")
    with pytest.raises(UsageError, match="another host"):
        asked.find("vm1")
    assert not (tmp_path / "words").exists()


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("", "not the URI of a connection: $"),
        ("a\\nb\\n", "not the URI of a connection: a"),
        ("qemu:///system\\n", "does not tell the domain's UUID: $"),
        ("qemu:///system\\nUUID: b\\nshut off", "does not tell the domain's UUID: UUID: b / shut off"),
        (f"qemu:///system\\nUUID: {UUID}\\n", "not the state of a domain: UUID"),
    ],
)
def test_another_answer_is_no_answer(virsh: Callable[[str], Virsh], answer: str, shown: str) -> None:
    with pytest.raises(LibvirtError, match=shown):
        virsh(f"printf '{answer}'").find("vm1")


@pytest.mark.parametrize(
    ("said", "kind", "shown"),
    [
        ("error: failed to get domain 'x'", NoDomain, "failed to get domain 'x'"),
        ("qemu:///session\n\nerror: failed to get domain 'x'", NoDomain, "failed to get domain 'x'"),
        ("error: failed to connect to the hypervisor\nerror: no such socket", LibvirtError, "connect.*no such socket"),
        (
            "error: Failed to save domain 'x' to /a\nerror: operation aborted",
            LibvirtError,
            "^libvirt: operation aborted",
        ),
        ("", LibvirtError, "without a message"),
        ("error: " + "x" * 9999, LibvirtError, "x{500}…$"),
    ],
)
def test_a_failure_has_libvirts_own_reason(
    virsh: Callable[[str], Virsh], tmp_path: Path, said: str, kind: type[LibvirtError], shown: str
) -> None:
    (tmp_path / "said").write_text(said)
    with pytest.raises(kind, match=shown) as caught:
        virsh(f"cat {tmp_path}/said >&2; exit 1").state(UUID)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("authentication unavailable: no polkit agent available", "in the group libvirt"),
        ("Failed to connect socket to '/run/libvirt/libvirt-sock': Permission denied", "in the group libvirt"),
        ("internal error: Unable to get system bus connection: Could not connect", "where no polkit runs"),
        ("Failed to connect socket to '/run/libvirt/libvirt-sock': No such file or directory", "whether libvirtd runs"),
    ],
)
def test_who_is_not_let_in_is_told_who_is(virsh: Callable[[str], Virsh], said: str, shown: str) -> None:
    with pytest.raises(LibvirtError, match="cannot connect to libvirt") as caught:
        virsh(f'printf "error: failed to connect to the hypervisor\\nerror: {said}\\n" >&2; exit 1').state(UUID)
    assert shown in str(caught.value.hint)


@pytest.mark.parametrize("asked", ["state", "state_of", "facts"])
@pytest.mark.parametrize(
    ("lists", "kind", "shown"),
    [
        ("exit 0", NoDomain, "failed to get domain 'x'"),
        (f"echo; echo {UUID[:-1]}0; exit 0", NoDomain, "failed to get domain 'x'"),
        (f"echo {UUID}; exit 0", LibvirtError, f"failed to get domain 'x', but it lists the domain {UUID}"),
        ("echo error: no memory >&2; exit 1", LibvirtError, "^libvirt: no memory"),
    ],
)
def test_a_domain_is_gone_only_if_the_list_lacks_it(
    virsh: Callable[[str], Virsh], asked: str, lists: str, kind: type[LibvirtError], shown: str
) -> None:
    """A guest is said to have ended then."""
    answers = f"case $* in *--all*) {lists};; esac; echo \"error: failed to get domain 'x'\" >&2; exit 1"
    with pytest.raises(LibvirtError, match=shown) as caught:
        getattr(virsh(answers), asked)(UUID, *(["7", 9.0] if asked == "state_of" else []))
    assert type(caught.value) is kind


def test_no_virsh_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env").symlink_to("/usr/bin/env")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StatepipeError, match="not installed") as caught:
        Virsh("qemu:///system").state(UUID)
    assert "libvirt-clients" in str(caught.value.hint)


def test_a_silent_libvirt_is_told(virsh: Callable[[str], Virsh]) -> None:
    with pytest.raises(LibvirtSilent, match=r"virsh took more than 0\.2 s") as caught:
        virsh("exec sleep 60").state(UUID, within=0.2)
    assert isinstance(caught.value, QemuSilent)
