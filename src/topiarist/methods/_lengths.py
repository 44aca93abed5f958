"""Filters in front of a batch norm keep their length when they are multiplied, and the norm makes up for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from topiarist.graph import Normed


@contextmanager
def lengths_kept(model: nn.Module, normed: Sequence[Normed]) -> Iterator[None]:
    """Gives each filter the length back that it has before the context, and leaves the network's outputs as they are.

    A step of training turns a filter ``w`` in front of a batch norm by about ``lr / |w|^2``, so that a rate which suits
    a network tears it apart after its filters came out short. With ``c = |w| before / |w| after``: ``w <- c w``, its
    bias and the norm's running mean ``<- c`` times themselves, the running variance ``v <- c^2 v``, and the norm's
    scale ``<- sqrt((c^2 v + eps) / (c^2 (v + eps)))`` times itself, since ``eps`` does not grow with them.
    Filters that are zero or would leave the range of their type, and layers of which any of this is frozen, stay as
    they are.

    Args:
        model: whose weights are multiplied within.
        normed: its layers that a batch norm follows (`topiarist.graph.Graph.normed`).
    """
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    free = [n for n in normed if all(tensors[x].requires_grad for x in (n.weight, n.bias, n.scale) if x)]
    before = {n.weight: _lengths(tensors[n.weight]) for n in free}
    yield
    for each in free:
        _regrow(each, tensors, before[each.weight])


def _lengths(weight: Tensor) -> Tensor:
    """``(filters,)``: the L2 norm of each."""
    return weight.detach().double().flatten(1).norm(dim=1)


@torch.no_grad()
def _regrow(normed: Normed, tensors: dict[str, Tensor], before: Tensor) -> None:
    after, v = _lengths(tensors[normed.weight]), tensors[normed.variance].double()
    c = torch.where(after > 0, before / after.clamp(min=torch.finfo(after.dtype).tiny), 1.0)
    factors = {normed.weight: c, normed.mean: c, normed.variance: c.square()}
    factors |= {} if normed.bias is None else {normed.bias: c}
    factors[normed.scale] = ((c.square() * v + normed.eps) / (c.square() * (v + normed.eps))).sqrt()
    grown = {n: (tensors[n].double() * _along(f, tensors[n])).to(tensors[n].dtype) for n, f in factors.items()}
    fits = torch.stack([value.reshape(len(c), -1).isfinite().all(dim=1) for value in grown.values()]).all(dim=0)
    for name, value in grown.items():
        tensors[name].copy_(torch.where(_along(fits, value), value, tensors[name]))


def _along(filters: Tensor, tensor: Tensor) -> Tensor:
    """One value for each filter, along a tensor's first axis."""
    return filters.view(-1, *[1] * (tensor.ndim - 1))
