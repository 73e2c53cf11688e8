"""How a link opens: who may begin a session, who may go on with one, and what each side proves to the other.

The link below is authenticated already (TLS, ssh, or the owner of a unix socket): `identity` names the peer. A
session belongs to the identity that began it. Its token, of the dialler's making, crosses the wire once, in NEW;
afterwards each side shows with a keyed BLAKE3 over the link's number that it knows the token, and no number is taken
twice. So neither another peer that we trust as well, nor a recording, can take up a session.
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
"""Numbers below the highest by more than this are refused unseen: MAX_LINKS dials overtake each other by less."""

_ASKS, _ANSWERS = b"statepipe link", b"statepipe welcome"
_BLANK = bytes(TOKEN_SIZE)


@dataclass(frozen=True, slots=True)
class Secrets:
    """What names a session and what proves that one belongs to it: random bytes of SESSION_SIZE and TOKEN_SIZE."""

    session: bytes
    token: bytes = field(repr=False)

    def prove(self, purpose: bytes, link: int) -> bytes:
        """That we know the token, for one link and one direction."""
        return blake3(purpose + self.session + link.to_bytes(4, "big"), key=self.token).digest()


@dataclass(frozen=True, slots=True)
class Party:
    """One side of a session, as it greets. `window` in bytes."""

    secrets: Secrets
    role: Role
    window: int = WINDOW

    def ask(self, link: int, received: tuple[int, ...], *, known: bool) -> bytes:
        """The dialler's greeting; `known` once a first one was answered."""
        proof = self.secrets.prove(_ASKS, link) if known else self.secrets.token
        return self._greet(Greets.RESUME if known else Greets.NEW, link, proof, received)

    def answer(self, link: int, received: tuple[int, ...]) -> bytes:
        """The acceptor's greeting."""
        return self._greet(Greets.WELCOME, link, self.secrets.prove(_ANSWERS, link), received)

    def _greet(self, kind: Greets, link: int, proof: bytes, received: tuple[int, ...]) -> bytes:
        return Greeting(kind, self.role, link, self.window, self.secrets.session, proof, received).encode()

    def check_answer(self, greeting: Greeting, link: int) -> None:
        """Raises Violation, with the peer's own reason where it refused."""
        if greeting.kind is Greets.REFUSED:
            raise Violation(f"the other side refused the link: {greeting.text}", hint="look at what it says over there")
        if greeting.kind is not Greets.WELCOME or greeting.link != link or greeting.session != self.secrets.session:
            raise Violation("the other side answered another greeting than ours")
        if not hmac.compare_digest(greeting.proof, self.secrets.prove(_ANSWERS, link)):
            raise Violation("the other side does not know this session's token", hint="is it another statepipe by now?")
        check_terms(self.role, greeting.role, greeting.window)


def refuse(greeting: Greeting, reason: str) -> bytes:
    """The answer to a greeting that we do not take."""
    return Greeting(
        Greets.REFUSED, greeting.role, greeting.link, greeting.window, greeting.session, _BLANK, text=reason
    ).encode()


_BELONG = {
    Role.SENDS: Role.RECEIVES,
    Role.RECEIVES: Role.SENDS,
    Role.BOTH: Role.BOTH,
    Role.TUNNELS: Role.TUNNELS,
}
_CALLERS = {Role.SENDS: "send", Role.RECEIVES: "recv", Role.BOTH: "migrate", Role.TUNNELS: "tunnel"}
_CALLED = _CALLERS | {Role.BOTH: "receive"}


def check_terms(caller: Role, called: Role, window: int) -> None:
    """Whether the two sides fit; `window` is the peer's. Raises Violation, in words that hold for both sides."""
    if _BELONG[caller] is not called:
        dialled, answered = _CALLERS[caller], _CALLED[called]
        ends = f"to a {dialled} belongs a {_CALLED[_BELONG[caller]]}, to a {answered} a {_CALLERS[_BELONG[called]]}"
        raise Violation(f"a {dialled} has called a {answered}: {ends}", hint="is it the right port?")
    if not MIN_WINDOW <= window <= MAX_WINDOW:
        raise Violation(f"a window of {window} bytes")


class Late(Violation):
    """A link of the session itself that nobody waits for any more: nothing that a person need hear of."""


class Doorkeeper:
    """Judges who may open another link of one session. The acceptor has one for each session."""

    def __init__(self, secrets: Secrets, identity: str) -> None:
        self.identity = identity
        self._secrets = secrets
        self._seen: set[int] = set()

    def admit(self, greeting: Greeting, identity: str) -> None:
        """Raises Violation: another peer, no proof, or a number that was there already; Late where a later one was."""
        if identity != self.identity:
            raise Violation("this session is another peer's")
        new = greeting.kind is Greets.NEW  # repeated: the first answer was lost with its link
        wanted = self._secrets.token if new else self._secrets.prove(_ASKS, greeting.link)
        if greeting.kind not in (Greets.NEW, Greets.RESUME) or not hmac.compare_digest(greeting.proof, wanted):
            raise Violation("no proof that this link belongs to the session")
        highest = max(self._seen, default=greeting.link)
        if greeting.link in self._seen or greeting.link < highest - REMEMBERED_LINKS:
            raise Violation(f"link {greeting.link} was here already")
        if any(lane(each) == lane(greeting.link) and each > greeting.link for each in self._seen):
            raise Late(f"a later link has taken the place of link {greeting.link}")
        self._seen = {each for each in self._seen if each >= highest - REMEMBERED_LINKS} | {greeting.link}
