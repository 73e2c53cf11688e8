"""decrypt: age or OpenPGP? The first bytes tell, and what reads them is chosen then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from statepipe.errors import IntegrityError
from statepipe.formats.openpgp import fingerprint, is_told, looks_encrypted, looks_like_openpgp
from statepipe.stage import Buffer, Over, Stage, cancel, close, peek
from statepipe.stages import encrypt as age
from statepipe.stages.agekeys import identities
from statepipe.stages.context import Context, Secret


def decrypt(files: Sequence[str], secret: Secret, signed_by: str | None, context: Context) -> Stage:
    """A stage that decrypts age with the identities in `files` or a passphrase, and OpenPGP with GnuPG's keys.

    `signed_by` is the fingerprint of the key whose good signature is demanded. Raises UsageError, NoKeyError,
    StatepipeError.
    """
    passphrase = secret()
    signer = None if signed_by is None else fingerprint(signed_by)
    found = identities(files, passphrase, context)

    def openpgp() -> Stage:
        from statepipe.stages import gpg

        return gpg.decrypt(signer, passphrase, context)

    def by_age() -> Stage:
        if signer is not None:
            raise IntegrityError("the input is not signed: it is no OpenPGP", hint="leave out --signed-by for age")
        return age.decrypt(found)

    return either(by_age, openpgp)


def either(by_age: Callable[[], Stage], openpgp: Callable[[], Stage]) -> Stage:
    """The stage that fits the input. Raises IntegrityError for OpenPGP that is not encrypted."""

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        place = _Place(upstream)
        return Over(place, _flow(place, by_age, openpgp))

    return stage


def _flow(place: _Place, by_age: Callable[[], Stage], openpgp: Callable[[], Stage]) -> Iterator[Buffer]:
    head, whole = peek(place.upstream, is_told)
    if looks_like_openpgp(head) and not looks_encrypted(head):
        raise IntegrityError("the message is not encrypted", hint="to read it all the same: gpg --decrypt")
    chosen = openpgp() if looks_like_openpgp(head) else by_age()
    yield from place.take(chosen(whole))


class _Place:
    """Where what was chosen will be: what is to be cancelled and closed is it, or what comes before there is one."""

    def __init__(self, upstream: Iterator[Buffer]) -> None:
        self.upstream = upstream
        self._flow: Iterator[Buffer] | None = None
        self._cancelled = False

    def take(self, flow: Iterator[Buffer]) -> Iterator[Buffer]:
        """It; cancelled already, if we are."""
        self._flow = flow
        if self._cancelled:
            cancel(flow)
        return flow

    def cancel(self) -> None:
        """From any thread."""
        self._cancelled = True
        cancel(self.upstream if self._flow is None else self._flow)

    def close(self) -> None:
        """Again, where a signal broke off the first time."""
        close(self._flow)
