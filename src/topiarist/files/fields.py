"""Whether a value's fields are of their types: a wrong one is told where it is given."""

from __future__ import annotations

import dataclasses
import sys
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from topiarist.errors import TopiaristError

_KINDS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a word"}


def check_fields(holder: Any, called: str) -> None:
    """Raises where a field of a dataclass holds what its type does not allow; numbers must be finite.

    Args:
        holder: the value.
        called: what messages call it.
    """
    own = {field.name: field.type for field in dataclasses.fields(holder)}  # not those of class variables
    kinds = get_type_hints(type("Fields", (), {"__annotations__": own, "__module__": type(holder).__module__}))
    for field in dataclasses.fields(holder):
        value, kind = getattr(holder, field.name), kinds[field.name]
        if not _fits(value, kind):
            told = " or ".join(dict.fromkeys(_told(each) for each in _parts(kind)))
            raise TopiaristError(f"{field.name} of {called} must be {told}, but got {value!r}{_hint(value)}")


def _hint(value: Any) -> str:
    """For numbers that came as text."""
    if not isinstance(value, str) or not value[:1].isdigit():
        return ""
    return ": leave the quotes out (and YAML takes 1e-3 for text: write 1.0e-3)"


def _parts(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _fits(value: Any, kind: Any) -> bool:
    return any(_is(value, part) for part in _parts(kind))


def _is(value: Any, kind: Any) -> bool:
    if kind is type(None):
        return value is None
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if kind in (bool, str):
        return isinstance(value, kind)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    return True  # mappings and tuples: the holder itself looks into them


def _told(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return _KINDS.get(kind, "nothing" if kind is type(None) else "what its documentation says")
