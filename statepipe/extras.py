"""Packages that a part of statepipe needs and its core does not: `pip install 'statepipe[lz4]'` installs those of lz4.

The module of such a part imports them within `extra("lz4")`. Where one is missing, or is too old for that part, the
error says so and what to type; the rest of statepipe works.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from statepipe.errors import StatepipeError

EXTRAS: Mapping[str, tuple[str, str]] = {
    "gzip": ("gzip", ""),
    "lz4": ("lz4", "python3-lz4 python3-xxhash"),
    "gpg": ("GnuPG's list of keys", "python3-gnupg"),
    "pair": ("pairing by a code", "python3-spake2"),
    "ssh-keys": ("a key of ssh under a passphrase", "python3-bcrypt"),
    "pq": ("a post-quantum key", ""),
}
"""For each extra of pyproject.toml what it is for, and Debian's packages, where Debian 12 and 13 have all of them."""

_PROJECTS = {"gnupg": "python-gnupg"}
"""The name of a package, where its module has another."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around the imports of a part. Raises StatepipeError for what cannot be imported."""
    try:
        yield
    except ImportError as error:
        what, debian = EXTRAS[name]
        top = (error.name or "").partition(".")[0]
        package = _PROJECTS.get(top, top)
        if isinstance(error, ModuleNotFoundError) and error.name == top:
            needs = f"the Python package {package}, which is not installed"
        else:
            needs = f"a newer release of the Python package {package}"
        raise StatepipeError(f"{what} needs {needs}", hint=_hint(name, debian)) from error


def _hint(name: str, debian: str) -> str:
    typed = f"type pip install 'statepipe[{name}]'"
    return f"{typed}, or where Debian's Python runs statepipe: apt install {debian}" if debian else typed
