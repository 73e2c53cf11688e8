"""The table of filters: their options, and who builds each. What builds them is the library (library/filters.py).

The same declaration makes the command `statepipe NAME ARG --opt V` and the word `NAME:ARG,opt=V` (cli/grammar.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from statepipe.cli.verb import Param
from statepipe.errors import UsageError
from statepipe.library import filters
from statepipe.stage import Stage
from statepipe.stages.context import Context

Values = Mapping[str, Any]
Build = Callable[[Values, Context], Stage]


@dataclass(frozen=True, slots=True)
class Filter:
    """One row of the table. `build` takes the parameters' values and what the stage may use of the world."""

    name: str
    help: str
    params: tuple[Param, ...]
    build: Build
    inverse: str | None = None
    keeps_bytes: bool = False


def _built(factory: str, **renamed: str) -> Build:
    """What calls that factory of the library with the values that were given; `renamed`: its keywords for ours."""

    def build(values: Values, context: Context) -> Stage:
        make = getattr(filters, factory)
        names = inspect.signature(make).parameters
        keywords = {renamed.get(name, name): value for name, value in values.items() if value is not None}
        stage: Stage = make(**{name: value for name, value in keywords.items() if name in names}, context=context)
        return stage

    return build


def _checksum(values: Values, context: Context) -> Stage:
    return filters.checksum(values["algorithm"], to=values["to"], report=context.messages.write, context=context)


def _progress(values: Values, context: Context) -> Stage:
    if (fd := values["status_fd"]) is not None:
        if not fd.isdecimal():
            raise UsageError(f"'{fd}' is not a descriptor", hint="for example: --status-fd 3 3> FILE")
        context.report(int(fd))
    return filters.progress(size=values["size"], name=values["name"] or "", context=context)


def _encrypt(values: Values, context: Context) -> Stage:
    from statepipe.cli.passphrases import new_passphrase, passphrase

    given = [*values["recipients"], *values["recipient"]]
    ask = passphrase if is_openpgp(values) else new_passphrase
    return filters.encrypt(
        given,
        recipients_files=values["recipients_file"],
        passphrase=lambda: ask(values, context),
        sign=values["sign"],
        armor=values["armor"],
        context=context,
    )


def is_openpgp(values: Values) -> bool:
    """Whether what `encrypt` is told makes OpenPGP of it: a recipient of GnuPG's, or a signature."""
    from statepipe.formats.openpgp import PREFIX

    given = [*values["recipients"], *values["recipient"]]
    return values.get("sign") is not None or any(text.startswith(PREFIX) for text in given)


def _decrypt(values: Values, context: Context) -> Stage:
    from statepipe.cli.passphrases import passphrase

    return filters.decrypt(
        values["identity"],
        passphrase=lambda: passphrase(values, context),
        signed_by=values["signed_by"],
        context=context,
    )


_ALGORITHM = "sha256, sha512, sha1, md5, blake2b or blake3"


def _passphrases(ask: str) -> tuple[Param, ...]:
    """The ways to give a passphrase: none of them on the command line or in the environment, where others see it."""
    return (
        Param("--passphrase", ask, short="-p"),
        Param("--passphrase-file", "take the passphrase from the first line of FILE", "FILE"),
        Param("--passphrase-fd", "take it from the first line that the descriptor FD gives", "FD"),
    )


RECIPIENTS = (
    Param("--recipient", "who can decrypt; as often as there are recipients", "RECIPIENT", many="any", short="-r"),
    Param("--recipients-file", "a file with a recipient in each line", "FILE", many="any", short="-R"),
    *_passphrases("ask at the terminal, twice, for a passphrase that decrypts"),
    Param("--sign", "with gpg:KEY: sign it with a key of yours, too", "KEY"),
)
"""The options of every verb that encrypts."""

IDENTITIES = (
    Param("--identity", "a file of keygen's or ssh's that holds the key", "FILE", many="any", short="-i"),
    *_passphrases("ask at the terminal for the passphrase"),
    Param("--signed-by", "demand a good signature, of OpenPGP, by this key", "FINGERPRINT"),
)
"""The options of every verb that decrypts."""

FILTERS = (
    Filter(
        "compress",
        "compress with zstd, gzip, bzip2, xz or lz4, as independent frames on all cores",
        (
            Param(
                "codec",
                "the codec and its level, as in gzip:6, or zstd:auto; the default is zstd:1",
                "CODEC[:LEVEL]",
                many="optional",
            ),
            Param("--adapt", "choose zstd's level from frame to frame, so that the least time is lost: zstd:auto"),
            Param("--min", "the lowest level that zstd:auto may choose (-7)", "LEVEL"),
            Param("--max", "the highest (19, or what fits into 256 MiB)", "LEVEL"),
            Param(
                "--one-frame",
                "write zstd as one frame, for readers that stop at the first: python-zstandard's, fzstd in JavaScript",
            ),
        ),
        _built("compress"),
        inverse="decompress",
    ),
    Filter(
        "decompress",
        "decompress zstd, gzip, bzip2, xz or lz4, told by the first bytes, on all cores where the format allows it",
        (
            Param(
                "--memory",
                "the most that a window of zstd, or a decoder of xz, may take; the default is 128M",
                "SIZE",
            ),
        ),
        _built("decompress"),
        inverse="compress",
    ),
    Filter(
        "encrypt",
        "encrypt with age, for keys or for a passphrase, or with GnuPG",
        (
            Param("recipients", "age1…, a public key of ssh, or gpg:KEY: who can decrypt", "RECIPIENT", many="any"),
            *RECIPIENTS,
            Param("--armor", "write text, in the PEM of age or of OpenPGP", short="-a"),
        ),
        _encrypt,
        inverse="decrypt",
    ),
    Filter(
        "decrypt",
        "decrypt what age, gpg or encrypt has encrypted, armored or not",
        IDENTITIES,
        _decrypt,
        inverse="encrypt",
    ),
    Filter(
        "checksum",
        "pass everything on, and write its digest in the format of sha256sum when it has all passed",
        (
            Param("algorithm", f"{_ALGORITHM}; the default is sha256", "ALGORITHM", default="sha256", many="optional"),
            Param("--to", "write the digests to FILE, not to standard error (or output, of FILEs)", "FILE"),
        ),
        _checksum,
        inverse="verify",
        keeps_bytes=True,
    ),
    Filter(
        "verify",
        "pass everything on, its end only once its digest agrees",
        (
            Param("digest", "the digest in hexadecimal", "DIGEST", many="optional"),
            Param(
                "--from",
                "read the digest from FILE: its first line, or of several the one that names the other FILE",
                "FILE",
            ),
            Param("--algorithm", f"{_ALGORITHM}; the default is sha256", "ALGORITHM"),
        ),
        _built("verify", **{"from": "from_file", "file": "name"}),
        inverse="checksum",
        keeps_bytes=True,
    ),
    Filter(
        "throttle",
        "pass everything on, no faster than a rate that can be changed meanwhile",
        (
            Param("rate", "bytes or bits a second, as in 100M or 80Mbit, or unlimited", "RATE"),
            Param(
                "--until",
                "let go where a migration stream reaches this: its final stage, in which the guest stands still",
                "WHAT",
                choices=("switchover",),
            ),
        ),
        _built("throttle"),
        keeps_bytes=True,
    ),
    Filter(
        "progress",
        "show on standard error how much has passed, how fast, and how long it will take",
        (
            Param("--size", "how much will pass, for the time left, as in 4G", "SIZE"),
            Param("--name", "a name to show before the figures", "NAME"),
            Param("--status-fd", "write the status to descriptor FD, as JSON lines, with the verdict last", "FD"),
        ),
        _progress,
        keeps_bytes=True,
    ),
    Filter(
        "tee",
        "pass everything on, and make a file of it that exists only if all of it has passed",
        (
            Param("file", "the copy", "FILE"),
            Param(
                "--on-error",
                "what follows if the copy cannot be made: fail (default), or warn and go on without it",
                "WHAT",
                default="fail",
                choices=("fail", "warn"),
            ),
        ),
        _built("tee"),
        keeps_bytes=True,
    ),
    Filter(
        "external",
        "pass everything through a program of your own, whose exit status is part of the verdict",
        (
            Param("command", "after --: the program and its arguments", "PROGRAM", many="any"),
            Param("--shell", "a line for the shell instead, in which every failure counts", "LINE"),
            Param("--may-stop", "the program may end well before its input does"),
        ),
        _built("external"),
    ),
)
"""Every filter, in the order that the help and the manual list them."""


def find(name: str) -> Filter:
    """The filter of that name. Raises UsageError."""
    for row in FILTERS:
        if row.name == name:
            return row
    raise UsageError(f"there is no filter '{name}'", hint=f"filters are {', '.join(row.name for row in FILTERS)}")
