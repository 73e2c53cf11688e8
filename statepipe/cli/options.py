"""The options that several verbs have, and texts that several helps share."""

from __future__ import annotations

from statepipe.cli.verb import Param, descriptor, moved_disk, number, seconds, shell_words
from statepipe.ends.config import RECORDS
from statepipe.units import parse_rate, parse_size

TLS = ("tls://",)
SSH = ("ssh://",)
SESSIONS = (*TLS, *SSH)
PAIRED = (*TLS, "unix://")
TWO_PHASES = (*SESSIONS, "unix://")
"""Kinds of address where a statepipe takes the guest."""

PAIRING = ("pair --listen", "pair ADDRESS")
"""What pair does unless it lists or removes pins."""

AS_JSON = Param("--json", "print JSON")
JOB_ID = Param("id", "the ID that ps shows", "ID")
FILTERS = "filters for the stream, in order"
QEMU_COMMAND = "after --: the QEMU command line that the guest was started with"

TLS_CREDS = Param("--tls-creds", "folder with certificates, as for QEMU's tls-creds-x509", "DIR", only=TLS)
RECORD_KIND = Param(
    "--records",
    "large records where the peer knows them, too, or only those of TLS (default: large)",
    "KIND",
    choices=RECORDS,
    only=TLS,
)
PEER = Param("--peer", "name of the only peer to accept, of its pin or in its certificate", "NAME", only=TLS)
PEER_OR_USER = Param(
    "--peer",
    "name of the only peer to accept, of its pin or in its certificate; with unix://, a user of this host",
    "NAME",
    only=PAIRED,
)
INSECURE = Param("--insecure", "allow plain TCP to other hosts, where anyone on the way can read and change the bytes")
SILENCE_TIMEOUT = Param(
    "--timeout", "seconds without a word from the peer before giving up (default: never)", "SECONDS", type=seconds()
)
RETRY = Param("--retry", "seconds to go on without a connection (default: 30)", "SECONDS", type=seconds())
STATUS_FD = Param(
    "--status-fd", "write each step, and the progress each second, as JSON to descriptor N", "N", type=descriptor
)
LINKS = Param(
    "--links",
    "number of connections at once, 1 to 16 (default: one for each address)",
    "N",
    type=number(1, 16, "links"),
    only=SESSIONS,
)
ALSO = Param("--also", "another address of the same host, HOST or HOST:PORT", "HOST", many="any", only=TLS)
BIND = Param("--bind", "the local address to connect from", "HOST", only=("tls://", "tcp://"))
SSH_COMMAND = Param("--ssh", "the ssh command, with options (default: ssh)", "COMMAND", type=shell_words, only=SSH)
REMOTE_COMMAND = Param(
    "--remote-command", "the command that starts statepipe there (default: statepipe)", "COMMAND", only=SSH
)
REMOTE_QEMU = Param(
    "--remote-qemu",
    "file with the QEMU command line to start there (default: this QEMU's own, if it has your rights)",
    "FILE",
    only=SSH,
)
JOURNAL = Param("--journal", "new file that records each step before it is taken", "FILE")
SESSION_STDIO = Param("--session-stdio", "what ssh:// starts: standard input and output are the first connection")
MONITOR = Param("--qmp", "unix socket of the QEMU monitor (QMP) of the guest", "SOCKET")
DETACH = Param("--detach", "return as soon as the guest runs, and leave QEMU running")
OFFLINE = Param("--offline", "stop the guest first, so that its memory is sent once")
AUTO_CONVERGE = Param("--auto-converge", "slow the guest down while it changes its memory faster than it can be sent")
MEMORY_TIMEOUT = Param("--timeout", "seconds that sending the guest's memory may take", "SECONDS", type=seconds())
ON_TIMEOUT = Param(
    "--on-timeout",
    "what to do at --timeout: cancel, or suspend the guest (default: cancel)",
    "WHAT",
    choices=("cancel", "suspend"),
    needs="--timeout",
)


def _passphrases(ask: str) -> tuple[Param, ...]:
    """The ways to give a passphrase. None is on the command line or in the environment, where others see it."""
    return (
        Param("--passphrase", ask, short="-p"),
        Param("--passphrase-file", "file whose first line is the passphrase", "FILE"),
        Param("--passphrase-fd", "descriptor whose first line is the passphrase", "FD", type=descriptor),
    )


RECIPIENTS = (
    Param(
        "--recipient",
        "who can decrypt: age1…, a public key of ssh, or gpg:KEY; repeatable",
        "RECIPIENT",
        many="any",
        short="-r",
    ),
    Param("--recipients-file", "file with one recipient per line; repeatable", "FILE", many="any", short="-R"),
    *_passphrases("ask twice at the terminal for a passphrase that decrypts"),
    Param("--sign", "your GnuPG key to sign with, for gpg:KEY recipients", "KEY"),
)
"""The options of every verb that encrypts."""

IDENTITIES = (
    Param("--identity", "file with a secret key of keygen or ssh; repeatable", "FILE", many="any", short="-i"),
    *_passphrases("ask at the terminal for the passphrase"),
    Param("--signed-by", "fingerprint of the key whose good OpenPGP signature is required", "FINGERPRINT"),
)
"""The options of every verb that decrypts."""

STORE_RETRY = Param(
    "--retry",
    "seconds without a byte for which a request to the store is made again (default: 120)",
    "SECONDS",
    type=seconds(),
)

OBJECTS = (
    STORE_RETRY,
    Param("--cache", "keep what is read of an object in DIR, for the next time", "DIR"),
    Param("--cache-size", "most that DIR keeps (default: 16G)", "SIZE", type=parse_size, needs="--cache"),
)
"""Options of verbs that read a state, for a FILE that is the address of an object."""

LEARN = "10"
"""Seconds of --learn."""

LAZY = (
    Param(
        "--lazy",
        "run the guest at once and load its memory meanwhile; =auto: unless that is not possible",
        "WHEN",
        many="optional",
        bare="always",
        choices=("always", "auto"),
    ),
    Param("--verify-first", "with --lazy: verify all of FILE first"),
    Param("--throttle", "with --lazy: limit for memory that the guest does not wait for", "RATE", type=parse_rate),
    Param(
        "--learn",
        f"learn for SECONDS (default: {LEARN}) which memory the next lazy load sends first",
        "SECONDS",
        many="optional",
        bare=LEARN,
        type=seconds(0, 3600),
        needs="--lazy",
    ),
    Param("--resume", "continue an interrupted lazy load", needs="--qmp"),
)
"""Options of load for a guest that runs while its memory is loaded."""

LIBVIRT = (
    Param("--libvirt", "carry migrations of libvirt; FROM is then the other host, or tls://:PORT on it"),
    Param("--domain", "the guest to migrate, on the host where it runs", "NAME", needs="--libvirt"),
    Param("--folder", "folder for the sockets, with the same path on both hosts", "DIR", needs="--libvirt"),
    Param("--libvirtd", "socket of libvirt's daemon, on the host where guests go", "SOCKET", needs="--libvirt"),
)
"""Options of a tunnel for libvirt."""

GUARDS = (
    Param("--disk", "use NEW as the disk that was OLD at the save", "OLD=NEW", many="any", type=moved_disk),
    Param(
        "--force", "load although WHAT differs from the save: a disk, or cpu, smp, ram or devices", "WHAT", many="any"
    ),
)
"""Options of load for what differs from the save."""

CONNECT = Param("--connect", "libvirt's URI (default: as virsh chooses it)", "URI", needs="--domain")

RESTORED = (
    Param("--domain", "have libvirt restore the domain that FILE holds"),
    CONNECT,
    Param("--xml", "file with the domain's XML, changed where the guest does not see it", "FILE", needs="--domain"),
    Param("--running", "run the domain even if it was paused when it was saved", needs="--domain"),
    Param("--paused", "leave the domain paused", needs="--domain"),
)
"""Options of load for a guest of libvirt's."""

CLONE = Param(
    "--clone",
    "leave the disks unchanged: put a new overlay for each that the guest writes into DIR",
    "DIR",
    needs="QEMU",
)
