"""Ask libvirt, and have it work, through virsh.

virsh and not libvirt's Python module: a job belongs to libvirtd and not to its client, so nothing is lost if virsh
ends, and libvirt can be asked again. The module would have to be compiled for the host's version of libvirt, and its
calls block a thread in C, where no signal ends them; a program can be killed. virsh's options and its words for states
have been the same since libvirt 0.9.
"""

from __future__ import annotations

import os
import re
import shlex
from contextlib import suppress
from typing import NamedTuple

from statepipe.errors import QemuError, QemuSilent, StatepipeError, UsageError
from statepipe.processes import Unavailable, lines_in, outputs_of

ANSWER = 30.0
"""Seconds that virsh has for an answer, which takes it 15 ms."""

LONGEST = 500
"""Characters of virsh's messages that are shown."""

INSTALL = "install virsh (Debian and Ubuntu: libvirt-clients, Fedora: libvirt-client)"

RUNNING, PAUSED, SHUT_OFF, ASLEEP = "running", "paused", "shut off", "pmsuspended"
STATES = (RUNNING, PAUSED, SHUT_OFF, ASLEEP, "idle", "in shutdown", "crashed", "no state")
"""virsh's words for the states of a domain. Only one that is shut off has no guest."""


_AGAIN = "and was started again since"
"""Why a guest is not there whose domain is."""


class LibvirtError(QemuError):
    """libvirt refused or failed, with its own reason, or cannot be reached."""


class LibvirtSilent(QemuSilent):
    """libvirt did not answer in time. It may still act."""


class NoVirsh(StatepipeError):
    """virsh is not installed."""


class NoDomain(LibvirtError):
    """libvirt knows no such domain."""


_URI = re.compile(r"[a-z]\S{0,2000}:\S{0,2000}")

_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class DomainState(NamedTuple):
    """As virsh domstate --reason prints it: a state, and a reason in libvirt's words."""

    state: str
    reason: str

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})" if self.reason else self.state


class Found(NamedTuple):
    """A domain that exists: the connection it was found through, and what it is and does. `number` is libvirt's id,
    which is another one each time it is started. libvirt has no definition of a transient one, which is gone with its
    guest."""

    virsh: Virsh
    name: str
    uuid: str
    state: DomainState
    number: str
    is_transient: bool = False


class Virsh(NamedTuple):
    """virsh with a connection URI; without one, virsh chooses (LIBVIRT_DEFAULT_URI, libvirt.conf, the user)."""

    uri: str | None

    def command(self, *words: str) -> list[str]:
        """Return the command line of virsh for these words, with messages that can be read by programs."""
        uri = [] if self.uri is None else [f"--connect={self.uri}"]
        return ["env", "-u", "VIRSH_DEBUG", "LC_ALL=C", "virsh", "--quiet", *uri, *words]

    def typed(self, *words: str) -> str:
        """Return what a person types for these words, at this connection."""
        return shlex.join(["virsh", *([] if self.uri is None else [f"--connect={self.uri}"]), *words])

    def ask(self, *words: str, within: float = ANSWER) -> str:
        """Return what virsh prints. Raises LibvirtError with libvirt's reason if it fails, LibvirtSilent if it does not
        answer within so many seconds."""
        try:
            status, output, errors = outputs_of(self.command(*words), "virsh", within)
        except Unavailable as error:
            raise LibvirtSilent(str(error), hint="is libvirtd at work? see: systemctl status libvirtd") from error
        if status == 127:  # env's, for a program that is not there
            raise NoVirsh("virsh is not installed", hint=INSTALL)
        if status:
            raise failure(errors.decode(errors="replace"))
        return output.decode(errors="replace")

    def find(self, name: str) -> Found:
        """Return the domain with this name, id or UUID. Raises LibvirtError, and UsageError for a connection to another
        host or to another hypervisor than QEMU."""
        demand_local(self.uri or os.environ.get("LIBVIRT_DEFAULT_URI"))
        if not name or "\0" in name or "\n" in name:
            raise UsageError(f"no domain can have the name {name!r}", hint="virsh list --all shows them")
        domain = f"--domain={shlex.quote(name)}"  # virsh domname takes no name, and domuuid no UUID
        uri, *rows = lines_in(self.ask(f"uri; dominfo {domain}; domstate --reason {domain}")) or [""]
        _demand_uri(uri)
        its = _facts(rows)
        if not _UUID.fullmatch(uuid := its.get("UUID", "")):
            raise LibvirtError(f"virsh does not tell the domain's UUID: {_shown(' / '.join(rows))}")
        is_transient = its.get("Persistent") == "no"
        return Found(Virsh(uri), its.get("Name", uuid), uuid, parse_state(rows[-1]), its.get("Id", ""), is_transient)

    def _ask_of(self, uuid: str, *words: str, within: float = ANSWER) -> str:
        """As `ask`, about a domain. Raises NoDomain only if libvirt's list of domains lacks it, too: a guest is taken
        for ended then, and virsh says the same of a domain that it could not look for."""
        try:
            return self.ask(*words, within=within)
        except NoDomain as error:
            if uuid in lines_in(self.ask("list", "--all", "--uuid", within=within)):
                raise LibvirtError(f"{error}, but it lists the domain {uuid}") from error
            raise

    def _lines(self, uuid: str, *commands: str, within: float = ANSWER) -> list[str]:
        """Return the line that each of virsh's commands about a domain prints. Raises as `_ask_of`."""
        lines, wanted = lines_in(self._ask_of(uuid, "; ".join(commands), within=within)), len(commands)
        if len(lines) != wanted:
            shown = _shown(" / ".join(lines))
            raise LibvirtError(f"virsh answered {len(lines)} lines where {wanted} were asked for: {shown}")
        return lines

    def itself(self) -> Virsh:
        """Return the same connection with its URI, for a connection that virsh has chosen. Raises as `find`."""
        demand_local(self.uri or os.environ.get("LIBVIRT_DEFAULT_URI"))
        uri = self.ask("uri").strip()
        _demand_uri(uri)
        return Virsh(uri)

    def state(self, uuid: str, within: float = ANSWER) -> DomainState:
        """Return the state of a domain. Raises NoDomain, LibvirtError, LibvirtSilent."""
        return parse_state(self._ask_of(uuid, "domstate", "--reason", f"--domain={uuid}", within=within))

    def state_of(self, uuid: str, number: str, within: float) -> DomainState:
        """Return the state of the guest that the domain had when libvirt's id of it was `number`: it is shut off, too,
        if the domain was started again since. Raises as `state`."""
        state, now = self._lines(uuid, f"domstate --reason {uuid}", f"domid {uuid}", within=within)
        found = parse_state(state)
        if found.state == SHUT_OFF or now == number:
            return found
        return DomainState(SHUT_OFF, "" if now == "-" else _AGAIN)  # without an id, it ended between the two answers

    def facts(self, uuid: str) -> dict[str, str]:
        """Return what virsh dominfo tells of a domain by its own words, such as State. Raises as `state`."""
        return _facts(lines_in(self._ask_of(uuid, "dominfo", f"--domain={uuid}")))

    def named(self, name: str) -> dict[str, str] | None:
        """Return the same of the domain with this name, None if there is none. Raises LibvirtError, LibvirtSilent."""
        with suppress(NoDomain):
            its = _facts(lines_in(self.ask("dominfo", f"--domain={name}")))
            if its.get("Name") == name:  # and not a domain whose id the name looks like
                return its
        return None


def _facts(lines: list[str]) -> dict[str, str]:
    """Return what virsh prints as "Name:           vm1"."""
    rows = (line.partition(":") for line in lines)
    return {name: value.strip() for name, colon, value in rows if colon}


def parse_state(text: str) -> DomainState:
    """Return the state that virsh prints as "running (booted)". Raises LibvirtError for other text: what is not
    understood must not decide about a guest."""
    state, _, reason = text.strip().partition(" (")
    if state not in STATES:
        raise LibvirtError(f"virsh answered what is not the state of a domain: {_shown(text.strip())}")
    return DomainState(state, reason.removesuffix(")"))


def demand_local(uri: str | None) -> None:
    """Raises UsageError for a URI of another host, or of another hypervisor than QEMU. None passes: virsh chooses."""
    if not uri or ":" not in uri:  # an alias of libvirt.conf
        return
    scheme, _, rest = uri.partition(":")
    driver, _, transport = scheme.partition("+")
    host = rest.removeprefix("//").partition("/")[0] if rest.startswith("//") else ""
    if driver != "qemu":
        what = f"{uri} is a connection to {driver or 'no hypervisor'}, and states are those of QEMU's guests"
        raise UsageError(what, hint="for example: --connect qemu:///system")
    if host or transport not in ("", "unix"):
        raise UsageError(
            f"{uri} is a connection to another host, and libvirt passes the state on only where it runs",
            hint=f"run statepipe there, for example: ssh {host or 'HOST'} statepipe save --domain NAME FILE",
        )


def _demand_uri(uri: str) -> None:
    """Raises LibvirtError unless virsh has answered a URI, and UsageError as `demand_local`."""
    if not _URI.fullmatch(uri):
        raise LibvirtError(f"virsh answered what is not the URI of a connection: {_shown(uri)}")
    demand_local(uri)


def failure(text: str) -> LibvirtError:
    """Return the error for what virsh wrote when it failed: libvirt's own reason, which is its last message."""
    lines = [line.strip() for line in lines_in(text) if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines
    first, last = (said[0], said[-1]) if said else ("", "virsh failed without a message")
    if first.startswith("failed to get domain"):
        return NoDomain(f"libvirt: {_shown(first)}", hint="virsh list --all shows the domains of this connection")
    if first.startswith("failed to connect"):
        is_refused = any(word in last for word in _REFUSED)
        return LibvirtError(f"cannot connect to libvirt: {_shown(last)}", hint=_MEMBER if is_refused else _CONNECT)
    hint = _BUSY if "cannot acquire state change lock" in last else None
    return LibvirtError(f"libvirt: {_shown(last)}", hint=hint)


_CONNECT = (
    "see whether libvirtd runs (virsh uri); the system's guests are at --connect qemu:///system, for which your user "
    "must be in the group libvirt"
)

_REFUSED = ("authentication", "Permission denied", "system bus")
"""Words of libvirt's if polkit, or the mode of its socket, does not let the user in, or polkit's bus is not there."""

_MEMBER = (
    "libvirt does not let your user in: it must be in the group libvirt, and have logged in since; or use sudo, then "
    "FILE is root's; where no polkit runs, auth_unix_rw and unix_sock_group in /etc/libvirt/libvirtd.conf decide"
)


_BUSY = (
    "libvirt has another job for the domain, such as another save: wait until it has ended (virsh domjobinfo NAME), "
    "and try again"
)


def _shown(text: str) -> str:
    """Return text of another program for a message, which is not to be endless."""
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"
