"""The filters and the table of them. A filter's module is imported only when it is built: starting is not free.

The same declaration makes the command `statepipe NAME ARG --opt V` and the word `NAME:ARG,opt=V` (cli/grammar.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from statepipe.cli.verb import Param
from statepipe.errors import UsageError
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


def _compress(values: Values, context: Context) -> Stage:
    from statepipe.stages.codec import ZSTD, compress
    from statepipe.stages.packing import adaptive, is_auto, level_of_one_frame

    if values["one_frame"]:
        from statepipe.stages.zstd import in_one_frame

        return in_one_frame(level_of_one_frame(values))
    if is_auto(values):
        return adaptive(values, context.clock).pack({"kind": "stream"}, lambda: {})
    return compress(values["codec"] or ZSTD.name)


def _decompress(values: Values, context: Context) -> Stage:
    from statepipe.stages.codec import decompress
    from statepipe.units import parse_size

    return decompress() if values["memory"] is None else decompress(memory=parse_size(values["memory"]))


def _checksum(values: Values, context: Context) -> Stage:
    from statepipe.stages.checksum import checksum

    return checksum(context.messages.write, context.new_file, values["algorithm"], values["to"])


def _verify(values: Values, context: Context) -> Stage:
    from statepipe.stages.checksum import read_digest, verify

    if (values["digest"] is None) == (values["from"] is None):
        raise UsageError("verify needs the digest, or --from FILE that holds it, and not both")
    file = values.get("file")  # of the command: a word has none
    return verify(values["digest"] or read_digest(values["from"], file), values["algorithm"])


def _progress(values: Values, context: Context) -> Stage:
    from statepipe.stages.progress import Progress
    from statepipe.units import parse_size

    if values["status_fd"] is not None:
        if not values["status_fd"].isdecimal():
            raise UsageError(f"'{values['status_fd']}' is not a descriptor", hint="for example: --status-fd 3 3> FILE")
        context.report(int(values["status_fd"]))
    size = values["size"]
    return Progress(context, None if size is None else parse_size(size), values["name"] or "")


def _encrypt(values: Values, context: Context) -> Stage:
    if is_openpgp(values):
        from statepipe.stages.gpg import encrypt_as_told

        return encrypt_as_told(values, context)
    from statepipe.stages.agekeys import recipients
    from statepipe.stages.encrypt import encrypt, encrypt_armored

    return (encrypt_armored if values["armor"] else encrypt)(recipients(values, context))


def is_openpgp(values: Values) -> bool:
    """Whether what `encrypt` is told makes OpenPGP of it: a recipient of GnuPG's, or a signature."""
    from statepipe.formats.openpgp import PREFIX

    given = [*values["recipients"], *values["recipient"]]
    return values.get("sign") is not None or any(text.startswith(PREFIX) for text in given)


def _decrypt(values: Values, context: Context) -> Stage:
    from statepipe.stages.decrypt import decrypt_as_told

    return decrypt_as_told(values, context)


def _throttle(values: Values, context: Context) -> Stage:
    from statepipe.stages.throttle import Throttle
    from statepipe.units import parse_rate

    return Throttle(parse_rate(values["rate"]), context, until_switchover=values["until"] is not None)


def _external(values: Values, context: Context) -> Stage:
    from statepipe.stages.external import external

    return external(values["command"], values["shell"], context, may_stop=values["may_stop"])


def _tee(values: Values, context: Context) -> Stage:
    from statepipe.stages.tee import WARN, tee

    if values["on_error"] != WARN:
        with context.new_file(values["file"]):  # what cannot be is told before a guest is stopped for it
            pass
    return tee(values["file"], context.new_file, context.warn if values["on_error"] == WARN else None)


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
        _compress,
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
        _decompress,
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
            Param("--algorithm", f"{_ALGORITHM}; the default is sha256", "ALGORITHM", default="sha256"),
        ),
        _verify,
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
        _throttle,
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
        _tee,
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
        _external,
    ),
)
"""Every filter, in the order that the help and the manual list them."""


def find(name: str) -> Filter:
    """The filter of that name. Raises UsageError."""
    for row in FILTERS:
        if row.name == name:
            return row
    raise UsageError(f"there is no filter '{name}'", hint=f"filters are {', '.join(row.name for row in FILTERS)}")
