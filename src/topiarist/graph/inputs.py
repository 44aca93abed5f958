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


def map_tensors(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns the same inputs with their tensors changed."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {key: map_tensors(value, change) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        changed = [map_tensors(value, change) for value in inputs]
        return type(inputs)(*changed) if hasattr(inputs, "_fields") else type(inputs)(changed)
    return inputs


def map_floats(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns the same inputs with their floating-point tensors changed."""
    return map_tensors(inputs, lambda tensor: change(tensor) if tensor.is_floating_point() else tensor)


def converted(inputs: Inputs, dtype: torch.dtype) -> Any:
    """Returns the same inputs with their floating-point tensors in another precision."""
    return map_floats(inputs, lambda tensor: tensor.to(dtype))


def twice_the_batch(inputs: Inputs) -> Any:
    """Returns the same inputs with twice the batch, the second half with other values.

    The batch is the first axis of every tensor that has as many positions there as the first tensor.
    """
    batch = next((t.shape[0] for t in tensors_in(inputs) if t.ndim), 0)

    def doubled(tensor: Tensor) -> Tensor:
        if not tensor.ndim or tensor.shape[0] != batch:
            return tensor
        other = tensor.flip(-1) if tensor.ndim > 1 else tensor
        return torch.cat([tensor, 0.5 * other if tensor.is_floating_point() else other])

    return map_tensors(inputs, doubled)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and buffers of a model by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
