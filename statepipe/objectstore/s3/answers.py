"""What S3's refusals, and botocore's errors, mean as errors of ours. botocore's errors enter here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping

from statepipe.errors import StatepipeError, UsageError
from statepipe.objectstore.failures import (
    LATER,
    NETWORK,
    WAY,
    Conflict,
    NoConditions,
    NoRight,
    NotAsSent,
    Transient,
    UploadGone,
)
from statepipe.shapes import told
from statepipe.typed import Any

_CREDENTIALS = "check the credentials, as with: aws sts get-caller-identity"
_RENEW = "get new ones (aws sso login, or a new token), and start again"
_KEPT = "; with put --resume what was sent is kept"
_CLOCK = "set the clock of this host: signatures are good for 15 minutes"
_RIGHTS = "the credentials lack a right for it: {rights}"

_ANSWERS: Mapping[str, str] = {
    "NoSuchBucket": "create the bucket, or check its name, the region and the endpoint",
    "InvalidBucketName": "check the name of the bucket",
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "AuthFailure": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": _RENEW,
    "ExpiredTokenException": _RENEW,
    "TokenRefreshRequired": _RENEW,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
    "QuotaExceeded": "free space in the store, or have its quota raised",
    "InsufficientStorage": "free space in the store, or have its quota raised",
    "XMinioStorageFull": "free space in the store",
    "XMinioAdminBucketQuotaExceeded": "have the bucket's quota raised",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION",
    "IllegalLocationConstraintException": "the bucket is in another region: set AWS_REGION",
    "KeyTooLongError": "choose a shorter key",
    "EntityTooLarge": "name a larger --size, so that the parts are larger",
    "EntityTooSmall": "the store takes no parts this small: name a larger --size",
}
"""The next step after the store's codes that no other attempt changes (AmazonS3/latest/API/ErrorResponses.html; those
with an X are MinIO's, QuotaExceeded is Ceph's)."""

_AGAIN = {
    *("SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestLimitExceeded"),
    *("TooManyRequests", "InternalError", "RequestTimeout", "OperationAborted", "IncompleteBody"),
    *("BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"),
}
"""Codes after which the same request may succeed. The last four are about bytes that changed on their way."""

_CHANGED = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}


def refused(response: Mapping[str, Any], doing: str, rights: str) -> StatepipeError:
    """Return the error for what the store answered, as botocore has read it. `doing` names the object; `rights` is what
    a policy must allow."""
    answer: Mapping[str, Any] = response.get("Error", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code, words = told(answer.get("Code") or "", 64), clean(answer.get("Message") or "")
    said = f"cannot {doing}: the store answered {status or 'without a status'}"
    said += f" {code}" if code and code != str(status) else ""
    said += f": {words}" if words and words != code else ""
    if code == "NoSuchUpload":
        return UploadGone(said, hint="somebody, or a lifecycle rule, has ended the upload: start again")
    if code == "NotImplemented" or status == 501:
        return NoConditions(said, hint="the store lacks this: use another one")
    if code == "ConditionalRequestConflict" or (status == 409 and code not in _ANSWERS and code != "OperationAborted"):
        return Conflict(said, hint="another writer completed the same object at that moment: start again")
    if code in _CHANGED:
        return NotAsSent(said, hint=WAY)
    if code in _AGAIN or (status in (408, 429, 500, 502, 503, 504) and code not in _ANSWERS):
        return Transient(said, hint=LATER)
    if code in _ANSWERS:
        is_writing = _ANSWERS[code] == _RENEW and rights == "s3:PutObject"
        return StatepipeError(said, hint=_ANSWERS[code] + (_KEPT if is_writing else ""))
    if status == 507:
        return StatepipeError(said, hint=_ANSWERS["InsufficientStorage"])
    if status in (401, 403):
        return NoRight(said, hint=f"{_RIGHTS.format(rights=rights)}, or they are not those of this store")
    if status in (301, 307):
        return StatepipeError(said, hint=_ANSWERS["PermanentRedirect"])
    return StatepipeError(said, hint="the store's words say why; aws s3api shows more with --debug")


def broken(error: Exception, doing: str, exceptions: Any) -> StatepipeError:
    """Return the error for an attempt that the store has not answered, or that could not be made; `exceptions` is
    botocore's module."""
    said = f"cannot {doing}: {_one_line(error)}"
    if isinstance(error, exceptions.SSLError):
        if "WRONG_VERSION_NUMBER" in said:
            return StatepipeError(said, hint="no TLS is spoken there: write http:// in the endpoint, or another port")
        return StatepipeError(said, hint="name the authority of its certificate with AWS_CA_BUNDLE")
    cut = exceptions.IncompleteReadError, exceptions.ResponseStreamingError
    if isinstance(error, (exceptions.HTTPClientError, exceptions.ConnectionError, *cut)):
        return Transient(said, hint=NETWORK)
    if isinstance(error, exceptions.NoRegionError):
        return UsageError(said, hint="set AWS_REGION")
    if isinstance(error, exceptions.ProfileNotFound):
        return UsageError(said, hint="check AWS_PROFILE")
    if isinstance(error, exceptions.MetadataRetrievalError | exceptions.CredentialRetrievalError):
        return Transient(said, hint=_CREDENTIALS)
    credentials = (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.TokenRetrievalError)
    if isinstance(error, (*credentials, exceptions.SSOError, exceptions.UnauthorizedSSOTokenError)):
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, as for the aws command"
        return StatepipeError(said, hint=hint)
    return StatepipeError(said, hint="this is what botocore says; the aws command would say the same")


def senseless(error: Exception, doing: str) -> StatepipeError:
    """Return the error for what finds the credentials, such as a program of ~/.aws/config, and gives no sense."""
    said = f"cannot {doing}: what finds the credentials gives nothing readable: {type(error).__name__}"
    return StatepipeError(said, hint=_CREDENTIALS)


def _one_line(error: Exception) -> str:
    """Return botocore's words without what follows in further lines."""
    first = str(error).strip().partition("\n")[0]
    return clean(first) or type(error).__name__


def clean(words: object) -> str:
    """Return foreign words made fit for a message: short, and without a header's value or the user of a URL, which may
    be secret."""
    plain = _USER.sub("//", str(words)[: 4 * _LONGEST])
    return told(_HEADER.sub("a header cannot be sent: check the credentials for stray characters", plain), _LONGEST)


_LONGEST = 500
_USER = re.compile(r"//[^/\s@]*@")
_HEADER = re.compile(r"Invalid header value.*", re.DOTALL)
