"""How the scores of one pruning are spread, and where the cut went through them: the plain values of a histogram."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from topiarist.pruning import Choice

BINS = 30
"""About as many bins as a histogram has; their width is fitted so that the cut lies on an edge."""

ASTRAY = 0.02
"""The scores have one cut where at most this fraction of them lies on its wrong side."""

DECADES = 4
"""As far below the cut as a logarithmic histogram goes; what is lower is in its first bin."""


def histogram(choice: Choice | None) -> dict[str, Any] | None:
    """Counts of kept and removed units, by score.

    Where the method compares all units with each other, one cut parts them, and the scores are shown as they are. Where
    each group has a cut of its own, they are shown relative to it: divided by it, or where scores or cuts are not
    positive less it. The ends of the bins hold whatever lies beyond.

    Args:
        choice: of `topiarist.Pruned`; nothing is known of methods that select without scores.

    Returns:
        ``edges`` (one more than bins), ``kept`` and ``removed`` (units in each bin), ``cut`` (one of the edges), ``to``
        (``""``, ``"ratio"`` or ``"difference"``) and ``log`` (whether the edges are evenly spaced on that scale).
    """
    if choice is None or not choice.scores:
        return None
    scores = _finite({name: values.detach().cpu().double().flatten() for name, values in choice.scores.items()})
    stays = {name: choice.keep[name].cpu() for name in scores}
    cuts = {name: _cut(values, stays[name]) for name, values in scores.items()}
    every, kept = torch.cat(list(scores.values())), torch.cat(list(stays.values()))
    losing = [name for name in scores if not bool(stays[name].all())] or list(scores)
    rivals, winners = torch.cat([scores[name] for name in losing]), torch.cat([stays[name] for name in losing])
    cut, to = _cut(rivals, winners), ""
    if float(((rivals < cut) == winners).double().mean()) > ASTRAY:
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
    """Infinite scores, those of units that must stay or must go, at the ends of the others."""
    known = torch.cat([values[values.isfinite()] for values in scores.values()])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    return {name: values.nan_to_num(posinf=high, neginf=low) for name, values in scores.items()}


def _cut(scores: Tensor, stays: Tensor) -> float:
    """Half-way between the scores that meet there if as many go by score alone; the lowest where none goes."""
    line, gone = scores.sort().values, int((~stays).sum())
    return float((line[max(0, gone - 1)] + line[min(gone, len(line) - 1)]) / 2) if gone else float(line[0])


def _spans_decades(scores: Tensor) -> bool:
    """Whether scores differ so much that on a plain scale most would share one bin."""
    positive = scores[scores > 0].sort().values
    if bool((scores < 0).any()) or not len(positive):
        return False
    return bool(positive[int(0.95 * (len(positive) - 1))] > 20 * positive[int(0.25 * (len(positive) - 1))])


def _edges(scores: Tensor, cut: float, log: bool) -> tuple[Tensor, int]:
    """Evenly spaced on a plain or logarithmic scale, and which of them is the cut."""
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
