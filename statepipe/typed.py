"""The names of `typing` that this package uses: the real ones for a type checker, light ones at run time.

To import typing takes 3 ms of each start, and to make a named tuple there compiles the type of every field: some 150 µs
for six fields, and half of it here. Nothing of this package reads types while it runs; what does need them, such as
`typing.get_type_hints`, finds no more than `object` for Any and Self.
"""

from __future__ import annotations

TYPE_CHECKING = False
"""A type checker takes it for true, under this name (PEP 484)."""

if TYPE_CHECKING:
    from typing import Any as Any
    from typing import Generic as Generic
    from typing import NamedTuple as NamedTuple
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
    from typing import Self as Self
    from typing import TextIO as TextIO
    from typing import TypeVar as TypeVar
    from typing import cast as cast
    from typing import runtime_checkable as runtime_checkable
else:
    from collections import namedtuple

    Any = NoReturn = Self = TextIO = object

    _IN_THE_CLASS_ALONE = {"__module__", "__qualname__", "__annotations__"}

    class _NamedTupleMeta(type):
        """Makes a named tuple of a class whose base is NamedTuple."""

        def __new__(mcls, name, bases, members):
            names = members.get("__annotations__", {})
            defaults = [members[each] for each in names if each in members]
            made = namedtuple(name, names, defaults=defaults, module=members["__module__"])
            made.__qualname__, made.__annotations__ = members["__qualname__"], names
            for each, value in members.items():
                if each not in names and each not in _IN_THE_CLASS_ALONE:
                    setattr(made, each, value)
            return made

    NamedTuple = type.__new__(_NamedTupleMeta, "NamedTuple", (), {})

    class Protocol:
        """The base of an interface."""

    class _Interface(type):
        """An interface that `isinstance` knows: what has all its members."""

        def __instancecheck__(cls, value):
            return all(hasattr(value, name) for name in cls.members)

    def runtime_checkable(interface):
        """Return the interface for `isinstance`."""
        members = {name: value for name, value in vars(interface).items() if not name.startswith("_")}
        names = {*members, *vars(interface).get("__annotations__", {})}
        made = {"__module__": interface.__module__, "__doc__": interface.__doc__, **members, "members": names}
        return _Interface(interface.__name__, (), made)

    class Generic:
        """The base of a class with type parameters."""

        def __class_getitem__(cls, parameters):
            return cls

    def TypeVar(name, **about):
        """Return what stands for a type parameter."""
        return name

    def cast(kind, value):
        """Return the value."""
        return value
