"""The light stand-ins for typing behave as the real ones where this package relies on them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from statepipe import typed


class Place(typed.NamedTuple):
    """Where."""

    name: str
    at: int = 3

    @property
    def next(self) -> int:
        return self.at + 1


@typed.runtime_checkable
class Meter(typed.Protocol):
    @property
    def blind(self) -> bool: ...

    def admit(self, wanted: int) -> int: ...


class Cat:
    blind = True

    def admit(self, wanted: int) -> int:
        return wanted


T = typed.TypeVar("T")


class Box(typed.Generic[T]):
    pass


def test_a_named_tuple_has_its_defaults_and_members() -> None:
    place = Place("here")
    assert place == ("here", 3) and place.next == 4 and repr(place) == "Place(name='here', at=3)"
    assert Place._fields == ("name", "at") and place._replace(at=5)._asdict() == {"name": "here", "at": 5}
    assert (Place.__doc__, Place.__module__, Place.__annotations__) == (
        "Where.",
        __name__,
        {"name": "str", "at": "int"},
    )
    with pytest.raises(TypeError, match="name"):
        Place()  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        place.name = "there"  # type: ignore[misc]


def test_an_interface_is_what_has_all_its_members() -> None:
    assert isinstance(Cat(), Meter)
    assert not isinstance(object(), Meter)
    half = Cat()
    Half = type("Half", (), {"admit": half.admit})
    assert not isinstance(Half(), Meter)


def test_type_parameters_and_casts_leave_no_trace() -> None:
    assert type(Box[int]()) is Box and typed.cast("int", half := object()) is half


@pytest.mark.parametrize("first", ["zstandard", "statepipe.libzstd"])
def test_zstandard_is_the_same_whoever_imports_it_first(first: str) -> None:
    program = (
        f"import {first}, zstandard, statepipe.libzstd as ours\n"
        "assert ours.zstandard.ZstdError is zstandard.ZstdError\n"
        "try: zstandard.ZstdDecompressor().decompress(b'x' * 20)\n"
        "except ours.zstandard.ZstdError: print('caught')\n"
        "assert ours.zstandard.ZstdDecompressor().decompress(zstandard.compress(b'data')) == b'data'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "caught\n", done.stderr
