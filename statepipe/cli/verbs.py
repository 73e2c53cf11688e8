"""Every verb, declared once: the parser, the help, and the test of the manual all read this table.

A verb is a filter from the filters' table, or one of the commands below. `run` names the function in cli/ that
carries it out, imported only then.
"""

from __future__ import annotations

from dataclasses import dataclass

from statepipe.stages import FILTERS, IDENTITIES, RECIPIENTS, Param

THEN = ("stay", "cont", "quit")
ON_TIMEOUT = ("cancel", "suspend")


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb of the command line: `run` is `module:function`, which takes the parsed values."""

    name: str
    help: str
    params: tuple[Param, ...]
    run: str


_WORDS = "stages, in order: NAME[:ARGUMENT][,OPTION=VALUE]…"
_FORCE = Param("--force", "load although a disk has changed since the save")
_JSON = Param("--json", "print JSON")
_ID = Param("id", "which one: the ID that ps shows", "ID")
_QMP = Param("--qmp", "drive the QEMU whose monitor listens on the unix socket SOCKET", "SOCKET")
_INSECURE = Param("--insecure", "allow plain TCP beyond this host: anyone on the way can read and change it")
_CREDS = Param(
    "--tls-creds", "with tls://: certificates, and whom to believe, as QEMU's tls-creds-x509 has them", "DIR"
)
_PEER = Param("--peer", "with tls://: the pinned peer that is meant; for send the default is the host's name", "NAME")
_TIMEOUT = Param("--timeout", "give up when the peer is silent for so many seconds; the default is never", "SECONDS")

_STATUS_FD = Param("--status-fd", "tell each step, and how far it is each second, in JSON, to descriptor N", "N")
_JOURNAL = Param("--journal", "write each step down in FILE, which must not be there yet, before it is taken", "FILE")
_LINKS = Param("--links", "with tls://: connections at once, 1 to 16", "N")
_RETRY = Param("--retry", "with tls://: go on for so many seconds without network; the default is 30", "SECONDS")
_MONITOR = Param("--qmp", "the guest's QEMU, whose monitor listens on the unix socket SOCKET", "SOCKET")

COMMANDS = (
    Verb(
        "pipe",
        "run several filters in one process, with one verdict",
        (Param("words", _WORDS, "WORD", many="any"),),
        "statepipe.cli.filters:run_pipe",
    ),
    Verb(
        "save",
        "save a guest to FILE: as QEMU's exec: filter, or driving QEMU with --qmp",
        (
            Param("words", "stages on the way: checksum, progress, compress:zstd:LEVEL, encrypt", "WORD", many="any"),
            Param("file", "the state file, which exists only once it is complete", "FILE"),
            _QMP,
            Param("--then", "what becomes of the guest: stay paused (default), cont, or quit", "WHAT", choices=THEN),
            Param("--live", "let the guest run on while it is saved as it is now (background-snapshot)"),
            *RECIPIENTS,
            Param("--plain", "do not encrypt, although the configuration names recipients"),
        ),
        "statepipe.cli.states:run_save",
    ),
    Verb(
        "load",
        "load a guest from FILE: as QEMU's -incoming exec: filter, or starting or driving QEMU",
        (
            Param("file", "the state file, or a migration stream raw or compressed", "FILE"),
            Param("command", "after --: the QEMU command line that the guest was started with", "QEMU", many="any"),
            _QMP,
            Param("--detach", "return once the guest runs, and leave QEMU to itself"),
            _FORCE,
            *IDENTITIES,
        ),
        "statepipe.cli.states:run_load",
    ),
    Verb(
        "inspect",
        "say what is in a state file",
        (Param("file", "the file", "FILE"), _JSON, *IDENTITIES),
        "statepipe.cli.states:run_inspect",
    ),
    Verb(
        "verify-state",
        "read a state file whole and say whether every bit of it is as it was written",
        (Param("file", "the file", "FILE"), _JSON, *IDENTITIES),
        "statepipe.cli.states:run_verify",
    ),
    Verb(
        "ps",
        "list your running statepipes, and how far each is",
        (
            Param("seconds", "with --watch: how long between two looks; the default is 2", "SECONDS", many="optional"),
            Param("--watch", "look again and again, until interrupted"),
            _JSON,
        ),
        "statepipe.cli.jobs:run_ps",
    ),
    Verb(
        "rate",
        "give a running statepipe's throttle a new rate",
        (
            _ID,
            Param("rate", "bytes a second, as in 200M, or unlimited", "RATE"),
        ),
        "statepipe.cli.jobs:run_rate",
    ),
    Verb(
        "cancel",
        "end a running statepipe, as SIGTERM would, and wait until everything is undone",
        (_ID,),
        "statepipe.cli.jobs:run_cancel",
    ),
    Verb(
        "completion",
        "print the completion of bash, zsh or fish",
        (
            Param("shell", "which shell", "SHELL", many="optional", choices=("bash", "zsh", "fish")),
            Param("command", "after --: the words of a line, the last of them unfinished", "LINE", many="any"),
            Param("--words", "print what the last word of LINE may become: what the scripts ask"),
        ),
        "statepipe.cli.completion:run_completion",
    ),
    Verb(
        "send",
        "send standard input to ADDRESS, and end as the receiver does",
        (
            Param("words", "stages on the way: compress:zstd:3, checksum, progress", "WORD", many="any"),
            Param("address", "tls://HOST:PORT, or HOST alone; tcp://HOST:PORT; unix:///PATH", "ADDRESS"),
            _CREDS,
            _PEER,
            _INSECURE,
            _TIMEOUT,
            Param(
                "--retry",
                "where nobody listens yet, try again for so many seconds; with tls://, go on so long without network",
                "SECONDS",
            ),
            _LINKS,
            Param("--bind", "connect from this address of ours", "HOST"),
        ),
        "statepipe.cli.network:run_send",
    ),
    Verb(
        "recv",
        "receive one stream at ADDRESS, to standard output or into a file",
        (
            Param("address", "tls://:PORT, tls://HOST:PORT, the same with tcp://, or unix:///PATH", "ADDRESS"),
            Param("words", "stages on the way: decompress, checksum, progress", "WORD", many="any"),
            Param("--output", "a file, which exists only once the stream is there whole", "FILE", short="-o"),
            _CREDS,
            _PEER,
            _INSECURE,
            _TIMEOUT,
            Param("--retry", "with tls://: wait so many seconds for a sender whose connection broke", "SECONDS"),
        ),
        "statepipe.cli.network:run_recv",
    ),
    Verb(
        "migrate",
        "move a running guest to another host, in two phases: it runs there, or on here",
        (
            Param("words", "stages on the way: zstd:auto, throttle:100M, checksum", "WORD", many="any"),
            Param("uri", "where statepipe receive waits: tls://HOST:PORT, or HOST; file:///PATH saves", "URI"),
            _MONITOR,
            Param("--offline", "stop the guest first; it goes on over there"),
            Param("--downtime-limit", "milliseconds that the guest may stand still at the end; QEMU's is 300", "MS"),
            Param("--rate", "bytes a second that QEMU may send, as in 200M; the default is no limit", "RATE"),
            Param("--auto-converge", "slow the guest down if its memory changes faster than it is sent"),
            Param("--timeout", "seconds that the guest's memory may take", "SECONDS"),
            Param("--on-timeout", "what then: cancel (default), or suspend the guest", "WHAT", choices=ON_TIMEOUT),
            Param("--quit-source", "end QEMU here once the guest runs there"),
            Param("--force", "move although the comparison of the hosts fails"),
            _JOURNAL,
            _STATUS_FD,
            _CREDS,
            _PEER,
            _RETRY,
            _LINKS,
            Param("--bind", "connect from this address of ours", "HOST"),
        ),
        "statepipe.cli.migration:run_migrate",
    ),
    Verb(
        "receive",
        "take a guest that migrate gives away, into a QEMU that is started for it or one that waits",
        (
            Param("address", "tls://:PORT or tls://HOST:PORT", "ADDRESS"),
            Param("command", "after --: the QEMU command line that the guest was started with", "QEMU", many="any"),
            Param("--qmp", "the QEMU that waits with -incoming defer: its monitor's unix socket", "SOCKET"),
            Param("--detach", "return once the guest runs, and leave QEMU to itself"),
            Param("--serve", "take one guest after the other, at most N at a time", "N"),
            _JOURNAL,
            _STATUS_FD,
            _CREDS,
            _PEER,
            Param("--timeout", "give up when nobody came for so many seconds; the default is never", "SECONDS"),
            _RETRY,
        ),
        "statepipe.cli.migration:run_receive",
    ),
    Verb(
        "check",
        "say whether a guest would get to another host, before anything moves",
        (
            Param("uri", "where statepipe receive waits: tls://HOST:PORT, or HOST", "URI"),
            _MONITOR,
            _JSON,
            _CREDS,
            _PEER,
            Param("--bind", "connect from this address of ours", "HOST"),
        ),
        "statepipe.cli.migration:run_check",
    ),
    Verb(
        "resolve",
        "say where a guest is whose migration broke off, and have it run here or not",
        (
            Param(
                "where",
                "here: have the guest run here; elsewhere: it runs on the other host, end this QEMU",
                "WHERE",
                many="optional",
                choices=("here", "elsewhere"),
            ),
            _MONITOR,
            Param("--journal", "what migrate or receive wrote down", "FILE"),
        ),
        "statepipe.cli.migration:run_resolve",
    ),
    Verb(
        "pair",
        "let two hosts know each other's keys, by a code that is carried from one to the other",
        (
            Param("address", "the host that listens: HOST or HOST:PORT", "ADDRESS", many="optional"),
            Param("--listen", "wait for the other host, and show the code"),
            Param("--name", "pin the other host under this name; the default is what it is called", "NAME"),
            Param("--code-file", "read the code from FILE (as /dev/fd/N, a descriptor), with nobody to ask", "FILE"),
        ),
        "statepipe.cli.pair:run_pair",
    ),
    Verb(
        "pki",
        "make certificates for hosts, in folders that QEMU, libvirt and statepipe all load",
        (
            Param("action", "init, issue, revoke or show", "ACTION", choices=("init", "issue", "revoke", "show")),
            Param("names", "init: the authority's name; issue, revoke: hosts' names, addresses", "NAME", many="any"),
            Param("--ca", "the authority's folder; the default is ca among statepipe's settings", "CA"),
            Param("--dir", "issue: the host's new folder; revoke: put the list there too; show: look there", "DIR"),
            Param("--for", "issue for one end only: server or client", "USE", choices=("server", "client")),
            Param("--days", "how long it is good; the default is 3650 for init, 397 for issue", "DAYS"),
            _JSON,
        ),
        "statepipe.cli.pki:run_pki",
    ),
    Verb(
        "keygen",
        "make an identity that decrypts, in the format of age-keygen, and tell its recipient",
        (
            Param("--output", "write to FILE, which must not be there yet, for your eyes only", "FILE", short="-o"),
            Param("--pq", "make a post-quantum identity"),
            Param("--recipients", "tell the recipients of the identities in IDENTITIES", short="-y"),
            Param("file", "an identity file; the default is standard input", "IDENTITIES", many="optional"),
        ),
        "statepipe.cli.keygen:run_keygen",
    ),
)

VERBS = tuple(Verb(row.name, row.help, row.params, "statepipe.cli.filters:run_filter") for row in FILTERS) + COMMANDS

EXIT_CODES = (
    (0, "done"),
    (1, "a failure that was foreseen: no such file, disk full, refused"),
    (2, "the command line is wrong"),
    (3, "integrity: corrupt, cut short, wrong digest"),
    (4, "no key fits"),
    (5, "the peer or the network failed"),
    (6, "QEMU refused or failed"),
)
"""And 128 + n when signal n ended it; 141 is a reader that went away."""
