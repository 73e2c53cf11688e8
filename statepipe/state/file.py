"""A saved state as a file that may be encrypted: its first bytes tell, and keys are read only if it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from statepipe.descriptors import named_by
from statepipe.ends.source import FileSource
from statepipe.errors import IntegrityError
from statepipe.formats.beginning import HEAD, beginning
from statepipe.formats.libvirtimage import looks_like_image
from statepipe.formats.metadata import META_MAGIC
from statepipe.formats.openpgp import looks_encrypted
from statepipe.objectstore.scheme import is_address, local_path
from statepipe.objectstore.settings import Reading
from statepipe.stage import Stage
from statepipe.stages.codec import RAW, identify
from statepipe.state.source import Openable, StateFile, damage_named
from statepipe.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from statepipe.formats.age.envelope import Identity


class Keys(NamedTuple):
    """What opens a file: age's identities, or a stage that decrypts OpenPGP; and how an object is read.

    Each is called only for a file that is encrypted in that way: no other keys are read, and no passphrases asked for.
    """

    identities: Callable[[], Sequence[Identity]]
    openpgp: Callable[[], Stage]
    reading: Reading = Reading()


AGE, ARMORED = b"age-encryption.org/v1\n", b"-----BEGIN AGE ENCRYPTED FILE-----"
"""How age's two kinds of file begin (age.md). Their reader is imported only for one of them: it costs 25 ms."""

OPENPGP = "OpenPGP"

STDIN = "-"
"""The FILE that means standard input."""


def looks_saved(head: bytes) -> bool:
    """Return whether a file that begins with `head` may be a saved state: ours, encrypted or not, or QEMU's stream."""
    is_ours = head.startswith(META_MAGIC.to_bytes(4, "little"))
    return is_ours or identify(head[:4]) == RAW or _how_sealed(head) is not None


def open_state(path: str, keys: Keys) -> StateFile:
    """Open a file or an object that may be encrypted; `-` is standard input. Of a save image of libvirt's, it is the
    state in it.

    Raises StatepipeError, NoKeyError, IntegrityError.
    """
    opened = _opened(path, keys.reading)
    file: StateFile = opened
    try:
        with damage_named(opened.name):
            file = _unsealed(opened, keys)
        if not looks_like_image(file.tail(0, HEAD)):
            return file
        from statepipe.state.saveimage import open_image

        return open_image(file)
    except BaseException:
        file.__exit__()
        raise


def _unsealed(file: Openable, keys: Keys) -> StateFile:
    sealed = _how_sealed(file.tail(0, HEAD))
    if sealed is None:
        return file
    from statepipe.state.sealed import sealed_by_age, sealed_by_openpgp

    if sealed == OPENPGP:
        return sealed_by_openpgp(file, sealed, keys.openpgp())
    return sealed_by_age(file, sealed, keys.identities())


def on_disk(path: str) -> str | None:
    """Return the path of the FILE that is read; None for an object, standard input and another descriptor."""
    if is_address(path):
        return local_path(path)
    return None if path == STDIN or named_by(path) is not None else path


def _opened(path: str, reading: Reading) -> Openable:
    """Raises StatepipeError."""
    if (real := on_disk(path)) is not None:
        return FileSource(real)
    if is_address(path):
        from statepipe.ends.objectsource import open_object

        return open_object(path, reading)
    fd = 0 if path == STDIN else named_by(path)
    assert fd is not None
    from statepipe.state.spool import from_descriptor

    name = "standard input" if path == STDIN else path

    def judge(head: bytes) -> None:
        if _how_sealed(head) is None and not looks_like_image(head):
            demand_stream(name, head)

    return from_descriptor(fd, name, judge)


def demand_stream(name: str, head: bytes) -> str:
    """Return the codec of a stream or state file that begins with `head`. Raises IntegrityError if it is neither."""
    codec = identify(head[:4])
    if codec is None:
        what = f"it begins {beginning(head)}" if head else "it is empty"
        hint = "statepipe loads its own files, QEMU's migration streams, raw or compressed, and libvirt's save images"
        raise IntegrityError(f"{name} is not a saved state: {what}", hint=hint, offset=0)
    return codec


def _how_sealed(head: bytes) -> str | None:
    if head.startswith(AGE):
        return "age"
    if head.startswith(ARMORED):
        return "age, armored"
    return OPENPGP if looks_encrypted(head) else None
