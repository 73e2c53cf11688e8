"""OpenPGP with GnuPG: the program gpg as a stage, successful only if its status lines and its exit status agree.

gpg's exit status says too little: 0 for a message that was never encrypted, 2 for a complete message that a stranger
signed. So do its status lines: gpg 2.2 reports damaged AEAD data as good. And gpg outputs the plaintext before it has
checked the end, so the last buffer is held back until the whole message is proved.

gpg.conf must not change the bytes either. So before encrypting, gpg writes a short sample twice: unencrypted, which
shows what happens to the bytes, and for the recipients, which shows whether the message would be protected.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence

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
from statepipe.stages.external import Ending, ExternalProgram, running
from statepipe.stages.gpgsettings import DECRYPTING, ENCRYPTING, OVERRULED, SAMPLE, require_none
from statepipe.typed import Any

_AEAD = "or it is intact and gpg only lacks the key that signed it: import that with gpg --import FILE"


def encrypt_for(
    recipients: Sequence[str], files: Sequence[str], secret: Secret, sign: str | None, *, armor: bool
) -> Stage:
    """Return a stage that encrypts for recipients written gpg:KEY. Raises UsageError, StatepipeError."""
    keys = [text.removeprefix(PREFIX) for text in recipients if text.startswith(PREFIX)]
    if len(keys) < len(recipients) or files:
        raise UsageError("age and OpenPGP recipients cannot be combined", hint="use one kind, or encrypt twice")
    if not keys or not all(keys):
        hint = "give gpg:KEY; with OpenPGP, a passphrase only unlocks the signing key"
        raise UsageError("OpenPGP needs a recipient", hint=hint)
    require_none(ENCRYPTING)  # before gpg lists keys: such an option could make that wait for input
    for key in keys:
        if not is_fingerprint(key) and shutil.which("gpg") is not None:
            fitting = [each["fingerprint"] for each in _listed(key) if each["trust"] not in UNUSABLE]
            if len(fitting) > 1:  # gpg would take any of them, and the owners of the others could not read it
                hint = f"give a fingerprint: {', '.join(fitting[:3])}"
                raise UsageError(f"'{key}' matches {len(fitting)} keys", hint=hint)
    passphrase = secret()
    if passphrase is not None and sign is None:
        what = "with OpenPGP, a passphrase only unlocks the signing key"
        raise UsageError(what, hint="give --sign KEY, or leave out the passphrase")
    return encrypt(keys, sign, passphrase, armor=armor)


def encrypt(keys: Sequence[str], sign: str | None = None, passphrase: bytes | None = None, *, armor: bool) -> Stage:
    """Return a stage that encrypts for the owners of `keys`, signed with the key `sign` if given.

    `passphrase` unlocks that key; without it, GnuPG's agent is asked. Raises StatepipeError if there is no gpg, or if
    its settings would damage the data. The stage raises IntegrityError at the end if bytes were lost.
    """
    options = ["-z", "0", "--compress-algo", "none"]  # a compress stage does that, on all cores
    recipients = [word for key in keys for word in ("--recipient", key)]
    signer = ["--sign", "--local-user", sign] if sign is not None else []

    def judge(status: Status) -> None:
        judge_encryption(status, lambda name: {key["trust"] for key in _listed(name)})

    # Try the sample without a signature: the agent might ask for that key's passphrase.
    written = b"".join(_by_gpg([*options, "--no-armor", "--store"], None, judge)(iter([SAMPLE])))
    if literal(written) != (b"b", SAMPLE):
        what = "gpg changes the data: a sample did not come back from gpg --store as it was"
        raise StatepipeError(what, hint="remove the options that concern the data from gpg.conf")
    for _ in _by_gpg([*options, "--no-armor", *recipients, "--encrypt"], None, judge)(iter([SAMPLE])):
        pass
    options += ["--armor" if armor else "--no-armor", *recipients, *signer, "--encrypt"]
    by_gpg = _by_gpg(options, passphrase, judge)

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        taken = 0

        def counted() -> Iterator[Buffer]:
            nonlocal taken
            for buffer in upstream:
                taken += len(buffer)
                yield buffer

        def checked() -> Iterator[Buffer]:
            written = 0
            for buffer in flow:
                written += len(buffer)
                yield buffer
            if written < taken:  # an encrypted message is longer than its plaintext
                raise IntegrityError(f"gpg wrote only {written} bytes for an input of {taken}: a part is lost")

        flow = by_gpg(Over(upstream, counted()))
        return Over(flow, checked())

    return stage


def decrypt(signed_by: str | None, passphrase: bytes | None, context: Context) -> Stage:
    """Return a stage that decrypts with GnuPG's keys, or with `passphrase`.

    With `signed_by`, a key's full fingerprint, the message must have a good signature of that key. Raises
    StatepipeError if there is no gpg; the stage raises NoKeyError and IntegrityError, by what gpg reports.
    """

    def judge(status: Status) -> None:
        for warning in judge_decryption(status, signed_by):
            context.warn(f"decrypt: {warning}")

    require_none(DECRYPTING)
    by_gpg = _by_gpg(["--decrypt"], passphrase, judge)

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        flow = by_gpg(upstream)
        return Over(flow, hold_last(flow))

    return stage


def _by_gpg(options: Sequence[str], passphrase: bytes | None, judge: Callable[[Status], None]) -> Stage:
    program = shutil.which("gpg")
    if program is None:
        what = "OpenPGP needs gpg, which is not installed"
        raise StatepipeError(what, hint="install GnuPG (the Debian package is gnupg)")

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        status = Status()

        def arguments(fds: Sequence[int]) -> list[str]:
            words = [program, "--batch", "--no-tty", "--no-auto-key-locate", "--status-fd", str(fds[0])]
            if passphrase is not None:
                words += ["--pinentry-mode", "loopback", "--passphrase-fd", str(fds[1])]
            elif terminal := next((os.ttyname(fd) for fd in (2, 0, 1) if os.isatty(fd)), None):
                # for the agent's pinentry; gpg itself has no terminal
                words += ["--ttyname", terminal]
            return [*words, *OVERRULED, *options]

        def judged(ending: Ending) -> None:
            if ending.status and status.is_of_no_message:
                what = f"gpg failed before it read the message, with exit status {ending.status}: {ending.words}"
                raise StatepipeError(what, hint="check gpg.conf")
            judge(status)
            if ending.status and not status.is_excused:
                if status.is_aead:
                    raise IntegrityError(f"{CHANGED}: {ending.words}", hint=_AEAD if status.said("ERRSIG") else None)
                raise StatepipeError(f"gpg failed with exit status {ending.status}: {ending.words}")
            if not ending.read_all:
                raise StatepipeError("gpg left a part of its input unread")

        secrets = () if passphrase is None else (passphrase + b"\n",)
        command = ExternalProgram("gpg", arguments, lambda text: None, judged, asides=(status.feed,), secrets=secrets)
        return running(command)(upstream)

    return stage


def _listed(name: str) -> Sequence[Mapping[str, Any]]:
    """Return the keys that GnuPG lists for a name."""
    with extra("gpg"):
        import gnupg

    return list(gnupg.GPG().list_keys(keys=[name]))
