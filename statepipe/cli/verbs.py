"""Every verb, declared once: the parser, the help, and the test of the manual all read this table.

A verb is a filter from the filters' table, or one of the commands below. `run` names the function in cli/ that
carries it out, imported only then.
"""

from __future__ import annotations

from statepipe.cli.filtertable import FILTERS, IDENTITIES, RECIPIENTS
from statepipe.cli.hostverbs import BETWEEN_HOSTS, ON_TIMEOUT
from statepipe.cli.onfiles import ON_FILES
from statepipe.cli.verb import AS_JSON, Param, Verb

THEN = ("stay", "cont", "quit")


_WORDS = "stages, in order: NAME[:ARGUMENT][,OPTION=VALUE]…"
_DISK = Param("--disk", "the guest's disk that was OLD at the save is NEW now", "OLD=NEW", many="any")
_FORCE = Param(
    "--force", "load although WHAT (a disk; cpu, smp, ram or devices) is not as it was at the save", "WHAT", many="any"
)
_ID = Param("id", "which one: the ID that ps shows", "ID")
_QMP = Param("--qmp", "drive the QEMU whose monitor listens on the unix socket SOCKET", "SOCKET")


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
            Param(
                "file", "the state file, which exists only once it is complete; - is standard output", "FILE", dash=True
            ),
            _QMP,
            Param("--then", "what becomes of the guest: stay paused (default), cont, or quit", "WHAT", choices=THEN),
            Param("--offline", "stop the guest first: its memory is sent once"),
            Param("--auto-converge", "slow the guest down if its memory changes faster than it is sent"),
            Param("--timeout", "seconds that the guest's memory may take", "SECONDS"),
            Param("--on-timeout", "what then: cancel (default), or suspend the guest", "WHAT", choices=ON_TIMEOUT),
            Param("--live", "let the guest run on while it is saved as it is now (background-snapshot)"),
            Param("--overwrite", "replace FILE also where what is there is no saved state"),
            *RECIPIENTS,
            Param("--plain", "do not encrypt, although the configuration names recipients"),
        ),
        "statepipe.cli.states:run_save",
    ),
    Verb(
        "load",
        "load a guest from FILE: as QEMU's -incoming exec: filter, or starting or driving QEMU",
        (
            Param(
                "file",
                "the state file, or a migration stream raw or compressed; - is standard input",
                "FILE",
                dash=True,
            ),
            Param("command", "after --: the QEMU command line that the guest was started with", "QEMU", many="any"),
            _QMP,
            Param("--detach", "return once the guest runs, and leave QEMU to itself"),
            Param("--timeout", "seconds until the guest has to be here; then it is given up", "SECONDS"),
            _DISK,
            _FORCE,
            *IDENTITIES,
        ),
        "statepipe.cli.states:run_load",
    ),
    Verb(
        "inspect",
        "say what is in a state file",
        (
            Param(
                "file",
                "the file; - or nothing is standard input",
                "FILE",
                many="optional",
                dash=True,
            ),
            AS_JSON,
            *IDENTITIES,
        ),
        "statepipe.cli.states:run_inspect",
    ),
    Verb(
        "verify-state",
        "read a state file whole and say whether every bit of it is as it was written",
        (
            Param(
                "file",
                "the file, or several; -, and a pipe if there is none, is standard input",
                "FILE",
                many="any",
                dash=True,
            ),
            AS_JSON,
            *IDENTITIES,
        ),
        "statepipe.cli.states:run_verify",
    ),
    Verb(
        "ps",
        "list your running statepipes, and how far each is",
        (
            Param("seconds", "with --watch: how long between two looks; the default is 2", "SECONDS", many="optional"),
            Param("--watch", "look again and again, until interrupted"),
            AS_JSON,
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
    *BETWEEN_HOSTS,
    Verb(
        "keygen",
        "make an identity that decrypts, in the format of age-keygen, and tell its recipient",
        (
            Param(
                "--output",
                "write to FILE, which must not be there yet, for your eyes only",
                "FILE",
                short="-o",
                dash=True,
            ),
            Param("--pq", "make a post-quantum identity"),
            Param("--recipients", "tell the recipients of the identities in IDENTITIES", short="-y"),
            Param(
                "file",
                "an identity file; the default, and -, is standard input",
                "IDENTITIES",
                many="optional",
                dash=True,
            ),
        ),
        "statepipe.cli.keygen:run_keygen",
    ),
)

_FILTERS = tuple(
    Verb(
        row.name,
        row.help,
        (*row.params, *ON_FILES.get(row.name, ())),
        "statepipe.cli.digests:run_checksum" if row.name == "checksum" else "statepipe.cli.filters:run_filter",
    )
    for row in FILTERS
)

VERBS = _FILTERS + COMMANDS

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
