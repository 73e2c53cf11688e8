"""The table of filters: their options, and what builds each. The library (library/filters.py) makes the stages.

The same row makes the command `statepipe NAME ARG --opt V` and the word `NAME:ARG,opt=V` (cli/grammar.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from statepipe.cli.options import IDENTITIES, RECIPIENTS, STORE_RETRY
from statepipe.cli.verb import Param, descriptor, joined, seconds
from statepipe.errors import UsageError
from statepipe.guessing import did_you_mean
from statepipe.library import filters
from statepipe.stage import Stage
from statepipe.stages.context import Context
from statepipe.typed import Any, NamedTuple

Values = Mapping[str, Any]
Build = Callable[[Values, Context], Stage]

CODECS = ("zstd", "gzip", "bzip2", "xz", "lz4")
"""The names of the codecs (stages/codec.py), which the start of a command must not import."""

_CODECS = joined(CODECS, "or")
_ALGORITHMS = "sha256, sha512, sha1, md5, blake2b or blake3"


class Filter(NamedTuple):
    """A row of the table. `build` makes the stage from the parameters' values and a context.

    `inverse` is the filter that undoes it. `keeps_bytes`: its output is its input. `is_first`: it reads no input.
    `is_last`: it has no output.
    """

    name: str
    help: str
    params: tuple[Param, ...]
    build: Build
    inverse: str | None = None
    keeps_bytes: bool = False
    is_first: bool = False
    is_last: bool = False


def _built(factory: str, **renamed: str) -> Build:
    """Return what calls the library's factory with the values that were given. `renamed` maps our keys to keywords."""

    def build(values: Values, context: Context) -> Stage:
        make = getattr(filters, factory)
        names = make.__annotations__  # every parameter has one; inspect takes 5 ms of start-up
        keywords = {renamed.get(name, name): value for name, value in values.items() if value is not None}
        stage: Stage = make(**{name: value for name, value in keywords.items() if name in names}, context=context)
        return stage

    return build


def _checksum(values: Values, context: Context) -> Stage:
    return filters.checksum(values["algorithm"], to=values["to"], report=context.messages.write, context=context)


def _progress(values: Values, context: Context) -> Stage:
    if values["status_fd"] is not None:
        context.report(values["status_fd"])
    return filters.progress(size=values["size"], name=values["name"] or "", context=context)


def _encrypt(values: Values, context: Context) -> Stage:
    from statepipe.cli.passphrases import new_passphrase, passphrase
    from statepipe.formats.openpgp import PREFIX

    given = [*values["recipients"], *values["recipient"]]
    is_openpgp = values["sign"] is not None or any(text.startswith(PREFIX) for text in given)
    ask = passphrase if is_openpgp else new_passphrase  # GnuPG's is that of a key which exists
    return filters.encrypt(
        given,
        recipients_files=values["recipients_file"],
        passphrase=lambda: ask(values, context),
        sign=values["sign"],
        armor=values["armor"],
        context=context,
    )


def _decrypt(values: Values, context: Context) -> Stage:
    from statepipe.cli.passphrases import passphrase

    return filters.decrypt(
        values["identity"],
        passphrase=lambda: passphrase(values, context),
        signed_by=values["signed_by"],
        context=context,
    )


def _put(values: Values, context: Context) -> Stage:
    if values["address"] is None:
        raise UsageError("put needs the ADDRESS of an object", hint="for example: statepipe put s3://bucket/key FILE")
    return _built("put")(values, context)


def _get(values: Values, context: Context) -> Stage:
    if values["address"] is None:
        raise UsageError("get needs the ADDRESS of an object", hint="for example: statepipe get s3://bucket/key")
    return _built("get")(values, context)


FILTERS = (
    Filter(
        "compress",
        f"compress with {_CODECS}, on all cores",
        (
            Param(
                "codec",
                "the codec and its level, as in gzip:6 or zstd:auto (default: zstd:1)",
                "CODEC[:LEVEL]",
                many="optional",
            ),
            Param("--adapt", "let zstd's level follow the speed of the output, as zstd:auto does"),
            Param("--min", "lowest level for zstd:auto (default: -7)", "LEVEL"),
            Param("--max", "highest level for zstd:auto (default: 19, or what fits into 256 MiB)", "LEVEL"),
            Param("--one-frame", "write zstd as a single frame, for readers that stop after the first frame"),
        ),
        _built("compress"),
        inverse="decompress",
    ),
    Filter(
        "decompress",
        f"decompress {_CODECS}, recognised by the first bytes",
        (Param("--memory", "most memory for zstd's window or xz's decoder (default: 128M)", "SIZE"),),
        _built("decompress"),
        inverse="compress",
    ),
    Filter(
        "encrypt",
        "encrypt with age, for public keys or with a passphrase, or with GnuPG",
        (
            Param("recipients", "who can decrypt: age1…, a public key of ssh, or gpg:KEY", "RECIPIENT", many="any"),
            *RECIPIENTS,
            Param("--armor", "write text (PEM) instead of bytes", short="-a"),
        ),
        _encrypt,
        inverse="decrypt",
    ),
    Filter(
        "decrypt",
        "decrypt what age, GnuPG or encrypt has encrypted, as bytes or text",
        IDENTITIES,
        _decrypt,
        inverse="encrypt",
    ),
    Filter(
        "checksum",
        "pass everything on, and write its digest at the end, in the format of sha256sum",
        (
            Param("algorithm", f"{_ALGORITHMS} (default: sha256)", "ALGORITHM", default="sha256", many="optional"),
            Param("--to", "file for the digests (default: standard error; of FILEs, standard output)", "FILE"),
        ),
        _checksum,
        inverse="verify",
        keeps_bytes=True,
    ),
    Filter(
        "verify",
        "pass everything on, but the last bytes only if the digest is right",
        (
            Param("digest", "the digest in hexadecimal", "DIGEST", many="optional"),
            Param(
                "--from",
                "file with the digest, as sha256sum writes it; of several lines, the line of the other FILE counts",
                "FILE",
            ),
            Param("--algorithm", f"{_ALGORITHMS} (default: sha256)", "ALGORITHM"),
        ),
        _built("verify", **{"from": "from_file", "file": "name"}),
        inverse="checksum",
        keeps_bytes=True,
    ),
    Filter(
        "throttle",
        "pass everything on, at a limited rate that statepipe rate can change",
        (
            Param("rate", "bytes or bits per second, as in 100M or 80Mbit, or unlimited", "RATE"),
            Param(
                "--until",
                "switchover: no limit in the final phase of a migration stream, while the guest is stopped",
                "WHAT",
                choices=("switchover",),
            ),
        ),
        _built("throttle"),
        keeps_bytes=True,
    ),
    Filter(
        "progress",
        "pass everything on, and show on standard error the amount, the rate and the time left",
        (
            Param("--size", "expected size, for the time left, as in 4G", "SIZE"),
            Param("--name", "name to show before the figures", "NAME"),
            Param(
                "--status-fd",
                "write the status and the final result as JSON lines to descriptor FD",
                "FD",
                type=descriptor,
            ),
        ),
        _progress,
        keeps_bytes=True,
    ),
    Filter(
        "tee",
        "pass everything on, and copy it to a file that exists only once it is complete",
        (
            Param("file", "the copy", "FILE"),
            Param(
                "--on-error",
                "what to do if the copy fails: fail, or warn and go on (default: fail)",
                "WHAT",
                default="fail",
                choices=("fail", "warn"),
            ),
        ),
        _built("tee"),
        keeps_bytes=True,
    ),
    Filter(
        "put",
        "write an object, such as s3://bucket/key, that exists only once it is complete",
        (
            Param("address", "s3:// or gs://BUCKET/KEY, az://CONTAINER/KEY, file:///PATH", "ADDRESS", many="optional"),
            Param("--overwrite", "replace an object that is there"),
            Param("--resume", "continue an upload that was left, and keep this one if it fails"),
            Param("--size", "about how many bytes will come, as in 4G (default: as the stream tells, or 1T)", "SIZE"),
            Param(
                "--retry",
                "seconds for which a request that failed is made again (default: 120)",
                "SECONDS",
                type=seconds(),
            ),
        ),
        _put,
        inverse="get",
        is_last=True,
    ),
    Filter(
        "get",
        "read an object, such as s3://bucket/key, by several requests at once",
        (
            Param("address", "s3:// or gs://BUCKET/KEY, az://CONTAINER/KEY, file:///PATH", "ADDRESS", many="optional"),
            STORE_RETRY,
        ),
        _get,
        inverse="put",
        is_first=True,
    ),
    Filter(
        "external",
        "pass everything through a program of your own, whose failure is a failure of the whole",
        (
            Param("command", "after --: the program and its arguments", "PROGRAM", many="any"),
            Param("--shell", "command line for the shell instead, in which every failure counts", "LINE"),
            Param("--may-stop", "allow the program to end before its input does"),
        ),
        _built("external"),
    ),
)
"""Every filter, in the order of the help and the manual."""


def find(name: str) -> Filter:
    """Return the filter of that name. Raises UsageError."""
    names = [row.name for row in FILTERS]
    if name in names:
        return FILTERS[names.index(name)]
    first = name.partition(",")[0]
    if first in names:
        raise UsageError(
            f"there is no filter '{name}'", hint=f"options follow a colon: {first}:{name[len(first) + 1 :]}"
        )
    hint = f"{did_you_mean(name.lower(), [*names, *CODECS])}filters are {', '.join(names)}"
    raise UsageError(f"there is no filter '{name}'", hint=hint)
