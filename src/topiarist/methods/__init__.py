"""The methods, one file each. The folder is the registry: a file's name is the method's name.

`names`, `get` and `make` find them, `describe` tells about one; the roles they play are in `topiarist.methods.base`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from topiarist.errors import TopiaristError
from topiarist.files import check_fields, shown, suggestion
from topiarist.methods._schedules import SCHEDULES
from topiarist.methods.base import (
    FAMILIES,
    Criterion,
    Gate,
    Method,
    Penalty,
    Proximal,
    Repair,
    Rule,
    Schedule,
    Selector,
    Soft,
    sum_by_unit,
)

__all__ = [
    "FAMILIES",
    "SCHEDULES",
    "Criterion",
    "Gate",
    "Method",
    "Penalty",
    "Proximal",
    "Repair",
    "Rule",
    "Schedule",
    "Selector",
    "Soft",
    "describe",
    "families",
    "get",
    "make",
    "names",
    "sum_by_unit",
]

_ROLES = {
    "criterion": "score",
    "rule": "budget",
    "selector": "select",
    "penalty": "penalty",
    "proximal": "proximal",
    "gate": "gates",
    "repair": "repair",
    "schedule": "kept",
    "soft": "soften",
}


def names() -> list[str]:
    """Returns the names of all methods, in alphabetical order."""
    files = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in files if name != "base" and not name.startswith("_"))


def families() -> dict[str, list[str]]:
    """Returns family → names of its methods, in the order of the taxonomy; families that it does not have come last."""
    found = {name: get(name).family for name in names()}
    return {family: [name for name in found if found[name] == family] for family in (*FAMILIES, *found.values())}


def get(name: str) -> type[Method]:
    """Returns the class of a method.

    Args:
        name: its registered name.

    Raises:
        TopiaristError: there is no such method; close names are given.
    """
    if name not in names():
        raise TopiaristError(f"there is no method {shown(name)}: {suggestion(name, names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    own = [value for value in vars(module).values() if _is_method(value) and value.__module__ == module.__name__]
    if len(own) != 1:
        raise TopiaristError(f"methods/{name}.py must define exactly one subclass of Method, but it has {len(own)}")
    return own[0]


def make(method: str | Mapping[str, Any] | type[Method] | Method, /, **fields: Any) -> Method:
    """Makes a method with its hyper-parameters.

    Args:
        method: a registered name, a mapping of ``name`` and fields, a class, or a method whose other fields are kept.
        **fields: values of its dataclass fields.

    Raises:
        TopiaristError: there is no such method or field, or the method refuses a value.
    """
    if isinstance(method, Mapping):
        if not isinstance(method.get("name"), str):
            raise TopiaristError(
                f"a method is given as a mapping without a name ({dict(method)}): write {{name: l1, ...}}"
            )
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in method.items()}
        name = str(given.pop("name"))
        return make(name, **{str(key): value for key, value in given.items()}, **fields)
    template = get(method) if isinstance(method, str) else method
    if not (isinstance(template, Method) or _is_method(template)):
        raise TopiaristError(f"a method is a name, such as 'l1', or a Method, but got {shown(method)}")
    known = [field.name for field in dataclasses.fields(template)]
    unknown = [name for name in fields if name not in known]
    if unknown:
        takes = f"its fields are {', '.join(known)}" if known else "it has no fields"
        raise TopiaristError(f"the method {template.name!r} has no field {shown(unknown[0])}: {takes}")
    try:
        if isinstance(template, Method):
            made = dataclasses.replace(template, **fields) if fields else template  # a dry run is still one
        else:
            made = template(**fields)
    except (TypeError, AttributeError) as error:
        raise TopiaristError(
            f"the method {template.name!r} cannot take {shown(fields)}: see the types of its fields"
        ) from error
    check_fields(made, made.name)
    return made


def describe(name: str) -> dict[str, Any]:
    """Describes a method in plain values, for tables and JSON.

    Args:
        name: its registered name.

    Returns:
        ``name``, ``summary`` (first line of its docstring), ``doc``, ``family``, ``granularity``, ``target``,
        ``needs``, ``allocation``, ``formula`` (LaTeX), ``paper``, ``roles``
        and ``fields`` (each with ``name``, ``type``, ``default`` and ``help``).
    """
    method = get(name)
    doc = inspect.getdoc(method) or ""
    helps = _attributes(doc)
    return {
        "name": name,
        "summary": doc.partition("\n")[0],
        "doc": doc,
        "family": method.family,
        "granularity": method.granularity,
        "target": method.target,
        "needs": sorted(need if isinstance(need, str) else need.name for need in method.needs),
        "allocation": method.allocation,
        "formula": method.formula,
        "paper": method.paper,
        "roles": [role for role, member in _ROLES.items() if hasattr(method, member)],
        "fields": [_field(field, helps.get(field.name, "")) for field in dataclasses.fields(method)],
    }


def _is_method(value: object) -> TypeGuard[type[Method]]:
    return isinstance(value, type) and issubclass(value, Method) and value is not Method


def _field(field: dataclasses.Field[Any], text: str) -> dict[str, Any]:
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    default = None if default is dataclasses.MISSING else default
    return {"name": field.name, "type": kind, "default": default, "help": text}


def _attributes(doc: str) -> dict[str, str]:
    """Returns field → its text in the section ``Attributes:`` of a docstring."""
    section = re.split(r"^\S", doc.partition("\nAttributes:\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
