"""How much memory this process can use: the limits of its cgroup and those above it, ulimit -v, and the machine's RAM.

The kernel kills a process above its cgroup's limit without a message. So work that needs much memory per core runs on
only as many cores as the limit allows.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress

from statepipe.threads import cores

SHARE = 2
"""Workers get 1/SHARE of the memory; the rest is for the interpreter, buffers, and other processes in the group."""


def workers_within(each: int, system: str | os.PathLike[str] = "/") -> int:
    """Return the number of workers: one a core, but only as many as have `each` bytes of memory, at least one."""
    return max(1, min(cores(), memory_limit(system) // SHARE // each))


def memory_limit(system: str | os.PathLike[str] = "/") -> int:
    """Return the limit in bytes; `system` is the folder that holds proc and sys."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_of_groups(system)]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min(limits if soft == resource.RLIM_INFINITY else [*limits, soft])


def _of_groups(system: str | os.PathLike[str]) -> Iterator[int]:
    """Yield the limits of our cgroup and of each above it, in either version. A container's own may be at the root."""
    root = os.path.join(system, "sys/fs/cgroup")
    with suppress(OSError), open(os.path.join(system, "proc/self/cgroup"), "rb") as file:
        for line in map(os.fsdecode, file.read().split(b"\n")[:-1]):
            number, controllers, path = line.split(":", 2)
            if number == "0":
                yield from _upwards(root, path, "memory.max")
            elif "memory" in controllers.split(","):
                yield from _upwards(os.path.join(root, "memory"), path, "memory.limit_in_bytes")


def _upwards(root: str, path: str, name: str) -> Iterator[int]:
    group = path.strip("/")
    while True:
        with suppress(OSError, ValueError), open(os.path.join(root, group, name)) as file:  # no limit here, or "max"
            yield int(file.read())
        if not group:
            return
        group = os.path.dirname(group)
