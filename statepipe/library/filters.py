"""A factory for each filter: keyword arguments in, a stage out. The command line uses them, too.

Sizes and rates are numbers of bytes (per second), or text as on the command line ("64M", "80Mbit"). Wrong arguments
raise UsageError at once; a file that cannot be read or made raises StatepipeError. A factory imports its module when it
is called. `context` is what the stage may use of the world (library/context.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from statepipe.errors import UsageError
from statepipe.stage import Stage
from statepipe.stages.context import Context, Secret
from statepipe.typed import TYPE_CHECKING
from statepipe.units import parse_rate, parse_size

if TYPE_CHECKING:
    from typing import Literal

    from statepipe.stages.checksum import Digest
    from statepipe.stages.progress import Progress
    from statepipe.stages.throttle import Throttle

Passphrase = str | bytes | Secret | None
"""A passphrase, or a function that returns it once all other arguments were found right."""


def compress(
    codec: str = "zstd",
    *,
    adapt: bool = False,
    min: int | str | None = None,
    max: int | str | None = None,
    one_frame: bool = False,
    context: Context | None = None,
) -> Stage:
    """Return a stage that compresses: `codec` is zstd (level 1 by itself), gzip, bzip2, xz or lz4, as in "gzip:6".

    "zstd:auto", or `adapt`, chooses the level from frame to frame between `min` and `max`.
    """
    from statepipe.stages.packing import choose

    return choose(codec, adapt=adapt, min=min, max=max, one_frame=one_frame).stage(_or_own(context).clock)


def decompress(*, memory: int | str = "128M", context: Context | None = None) -> Stage:
    """Return a stage that decompresses what any of the codecs wrote; the first bytes tell which.

    `memory`: bytes that zstd's window or xz's decoder may take. The stage raises IntegrityError and TruncatedError.
    """
    from statepipe.stages.codec import decompress

    return decompress(_size(memory))


def encrypt(
    recipients: str | Sequence[str] = (),
    *,
    recipients_files: Sequence[str] = (),
    passphrase: Passphrase = None,
    sign: str | None = None,
    armor: bool = False,
    context: Context | None = None,
) -> Stage:
    """Return a stage that encrypts with age ("age1…", "ssh-…", a passphrase), or with GnuPG ("gpg:KEY").

    `sign` is a GnuPG key; `passphrase` is then that of the key.
    """
    from statepipe.formats.openpgp import PREFIX

    given, secret = several(recipients), secret_of(passphrase)
    if sign is not None or any(text.startswith(PREFIX) for text in given):
        from statepipe.stages.gpg import encrypt_for

        return encrypt_for(given, recipients_files, secret, sign, armor=armor)
    from statepipe.stages import agekeys
    from statepipe.stages.encrypt import encrypt, encrypt_armored

    found = agekeys.recipients(given, recipients_files, secret, _or_own(context))
    return (encrypt_armored if armor else encrypt)(found)


def decrypt(
    identities: str | Sequence[str] = (),
    *,
    passphrase: Passphrase = None,
    signed_by: str | None = None,
    context: Context | None = None,
) -> Stage:
    """Return a stage that decrypts age, with the keys in the files `identities` or a passphrase, or OpenPGP.

    `signed_by` is the fingerprint of a GnuPG key whose good signature is required. Raises NoKeyError, and so does the
    stage. No byte leaves it unverified.
    """
    from statepipe.stages.decrypt import decrypt

    return decrypt(several(identities), secret_of(passphrase), signed_by, _or_own(context))


def checksum(
    algorithm: str = "sha256",
    *,
    to: str | None = None,
    report: Callable[[str], object] | None = None,
    context: Context | None = None,
) -> Digest:
    """Return a stage whose `value` is the hexadecimal digest of what has passed.

    At a clean end the line `DIGEST  -` is written to the file `to`, or passed to `report`, if one is given.
    """
    from statepipe.stages.checksum import Digest, checksum

    if to is None and report is None:
        return Digest(algorithm)
    return checksum(report or (lambda line: None), _or_own(context).new_file, algorithm, to)


def verify(
    digest: str | None = None,
    *,
    algorithm: str | None = None,
    from_file: str | None = None,
    name: str | None = None,
    context: Context | None = None,
) -> Stage:
    """Return a stage that lets the last bytes pass only if the digest of the whole, by default sha256, is `digest`.

    With `from_file` it is read from a file as sha256sum writes it, from the line of `name` if there are several. The
    stage raises IntegrityError.
    """
    from statepipe.stages.checksum import read_digest, verify

    if (digest is None) == (from_file is None):
        raise UsageError("verify needs the digest, or --from FILE that holds it, and not both")
    return verify(digest if digest is not None else read_digest(str(from_file), name), algorithm, from_file)


def throttle(
    rate: int | str | None, *, until: Literal["switchover"] | None = None, context: Context | None = None
) -> Throttle:
    """Return a stage that passes `rate` bytes a second; None is no limit. `set_rate` changes it from any thread.

    With `until`, there is no limit in the final phase of a migration stream, while the guest is stopped.
    """
    from statepipe.stages.throttle import Throttle

    per_second = parse_rate(rate) if isinstance(rate, str) else rate
    return Throttle(per_second, _or_own(context), until_switchover=until is not None)


def progress(*, size: int | str | None = None, name: str = "", context: Context | None = None) -> Progress:
    """Return a stage that shows its progress on the context's `messages`; its `facts` are the same figures.

    `size`: bytes that will pass, for the time left.
    """
    from statepipe.stages.progress import Progress

    return Progress(_or_own(context), None if size is None else _size(size), name)


def tee(file: str, *, on_error: Literal["fail", "warn"] = "fail", context: Context | None = None) -> Stage:
    """Return a stage that also writes `file`, which exists only if all of the stream has passed.

    If the copy fails, the stage fails, or with "warn" only warns.
    """
    from statepipe.stages.tee import tee

    world = _or_own(context)
    if on_error == "warn":
        return tee(file, world.new_file, world.warn)
    with world.new_file(file):  # what cannot be made is reported before a guest is stopped for it
        return tee(file, world.new_file)


def put(
    address: str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    size: int | str | None = None,
    retry: float = 120,
    context: Context | None = None,
) -> Stage:
    """Return a stage that writes the object at `address` and yields nothing; it is the last one of a pipeline.

    The object is there only once all of the stream has come and has proved itself, as far as it can. It replaces
    another one only with `overwrite`. `size` is about how many bytes will come, `retry` the seconds for which a failed
    request is made again. With `resume`, an upload that was left is continued, and one that fails is kept for that.
    file:///PATH is a file, which exists only once complete.
    """
    from statepipe.objectstore.scheme import local_path
    from statepipe.stages.put import Object, Put

    world, path = _or_own(context), local_path(address)
    expected = None if size is None else _size(size)

    def begin(measure: Callable[[], int | None]) -> AbstractContextManager[Object]:
        if path is not None:
            return world.new_file(path)
        from statepipe.ends.objects import new_object

        made = new_object(address, overwrite=overwrite, size=expected, resume=resume, retry=retry, tell=world.warn)
        made.measure = measure
        return made

    return Put(begin, world.warn)


def get(address: str, *, retry: float = 120, context: Context | None = None) -> Stage:
    """Return a stage that yields the object at `address`; it is the first one of a pipeline, whose source is not read.

    The object is read by several requests at once, each made again for `retry` seconds without a byte. An object that
    is replaced meanwhile is an error. file:///PATH is a file.
    """
    from statepipe.objectstore.scheme import local_path
    from statepipe.objectstore.settings import Reading
    from statepipe.stages.get import Get, Opened

    path, reading = local_path(address), Reading(retry, tell=_or_own(context).warn)

    def opened() -> Opened:
        if path is not None:
            from statepipe.ends.source import AnyFile

            return AnyFile(path)
        from statepipe.ends.objectsource import open_object

        return open_object(address, reading)

    return Get(opened)


def external(
    command: Sequence[str] = (), *, shell: str | None = None, may_stop: bool = False, context: Context | None = None
) -> Stage:
    """Return a stage that passes everything through a program, by its arguments or by a line for the shell.

    The stage fails unless the program ends with status 0 and has read all its input; with `may_stop` it may read less.
    """
    from statepipe.stages.external import external

    return external(command, shell, _or_own(context), may_stop=may_stop)


def _or_own(given: Context | None) -> Context:
    if given is not None:
        return given
    from statepipe.library.context import context

    return context()


def _size(given: int | str) -> int:
    return parse_size(given) if isinstance(given, str) else given


def several(given: str | Sequence[str]) -> list[str]:
    """Return a list of texts; a single text is one of its own."""
    return [given] if isinstance(given, str) else list(given)


def secret_of(given: Passphrase) -> Secret:
    """Return a function that returns the passphrase."""
    if callable(given):
        return given
    return lambda: given.encode() if isinstance(given, str) else given
