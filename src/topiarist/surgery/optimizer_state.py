"""What an optimiser remembers of each parameter, cut as the parameter is.

No optimiser is known by name. Momenta, sums of squares and other tensors of the parameter's shape are cut as it is.
Numbers stay. Adafactor and its kin keep a tensor without one of the parameter's axes, or with size 1 there: a mean over
that axis; it is cut on the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.surgery.plans import Plan

State = Mapping[str, Any]
"""What an optimiser keeps for one parameter: key → number or tensor."""

_PLAIN = (bool, int, float, complex, str, type(None))


def layouts_of(optimizer: Optimizer) -> dict[str, frozenset[int]]:
    """Returns key → which axis of a parameter its tensors may lack, counted from the back; 0 for none.

    Only what holds for all parameters is possible: one that is square alone says little.
    """
    found: dict[str, frozenset[int]] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items() if isinstance(parameter, Tensor) and isinstance(state, Mapping) else ():
            if isinstance(value, Tensor) and value.numel() != 1:
                here = _lacking(tuple(value.shape), tuple(parameter.shape))
                found[key] = found.get(key, here) & here
    return found


def _lacking(shape: tuple[int, ...], whole: tuple[int, ...]) -> frozenset[int]:
    """Returns the axes without which a parameter's shape is this one."""
    if len(shape) == len(whole):
        return frozenset({0} if all(n in (1, size) for n, size in zip(shape, whole, strict=True)) else ())
    axes = range(len(whole))
    return frozenset(axis - len(whole) for axis in axes if whole[:axis] + whole[axis + 1 :] == shape)


def cut_state(state: State, name: str, layouts: Mapping[str, frozenset[int]], work: Plan, optimizer: str) -> State:
    """Returns what an optimiser remembers of the smaller parameter.

    Where ``row`` and ``col`` in two keys name the factors of one estimate, ``V[i, j] = row[i] col[j] / mean(row)``,
    their means become those over the kept columns and rows, ``row *= mean(kept col) / mean(col)`` and the like for
    ``col``: every kept ``V[i, j]`` stays as it was.

    Args:
        state: of the parameter; it is not changed.
        name: of the parameter.
        layouts: of the optimiser's tensors.
        work: the cut.
        optimizer: what messages call it.

    Raises:
        TopiaristError: the parameter is cut, and something of its state is neither a number nor laid out like it.
    """
    if not work.changes(name):
        return state
    if not isinstance(state, Mapping):
        raise TopiaristError(
            f"{optimizer} keeps a {type(state).__name__} of the parameter {shown(name)}, which does not say how to cut "
            "it: make a new optimizer from the parameters of the smaller model"
        )
    places = {
        key: _layout(key, value, name, layouts.get(key, frozenset()), work, optimizer)
        for key, value in state.items()
        if not isinstance(value, _PLAIN) and not (isinstance(value, Tensor) and value.numel() == 1)
    }
    aligned = {key: state[key].unsqueeze(axis) if axis else state[key] for key, axis in places.items()}
    kept = {key: work.of(name, value) for key, value in aligned.items()}
    kept |= _factors(aligned, kept, name, work)
    return {**state, **{key: kept[key].squeeze(axis) if axis else kept[key] for key, axis in places.items()}}


def _layout(key: str, value: object, name: str, possible: frozenset[int], work: Plan, optimizer: str) -> int:
    """Returns which axis a tensor lacks; of several that come to the same cut, the last."""
    form = f"as {type(value).__name__}"
    if isinstance(value, Tensor) and type(value) in (Tensor, nn.Parameter):  # others compute in ways of their own
        axes = work.kept.get(name, {})
        if len({_cut_axes(axes, value.dim(), lacking) for lacking in possible}) == 1:
            return max(possible)
        form = f"with shape {tuple(value.shape)}"
    raise TopiaristError(
        f"{optimizer} keeps {shown(key)} of the parameter {shown(name)} {form}, which does not say how to cut it: make "
        "a new optimizer from the parameters of the smaller model"
    )


def _cut_axes(axes: Mapping[int, Tensor], ndim: int, lacking: int) -> frozenset[tuple[int, int]]:
    """Returns (axis of a state tensor, axis of the parameter) for those that are cut."""
    without = ndim + 1 + lacking if lacking else ndim
    return frozenset((axis - (axis > without), axis) for axis in axes if axis != without)


def _factors(aligned: Mapping[str, Tensor], kept: Mapping[str, Tensor], name: str, work: Plan) -> dict[str, Tensor]:
    """Returns the factors of estimates, as means over what is kept."""
    made: dict[str, Tensor] = {}
    for row in aligned:
        col = row.replace("row", "col")
        if col == row or col not in aligned or aligned[row].shape[-1:] != (1,) or aligned[col].shape[-2:-1] != (1,):
            continue
        before = {axis: here for axis, here in work.kept.get(name, {}).items() if axis < aligned[row].dim() - 2}
        stack = replace(work, kept={name: before})  # what lies before the two axes is cut in both factors alike
        rows, cols = (stack.of(name, aligned[key]) for key in (row, col))
        made[row] = kept[row] * _ratio(kept[col], cols, -1)
        made[col] = kept[col] * _ratio(kept[row], rows, -2)
    return made


def _ratio(part: Tensor, whole: Tensor, axis: int) -> Tensor:
    """Returns the mean of the kept entries over the mean of all; 1 where that is 0."""
    mean = whole.mean(axis, keepdim=True)
    return torch.where(mean > 0, part.mean(axis, keepdim=True) / mean, torch.ones_like(mean))
