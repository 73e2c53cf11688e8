"""Packages that only a part of statepipe needs: `pip install 'statepipe[lz4]'` installs those of lz4.

The module of such a part imports them within `extra("lz4")`. If one is missing or too old, the error says so and what
to type; the rest of statepipe works without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from statepipe.errors import StatepipeError

EXTRAS: Mapping[str, tuple[str, str]] = {
    "gzip": ("gzip", ""),
    "object": ("an object store", ""),
    "lz4": ("lz4", "python3-lz4 python3-xxhash"),
    "gpg": ("GnuPG's list of keys", "python3-gnupg"),
    "pair": ("pairing with a code", "python3-spake2"),
    "ssh-keys": ("an ssh key with a passphrase", "python3-bcrypt"),
    "pq": ("a post-quantum key", ""),
}
"""For each extra of pyproject.toml: its purpose, and Debian's packages if Debian 12 and 13 have all of them."""

_PROJECTS = {
    "gnupg": "python-gnupg",
    "azure": "azure-storage-blob",
    "azure.storage": "azure-storage-blob",
    "azure.storage.blob": "azure-storage-blob",
    "azure.core": "azure-core",
    "azure.identity": "azure-identity",
    "google": "google-auth",
    "google.auth": "google-auth",  # other packages have their modules in `google`, too
    "google_crc32c": "google-crc32c",
}
"""Packages whose module has another name: `azure` is a folder of several."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """A context for the imports of a part. Raises StatepipeError for a package that cannot be imported."""
    try:
        yield
    except ImportError as error:
        what, debian = EXTRAS[name]
        within = error.__cause__  # a package that imports another one may have words of its own
        missing = within if error.name is None and isinstance(within, ImportError) else error
        module = missing.name or ""
        top = module.partition(".")[0]
        package = _PROJECTS.get(module) or _PROJECTS.get(top, top)
        if isinstance(missing, ModuleNotFoundError) and (module == top or module in _PROJECTS):
            needs = f"the Python package {package}, which is not installed"
        else:
            needs = f"a newer release of the Python package {package}"
        hint = f"type pip install 'statepipe[{name}]'"
        if debian:
            hint += f", or if Debian's own Python runs statepipe: apt install {debian}"
        raise StatepipeError(f"{what} needs {needs}", hint=hint) from error
