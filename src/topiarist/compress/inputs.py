"""Checks of what callers pass, before any work is done: state dicts, and whole numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import unwrapped

DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool),
    *(torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.uint16, torch.uint32, torch.uint64),
)
"""A type's index here is its number in a file: new ones are appended."""


def checked_whole(name: str, value: object, least: int = 0, most: int | None = None) -> None:
    """Checks that a value is a whole number of a range."""
    if type(value) is not int or value < least or (most is not None and value > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise TopiaristError(f"{name} cannot be {shown(value)}: give a whole number {span}")


def checked_state(model: object) -> dict[str, Tensor]:
    """Returns the tensors of a network or a state dict, all of which a file can hold.

    Raises:
        TopiaristError: this is neither, or no file can hold a name or a tensor in it.
    """
    state = unwrapped(model).state_dict() if isinstance(model, nn.Module) else model
    if not isinstance(state, Mapping):
        raise TopiaristError(f"a {type(state).__name__} is not a network: give a torch.nn.Module or its state dict")
    state = dict(state.items())
    for name, tensor in state.items():
        if not isinstance(name, str) or name != name.encode("utf-8", "replace").decode("utf-8"):
            raise TopiaristError(f"{shown(name)} is not a name of a tensor: give a state dict whose keys are text")
        if not isinstance(tensor, Tensor):
            raise TopiaristError(f"{name} is a {type(tensor).__name__} and not a tensor: remove it from the state")
        if nn.parameter.is_lazy(tensor):
            raise TopiaristError(f"{name} has no values yet: run the network once on an input")
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
            raise TopiaristError(f"{name} is not a dense tensor with values: convert it by .to_dense() or remove it")
        if tensor.dtype not in DTYPES:
            raise TopiaristError(f"{name} is of {tensor.dtype}, which a file cannot hold: convert it to another type")
    return state


def identity(tensor: Tensor) -> tuple[object, ...]:
    """Returns what is equal for tensors that view the same memory in the same way; empty ones are never equal."""
    memory = tensor.data_ptr() if tensor.numel() else id(tensor)
    view = (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg())
    return (memory, tensor.device, *view)
