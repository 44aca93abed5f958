"""What callers hand in, looked at before any work is done: state dicts, and whole numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError

DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool),
    *(torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.uint16, torch.uint32, torch.uint64),
)
"""A type's place here is its number in a file: new ones go to the end."""


def checked_whole(name: str, value: object, least: int = 0, most: int | None = None) -> None:
    """Raises where a value is no whole number of a range."""
    if type(value) is not int or value < least or (most is not None and value > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise TopiaristError(f"{name} cannot be {value!r}: give a whole number {span}")


def checked_state(model: object) -> dict[str, Tensor]:
    """The tensors of a network or a state dict, all of which a file can hold.

    Raises:
        TopiaristError: this is neither, or a name or a tensor in it has no place in a file.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    if not isinstance(state, Mapping):
        raise TopiaristError(f"a {type(state).__name__} is no network: give a torch.nn.Module or its state dict")
    state = dict(state.items())
    for name, tensor in state.items():
        if not isinstance(name, str) or name != name.encode("utf-8", "replace").decode("utf-8"):
            raise TopiaristError(f"{name!r} is no name of a tensor: give a state dict whose keys are text")
        if not isinstance(tensor, Tensor):
            raise TopiaristError(f"{name} is a {type(tensor).__name__} and no tensor: leave it out of the state dict")
        if nn.parameter.is_lazy(tensor):
            raise TopiaristError(f"{name} has no values yet: run the network once on an input")
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
            raise TopiaristError(f"{name} is no dense tensor with values: convert it with .to_dense() or leave it out")
        if tensor.dtype not in DTYPES:
            raise TopiaristError(
                f"{name} is of {tensor.dtype}, which has no place in a file: convert it to another type"
            )
    return state


def place(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same memory seen the same way; empty ones are never the same."""
    where = tensor.data_ptr() if tensor.numel() else id(tensor)
    seen = (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg())
    return (where, tensor.device, *seen)
