"""The far side's verdict, as an error on this side."""

from __future__ import annotations

from statepipe.errors import IntegrityError, NoKeyError, PeerError, QemuError, StatepipeError
from statepipe.formats.channels import Verdict

_KINDS: dict[int, type[StatepipeError]] = {1: StatepipeError, 3: IntegrityError, 4: NoKeyError, 6: QemuError}


def error_of(verdict: Verdict, name: str) -> StatepipeError:
    """The peer's failure as ours: of the same kind, so that both end with the same exit code."""
    kind = _KINDS.get(verdict.code, PeerError)
    return kind(f"{name} failed: {verdict.text or 'it gave no reason'}", hint="look at what it says over there")
