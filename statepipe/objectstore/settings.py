"""Where a store is and how it is reached: nothing but the endpoint is ours.

Credentials, region, profile, proxy and certificates are found by the library as by the store's own tools: for S3 by
botocore in the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_REGION, AWS_CA_BUNDLE, HTTPS_PROXY …), in
~/.aws/config and ~/.aws/credentials (also SSO, roles, programs), and from the instance. So what `aws s3 ls` reaches,
statepipe reaches. AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL work as for the aws command; the setting `endpoint` of our
configuration comes after them. For Azure: azure/service.py; for Google:
google/transport.py.
"""

from __future__ import annotations

import os
import re

from statepipe.errors import UsageError
from statepipe.telling import Tell, nobody
from statepipe.typed import NamedTuple

RETRY = 120.0
"""Seconds that an operation is tried again after its first failure, by default: an overloaded store recovers in less,
and a guest that waits for its save is not kept waiting for a store that is gone."""

CACHE_SIZE = 16 << 30
"""Bytes that are kept of objects for the next start, by default: some guests' memory, compressed."""

CONNECT = 10.0
"""Seconds that a connection may take."""

SILENCE = 60.0
"""Seconds without a byte after which an attempt has failed. A store that completes a large upload sends blanks."""

LEAST_SILENCE = 1.0

_ENDPOINT = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]]+)(:[0-9]{1,5})?(/[^\s?#@]*)?")


class Settings(NamedTuple):
    """`endpoint` is the URL of a store that is not the cloud's own; `retry` the seconds for which a failed operation
    is tried again."""

    endpoint: str | None = None
    retry: float = RETRY

    @property
    def silence(self) -> float:
        """Seconds without a byte after which an attempt has failed: less than `retry`, which is for several."""
        return min(SILENCE, max(self.retry / 3, LEAST_SILENCE)) if self.retry else SILENCE


class Reading(NamedTuple):
    """How objects are read. `retry`: the seconds for which a failed operation is tried again. `cache` is the folder
    that keeps what was read, if any, at most `cache_size` bytes. `tell` hears of failed attempts."""

    retry: float = RETRY
    cache: str | None = None
    cache_size: int = CACHE_SIZE
    tell: Tell = nobody


def demand_endpoint(text: str) -> str:
    """Return the URL of an endpoint. Raises UsageError."""
    if not _ENDPOINT.fullmatch(text):
        raise UsageError(f"'{text}' is not the URL of a store", hint='write "https://HOST" or "https://HOST:PORT"')
    return text


def endpoint_for_azure(settings: Settings) -> str | None:
    """Return the endpoint of Azure's blobs, as the az command finds it; None: that of the account."""
    return os.environ.get("AZURE_STORAGE_SERVICE_ENDPOINT") or settings.endpoint


def endpoint_for_s3(settings: Settings) -> str | None:
    """Return the endpoint to give to botocore; None: it finds its own, as in ~/.aws/config. Raises UsageError."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if given := os.environ.get(name):
            if not given.lower().startswith(("http://", "https://")):
                raise UsageError(
                    f"{name} is not the URL of a store", hint="write it as https://HOST or http://HOST:PORT"
                )
            return None
    return settings.endpoint
