"""Casts: copies in another precision, and networks that cast by themselves, which hides whether a cut is right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from topiarist.graph import Arguments, Keywords, map_tensors, tensors_in
from topiarist.surgery.decisions import Precision
from topiarist.surgery.plans import copied

LOWER = {torch.float32, torch.float16, torch.bfloat16}


def in_precision(model: nn.Module, precision: Precision) -> nn.Module:
    """Returns a copy in a precision, whose tensors are converted as they are copied."""
    made: dict[int, object] = {}
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter and parameter.is_floating_point():
            value = parameter.detach().to(precision.dtype, copy=True)
            made[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
    return copied(model, made).to(precision.dtype)


class NoCasts(TorchDispatchMode):
    """Context in which casts to a lower precision give float64, and so do new tensors.

    Tensors of a lower precision that meet float64 are raised to it.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") in LOWER:
            kwargs["dtype"] = torch.float64
        dtypes = {tensor.dtype for tensor in tensors_in((args, kwargs))}
        if torch.float64 in dtypes and dtypes & LOWER and not func._schema.is_mutable:
            args = map_tensors([*args], _raised)  # constants, made outside of this context
        out = func(*args, **kwargs)
        if kwargs.get("dtype") is None and not tensors_in((args, kwargs)):
            return map_tensors(out, _raised)
        return out


def _raised(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.dtype in LOWER else tensor
