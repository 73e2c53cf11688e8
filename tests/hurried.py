"""statepipe with some of its bounds lowered, for tests in which they run out.

    python hurried.py BOUND=SECONDS … -- VERB …

A bound is told by its module and its name, as in migration.coordinator.OVERDUE.
"""

from __future__ import annotations

import sys
from importlib import import_module


def hurried(*bounds: str) -> list[str]:
    """The words that start it, in the place of statepipe's own."""
    return [sys.executable, "-P", __file__, *bounds, "--"]


def main() -> None:
    """Lower the bounds, and be statepipe."""
    end = sys.argv.index("--")
    for bound in sys.argv[1:end]:
        name, _, seconds = bound.partition("=")
        place, _, constant = name.rpartition(".")
        module = import_module(f"statepipe.{place}")
        assert float(seconds) < getattr(module, constant)
        setattr(module, constant, float(seconds))
    del sys.argv[1 : end + 1]
    from statepipe.cli.main import entry

    entry()


if __name__ == "__main__":
    main()
