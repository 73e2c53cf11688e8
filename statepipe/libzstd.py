"""The compiled part of the package zstandard, as `zstandard`.

The package's own first module asks `platform` whether this is CPython, and imports typing: 4 ms of each start. So the
compiled part is loaded alone, under its name. Whoever imports zstandard before or after gets the same classes.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

from statepipe.typed import TYPE_CHECKING, Any

_NAME = "zstandard.backend_c"


def _load() -> Any:
    """Return the compiled module; the whole package if it has none, as for another Python. Raises ImportError."""
    package = PathFinder.find_spec("zstandard")
    found = package and PathFinder.find_spec(_NAME, package.submodule_search_locations)
    if found is None or found.loader is None or "zstandard" in sys.modules:
        import zstandard

        return zstandard
    module = sys.modules[_NAME] = module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[_NAME]
        raise
    return module


if TYPE_CHECKING:
    import zstandard as zstandard
else:
    zstandard = _load()
