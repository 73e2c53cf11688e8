"""How much memory this process may take: its cgroup's limit and those above it, ulimit -v, and the machine's own.

Beyond a cgroup's limit the kernel kills without a word. So what takes much on each core is put on no more cores than
there is room for.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from statepipe.threads import cores

SHARE = 2
"""One part in so many is for the workers; the rest, for the interpreter, the buffers, and who else is in the group."""


def workers_within(each: int, system: Path = Path("/")) -> int:
    """Threads to work on: one a core, but no more than have `each` bytes of memory; one at the least."""
    return max(1, min(cores(), memory_limit(system) // SHARE // each))


def memory_limit(system: Path = Path("/")) -> int:
    """Bytes; `system` is where proc and sys are."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_of_groups(system)]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min(limits if soft == resource.RLIM_INFINITY else [*limits, soft])


def _of_groups(system: Path) -> Iterator[int]:
    """Of our cgroup and of each above it, in either version. In a container its own may stand at the root."""
    with suppress(OSError):
        for line in (system / "proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                yield from _upwards(system / "sys/fs/cgroup", path, "memory.max")
            elif "memory" in controllers.split(","):
                yield from _upwards(system / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")


def _upwards(root: Path, path: str, name: str) -> Iterator[int]:
    group = PurePosixPath(path.lstrip("/"))
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError):  # none there, or "max"
            yield int((root / folder / name).read_text())
