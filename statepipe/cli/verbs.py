"""Every verb and its parameters, in the order of `statepipe --help`. Parser, help, completion and tests read this.

A verb is a filter from the table of filters, or one of COMMANDS. `run` names a function in cli/, imported only when
the verb runs.
"""

from __future__ import annotations

from statepipe.cli import options
from statepipe.cli.filtertable import CODECS, FILTERS
from statepipe.cli.keyverbs import KEY_COMMANDS
from statepipe.cli.onfiles import ON_FILES
from statepipe.cli.verb import Param, Verb, number, seconds
from statepipe.errors import UsageError
from statepipe.guessing import did_you_mean
from statepipe.units import parse_rate

COMMANDS = (
    Verb(
        "pipe",
        "run several filters in one process, with one exit code",
        (
            Param(
                "words",
                "filters in order: NAME[:ARGUMENT][,OPTION=VALUE]…, as in compress checksum",
                "WORD",
                many="any",
            ),
        ),
        "statepipe.cli.filters:run_pipe",
    ),
    Verb(
        "save",
        "save a guest's state to FILE: as QEMU's exec: filter, through its monitor, or a domain through libvirt",
        (
            Param("words", f"{options.FILTERS}: checksum, throttle, compress:zstd:LEVEL, encrypt", "WORD", many="any"),
            Param("file", "the state file, which exists only once complete; - is standard output", "FILE", dash=True),
            options.MONITOR,
            Param(
                "--then",
                "what to do with the guest after the save: stay (paused), cont or quit (default: stay)",
                "WHAT",
                choices=("stay", "cont", "quit"),
                only=("--qmp",),
            ),
            options.OFFLINE._replace(only=("--qmp",)),
            options.AUTO_CONVERGE._replace(only=("--qmp",)),
            options.MEMORY_TIMEOUT._replace(only=("--qmp", "--domain")),
            options.ON_TIMEOUT._replace(needs="--timeout"),
            Param("--live", "save the guest as it is now while it runs on (background-snapshot)", only=("--qmp",)),
            Param("--domain", "save this domain of libvirt's, which is shut off then", "NAME"),
            options.CONNECT,
            Param("--overwrite", "replace FILE even if it is not a saved state"),
            *options.RECIPIENTS,
            Param("--plain", "do not encrypt, although the configuration names recipients"),
        ),
        "statepipe.cli.states:run_save",
    ),
    Verb(
        "load",
        "load a guest from FILE: into a QEMU that it starts or that waits, as QEMU's exec: filter, or by libvirt",
        (
            Param(
                "file",
                "the state file or its address in a store, or a QEMU stream, raw or compressed; - is standard input",
                "FILE",
                dash=True,
            ),
            Param("command", options.QEMU_COMMAND, "QEMU", many="any"),
            options.MONITOR._replace(help="unix socket of the monitor (QMP) of a QEMU that waits with -incoming defer"),
            *options.RESTORED,
            options.DETACH._replace(needs="QEMU"),
            Param("--timeout", "seconds that the load may take before it is given up", "SECONDS", type=seconds()),
            *options.LAZY,
            *options.OBJECTS,
            options.CLONE,
            options.STATUS_FD._replace(help="write the progress each second as JSON to descriptor N"),
            *options.GUARDS,
            *options.IDENTITIES,
        ),
        "statepipe.cli.states:run_load",
    ),
    Verb(
        "inspect",
        "show what a state file contains",
        (
            Param(
                "file",
                "the file, or the address of an object (default: standard input, as for -)",
                "FILE",
                many="optional",
                dash=True,
            ),
            options.AS_JSON,
            options.STORE_RETRY,
            *options.IDENTITIES,
        ),
        "statepipe.cli.states:run_inspect",
    ),
    Verb(
        "verify-state",
        "read whole state files and check every byte",
        (
            Param(
                "file",
                "the files, or addresses of objects (default: standard input if it is a pipe or a file, as for -)",
                "FILE",
                many="any",
                dash=True,
            ),
            options.AS_JSON,
            *options.OBJECTS,
            *options.IDENTITIES,
        ),
        "statepipe.cli.states:run_verify",
    ),
    Verb(
        "convert",
        "make a state file of a save image of libvirt's, or a save image of a state file",
        (
            Param("words", f"{options.FILTERS}: checksum, progress, compress:zstd:LEVEL, encrypt", "WORD", many="any"),
            Param(
                "file",
                "the save image or state file to convert, not with --domain; - is standard input",
                "FILE",
                many="optional",
                dash=True,
            ),
            Param("target", "the new file, which exists only once complete; - is standard output", "NEW", dash=True),
            Param(
                "--to-image",
                "write a save image for virsh restore: raw, or zstd for a libvirt that knows it (default: raw)",
                "FORMAT",
                many="optional",
                bare="raw",
                choices=("raw", "zstd"),
            ),
            Param("--domain", "convert libvirt's managed save of this domain", "NAME"),
            Param("--connect", "libvirt's connection (default: as for virsh)", "URI", needs="--domain"),
            Param("--xml", "take the domain's XML from here", "FILE"),
            Param("--overwrite", "replace NEW even if it is not a saved state"),
            *options.RECIPIENTS,
            Param("--plain", "do not encrypt, although the configuration names recipients"),
            options.IDENTITIES[0],
            options.IDENTITIES[-1],
        ),
        "statepipe.cli.convert:run_convert",
    ),
    Verb(
        "ps",
        "list your running statepipes and their progress",
        (
            Param(
                "seconds",
                "seconds between two lists with --watch (default: 2)",
                "SECONDS",
                many="optional",
                type=seconds(0.1, 86400),
                needs="--watch",
            ),
            Param("--watch", "list again and again, until interrupted"),
            options.AS_JSON,
        ),
        "statepipe.cli.jobs:run_ps",
    ),
    Verb(
        "rate",
        "change the rate of a running statepipe's throttle",
        (
            options.JOB_ID,
            Param("rate", "bytes or bits per second, as in 200M or 80Mbit, or unlimited", "RATE", type=parse_rate),
        ),
        "statepipe.cli.jobs:run_rate",
    ),
    Verb(
        "cancel",
        "stop a running statepipe, as SIGTERM does, and wait until everything is undone",
        (options.JOB_ID,),
        "statepipe.cli.jobs:run_cancel",
    ),
    Verb(
        "completion",
        "print the completion script of bash, zsh or fish",
        (
            Param("shell", "the shell", "SHELL", many="optional", choices=("bash", "zsh", "fish")),
            Param("command", "after --: the words of a command line, the last one unfinished", "LINE", many="any"),
            Param("--words", "print what the last word of LINE can become; the scripts call this"),
        ),
        "statepipe.cli.completion:run_completion",
    ),
    Verb(
        "send",
        "send standard input to ADDRESS, and succeed only if the receiver did",
        (
            Param("words", f"{options.FILTERS}: compress:zstd:3, checksum, progress", "WORD", many="any"),
            Param("address", "tls://HOST:PORT or HOST; ssh://HOST/PATH; tcp://HOST:PORT; unix:///PATH", "ADDRESS"),
            options.TLS_CREDS,
            options.RECORD_KIND,
            options.PEER._replace(help=f"{options.PEER.help} (default: HOST)"),
            options.INSECURE,
            options.SILENCE_TIMEOUT,
            options.RETRY._replace(
                help="seconds to wait for a receiver that does not listen yet, and with tls:// and ssh:// "
                "to go on without a connection (default: 30)",
            ),
            options.LINKS,
            options.ALSO,
            options.BIND,
            options.SSH_COMMAND,
            options.REMOTE_COMMAND,
        ),
        "statepipe.cli.network:run_send",
    ),
    Verb(
        "recv",
        "receive one stream at ADDRESS, to standard output or into a file",
        (
            Param(
                "address",
                "tls://:PORT or tls://HOST:PORT, the same with tcp://, or unix:///PATH",
                "ADDRESS",
                many="optional",
            ),
            Param("words", f"{options.FILTERS}: decompress, checksum, progress", "WORD", many="any"),
            Param("--output", "file that exists only once the stream is complete", "FILE", short="-o", dash=True),
            Param("--overwrite", "with -o and the address of an object: replace one that is there"),
            options.TLS_CREDS,
            options.RECORD_KIND,
            options.PEER,
            options.INSECURE,
            options.SILENCE_TIMEOUT,
            options.RETRY._replace(help="seconds to wait for a sender whose connection broke (default: 30)"),
            Param("--allow-empty", "accept a stream of no bytes, with tcp:// and unix://"),
            options.SESSION_STDIO,
            Param("--attach", "what ssh:// starts for one more connection of the receiver ID", "ID"),
        ),
        "statepipe.cli.network:run_recv",
    ),
    Verb(
        "migrate",
        "move a running guest to another host, in two phases",
        (
            Param("words", f"{options.FILTERS}: zstd:auto, throttle:100M, checksum", "WORD", many="any"),
            Param(
                "uri",
                "where statepipe receive waits: tls://HOST:PORT, HOST, unix:///PATH; or ssh://USER@HOST to start it; "
                "a QEMU that waits: tcp://HOST:PORT or unix:///PATH; a program: exec:COMMAND; a file: file:///PATH",
                "URI",
            ),
            options.MONITOR._replace(required=True),
            Param(
                "--detach",
                "return as soon as the guest's memory is being sent, and continue in the background",
                short="-d",
                only=options.TWO_PHASES,
            ),
            options.OFFLINE,
            Param(
                "--downtime-limit",
                "milliseconds that the guest may be stopped at the end (default: QEMU's, 300)",
                "MS",
                type=number(0, 2_000_000, "milliseconds"),  # QEMU's own limit (migration/options.c)
            ),
            Param("--rate", "bytes or bits per second, as in 200M (default: unlimited)", "RATE", type=parse_rate),
            options.AUTO_CONVERGE,
            options.MEMORY_TIMEOUT._replace(only=options.TWO_PHASES),
            options.ON_TIMEOUT._replace(only=options.TWO_PHASES),
            Param(
                "--switchover-timeout",
                "seconds that the stopped guest may wait for the other host; 0 is no limit (default: 10)",
                "SECONDS",
                type=seconds(),
                only=options.TWO_PHASES,
            ),
            Param("--quit-source", "end QEMU here once the guest runs there"),
            Param("--force", "migrate although the comparison of the hosts fails", only=options.TWO_PHASES),
            options.JOURNAL._replace(only=options.TWO_PHASES),
            options.STATUS_FD._replace(only=options.TWO_PHASES),
            options.TLS_CREDS,
            options.RECORD_KIND,
            options.PEER_OR_USER,
            options.RETRY,
            options.LINKS,
            options.ALSO,
            options.INSECURE,
            options.BIND,
            options.SSH_COMMAND,
            options.REMOTE_COMMAND,
            options.REMOTE_QEMU,
        ),
        "statepipe.cli.migration:run_migrate",
    ),
    Verb(
        "receive",
        "receive a guest that migrate sends, into a new QEMU or one that waits",
        (
            Param(
                "address", "tls://:PORT or tls://HOST:PORT; on the same host unix:///PATH", "ADDRESS", many="optional"
            ),
            Param("command", options.QEMU_COMMAND, "QEMU", many="any"),
            options.MONITOR._replace(help="unix socket of the monitor (QMP) of a QEMU that waits with -incoming defer"),
            options.DETACH,
            Param("--chdir", "folder to start QEMU in", "DIR"),
            options.SESSION_STDIO,
            Param(
                "--serve",
                "receive one guest after another, at most N at the same time, 1 to 1000",
                "N",
                type=number(1, 1000, "guests"),
            ),
            options.JOURNAL,
            options.STATUS_FD,
            options.TLS_CREDS,
            options.RECORD_KIND,
            options.PEER_OR_USER,
            Param("--timeout", "seconds to wait for a guest (default: forever)", "SECONDS", type=seconds()),
            options.RETRY,
        ),
        "statepipe.cli.migration:run_receive",
    ),
    Verb(
        "check",
        "compare this host with another and say whether a guest can migrate there",
        (
            Param("uri", "as for migrate: tls://HOST:PORT, HOST, unix:///PATH or ssh://USER@HOST", "URI"),
            options.MONITOR._replace(required=True),
            options.AS_JSON,
            Param("--timeout", "seconds that the check may take (default: no limit)", "SECONDS", type=seconds()),
            options.TLS_CREDS,
            options.RECORD_KIND,
            options.PEER_OR_USER,
            options.BIND,
            options.SSH_COMMAND,
            options.REMOTE_COMMAND,
            options.REMOTE_QEMU,
        ),
        "statepipe.cli.migration:run_check",
    ),
    Verb(
        "tunnel",
        "carry QEMU's own connections to another host, through sessions that survive lost connections",
        (
            Param("come", "where connections arrive: unix:///PATH here, tls://:PORT on the other host", "FROM"),
            Param("go", "where they go: tls://… or ssh://HOST/PATH here, unix:///PATH there", "TO", many="optional"),
            *options.LIBVIRT,
            Param("--once", "end once all connections have ended"),
            options.STATUS_FD._replace(help="write the progress each second as JSON to descriptor N"),
            options.TLS_CREDS,
            options.RECORD_KIND,
            options.PEER,
            options.RETRY,
            options.LINKS,
            options.ALSO,
            options.SSH_COMMAND,
            options.REMOTE_COMMAND,
        ),
        "statepipe.cli.tunnel:run_tunnel",
    ),
    Verb(
        "resolve",
        "show where a guest is after a migration broke off, or decide where it runs",
        (
            Param(
                "where",
                "here: it runs nowhere else, so run it here; elsewhere: it runs on the other host, so end this QEMU",
                "WHERE",
                many="optional",
                choices=("here", "elsewhere"),
            ),
            options.MONITOR._replace(required=True),
            Param("--journal", "the journal that migrate or receive wrote", "FILE"),
        ),
        "statepipe.cli.migration:run_resolve",
    ),
    *KEY_COMMANDS,
)

_RUN = {"checksum": "statepipe.cli.filters:run_checksum", "put": "statepipe.cli.objects:run_put"}
"""Filters whose commands are more than the filter."""

VERBS = (
    *(
        Verb(
            row.name,
            row.help,
            (*row.params, *ON_FILES.get(row.name, ())),
            _RUN.get(row.name, "statepipe.cli.filters:run_filter"),
        )
        for row in FILTERS
    ),
    *COMMANDS,
)

EXIT_CODES = (
    (0, "success"),
    (1, "a foreseen failure: no such file, disk full, refused"),
    (2, "wrong command line"),
    (3, "integrity: damaged, cut short, wrong digest"),
    (4, "no key fits"),
    (5, "the peer or the network failed"),
    (6, "QEMU refused or failed"),
)
"""And 128 + n for signal n; 141 if the reader of the output is gone."""

_ELSEWHERE = {
    **{"restore": "load", "resume": "load", "dump": "save", "snapshot": "save", "list": "ps", "status": "ps"},
    **{name: f"compress {name}" for name in CODECS},
}
"""What other programs call what we do."""


def find_verb(name: str) -> Verb:
    """Return the verb of that name. Raises UsageError."""
    for verb in VERBS:
        if verb.name == name:
            return verb
    if name.startswith("-"):
        meant = did_you_mean(name.lower(), ["--help", "--version"]) or "the verb comes first, its options after it; "
    else:
        word = name.partition(":")[0].lower()
        meant = did_you_mean(word, [verb.name for verb in VERBS])
        meant = f"did you mean {_ELSEWHERE[word]}? " if word in _ELSEWHERE else meant
    raise UsageError(f"there is no verb '{name}'", hint=f"{meant}see: statepipe --help")
