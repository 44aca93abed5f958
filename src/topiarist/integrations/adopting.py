"""A network becomes a smaller one in place, so that whoever holds it holds the smaller one."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn


def adopt(model: nn.Module, smaller: nn.Module) -> None:
    """Gives a network all that a smaller copy of it has; its own hooks stay.

    Args:
        model: the network that others hold.
        smaller: what a cut of it returned; not to be used any more.
    """
    hooks = {name: value for name, value in vars(model).items() if _is_hooks(name)}
    taken = {name: _bound(value, smaller, model) for name, value in vars(smaller).items()}
    vars(model).clear()
    vars(model).update(taken | hooks)
    if type(model) is not type(smaller):
        model.__class__ = type(smaller)


def _is_hooks(name: str) -> bool:
    return name.startswith("_") and "_hooks" in name


def _bound(value: Any, smaller: nn.Module, model: nn.Module) -> Any:
    """Returns an attribute; of a method of the smaller network, such as its corrected forward, that of the model."""
    bound = isinstance(value, MethodType) and value.__self__ is smaller
    return MethodType(value.__func__, model) if bound else value
