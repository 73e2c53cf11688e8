"""How much memory this process can use: the limits of its cgroup and those above it, ulimit -v, and the machine's RAM.

The kernel kills a process above its cgroup's limit without a message. So work that needs much memory per core runs on
only as many cores as the limit allows.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from statepipe.threads import cores

SHARE = 2
"""Workers get 1/SHARE of the memory; the rest is for the interpreter, buffers, and other processes in the group."""


def workers_within(each: int, system: Path = Path("/")) -> int:
    """Return the number of workers: one a core, but only as many as have `each` bytes of memory, at least one."""
    return max(1, min(cores(), memory_limit(system) // SHARE // each))


def memory_limit(system: Path = Path("/")) -> int:
    """Return the limit in bytes; `system` is the folder that holds proc and sys."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_of_groups(system)]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min(limits if soft == resource.RLIM_INFINITY else [*limits, soft])


def _of_groups(system: Path) -> Iterator[int]:
    """Yield the limits of our cgroup and of each above it, in either version. A container's own may be at the root."""
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
        with suppress(OSError, ValueError):  # no limit here, or "max"
            yield int((root / folder / name).read_text())
