"""The histogram of the scores of one pruning, with its threshold, as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from topiarist.pruning import Choice

BINS = 30
"""The approximate number of bins; their width is fitted so that the threshold is an edge."""

MISPLACED = 0.02
"""There is one threshold for all groups where at most this fraction of the scores is on its wrong side."""

DECADES = 4
"""Decades that a logarithmic histogram shows below the threshold; lower scores are in its first bin."""


def histogram(choice: Choice | None) -> dict[str, Any] | None:
    """Returns the counts of kept and removed units by score; ``None`` for methods that select without scores.

    Where the method compares all units with each other, they have one threshold, and the scores are shown as they are.
    Where each group has its own, scores are shown relative to it: divided by it, or minus it where scores or thresholds
    are not positive. The first and the last bin hold what lies beyond.

    Args:
        choice: of `topiarist.Pruned`.

    Returns:
        ``edges`` (one more than bins), ``kept`` and ``removed`` (units in each bin), ``cut`` (the threshold, one of the
        edges), ``to`` (what scores are relative to it: ``""``, ``"ratio"`` or ``"difference"``) and ``log`` (whether
        the edges are evenly spaced on that scale).
    """
    if choice is None or not choice.scores:
        return None
    scores = _finite({name: values.detach().cpu().double().flatten() for name, values in choice.scores.items()})
    keep = {name: choice.keep[name].cpu() for name in scores}
    cuts = {name: _threshold(values, keep[name]) for name, values in scores.items()}
    every, kept = torch.cat(list(scores.values())), torch.cat(list(keep.values()))
    cut_groups = [name for name in scores if not bool(keep[name].all())] or list(scores)
    compared, kept_of = torch.cat([scores[name] for name in cut_groups]), torch.cat([keep[name] for name in cut_groups])
    cut, to = _threshold(compared, kept_of), ""
    if float(((compared < cut) == kept_of).double().mean()) > MISPLACED:
        positive = bool((every >= 0).all()) and all(each > 0 for each in cuts.values())
        cut, to = (1.0, "ratio") if positive else (0.0, "difference")
        every = torch.cat([v / cuts[n] if positive else v - cuts[n] for n, v in scores.items()])
    log = cut > 0 and _spans_decades(every)
    edges, place = _edges(every, cut, log)
    bins = torch.bucketize(every, edges[1:-1], right=True)
    counts = {
        name: torch.bincount(bins[which], minlength=len(edges) - 1).tolist()
        for name, which in (("kept", kept), ("removed", ~kept))
    }
    short = [float(f"{edge:.7g}") for edge in edges.tolist()]
    return {"edges": short, **counts, "cut": short[place], "to": to, "log": log}


def _finite(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns scores in which infinite ones, of units that must be kept or removed, are at the ends of the others."""
    known = torch.cat([values[values.isfinite()] for values in scores.values()])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    return {name: values.nan_to_num(posinf=high, neginf=low) for name, values in scores.items()}


def _threshold(scores: Tensor, kept: Tensor) -> float:
    """Returns the middle between the scores on both sides if as many are removed by score; the lowest if none is."""
    line, removed = scores.sort().values, int((~kept).sum())
    return float((line[max(0, removed - 1)] + line[min(removed, len(line) - 1)]) / 2) if removed else float(line[0])


def _spans_decades(scores: Tensor) -> bool:
    """Returns whether scores differ so much that on a linear scale most would share one bin."""
    positive = scores[scores > 0].sort().values
    if bool((scores < 0).any()) or not len(positive):
        return False
    return bool(positive[int(0.95 * (len(positive) - 1))] > 20 * positive[int(0.25 * (len(positive) - 1))])


def _edges(scores: Tensor, cut: float, log: bool) -> tuple[Tensor, int]:
    """Returns edges, evenly spaced on a linear or logarithmic scale, and which of them is the threshold."""
    line = scores.sort().values
    if log:
        least, most = float(scores[scores > 0].min()), float(line[-1])
        low, middle, high = math.log(max(least, cut * 10.0**-DECADES)), math.log(cut), math.log(most)
    else:
        low, middle, high = float(line[0]), cut, float(line[int(0.995 * (len(line) - 1))])
    high = max(high, middle + 0.25 * (middle - low))
    width = (high - low) / BINS or 1.0 / BINS
    below = round((middle - low) / width)
    width, below = ((middle - low) / below, below) if below else (width, 1)
    above = max(1, math.ceil((high - middle) / width - 1e-9))
    edges = middle + width * torch.arange(-below, above + 1, dtype=torch.float64)
    edges = edges.exp() if log else edges
    edges[below] = cut
    return edges, below
