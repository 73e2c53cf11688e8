"""requirements.lock: what `make install` takes. One release of everything, each file of it known by its hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "requirements.lock").read_text()

LOCKED = {
    canonicalize_name(name): (release, re.findall(r"--hash=sha256:[0-9a-f]{64}\b", rest))
    for name, release, rest in re.findall(r"^([\w.-]+)==(\S+) \\\n((?:    --hash=.*\n?)+)", TEXT, re.MULTILINE)
}


def test_all_that_we_need_is_locked_at_a_release_that_will_do() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [needs for name, needs in project["optional-dependencies"].items() if name not in ("all", "dev")]
    needs = [*project["dependencies"], *(need for each in extras for need in each)]
    assert len(needs) > len(extras) > 0
    for need in map(Requirement, needs):
        release, _ = LOCKED[canonicalize_name(need.name)]
        assert need.specifier.contains(release), f"{need}: {release} is locked (make lock)"


def test_every_release_has_the_hashes_of_several_files() -> None:
    """A wheel and the sources at least; of what is compiled, a wheel for each Python and machine.

    A release of certifi's may be one wheel for all, and no sources.
    """
    assert TEXT.count("==") == len(LOCKED)
    assert all(len(set(hashes)) >= (1 if name == "certifi" else 2) for name, (_, hashes) in LOCKED.items())
    assert all(
        len(LOCKED[name][1]) >= 7 for name in ("blake3", "cffi", "deflate", "isal", "lz4", "xxhash", "zstandard")
    )


def test_no_index_is_named() -> None:
    assert "://" not in TEXT and "index" not in TEXT
