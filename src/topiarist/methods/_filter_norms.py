"""Filters in front of a batch norm keep their norm when they are multiplied, and the batch norm makes up for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from topiarist.graph import Normed


@contextmanager
def filter_norms_kept(model: nn.Module, normed: Sequence[Normed]) -> Iterator[None]:
    """Gives each filter the norm back that it has before the context, and leaves the network's outputs as they are.

    A step of training turns a filter ``w`` in front of a batch norm by about ``lr / |w|^2``, so that a learning rate
    which suits a network destroys it after its filters came out short. With ``c = |w| before / |w| after``:
    ``w <- c w``, its bias and the running mean ``<- c`` times themselves, the running variance ``v <- c^2 v``, and the
    scale ``<- sqrt((c^2 v + eps) / (c^2 (v + eps)))`` times itself, since ``eps`` does not grow with them.
    Filters that are zero or would leave the range of their type, and layers of which any of this is frozen, are not
    changed.

    Args:
        model: whose weights are multiplied within.
        normed: its layers that a batch norm follows (`topiarist.graph.Graph.normed`).
    """
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    free = [n for n in normed if all(tensors[x].requires_grad for x in (n.weight, n.bias, n.scale) if x)]
    before = {n.weight: _norms(tensors[n.weight]) for n in free}
    yield
    for each in free:
        _rescale(each, tensors, before[each.weight])


def _norms(weight: Tensor) -> Tensor:
    """Returns the L2 norm of each filter, ``(filters,)``."""
    return weight.detach().double().flatten(1).norm(dim=1)


@torch.no_grad()
def _rescale(normed: Normed, tensors: dict[str, Tensor], before: Tensor) -> None:
    after, v = _norms(tensors[normed.weight]), tensors[normed.variance].double()
    c = torch.where(after > 0, before / after.clamp(min=torch.finfo(after.dtype).tiny), 1.0)
    factors = {normed.weight: c, normed.mean: c, normed.variance: c.square()}
    factors |= {} if normed.bias is None else {normed.bias: c}
    factors[normed.scale] = ((c.square() * v + normed.eps) / (c.square() * (v + normed.eps))).sqrt()
    scaled = {n: (tensors[n].double() * _along(f, tensors[n])).to(tensors[n].dtype) for n, f in factors.items()}
    fits = torch.stack([value.reshape(len(c), -1).isfinite().all(dim=1) for value in scaled.values()]).all(dim=0)
    for name, value in scaled.items():
        tensors[name].copy_(torch.where(_along(fits, value), value, tensors[name]))


def _along(filters: Tensor, tensor: Tensor) -> Tensor:
    """Returns one value for each filter, along a tensor's first axis."""
    return filters.view(-1, *[1] * (tensor.ndim - 1))
