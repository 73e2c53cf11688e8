"""Find the save image that libvirt keeps itself for a domain: a managed save."""

from __future__ import annotations

import os
import shlex

from statepipe.ends.fd import failure
from statepipe.errors import StatepipeError, UsageError
from statepipe.libvirt.virsh import Virsh, demand_local

SYSTEM, SESSION = "qemu:///system", "qemu:///session"

SYSTEM_FOLDER = "/var/lib/libvirt/qemu/save"
"""Where libvirtd keeps them for the system's guests, in all distributions. Only root may look into it."""


def managed_save(name: str, uri: str | None = None) -> str:
    """Return the path of a domain's managed save. The domain need not exist, and libvirt is not asked.

    Without `uri`, the connection is the one that virsh would choose. Raises StatepipeError if there is no such file or
    nobody may look for it, UsageError for a connection that has none here.
    """
    if not name or "/" in name or "\0" in name:
        raise UsageError(
            f"no domain can have the name {name!r}", hint="virsh list --all --with-managed-save shows them"
        )
    uri = uri or _default()
    path = os.path.join(_folder(uri), f"{name}.save")
    try:
        os.stat(path)
    except FileNotFoundError as error:
        its = Virsh(uri)
        hint = (
            f"{its.typed('list', '--all', '--with-managed-save')} shows which domains have one; to save one that runs: "
            f"{shlex.join(['statepipe', 'save', '--domain', name])} NEW; of another connection: --connect URI"
        )
        raise StatepipeError(f"the domain {name} has no managed save: there is no {path}", hint=hint) from error
    except OSError as error:
        raise failure(f"look for {path}", error) from error
    return path


def _default() -> str:
    """Return the connection that virsh chooses, as far as the environment tells."""
    for variable in ("VIRSH_DEFAULT_CONNECT_URI", "LIBVIRT_DEFAULT_URI"):
        if found := os.environ.get(variable):
            return found
    return SESSION if os.geteuid() else SYSTEM


def _folder(uri: str) -> str:
    """Return where a connection's managed saves are. Raises UsageError."""
    demand_local(uri)
    where = uri.partition("?")[0].partition(":")[2]
    if where == "///system":
        return SYSTEM_FOLDER
    if where == "///session":
        configuration = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        return os.path.join(configuration, "libvirt/qemu/save")
    what = f"where the managed saves of {uri} are is not known"
    raise UsageError(what, hint=f"give the file instead of --domain, or --connect {SYSTEM} or {SESSION}")
