"""Runs a service's ExecStart= as its unit confines it, where no systemd runs: python -m tests.qemu.hardened JSON.

To be started by root in a mount namespace of its own, with the listening socket as descriptor 3. What is done here is
done by the same means as systemd's: mounts, ids, capabilities, and a filter of system calls by libseccomp. Namespaces
of devices and cgroups are not: DevicePolicy, MemoryMax and TasksMax stay untried.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

UID = 61184
"""Of nobody's: the first of systemd's dynamic users, of whom a machine without it has none."""

Settings = dict[str, list[str]]


def settings(unit: Path) -> Settings:
    """What [Service] says: the values of each key, in order."""
    found: Settings = {}
    for line in unit.read_text().partition("[Service]")[2].splitlines():
        key, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@dataclass
class Confinement:
    """What is to run, and what of the machine it is to have. Written as JSON."""

    unit: str
    state: str
    """Its StateDirectory=: the one folder that it may write."""

    runtime: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    code: Sequence[str] = ()
    """Folders that stay readable, wherever they are: Python's and statepipe's own."""


def mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True).returncode == 0


def confine_files(it: Confinement, unit: Settings) -> None:
    """ProtectSystem=strict, ProtectHome=yes and PrivateTmp=yes."""
    assert unit["ProtectSystem"] == ["strict"] and unit["ProtectHome"] == ["yes"] and unit["PrivateTmp"] == ["yes"]
    kept = [*it.code, it.state, it.runtime]
    assert mount("-t", "tmpfs", "tmpfs", "/mnt")
    for number, folder in enumerate(kept):
        os.mkdir(f"/mnt/{number}")
        assert mount("--bind", folder, f"/mnt/{number}"), folder
    for hidden, mode in (("/home", "755"), ("/root", "755"), ("/tmp", "1777"), ("/var/tmp", "1777")):
        assert mount("-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", hidden)
    for number, folder in enumerate(kept):
        os.makedirs(folder, exist_ok=True)
        assert mount("--move", f"/mnt/{number}", folder), folder
    writable = ("/dev", "/proc", "/sys", "/tmp", "/var/tmp", it.state, it.runtime)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        where = line.split()[4]
        if not any(where == each or where.startswith(f"{each}/") for each in writable):
            done = mount("-o", "remount,bind,ro", where)
            assert done or where != "/", "the root could not be made read-only"


def expanded(name: str) -> set[str]:
    """The system calls of a set of systemd's."""
    if not name.startswith("@"):
        return {name}
    told = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    names = [line.strip() for line in told.stdout.splitlines()[1:]]
    return set().union(*(expanded(each) for each in names if each and not each.startswith("#")))


class _Compare(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


ALLOW, REFUSE, EQUAL = 0x7FFF0000, 0x00050000, 4
"""SCMP_ACT_ALLOW, SCMP_ACT_ERRNO, SCMP_CMP_EQ of seccomp.h."""


def confine_calls(unit: Settings) -> None:
    """SystemCallFilter=, RestrictAddressFamilies= and RestrictNamespaces=yes (but for clone's flags)."""
    calls: set[str] = set()
    for value in unit["SystemCallFilter"]:
        named = set().union(*map(expanded, value.removeprefix("~").split()))
        calls = calls - named if value.startswith("~") else calls | named
    families = [getattr(socket, name) for name in unit["RestrictAddressFamilies"][0].split()]
    assert unit["RestrictNamespaces"] == ["yes"] and unit["SystemCallErrorNumber"] == ["EPERM"]
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(REFUSE | errno.EPERM)))
    for name in calls - {"unshare", "setns", "socket"}:
        if (number := library.seccomp_syscall_resolve_name(name.encode())) >= 0:
            assert library.seccomp_rule_add_array(context, ALLOW, number, 0, None) == 0, name
    call = library.seccomp_syscall_resolve_name(b"socket")
    for family in families:
        rule = _Compare(0, EQUAL, family, 0)
        assert library.seccomp_rule_add_array(context, ALLOW, call, 1, ctypes.byref(rule)) == 0
    assert library.seccomp_load(context) == 0


def confine_rights(unit: Settings) -> None:
    """User=, no capabilities, NoNewPrivileges=yes, UMask=, LimitCORE=0."""
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == [""] and unit["NoNewPrivileges"] == ["yes"]
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for capability in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        assert prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP
    os.setgroups([group.gr_gid for group in grp.getgrall() if group.gr_name in unit["SupplementaryGroups"][0].split()])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    assert prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    os.umask(int(unit["UMask"][0], 8))
    resource.setrlimit(resource.RLIMIT_CORE, (int(unit["LimitCORE"][0]),) * 2)


def main() -> None:
    """Confine this process, and become the command."""
    it = Confinement(**json.loads(sys.argv[1]))
    unit = settings(Path(it.unit))
    confine_files(it, unit)
    confine_rights(unit)
    os.chdir(it.state)
    confine_calls(unit)
    handed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    os.execve(it.command[0], it.command, it.environment | handed)


if __name__ == "__main__":
    main()
