"""What Azure's refusals, and errors of its library, mean as errors of ours. The library's errors enter here and nowhere
else."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping

from statepipe.errors import StatepipeError
from statepipe.extras import extra
from statepipe.objectstore.failures import (
    LATER,
    NETWORK,
    WAY,
    NoRight,
    NotAsSent,
    NotDone,
    Transient,
    UploadGone,
)
from statepipe.shapes import told

CREDENTIALS = (
    "set AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or AZURE_STORAGE_CONNECTION_STRING, "
    "as for the az command, or log in with it (az login)"
)
_CHECK = "check the account, and its key or shared access signature"
_RENEW = "get a new one (az storage container generate-sas), and start again; with put --resume what was sent is kept"
_LEASED = "somebody holds a lease of the blob: end it (az storage blob lease break), or name another key"

_ANSWERS: Mapping[str, str] = {
    "ContainerNotFound": "create the container, or check its name and the account",
    "ContainerBeingDeleted": "the container was deleted a moment ago: name another one, or wait",
    "InvalidResourceName": "check the names of the container and of the key",
    "OutOfRangeInput": "check the names of the container and of the key",
    "AuthenticationFailed": f"{_CHECK}, and the clock of this host: signatures are good for 15 minutes",
    "InvalidAuthenticationInfo": _CHECK,
    "NoAuthenticationInformation": CREDENTIALS,
    "AccountIsDisabled": "have the account enabled",
    "KeyBasedAuthenticationNotPermitted": "the account takes no keys: leave it out, and log in (az login)",
    "PublicAccessNotPermitted": CREDENTIALS,
    "ResourceNotFound": CREDENTIALS,
    "AccountBeingCreated": "wait until the account is there",
    "InvalidBlobType": "the blob there is none of blocks: name another key, or remove it",
    "BlobArchived": "the blob is archived: bring it back first (az storage blob set-tier)",
    "BlobBeingRehydrated": "the blob is being brought back from the archive: wait",
    "BlobImmutableDueToPolicy": "a policy keeps the blob as it is: name another key",
    "SnapshotsPresent": "the blob has snapshots, which would go with it: remove it yourself",
    "LeaseIdMissing": _LEASED,
    "LeaseAlreadyPresent": _LEASED,
    "UnauthorizedBlobOverwrite": "the signature lets one create a blob, and replace none: name another key",
    "RequestBodyTooLarge": "name a smaller --size, so that the blocks are smaller",
    "BlockCountExceedsLimit": "too many blocks of uploads were left: name another key, or wait a week",
    "InvalidBlobOrBlock": "another program has left blocks with other ids: name another key, or wait a week",
    "InvalidHeaderValue": "the endpoint speaks another version of Azure's protocol: check it",
    "FeatureVersionMismatch": "the endpoint speaks another version of Azure's protocol: check it",
}
"""The next step after the codes that no other attempt changes (learn.microsoft.com/rest/api/storageservices/
blob-service-error-codes and common-rest-api-error-codes)."""

_BUSY = {"ServerBusy", "TooManyRequests"}
"""Codes which say that nothing was done."""

_AGAIN = {"InternalError", "OperationTimedOut", "RequestTimeout"}

_OUT_OF_TIME = "Signature not valid in the specified time frame"
"""Azure's words in the details of AuthenticationFailed."""


def refused(status: int, code: str, body: bytes, doing: str, rights: str) -> StatepipeError:
    """Return the error for what the store answered. `doing` names the object; `rights` is what is needed for it."""
    words, details = _words(body)
    said = f"cannot {doing}: the store answered {status}"
    said += f" {told(code, 64)}" if code else ""
    said += f": {words}" if words else ""
    if "md5" in f"{code} {words}".lower() or code.startswith("InvalidXml"):  # what we write is not so
        return NotAsSent(said, hint=WAY)
    if code in ("InvalidBlockList", "BlobNotFound"):
        hint = "another writer was faster, or a week has passed: the store drops blocks then: start again"
        return UploadGone(said, hint=hint)
    if code in _BUSY or status == 429:
        return NotDone(said, hint=LATER)
    if code in _AGAIN or (status in (408, 500, 502, 503, 504) and code not in _ANSWERS):
        return Transient(said, hint=LATER)
    if code == "AuthenticationFailed" and _OUT_OF_TIME in details:
        return StatepipeError(f"{said} The shared access signature is too old, or too new.", hint=_RENEW)
    if code in _ANSWERS:
        return StatepipeError(said, hint=_ANSWERS[code])
    if status in (401, 403):
        return NoRight(said, hint=f"the credentials lack a right for it: {rights}, or the network's rules refuse it")
    return StatepipeError(said, hint="the store's words say why; az storage blob shows more with --debug")


def _words(body: bytes) -> tuple[str, str]:
    """Return the first line of what the store says, and its details, both empty if it says nothing."""
    try:
        root = ET.fromstring(body)
    except ET.ParseError:
        return "", ""
    words = told((root.findtext("Message") or "").strip().partition("\n")[0], 500)
    return words, root.findtext("AuthenticationErrorDetail") or ""


def broken(error: Exception, doing: str) -> StatepipeError:
    """Return the error for an attempt that the store has not answered, or that could not be made.

    Only the reason is said: the library's words have the address, which may have a signature in it.
    """
    with extra("object"):
        from azure.core.exceptions import ClientAuthenticationError
        from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, SSLError

    causes = list(_causes(error))
    if type(error).__name__ == "AzureSigningError":
        return StatepipeError(f"cannot {doing}: the account's key is not in base64", hint=_CHECK)
    if isinstance(error, ClientAuthenticationError):  # of azure-identity: its words are about logins, and no address
        words = str(error).strip().partition("\n")[0]
        return StatepipeError(f"cannot {doing}: there are no credentials for it: {words}", hint=CREDENTIALS)
    reasons = [each.strerror for each in causes if isinstance(each, OSError) and each.strerror]
    said = f"cannot {doing}: {(reasons or [type(causes[-1]).__name__])[-1]}"
    if any(isinstance(each, SSLError) for each in causes) and "CERTIFICATE" in said:
        return StatepipeError(said, hint="name the authority of its certificate with REQUESTS_CA_BUNDLE")
    if any(isinstance(each, (ConnectTimeoutError, NewConnectionError)) for each in causes):
        return NotDone(said, hint=NETWORK)
    return Transient(said, hint=NETWORK)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it, which azure.core has in an attribute of its own."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = getattr(cause, "inner_exception", None) or cause.__cause__ or cause.__context__
