"""Another user of the host, as tests meet one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def listened_at(path: Path, uid: int) -> Iterator[socket.socket]:
    """A unix socket at which another user listens: the kernel keeps who it was at that moment."""
    if os.geteuid():
        pytest.skip("only root can be another user")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        os.seteuid(uid)
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        yield listener
