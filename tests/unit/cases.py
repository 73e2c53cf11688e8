"""Many small cases in one test: where each takes microseconds, a test of its own for each costs more than all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def case(*what: object) -> Iterator[None]:
    """A failure within says which case it was."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"the case: {', '.join(f'{each!r:.80}' for each in what)}")
        raise
