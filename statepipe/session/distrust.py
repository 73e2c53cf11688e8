"""Why a handshake failed, in plain words: OpenSSL names alerts and checks, people know clocks and hosts.

The side that checks a certificate knows what is wrong with it. The other side gets only an alert (RFC 8446, 6.2), which
can mean several things: its message names the likeliest cause, and the hint says that the other side reports which.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

from statepipe.errors import PeerError

_CLOCKS = "compare the clocks: type date -u on both hosts"
_OVER_THERE = "the other side reports which it was"
_PORT = "check that a statepipe listens at this port"
_PAIR = "it is neither pinned here nor signed by our authority: statepipe pair"

_CHECKS = {
    3: (
        "there is no list of revocations here for the authority of its certificate",
        "both hosts need folders from the same authority",
    ),
    9: ("its certificate is not yet valid: is this host's clock behind? It says {now}", _CLOCKS),
    10: (
        "its certificate has expired, or this host's clock is ahead: it says {now}",
        f"{_CLOCKS}; if they are right, issue a new one for it: statepipe pki issue",
    ),
    11: ("the list of revocations here is not yet valid: is this host's clock behind? It says {now}", _CLOCKS),
    12: ("the list of revocations here has expired, or this host's clock is ahead: it says {now}", _CLOCKS),
    18: ("its certificate is not known here (self-signed certificate)", _PAIR),
    19: ("its certificate is signed by another authority (self-signed certificate)", _PAIR),
    20: ("its certificate is signed by another authority", "both hosts need folders from the same authority"),
    23: (
        "its certificate was revoked by the authority (certificate revoked)",
        "issue a new one for it: statepipe pki issue",
    ),
    26: (
        "its certificate is for the other role (certificate purpose)",
        "server-cert.pem is for the host that listens, client-cert.pem for the one that connects",
    ),
    62: ("its certificate does not contain the name that was connected to", "statepipe pki show; or --peer NAME"),
    64: ("its certificate does not contain the address that was connected to", "statepipe pki show; or --peer NAME"),
}
"""For each X509_V_ERR (x509_vfy.h): what is wrong with the peer's certificate, and a hint."""

_ALERTS = {
    "BAD_CERTIFICATE": (
        "it does not accept our certificate: not valid now, or of another host",
        f"its clock may be behind, so that our certificate is not yet valid there: {_CLOCKS}; {_OVER_THERE}",
    ),
    "CERTIFICATE_EXPIRED": (
        "it reports that our certificate has expired",
        f"issue a new one: statepipe pki issue; or its clock is ahead: {_CLOCKS}",
    ),
    "CERTIFICATE_REVOKED": ("it reports that our certificate was revoked", "issue a new one: statepipe pki issue"),
    "UNKNOWN_CA": (
        "it does not know us",
        "this host is not pinned there, or its authority is another: pair the two hosts (statepipe pair), or check "
        "ca-cert.pem there",
    ),
    "UNSUPPORTED_CERTIFICATE": (
        "our certificate is for the other role",
        "server-cert.pem is for the host that listens, client-cert.pem for the one that connects",
    ),
    "CERTIFICATE": ("it does not accept our certificate", _OVER_THERE),
    "VERSION": ("it does not speak TLS 1.3", _PORT),
    "ALERT": ("it refused the connection", _OVER_THERE),
}
"""For a part of an alert's name, the longest first: what the other side reports about us."""

_OTHERS = {
    "VERSION": ("it does not speak TLS 1.3", _PORT),
    "PROTOCOL": ("it does not speak TLS 1.3", _PORT),
    "HTTP": ("it speaks HTTP, not TLS", _PORT),
    "EOF": ("it ended the handshake", "read its messages on the other host"),
    "PEER_DID_NOT_RETURN": ("it has no certificate", "pair the two hosts: statepipe pair; or give it --tls-creds"),
}


def refused(name: str, error: ssl.SSLError) -> PeerError:
    """Return the error for a failed handshake with `name`."""
    words, hint = _meaning(error)
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return PeerError(f"no trust between us and {name}: {words.format(now=now)}", hint=hint)


def _meaning(error: ssl.SSLError) -> tuple[str, str]:
    if isinstance(error, ssl.SSLCertVerificationError):
        if known := _CHECKS.get(error.verify_code):
            return known
        return f"its certificate is refused: {error.verify_message}", "issue a new one for it: statepipe pki issue"
    reason = error.reason or ""
    if "ALERT" in reason:
        alert = reason.partition("ALERT_")[2]
        return next((known for word, known in _ALERTS.items() if word in alert), _ALERTS["ALERT"])
    if isinstance(error, ssl.SSLEOFError):
        return _OTHERS["EOF"]
    plain = (reason or str(error)).replace("_", " ").lower()
    return next(
        (known for word, known in _OTHERS.items() if word in reason),
        (f"it does not speak our kind of TLS ({plain})", _PORT),
    )
