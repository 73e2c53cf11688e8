"""How a link opens: who may begin a session, who may resume one, and what each side proves to the other.

The connection is already authenticated (TLS, ssh, or the user at a unix socket): `identity` names the peer. A session
belongs to the identity that began it. The dialler creates its token, which is sent once, in NEW. After that, each side
proves with a keyed BLAKE3 over the link's number that it knows the token, and no number is accepted twice. So neither
another trusted peer nor a replay can resume a session.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from blake3 import blake3

from statepipe.session.protocol.channels import MAX_WINDOW, MIN_WINDOW, WINDOW
from statepipe.session.protocol.frames import MAX_LINKS, Greeting, Greets, Role, Violation, lane

SESSION_SIZE = 16
TOKEN_SIZE = 32

REMEMBERED_LINKS = 64 * MAX_LINKS
"""A number that is lower than the highest by more than this is refused: MAX_LINKS dials overtake each other by less."""

_ASKS, _ANSWERS = b"statepipe link", b"statepipe welcome"
_BLANK = bytes(TOKEN_SIZE)


@dataclass(frozen=True, slots=True)
class Secrets:
    """A session's name and its token: SESSION_SIZE and TOKEN_SIZE random bytes."""

    session: bytes
    token: bytes = field(repr=False)

    def prove(self, purpose: bytes, link: int) -> bytes:
        """Return the proof that we know the token, for one link and one direction."""
        return blake3(purpose + self.session + link.to_bytes(4, "big"), key=self.token).digest()


@dataclass(frozen=True, slots=True)
class Party:
    """One side of a session, as in its greetings. `window` in bytes."""

    secrets: Secrets
    role: Role
    window: int = WINDOW

    def ask(self, link: int, received: tuple[int, ...], *, known: bool) -> bytes:
        """Return the dialler's greeting; `known` after a first one was answered."""
        proof = self.secrets.prove(_ASKS, link) if known else self.secrets.token
        return self._greet(Greets.RESUME if known else Greets.NEW, link, proof, received)

    def answer(self, link: int, received: tuple[int, ...]) -> bytes:
        """Return the acceptor's greeting."""
        return self._greet(Greets.WELCOME, link, self.secrets.prove(_ANSWERS, link), received)

    def _greet(self, kind: Greets, link: int, proof: bytes, received: tuple[int, ...]) -> bytes:
        return Greeting(kind, self.role, link, self.window, self.secrets.session, proof, received).encode()

    def check_answer(self, greeting: Greeting, link: int) -> None:
        """Raises Violation, with the peer's reason if it refused."""
        if greeting.kind is Greets.REFUSED:
            raise Violation(
                f"the other side refused the link: {greeting.text}", hint="read its messages on the other host"
            )
        if greeting.kind is not Greets.WELCOME or greeting.link != link or greeting.session != self.secrets.session:
            raise Violation("the other side answered a different greeting")
        if not hmac.compare_digest(greeting.proof, self.secrets.prove(_ANSWERS, link)):
            raise Violation(
                "the other side does not know this session's token", hint="check whether it was restarted meanwhile"
            )
        check_terms(self.role, greeting.role, greeting.window)


def refuse(greeting: Greeting, reason: str) -> bytes:
    """Return the answer that refuses a greeting."""
    return Greeting(
        Greets.REFUSED, greeting.role, greeting.link, greeting.window, greeting.session, _BLANK, text=reason
    ).encode()


_BELONG = {
    Role.SENDS: Role.RECEIVES,
    Role.RECEIVES: Role.SENDS,
    Role.BOTH: Role.BOTH,
    Role.TUNNELS: Role.TUNNELS,
    Role.LIBVIRT: Role.LIBVIRT,
}
_CALLERS = {
    Role.SENDS: "send",
    Role.RECEIVES: "recv",
    Role.BOTH: "migrate",
    Role.TUNNELS: "tunnel",
    Role.LIBVIRT: "tunnel --libvirt",
}
_CALLED = _CALLERS | {Role.BOTH: "receive"}


def check_terms(caller: Role, called: Role, window: int) -> None:
    """Check that the two sides fit; `window` is the peer's. Raises Violation, in words that fit both sides."""
    if _BELONG[caller] is not called:
        dialled, answered = _CALLERS[caller], _CALLED[called]
        ends = f"a {dialled} needs a {_CALLED[_BELONG[caller]]}, a {answered} needs a {_CALLERS[_BELONG[called]]}"
        raise Violation(f"a {dialled} connected to a {answered}: {ends}", hint="check the port")
    if not MIN_WINDOW <= window <= MAX_WINDOW:
        raise Violation(f"a window of {window} bytes")


class Late(Violation):
    """A late link of the session itself. It is not reported."""


class Doorkeeper:
    """Decides who may open another link of a session. The acceptor has one for each session."""

    def __init__(self, secrets: Secrets, identity: str) -> None:
        self.identity = identity
        self._secrets = secrets
        self._seen: set[int] = set()

    def admit(self, greeting: Greeting, identity: str) -> None:
        """Raises Violation for another peer, a wrong proof or a used number; Late if a later link has replaced it."""
        if identity != self.identity:
            raise Violation("this session belongs to another peer")
        new = greeting.kind is Greets.NEW  # repeated if the first answer was lost with its link
        wanted = self._secrets.token if new else self._secrets.prove(_ASKS, greeting.link)
        if greeting.kind not in (Greets.NEW, Greets.RESUME) or not hmac.compare_digest(greeting.proof, wanted):
            raise Violation("no proof that this link belongs to the session")
        highest = max(self._seen, default=greeting.link)
        if greeting.link in self._seen or greeting.link < highest - REMEMBERED_LINKS:
            raise Violation(f"link {greeting.link} was used before")
        if any(lane(each) == lane(greeting.link) and each > greeting.link for each in self._seen):
            raise Late(f"a later link has replaced link {greeting.link}")
        self._seen = {each for each in self._seen if each >= highest - REMEMBERED_LINKS} | {greeting.link}
