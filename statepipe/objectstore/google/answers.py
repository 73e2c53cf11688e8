"""What the answers of Google Cloud Storage, and the errors of its libraries, mean as errors of ours.

The errors of requests, urllib3 and google-auth enter here and nowhere else. Their words may hold the URL of a request,
and that of an upload is a secret: whoever has it can write the object. So it is cut out of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from statepipe.errors import IntegrityError, StatepipeError
from statepipe.objectstore.failures import LATER, NETWORK, WAY, NoRight, Transient, UploadGone
from statepipe.typed import Any, NamedTuple

MOST_WORDS = 300
"""Characters of a store's words that are shown."""

_RENEW = "get new credentials (gcloud auth application-default login), and start again"
_CREDENTIALS = (
    "run gcloud auth application-default login, or name a key's file with GOOGLE_APPLICATION_CREDENTIALS; "
    "a program on Google's machines has those of its service account"
)
_BUCKET = "create the bucket, or check its name"
_BEGIN_ANEW = "the store has ended the upload, as it does a week after it began: start again"
_SECRET = re.compile(r"(upload_id=|with url: )[^\s'\")]*")


class Answer(NamedTuple):
    """An answer that refuses: its status, and the words and the reason that its body gives."""

    status: int
    words: str
    reason: str


def read_refusal(status: int, body: bytes) -> Answer:
    """Return what the body of an answer says: of JSON its message, else its text (of downloads, Google sends text)."""
    try:
        error: Any = json.loads(body)["error"]
        words, reason = str(error["message"]), str((error.get("errors") or [{}])[0].get("reason") or "")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        words, reason = body.decode(errors="replace"), ""
        if "<" in words[:100]:  # a page or XML
            words = ""
    return Answer(status, shown(words), shown(reason))


def shown(words: str) -> str:
    """Return somebody else's words in one line without control characters, secrets and more than MOST_WORDS."""
    line = " ".join("".join(each if each.isprintable() else " " for each in words).split())
    line = _SECRET.sub(r"\1…", line)
    return line if len(line) <= MOST_WORDS else f"{line[:MOST_WORDS]}…"


def without_secrets(record: Any) -> bool:
    """Cut secrets out of a record of logging's; a filter of urllib3's log, which tells URLs to who asks for DEBUG."""
    if isinstance(record.args, tuple):
        record.args = tuple(_SECRET.sub(r"\1…", each) if isinstance(each, str) else each for each in record.args)
    return True


def is_bucket_missing(answer: Answer) -> bool:
    """Return whether it is the bucket that is not there, and not the object."""
    return answer.status == 404 and "bucket" in answer.words.lower() and "no such object" not in answer.words.lower()


def refused(answer: Answer, doing: str, rights: str) -> StatepipeError:
    """Return the error for an answer. `doing` names the object; `rights` is what a role must allow.

    The codes are those of cloud.google.com/storage/docs/json_api/v1/status-codes.
    """
    status, words, reason = answer
    said = f"cannot {doing}: the store answered {status}"
    said += f" {reason}" if reason else ""
    said += f": {words}" if words else ""
    if status in (408, 429) or status >= 500:
        return Transient(said, hint=LATER)
    if status == 409:
        return Transient(said, hint="another request changed the same object at that moment: try again later")
    if status == 401:
        return NoRight(said, hint=_RENEW)
    if status == 403:
        hint = f"the credentials lack a right for it: {rights}" if rights else _RENEW
        return NoRight(said, hint=_HINTS.get(reason, hint))
    if status == 404:
        return StatepipeError(said, hint=_BUCKET)
    return StatepipeError(said, hint=_HINTS.get(reason, "the store's words say why"))


_HINTS: Mapping[str, str] = {
    "quotaExceeded": "have the quota raised, or try again later",
    "rateLimitExceeded": LATER,
    "userRateLimitExceeded": LATER,
    "accountDisabled": "check the billing account of the bucket's project",
    "userProjectMissing": "the bucket makes the reader pay, which statepipe does not do: use another one",
    "retentionPolicyNotMet": "the bucket's retention policy keeps the object: write another one",
}
"""The next step after reasons that no other attempt changes."""


def session_gone(answer: Answer, doing: str) -> UploadGone:
    """Return the error for an upload that the store does not know any more (404, 410)."""
    words = f": {answer.words}" if answer.words else ""
    return UploadGone(f"cannot {doing}: the store answered {answer.status}{words}", hint=_BEGIN_ANEW)


def wrong_sum(answer: Answer, doing: str) -> IntegrityError | None:
    """Return the error for an object that the store has refused because it is not what was sent, None for others.

    Another attempt does not help: what was sent before is not to be had again.
    """
    words = answer.words.lower()
    if answer.status in (400, 412) and ("crc32c" in words or "checksum" in words or "hash" in words):
        return IntegrityError(f"cannot {doing}: the store has other bytes than were sent: {answer.words}", hint=WAY)
    return None


def broken(error: Exception, doing: str, libraries: Any) -> StatepipeError:
    """Return the error for an attempt that was not answered, or could not be made. `libraries` has `requests`,
    `urllib3` and `auth`, their modules of exceptions."""
    said = f"cannot {doing}: {shown(_cause(error))}"
    requests, urllib3, auth = libraries.requests, libraries.urllib3, libraries.auth
    if isinstance(error, (requests.SSLError, urllib3.SSLError)):
        return StatepipeError(said, hint="name the authority of its certificate with REQUESTS_CA_BUNDLE")
    if isinstance(error, auth.DefaultCredentialsError):  # its own words name the file, and the cause a wrong byte
        words = shown(str(error.args[0])) if error.args else type(error).__name__
        return StatepipeError(f"cannot {doing}: {words}", hint=_CREDENTIALS)
    if isinstance(error, auth.TransportError) or getattr(error, "retryable", False):
        return Transient(said, hint=NETWORK)
    if isinstance(error, auth.GoogleAuthError):
        return NoRight(said, hint=_RENEW)
    configured = requests.InvalidURL, requests.InvalidProxyURL, requests.InvalidSchema, requests.MissingSchema
    if isinstance(error, configured):
        return StatepipeError(said, hint="check HTTPS_PROXY and STORAGE_EMULATOR_HOST")
    return Transient(said, hint=NETWORK)


def _cause(error: Exception) -> str:
    """Return the words of what failed in the network, without those of the layers above, which tell the URL."""
    inner: Any = error
    while True:
        within = getattr(inner, "reason", None)
        if not isinstance(within, Exception):
            within = next((each for each in getattr(inner, "args", ()) if isinstance(each, Exception)), None)
        if within is None:
            return str(inner) or type(inner).__name__
        inner = within
