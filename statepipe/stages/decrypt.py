"""decrypt: age or OpenPGP? The first bytes tell, and what reads them is chosen then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from statepipe.errors import IntegrityError
from statepipe.formats.openpgp import fingerprint, is_told, looks_encrypted, looks_like_openpgp
from statepipe.stage import Buffer, Over, Stage, cancel, close, peek
from statepipe.stages import encrypt as age
from statepipe.stages.agekeys import identities_with, passphrase_of
from statepipe.stages.context import Context


def decrypt_as_told(values: Mapping[str, Any], context: Context) -> Stage:
    """`decrypt` by its options. Raises UsageError, NoKeyError, StatepipeError."""
    passphrase = passphrase_of(values, context)
    signed_by = None if values["signed_by"] is None else fingerprint(values["signed_by"])
    identities = identities_with(passphrase, values, context)

    def openpgp() -> Stage:
        from statepipe.stages.gpg import decrypt

        return decrypt(signed_by, passphrase, context)

    def by_age() -> Stage:
        if signed_by is not None:
            raise IntegrityError("the input is not signed: it is no OpenPGP", hint="leave out --signed-by for age")
        return age.decrypt(identities)

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
