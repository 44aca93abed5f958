"""Stand-ins for the results of heavy operators: of the right shape, with values that nobody computed.

Which units a network has follows from its operators and their shapes, not from the values that they return. So while a
network is traced, large convolutions and matrix products are not computed. Where the program asks for a value that
depends on a stand-in, or fails, the network is traced once more with all values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from topiarist.graph.inputs import Arguments, Keywords, tensors_in

HEAVY = 2_000_000
"""Multiplications from which on an operator is not computed."""

_READING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class ValuesNeededError(Exception):
    """The network has to be traced with all values."""


class StandIns:
    """Runs operators, but returns stand-ins for what the heavy ones would compute.

    Attributes:
        made: addresses of storages whose values are stand-ins, or were computed from some.
    """

    def __init__(self) -> None:
        self.made: set[int] = set()

    def run(self, func: OpOverload, args: Arguments, kwargs: Keywords, given: Sequence[Tensor]) -> Any:
        """Returns what an operator returns.

        Raises:
            ValuesNeededError: it reads values that are stand-ins.
        """
        behind = self.behind(given)
        if behind and reads_values(func, args):
            raise ValuesNeededError(str(func))
        sizes = _HEAVY[func](*args) if func in _HEAVY and not kwargs and _alike(given) else None
        if sizes is None:
            out = func(*args, **kwargs)
            if behind:
                self.made.update(map(_address, tensors_in(out)))
            return out
        out = self._stand_in(given, *sizes)
        self.made.add(_address(out))
        return out

    def behind(self, tensors: Sequence[Tensor]) -> bool:
        """Returns whether values of some of these tensors are stand-ins."""
        return bool(self.made) and any(_address(tensor) in self.made for tensor in tensors)

    def _stand_in(self, given: Sequence[Tensor], shape: Sequence[int], layout: torch.memory_format) -> Tensor:
        return given[0].new_zeros(shape).contiguous(memory_format=layout)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _alike(tensors: Sequence[Tensor]) -> bool:
    """Returns whether an operator takes these tensors together; where not, it shall say so itself."""
    first = tensors[0]
    return first.is_floating_point() and all(
        t.dtype == first.dtype and t.device == first.device and t.layout == torch.strided for t in tensors
    )


def reads_values(func: OpOverload, args: Arguments) -> bool:
    """Returns whether the shape of what an operator returns, or what is no tensor of it, depends on values."""
    if func is torch.ops.aten.index.Tensor:
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return func.namespace not in ("aten", "prims", "profiler") or not _READING.isdisjoint(func.tags)


Form = tuple[Sequence[int], torch.memory_format]
"""Shape and layout of a result."""


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Form | None:
    inputs, outputs = (weight.shape[0], weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, None)
    outputs = weight.shape[0] if outputs is None else outputs
    if x.ndim != weight.ndim or x.shape[1] != inputs or (bias is not None and bias.shape != (outputs,)):
        return None
    stride, padding, dilation, output_padding = (
        each if len(each) > 1 else [*each] * (x.ndim - 2) for each in (stride, padding, dilation, output_padding)
    )
    sides = []
    for d, (size, kernel) in enumerate(zip(x.shape[2:], weight.shape[2:], strict=True)):
        reach = dilation[d] * (kernel - 1)
        if transposed:
            sides.append((size - 1) * stride[d] - 2 * padding[d] + reach + output_padding[d] + 1)
        else:
            sides.append((size + 2 * padding[d] - reach - 1) // stride[d] + 1)
    positions = x.shape[2:] if transposed else sides
    if min(sides, default=1) < 1 or x.shape[0] * prod(positions) * weight.numel() < HEAVY:
        return None
    last = x.ndim == 4 and any(_is_channels_last(tensor) for tensor in (x, weight))
    return (x.shape[0], outputs, *sides), torch.channels_last if last else torch.contiguous_format


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _product(a: Tensor, b: Tensor) -> Form | None:
    if a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2] or a.numel() * b.shape[-1] < HEAVY:
        return None
    return (*a.shape[:-1], b.shape[-1]), torch.contiguous_format


def _shifted(shift: Tensor, a: Tensor, b: Tensor) -> Form | None:
    form = _product(a, b)
    return form if form is not None and shift.shape[-1] in (1, b.shape[-1]) and shift.ndim == 1 else None


_HEAVY: dict[OpOverload, Callable[..., Form | None]] = {
    torch.ops.aten.convolution.default: _convolution,
    torch.ops.aten.mm.default: _product,
    torch.ops.aten.bmm.default: _product,
    torch.ops.aten.addmm.default: _shifted,
}
