"""N:M patterns: of each M weights in a row along a tensor's inputs the N of highest score stay."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor

from topiarist.budget.budget import Budget, matching, parsed
from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Keep, Scores


def in_pattern(graph: Graph, scores: Scores, budget: Budget) -> Keep:
    """What a budget with a pattern keeps.

    Args:
        graph: of single weights.
        scores: group name → ``(units,)``, high = keep; groups without scores stay whole.
        budget: its ``pattern``, and what it excludes.

    Returns:
        Group name → bool ``(units,)``; tensors that the pattern does not fit are whole (`misfits` says why).

    Raises:
        TopiaristError: the units are no single weights, an excluded pattern matches nothing, or nothing fits.
    """
    if graph.kind != "weight":
        raise TopiaristError("a pattern is one of single weights: take a method that scores them, such as magnitude")
    n, m = parsed(budget.pattern or "")
    excluded = {name for pattern in budget.exclude for name in matching(pattern, [g.name for g in graph.groups])}
    taking = [name for name in scores if name not in excluded]
    reasons = misfits(graph, taking, budget.pattern or "")
    if len(reasons) == len(taking):
        why = "".join(f": {name} {reason}" for name, reason in list(reasons.items())[:1])
        raise TopiaristError(f"the pattern {budget.pattern} fits no weight tensor{why}; take another one, or a ratio")
    keep = graph.full()
    for name in taking:
        if name not in reasons:
            axis = graph.input_axis(name) or 0
            lines = scores[name].detach().cpu().view(graph.shapes[name]).movedim(axis, -1)
            keep[name] = best_of_each(lines, n, m).movedim(-1, axis).flatten()
    return keep


def misfits(graph: Graph, names: Iterable[str], pattern: str) -> dict[str, str]:
    """Why weight tensors stay whole under a pattern; those that it fits are left out."""
    _, m = parsed(pattern)
    found = {}
    for name in names:
        axis = graph.input_axis(name)
        if axis is None:
            found[name] = "has no axis of several inputs"
        elif graph[name].units != prod(graph.shapes[name]):
            found[name] = "has lost weights before"
        elif graph.shapes[name][axis] % m:
            found[name] = f"has {graph.shapes[name][axis]} inputs, which {m} does not divide"
    return found


def best_of_each(scores: Tensor, n: int, m: int) -> Tensor:
    """Bool, as the scores ``(..., inputs)``: True for the ``n`` highest of each ``m``, of equal ones the first."""
    blocks = scores.unflatten(-1, (-1, m))
    best = blocks.argsort(stable=True, dim=-1, descending=True)[..., :n]
    return torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, best, True).flatten(-2)
