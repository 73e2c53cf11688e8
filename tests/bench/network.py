"""Rows on carrying a stream over the loopback: a sender and a receiver in one shell, so that both are measured."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence

from tests.bench.data import STATEPIPE, Inputs
from tests.bench.measure import Job

MEET = "exec 3<&0; $1 </dev/null >/dev/null & until $2 <&3; do kill -0 $! || exit 1; done; wait $!"
"""The receiver first. A sender that comes too early finds nobody, has read nothing, and is started again."""


def job(name: str, inputs: Inputs, receiver: Sequence[str], sender: Sequence[str]) -> Job:
    """Both, as one job. No word may have a space in it."""
    words = ("sh", "-c", MEET, "sh", " ".join(receiver), " ".join(sender))
    return Job(name, words, inputs.size, inputs.plain)


def free_port() -> str:
    """One that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as it:
        return str(it.getsockname()[1])


def ours(inputs: Inputs, scheme: str, *words: str) -> Job:
    """statepipe at both ends."""
    address = f"{scheme}://127.0.0.1:{free_port()}"
    return job(
        f"statepipe {scheme}", inputs, [*STATEPIPE, "recv", *words, address], [*STATEPIPE, "send", *words, address]
    )


def nc(inputs: Inputs) -> Job:
    """nc at both ends."""
    port = free_port()
    return job("nc", inputs, ["nc", "-l", "127.0.0.1", port], ["nc", "-N", "127.0.0.1", port])


def socat(inputs: Inputs) -> Job:
    """socat at both ends."""
    port = free_port()
    receiver = ["socat", "-u", "-b", "262144", f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr", "-"]
    return job("socat", inputs, receiver, ["socat", "-u", "-b", "262144", "-", f"TCP:127.0.0.1:{port}"])


def mbuffer(inputs: Inputs) -> Job:
    """mbuffer at both ends."""
    port = free_port()
    receiver = ["mbuffer", "-q", "-s", "256k", "-m", "64M", "-I", f"127.0.0.1:{port}"]
    return job("mbuffer", inputs, receiver, ["mbuffer", "-q", "-s", "256k", "-m", "64M", "-O", f"127.0.0.1:{port}"])


def is_there(program: str) -> bool:
    """Whether it is installed."""
    return shutil.which(program) is not None
