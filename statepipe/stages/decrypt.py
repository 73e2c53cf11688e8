"""decrypt: the first bytes tell whether the input is age or OpenPGP; the stage that reads it is made then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from statepipe.errors import IntegrityError
from statepipe.formats.openpgp import fingerprint, is_told, looks_encrypted, looks_like_openpgp
from statepipe.stage import Buffer, Over, Stage, cancel, close, peek
from statepipe.stages import encrypt as age
from statepipe.stages.agekeys import identities
from statepipe.stages.context import Context, Secret


def decrypt(files: Sequence[str], secret: Secret, signed_by: str | None, context: Context) -> Stage:
    """Return a stage that decrypts age with the identities in `files` or a passphrase, and OpenPGP with GnuPG's keys.

    `signed_by` is the fingerprint of a key: the message must have a good signature of it. Raises UsageError,
    NoKeyError, StatepipeError; the stage raises IntegrityError too.
    """
    passphrase = secret()
    signer = None if signed_by is None else fingerprint(signed_by)
    found = identities(files, passphrase, context)

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        chosen = _Chosen(upstream)

        def flow() -> Iterator[Buffer]:
            head, whole = peek(upstream, is_told)
            if looks_like_openpgp(head):
                if not looks_encrypted(head):
                    raise IntegrityError("the message is not encrypted", hint="to read it anyway: gpg --decrypt")
                from statepipe.stages import gpg

                decrypting = gpg.decrypt(signer, passphrase, context)
            elif signer is not None:
                what = "the input is not an OpenPGP message, so it has no signature"
                raise IntegrityError(what, hint="leave out --signed-by for an age file")
            else:
                decrypting = age.decrypt(found)
            yield from chosen.take(decrypting(whole))

        return Over(chosen, flow())

    return stage


class _Chosen:
    """Passes `cancel` and `close` to the stage that was chosen; until then, `cancel` goes to the upstream."""

    def __init__(self, upstream: Iterator[Buffer]) -> None:
        self._upstream = upstream
        self._flow: Iterator[Buffer] | None = None
        self._cancelled = False

    def take(self, flow: Iterator[Buffer]) -> Iterator[Buffer]:
        """Return `flow`, the chosen one; cancel it if `cancel` was called before."""
        self._flow = flow
        if self._cancelled:
            cancel(flow)
        return flow

    def cancel(self) -> None:
        """Safe from any thread."""
        self._cancelled = True
        cancel(self._upstream if self._flow is None else self._flow)

    def close(self) -> None:
        """Close it again: a signal may have interrupted the first time."""
        close(self._flow)
