"""Why a handshake failed, in plain words: OpenSSL names its alerts and its checks, and people know clocks and hosts.

Who checks a certificate knows what is wrong with it. The other side is told by an alert alone (RFC 8446, 6.2), of which
one means several things: so its likeliest cause comes first, and that the other side says which it was.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

from statepipe.errors import PeerError

_CLOCKS = "compare the clocks: type date -u on both hosts"
_OVER_THERE = "the other side says which it was"
_PAIR = "it is not one of the peers pinned here, nor of our authority: statepipe pair"

_CHECKS = {
    3: (
        "its certificate is of an authority whose list of revocations is not here",
        "both hosts need folders of one authority",
    ),
    9: ("its certificate is not yet valid: is this host's clock behind? It says {now}", _CLOCKS),
    10: (
        "its certificate has expired, or this host's clock is ahead: it says {now}",
        f"{_CLOCKS}; if they are right, issue a new one there: statepipe pki issue",
    ),
    11: ("the list of revocations here is not yet valid: is this host's clock behind? It says {now}", _CLOCKS),
    12: ("the list of revocations here has expired, or this host's clock is ahead: it says {now}", _CLOCKS),
    18: ("its certificate is its own, which is not known here (self-signed certificate)", _PAIR),
    19: ("its certificate is of an authority that is not ours (self-signed certificate)", _PAIR),
    20: ("its certificate is of an authority that is not ours", "both hosts need folders of one authority"),
    23: ("its certificate was revoked by the authority (certificate revoked)", "issue it another: statepipe pki issue"),
    26: (
        "its certificate is for another end (certificate purpose)",
        "server-cert.pem is for who listens, client-cert.pem for who connects",
    ),
    62: ("its certificate is for another name than the one it was called by", "statepipe pki show; or --peer NAME"),
    64: ("its certificate is for another address than the one it was called by", "statepipe pki show; or --peer NAME"),
}
"""By X509_V_ERR (x509_vfy.h): what is wrong with the peer's certificate, and a hint."""

_ALERTS = {
    "BAD_CERTIFICATE": (
        "it takes our certificate for none that is valid now, or for another host's",
        f"its clock may be behind, so that our certificate is not yet valid there: {_CLOCKS}; {_OVER_THERE}",
    ),
    "CERTIFICATE_EXPIRED": (
        "it says that our certificate has expired",
        f"issue a new one: statepipe pki issue; or its clock is ahead: {_CLOCKS}",
    ),
    "CERTIFICATE_REVOKED": ("it says that our certificate was revoked", "issue another one: statepipe pki issue"),
    "UNKNOWN_CA": (
        "it does not know us",
        "it has not pinned this host, or has another authority: pair the two hosts (statepipe pair), or look at "
        "ca-cert.pem there",
    ),
    "UNSUPPORTED_CERTIFICATE": (
        "our certificate is for another end",
        "server-cert.pem is for who listens, client-cert.pem for who connects",
    ),
    "CERTIFICATE": ("it does not accept our certificate", _OVER_THERE),
    "VERSION": ("it does not speak TLS 1.3", "is that a statepipe at this port?"),
    "ALERT": ("it refused the connection", _OVER_THERE),
}
"""By what the name of an alert ends or goes on with, the longest first: what the other side thinks of us."""

_OTHERS = {
    "VERSION": ("it does not speak TLS 1.3", "is that a statepipe at this port?"),
    "PROTOCOL": ("it does not speak TLS 1.3", "is that a statepipe at this port?"),
    "HTTP": ("it speaks HTTP, and no TLS", "is that a statepipe at this port?"),
    "EOF": ("it broke the handshake off", "look at what it says over there"),
    "PEER_DID_NOT_RETURN": ("it has no certificate", "pair the two hosts: statepipe pair; or give it --tls-creds"),
}


def refused(name: str, error: ssl.SSLError) -> PeerError:
    """What became of a handshake with `name`."""
    words, hint = _meaning(error)
    return PeerError(f"no trust between us and {name}: {words.format(now=_now())}", hint=hint)


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def _meaning(error: ssl.SSLError) -> tuple[str, str]:
    if isinstance(error, ssl.SSLCertVerificationError):
        if known := _CHECKS.get(error.verify_code):
            return known
        return f"its certificate is refused: {error.verify_message}", "issue it another: statepipe pki issue"
    reason = error.reason or ""
    if "ALERT" in reason:
        alert = reason.partition("ALERT_")[2]
        return next((known for word, known in _ALERTS.items() if word in alert), _ALERTS["ALERT"])
    if isinstance(error, ssl.SSLEOFError):
        return _OTHERS["EOF"]
    plain = (reason or str(error)).replace("_", " ").lower()
    return next(
        (known for word, known in _OTHERS.items() if word in reason),
        (f"it does not speak TLS as we do ({plain})", "is that a statepipe at this port?"),
    )
