"""Inputs and outputs of any model: nested values, and the tensors in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is called with: one tensor, positional arguments, or keyword arguments."""

Arguments = Sequence[Any]
"""Positional arguments of a call."""
Keywords = Mapping[str, Any]
"""Keyword arguments of a call."""


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """Calls a model with one tensor, with the entries of a tuple or list, or with a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def tensors_in(value: object) -> list[Tensor]:
    """Returns the tensors of a nested value, in order: tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if value is None or isinstance(value, (int, float, str)):
        return []
    if isinstance(value, dict):
        return [t for entry in value.values() for t in tensors_in(entry)]
    if isinstance(value, (tuple, list)):
        return [t for entry in value for t in tensors_in(entry)]
    if hasattr(value, "__dataclass_fields__"):
        return [t for key in value.__dataclass_fields__ for t in tensors_in(getattr(value, key))]
    return []


def map_floats(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns the same inputs with their floating-point tensors changed."""
    if isinstance(inputs, Tensor):
        return change(inputs) if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {key: map_floats(value, change) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(map_floats(value, change) for value in inputs)
    return inputs


def converted(inputs: Inputs, dtype: torch.dtype) -> Any:
    """Returns the same inputs with their floating-point tensors in another precision."""
    return map_floats(inputs, lambda tensor: tensor.to(dtype))


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and buffers of a model by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
