"""N:M sparsity: of every M weights in a row along a tensor's inputs, the N of highest score are kept."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from math import prod

import torch
from torch import Tensor

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Keep, Scores


def parse(n_of_m: str) -> tuple[int, int]:
    """Returns ``(2, 4)`` for ``"2:4"``.

    Raises:
        TopiaristError: it is not of this form, or N is not below M.
    """
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", n_of_m)
    n, m = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < n < m:
        raise TopiaristError(f"n_of_m must be N:M, as 2:4 for two of each four weights, but got {shown(n_of_m)}")
    return n, m


def keep_n_of_m(graph: Graph, scores: Scores, n_of_m: str, excluded: Collection[str]) -> Keep:
    """Returns what N:M sparsity keeps.

    Args:
        graph: of individual weights.
        scores: group name → ``(units,)``, high = keep; groups without scores are not pruned.
        n_of_m: ``"N:M"``.
        excluded: names of groups that are not pruned.

    Returns:
        Group name → bool ``(units,)``; tensors without blocks of M inputs are not pruned (`not_n_of_m` says why).

    Raises:
        TopiaristError: the units are no individual weights, or no tensor has blocks of M inputs.
    """
    if graph.kind != "weight":
        raise TopiaristError("N:M sparsity is unstructured: use a method that scores weights, such as magnitude")
    n, m = parse(n_of_m)
    names = [name for name in scores if name not in excluded]
    reasons = not_n_of_m(graph, names, n_of_m)
    if len(reasons) == len(names):
        why = "".join(f" ({name} {reason})" for name, reason in list(reasons.items())[:1])
        raise TopiaristError(f"no weight tensor can be {n_of_m} sparse{why}: choose another N:M, or a ratio")
    keep = graph.full()
    for name in names:
        if name not in reasons:
            axis = graph.input_axis(name) or 0
            rows = scores[name].detach().cpu().view(graph.shapes[name]).movedim(axis, -1)
            keep[name] = highest_of_each(rows, n, m).movedim(-1, axis).flatten()
    return keep


def not_n_of_m(graph: Graph, names: Iterable[str], n_of_m: str) -> dict[str, str]:
    """Returns why weight tensors are not pruned to N:M, for those that are not."""
    _, m = parse(n_of_m)
    reasons = {}
    for name in names:
        axis = graph.input_axis(name)
        if axis is None:
            reasons[name] = "has no axis of several inputs"
        elif graph[name].units != prod(graph.shapes[name]):
            reasons[name] = "has been pruned before"
        elif graph.shapes[name][axis] % m:
            reasons[name] = f"has {graph.shapes[name][axis]} inputs, which {m} does not divide"
    return reasons


def highest_of_each(scores: Tensor, n: int, m: int) -> Tensor:
    """Returns bool ``(..., inputs)``: True for the ``n`` highest scores of each ``m``, of equal ones the first."""
    blocks = scores.unflatten(-1, (-1, m))
    highest = blocks.argsort(stable=True, dim=-1, descending=True)[..., :n]
    return torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, highest, True).flatten(-2)
