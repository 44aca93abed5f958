"""Values against the types of a dataclass's fields: nothing is coerced, and a wrong one is named where it is given."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from topiarist.errors import TopiaristError
from topiarist.files.sentences import shown, suggestion

T = TypeVar("T")

_NAMES = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    tuple: "a list",
    Mapping: "a mapping of names to values",
    Callable: "a function",
    type(None): "nothing",
}


def from_plain(kind: type[T], value: object, what: str) -> T:
    """Makes a dataclass from plain values, as YAML and JSON give them; fields that are dataclasses too.

    Args:
        kind: the dataclass.
        value: a mapping of its fields' names to values, or one of its instances, which is returned.
        what: what messages call it.

    Raises:
        TopiaristError: a key is unknown or missing, or a value is not of its field's type.
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise TopiaristError(f"{what} must be {_NAMES[Mapping]}, but got {shown(value)}")
    types = _types(kind)  # type: ignore[arg-type]  # mypy: types are hashable
    for key in value:
        if key not in types:
            raise TopiaristError(f"{what} has no {shown(key)}: {suggestion(key, types)}")
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in value:
            raise TopiaristError(f"{what} has no {field.name}: add it")
    return kind(**{name: _read(each, types[name], f"{name} of {what}") for name, each in value.items()})


def check_fields(holder: object, what: str) -> None:
    """Checks a dataclass's fields against their types, in its ``__post_init__``; lists become tuples.

    Args:
        holder: the value.
        what: what messages call it.

    Raises:
        TopiaristError: a value is not of its field's type; numbers must be finite.
    """
    for name, kind in _types(type(holder)).items():  # type: ignore[arg-type]  # mypy: types are hashable
        object.__setattr__(holder, name, _read(getattr(holder, name), kind, f"{name} of {what}"))


@functools.cache
def _types(kind: type) -> dict[str, Any]:
    """Returns the types of a dataclass's fields, without those of class variables."""
    own = {field.name: field.type for field in dataclasses.fields(kind)}
    return get_type_hints(type("Fields", (), {"__annotations__": own, "__module__": kind.__module__}))


def _read(value: object, kind: Any, what: str) -> Any:
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for part in parts:
        if isinstance(value, Mapping) and dataclasses.is_dataclass(part):
            return from_plain(part, value, what)  # type: ignore[arg-type]
        if isinstance(value, Mapping) and get_origin(part) is Mapping:
            return _read_mapping(value, get_args(part), what)
        if isinstance(value, list | tuple) and get_origin(part) is tuple:
            return _read_entries(value, get_args(part), what)
        if _is(value, part):
            return value
    wanted = " or ".join(dict.fromkeys(_name(part) for part in parts))
    raise TopiaristError(f"{what} must be {wanted}, but got {shown(value)}{_hint(value, parts)}")


def _read_mapping(values: Mapping[Any, object], kinds: tuple[Any, ...], what: str) -> dict[Any, Any]:
    for key in values:
        _read(key, kinds[0], f"a key of {what}")
    return {key: _read(each, kinds[1], f"{shown(key)} of {what}") for key, each in values.items()}


def _read_entries(values: Sequence[object], kinds: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(values)
    if len(values) != len(kinds):
        raise TopiaristError(f"{what} must be a list of {len(kinds)} values, but got {shown(values)}")
    return tuple(_read(values[at], kind, f"entry {at + 1} of {what}") for at, kind in enumerate(kinds))


def _is(value: object, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if get_origin(kind) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if get_origin(kind) in (tuple, Mapping):
        return False
    if get_origin(kind) is Callable:
        return callable(value)
    return kind is Any or not isinstance(kind, type) or isinstance(value, kind)


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple and get_args(kind)[-1] is not ...:
        return f"a list of {len(get_args(kind))}"
    if dataclasses.is_dataclass(kind):
        return f"a mapping of the fields of {kind.__name__}" if isinstance(kind, type) else str(kind)
    return _NAMES.get(get_origin(kind) or kind, getattr(kind, "__name__", str(kind)))


def _hint(value: object, kinds: tuple[object, ...]) -> str:
    """Returns a hint for numbers that came as text, and for text that came as a number."""
    if str in kinds and isinstance(value, int | float):
        return ": put it in quotes"
    number = isinstance(value, str) and value[:1].isdigit() and {int, float} & set(kinds)
    return ": leave the quotes out (and YAML takes 1e-3 for text: write 1.0e-3)" if number else ""
