"""The verbs about keys and certificates: pair, pki and keygen."""

from __future__ import annotations

from statepipe.cli import options
from statepipe.cli.verb import Param, Verb, number

KEY_COMMANDS = (
    Verb(
        "pair",
        "make two hosts trust each other's keys, by a code that you carry from one to the other",
        (
            Param("address", "the listening host, HOST or HOST:PORT", "ADDRESS", many="optional", only=options.PAIRING),
            Param("--listen", "wait for the other host, and show the code", only=options.PAIRING),
            Param("--name", "name of the other host's pin (default: the host's own)", "NAME", only=options.PAIRING),
            Param(
                "--code-file",
                "file to read the code from, or /dev/fd/N, instead of asking",
                "FILE",
                only=options.PAIRING,
            ),
            Param("--list", "print the pinned peers, one per line: name and fingerprint", only=("pair --list",)),
            Param(
                "--remove",
                "remove the pin of the peer NAME, and print which key it was",
                "NAME",
                only=("pair --remove",),
            ),
        ),
        "statepipe.cli.pair:run_pair",
    ),
    Verb(
        "pki",
        "make certificates for hosts, in folders that QEMU, libvirt and statepipe load",
        (
            Param("action", "init, issue, revoke or show", "ACTION", choices=("init", "issue", "revoke", "show")),
            Param(
                "names", "init: name of the authority; issue, revoke: names and addresses of hosts", "NAME", many="any"
            ),
            Param("--ca", "folder of the authority (default: ca in statepipe's configuration folder)", "CA"),
            Param(
                "--dir",
                "issue: new folder for the host; revoke: folder that gets the list, too; show: folder to show",
                "DIR",
                only=("pki issue", "pki revoke", "pki show"),
            ),
            Param(
                "--for",
                "issue for one side: server or client (default: both)",
                "USE",
                choices=("server", "client"),
                only=("pki issue",),
            ),
            Param(
                "--days",
                "days until it expires (default: 3650 for init, 397 for issue)",
                "DAYS",
                type=number(1, 36500, "days"),
                only=("pki init", "pki issue"),
            ),
            options.AS_JSON,
        ),
        "statepipe.cli.pki:run_pki",
    ),
    Verb(
        "keygen",
        "make a secret key for decrypt (an age identity), and print its public key",
        (
            Param("--output", "new file for the secret key, which only you can read", "FILE", short="-o", dash=True),
            Param("--pq", "make a post-quantum key"),
            Param("--recipients", "print the public keys of the secret keys in IDENTITIES", short="-y"),
            Param(
                "file",
                "file with secret keys (default: standard input, as for -)",
                "IDENTITIES",
                many="optional",
                dash=True,
            ),
        ),
        "statepipe.cli.keygen:run_keygen",
    ),
)
