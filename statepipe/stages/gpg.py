"""OpenPGP by GnuPG itself: its program at work as a stage, believed only if its status lines and its status agree.

The exit status of gpg tells too little: 0 for a message that was never encrypted, 2 for one that is whole but signed
by a stranger. The lines on its status descriptor do, too: of AEAD, gpg 2.2 calls good what is not. And it puts the
plaintext out before it has seen the proof at the end: so the last buffer is held back until all of it is proved.

What gpg.conf says must not change the bytes either. So before the first of them gpg writes a little text twice: in
the open, which shows what becomes of the bytes, and for the recipients, which shows whether it can be proved whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from statepipe.errors import IntegrityError, StatepipeError, UsageError
from statepipe.extras import extra
from statepipe.formats.openpgp import (
    CHANGED,
    PREFIX,
    UNUSABLE,
    Status,
    is_fingerprint,
    judge_decryption,
    judge_encryption,
    literal,
)
from statepipe.stage import Buffer, Over, Stage, hold_last
from statepipe.stages.context import Context, Secret
from statepipe.stages.external import Ending, Job, running
from statepipe.stages.gpgsettings import DECRYPTING, ENCRYPTING, OVERRULED, SAMPLE, require_none

_AEAD = "or not, and gpg fails only for want of the key that signed: gpg --import FILE brings it in"


def encrypt_for(
    recipients: Sequence[str], files: Sequence[str], secret: Secret, sign: str | None, *, armor: bool
) -> Stage:
    """`encrypt` for recipients that are written gpg:KEY. Raises UsageError, StatepipeError."""
    keys = [text.removeprefix(PREFIX) for text in recipients if text.startswith(PREFIX)]
    if len(keys) < len(recipients) or files:
        raise UsageError("recipients of age and of OpenPGP do not go together", hint="encrypt twice, or for one kind")
    if not keys or not all(keys):
        raise UsageError("OpenPGP needs a recipient", hint="give gpg:KEY; a passphrase opens the key that signs")
    require_none(ENCRYPTING)  # the listing, too, could wait for an input
    for key in keys:
        _require_one(key)
    passphrase = secret()
    if passphrase is not None and sign is None:
        raise UsageError("a passphrase goes with --sign, or with age alone")
    return encrypt(keys, sign, passphrase, armor=armor)


def encrypt(keys: Sequence[str], sign: str | None = None, passphrase: bytes | None = None, *, armor: bool) -> Stage:
    """A stage that encrypts for the owners of `keys`, signed with the key `sign` if there is one.

    `passphrase` opens that key; without it GnuPG's agent is asked. Raises StatepipeError without a gpg.
    """
    options = ["-z", "0", "--compress-algo", "none"]  # what is to be compressed was, on all cores
    recipients = [word for key in keys for word in ("--recipient", key)]
    signer = ["--sign", "--local-user", sign] if sign is not None else []

    def judge(status: Status) -> None:
        judge_encryption(status, _validity)

    _try_out([*options, "--no-armor"], recipients, judge)
    options += ["--armor" if armor else "--no-armor", *recipients, *signer, "--encrypt"]
    return _none_lost(_by_gpg(options, passphrase, judge))


def _try_out(options: Sequence[str], recipients: Sequence[str], judge: Callable[[Status], None]) -> None:
    """Raise StatepipeError for what gpg would not do well. A signature is left out: for that its agent may ask."""
    written = b"".join(_by_gpg([*options, "--store"], None, judge)(iter([SAMPLE])))
    if literal(written) != (b"b", SAMPLE):
        what = "gpg does not keep the bytes as they are: its settings change them"
        raise StatepipeError(what, hint="look for what concerns the data in gpg.conf; it was seen with: gpg --store")
    for _ in _by_gpg([*options, *recipients, "--encrypt"], None, judge)(iter([SAMPLE])):
        pass


def _none_lost(stage: Stage) -> Stage:
    """The same. Raises IntegrityError at the end if less has come out than went in: an encrypted message is longer."""

    def counting(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        counted = _Counted(upstream)
        flow = stage(Over(upstream, counted))
        return Over(flow, _all_of(flow, counted))

    return counting


class _Counted:
    """What comes from above, and how many bytes it has been."""

    def __init__(self, upstream: Iterator[Buffer]) -> None:
        self.bytes = 0
        self._upstream = upstream

    def __iter__(self) -> Iterator[Buffer]:
        return self

    def __next__(self) -> Buffer:
        buffer = next(self._upstream)
        self.bytes += len(buffer)
        return buffer


def _all_of(flow: Iterator[Buffer], counted: _Counted) -> Iterator[Buffer]:
    written = 0
    for buffer in flow:
        written += len(buffer)
        yield buffer
    if written < counted.bytes:
        raise IntegrityError(f"gpg has written {written} bytes of a message of {counted.bytes}: a part is lost")


def decrypt(signed_by: str | None, passphrase: bytes | None, context: Context) -> Stage:
    """A stage that decrypts with the keys that GnuPG holds, or with `passphrase`.

    With `signed_by`, a key's whole fingerprint, the message must bear a good signature of it. Raises StatepipeError
    without a gpg; the stage NoKeyError and IntegrityError, by what gpg says.
    """

    def judge(status: Status) -> None:
        for warning in judge_decryption(status, signed_by):
            context.warn(f"decrypt: {warning}")

    require_none(DECRYPTING)
    return _held_back(_by_gpg(["--decrypt"], passphrase, judge))


def _by_gpg(options: Sequence[str], passphrase: bytes | None, judge: Callable[[Status], None]) -> Stage:
    program = shutil.which("gpg")
    if program is None:
        raise StatepipeError("OpenPGP needs gpg, which is not here", hint="install GnuPG: Debian's package is gnupg")

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        status = Status()

        def command(fds: Sequence[int]) -> list[str]:
            words = [program, "--batch", "--no-tty", "--no-auto-key-locate", "--status-fd", str(fds[0])]
            if passphrase is not None:
                words += ["--pinentry-mode", "loopback", "--passphrase-fd", str(fds[1])]
            elif terminal := _terminal():
                words += ["--ttyname", terminal]
            return [*words, *OVERRULED, *options]

        def judged(ending: Ending) -> None:
            if ending.status and status.is_of_no_message:
                what = f"gpg has not begun, and failed with exit status {ending.status}: {ending.words}"
                raise StatepipeError(what, hint="look for that in gpg.conf")
            judge(status)
            if ending.status and not status.is_excused:
                if status.is_aead:
                    raise IntegrityError(f"{CHANGED}: {ending.words}", hint=_AEAD if status.said("ERRSIG") else None)
                raise StatepipeError(f"gpg failed with exit status {ending.status}: {ending.words}")
            if not ending.read_all:
                raise StatepipeError("gpg left a part of its input unread")

        secrets = () if passphrase is None else (passphrase + b"\n",)
        job = Job("gpg", command, lambda text: None, judged, asides=(status.feed,), secrets=secrets)
        return running(job)(upstream)

    return stage


def _require_one(name: str) -> None:
    """gpg would take any key that a name fits, and none of the others' owners could read it. Raises UsageError."""
    if is_fingerprint(name) or shutil.which("gpg") is None:
        return
    fitting = [key["fingerprint"] for key in _listed(name) if key["trust"] not in UNUSABLE]
    if len(fitting) > 1:
        raise UsageError(f"'{name}' fits {len(fitting)} keys", hint=f"give a fingerprint: {', '.join(fitting[:3])}")


def _listed(name: str) -> Sequence[Mapping[str, Any]]:
    with extra("gpg"):
        import gnupg

    return list(gnupg.GPG().list_keys(keys=[name]))


def _validity(name: str) -> set[str]:
    """How good the keys of that name are, by GnuPG's own listing."""
    return {key["trust"] for key in _listed(name)}


def _terminal() -> str | None:
    """Where the agent's pinentry may ask, if we have a terminal: gpg itself gets none."""
    return next((os.ttyname(fd) for fd in (2, 0, 1) if os.isatty(fd)), None)


def _held_back(stage: Stage) -> Stage:
    """The same, but its last buffer only once it has ended well."""

    def holding(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        flow = stage(upstream)
        return Over(flow, hold_last(flow))

    return holding
