"""One-dimensional k-means, exactly and quickly: on sorted values a cluster is a run, and its sum two prefix sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from topiarist.compress.ans import Floats, Ints, Numbers
from topiarist.compress.inputs import checked_whole
from topiarist.errors import TopiaristError
from topiarist.files import shown, suggestion

Init = Literal["linear", "density", "random"]


@dataclass(frozen=True, eq=False)
class Clusters:
    """Values and the centroids that replace them.

    Attributes:
        centroids: ``(k,)``, ascending; each has at least one value.
        labels: the centroid of each value, ``(n,)``.
        losses: Σ (value - centroid)² with the first centroids and after each of Lloyd's steps; it never rises.
    """

    centroids: Floats
    labels: Ints
    losses: tuple[float, ...]


def cluster(values: Numbers, k: int, init: Init = "linear", *, steps: int = 1000, seed: int = 0) -> Clusters:
    """Minimises Σ_k Σ_{w in cluster k} (w - c_k)² by Lloyd's steps from given first centroids, until nothing moves.

    In one dimension the values nearest to a centroid lie between the midpoints to its neighbours: a step is one binary
    search for each midpoint in the sorted values and a difference of prefix sums, whatever their number.

    Args:
        values: ``(n,)``, finite.
        k: clusters at most; those that end without a value are left out.
        init: first centroids: ``"linear"`` spaces them evenly from the least to the greatest value, which keeps some
            for the rare large weights and is the paper's choice; ``"density"`` takes quantiles; ``"random"`` takes
            values (Forgy).
        steps: at most so many. After one step the clusters are still about equally wide: more error than at the end,
            but less entropy.
        seed: of ``"random"``.

    Raises:
        TopiaristError: k, the steps or the seed are out of range, or a value is not finite.

    Paper:
        Han, Mao, Dally: Deep Compression, ICLR 2016, section 3; Lloyd, IEEE Trans. Inf. Theory 28 (1982).
    """
    for name, number, least in (("the number of clusters", k, 1), ("steps", steps, 0), ("seed", seed, 0)):
        checked_whole(name, number, least)
    if init not in get_args(Init):
        raise TopiaristError(f"there is no init {shown(init)}: {suggestion(init, get_args(Init))}")
    order = np.argsort(values, kind="stable")
    x = values[order].astype(np.float64)
    if not len(x):
        return Clusters(x, np.zeros(0, dtype=np.int64), (0.0,))
    if not np.isfinite(x[[0, -1]]).all():
        raise TopiaristError("weights that are not finite cannot be shared: train again with a smaller learning rate")
    centre = x.mean()
    x -= centre  # so that the prefix sums cancel less
    sums, squares = (np.concatenate(([0.0], np.cumsum(part))) for part in (x, x * x))
    centroids = _first(x, k, init, seed)
    bounds, losses = _bounds(x, centroids), []
    for _ in range(steps + 1):
        counts, totals = np.diff(bounds), np.diff(sums[bounds])
        errors = np.diff(squares[bounds]) - 2 * centroids * totals + counts * centroids**2
        losses.append(float(errors.sum()))
        if len(losses) > steps:
            break
        means = np.where(counts > 0, totals / np.maximum(counts, 1), centroids)
        moved, centroids = bool((means != centroids).any()), means
        bounds = _bounds(x, centroids)
        if not moved:
            break
    used = np.diff(bounds) > 0
    labels = np.empty(len(x), dtype=np.int64)
    labels[order] = np.repeat(np.arange(int(used.sum())), np.diff(bounds)[used])
    return Clusters(centroids[used] + centre, labels, tuple(losses))


def _first(x: Floats, k: int, init: Init, seed: int) -> Floats:
    if init == "linear":
        return np.linspace(x[0], x[-1], k)
    if init == "density":
        return np.quantile(x, (np.arange(k) + 0.5) / k)
    return np.sort(np.random.default_rng(seed).choice(x, size=min(k, len(x)), replace=False))


def _bounds(x: Floats, centroids: Floats) -> Ints:
    """Returns where the values of each centroid begin and end; a value in the middle belongs to the higher one."""
    inner = np.searchsorted(x, (centroids[1:] + centroids[:-1]) / 2)
    return np.concatenate(([0], inner, [len(x)]))
