"""Principal filter analysis: a layer needs as many units as its responses have directions (Suau et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from topiarist.budget import Budget, quota
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Keep
from topiarist.measure import Stats, covariance
from topiarist.methods.base import Method

_INACTIVE = 1e-8
"""Units with less than this part of the largest variance are inactive."""

_ROUNDING = 1e-12
"""Variances below this part of the mean square are what rounding leaves of none."""

_SLACK = 1e-9
"""What sums may differ by when the data come in other batches: no width or choice depends on it."""


@dataclass(frozen=True)
class PFA(Method):
    """Finds widths and redundant units from the intrinsic correlation of each layer's responses.

    Formula: ``l`` the eigenvalues of the covariance of the ``C`` units' responses, largest first, each response the
    largest value over locations, and ``p = l / sum(l)``. PFA-KL: ``k = ceil(C * (1 - KL(p || uniform) / log(C)))`` with
    ``KL = sum p_i log(p_i * C)``. PFA-En, with ``tau``: the smallest ``k`` with ``p_1 + ... + p_k >= tau``. A budget
    gives the widths instead. Units are pruned in this order: the inactive, ``var_j < 1e-8 * max var``, by their
    variance; then one by one that with the largest ``sum_i |r_ij|`` over the units ``i`` that are still kept (the
    paper's L1-Max), with ``r`` Pearson's correlation and the smaller variance first where sums are equal. Needs inputs
    without targets, and without a budget at least ``C`` examples, since fewer cannot show ``C`` directions. Returns
    bool ``(units,)`` for each group; those whose responses no module shows are not pruned. A layer that never varies
    keeps one unit.

    Cost: one forward pass over the data; ``units^2`` numbers for each group, ``units^3`` operations for its
    eigenvalues.

    Use it: where it is unknown how much can be pruned, since the data say so; PFA-KL has nothing to set, ``tau`` trades
    size against accuracy. The paper trains the smaller network afterwards. Not with fewer examples than units.

    Raises:
        TopiaristError: ``tau`` is not within 0 and 1 or comes with a budget, nothing was measured, responses are not
            finite, or there are too few examples.

    Paper: Suau, Zappella, Apostoloff: "Filter Distillation for Network Compression", WACV 2020, first as "Principal
    Filter Analysis", 2018.

    Attributes:
        tau: the fraction of its energy (sum of variances) that each layer keeps, PFA-En; ``None`` is PFA-KL.
    """

    family = "final response and correlation"
    target = "automatic"
    needs = frozenset({"covariance-max"})
    formula = (
        r"p = \frac{l}{\sum_i l_i}, \qquad k_{\mathrm{KL}} = \left\lceil C \left( 1 - \frac{\sum_i p_i "
        r"\log (C p_i)}{\log C} \right) \right\rceil, \qquad k_{\mathrm{En}} = \min \left\{ k : \sum_{i \le "
        r"k} p_i \ge \tau \right\}"
    )
    paper = "Suau, Zappella, Apostoloff: Filter Distillation for Network Compression, WACV 2020 (arXiv 2018)"

    tau: float | None = None

    def __post_init__(self) -> None:
        if self.tau is not None and not 0 < self.tau <= 1:
            raise TopiaristError(
                f"tau must be a fraction of the energy, above 0 and up to 1, but got {shown(self.tau)}"
            )

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep:
        """Keeps the ``k`` units of each group that correlate least, ``k`` from the spectrum or from the budget."""
        measured = [group.name for group in graph.groups if (group.name, "covariance-max.products") in stats.sums]
        if not measured:
            raise TopiaristError("pfa has no covariance of any group: collect 'covariance-max' on data, or use l1")
        for name in measured:
            _check_examples(stats, name, 2 if budget is not None else graph[name].units)
        covariances = {name: _covariance(stats, name) for name in measured}
        if budget is None:
            widths = {name: self._width(cov) for name, cov in covariances.items()}
        elif self.tau is None:
            widths = quota(graph, measured, budget)
        else:
            raise TopiaristError("tau says by itself how much is kept: leave out the budget, or tau")
        return {**graph.full(), **{name: _least_correlated(cov, widths[name]) for name, cov in covariances.items()}}

    def _width(self, cov: Tensor) -> int:
        """Returns the width by PFA-En or PFA-KL."""
        units = len(cov)
        energies = torch.linalg.eigvalsh(cov).flip(0).clamp(min=0)
        if units == 1 or not energies.sum() > 0:
            return 1
        p = energies / energies.sum()
        if self.tau is not None:
            return 1 + int((p.cumsum(0) < self.tau - _SLACK).sum())
        kl = float(torch.special.xlogy(p, p * units).sum())
        return max(1, math.ceil(units * (1 - kl / math.log(units)) - _SLACK))


def _check_examples(stats: Stats, group: str, least: int) -> None:
    seen = int(stats.sum(group, "covariance-max.count"))
    if seen < least:
        raise TopiaristError(f"pfa needs {least} examples or more for the group {group!r}, but saw {seen}: pass more")


def _covariance(stats: Stats, group: str) -> Tensor:
    """Returns the covariance of the pooled responses, ``(units, units)``, exactly 0 for units that never vary."""
    cov = covariance(stats, group, "max")
    if not cov.isfinite().all():
        raise TopiaristError(f"the responses of the group {group!r} hold NaN or infinity: check the data and the model")
    squares = stats.mean(group, "covariance-max.products").diagonal()
    varies = (cov.diagonal() > _ROUNDING * squares).double()
    return cov * torch.outer(varies, varies)


def _least_correlated(cov: Tensor, width: int) -> Tensor:
    """Returns bool ``(units,)``, True for the ``width`` units that are kept; the class has the order."""
    variance = cov.diagonal()
    active = variance >= _INACTIVE * variance.max()
    keep = torch.ones(len(cov), dtype=torch.bool)
    inactive = (~active).nonzero()[:, 0]
    inactive = inactive[variance[inactive].argsort(stable=True)]
    keep[inactive[: len(cov) - width]] = False

    spread = torch.where(active & (variance > 0), variance, math.inf).sqrt()
    correlation = (cov / torch.outer(spread, spread)).abs().fill_diagonal_(0)
    sums = torch.where(active, correlation.sum(0), -math.inf)
    for _ in range(int(keep.sum()) - width):
        largest = sums >= sums.max() - _SLACK * len(cov)
        worst = int(torch.where(largest, variance, math.inf).argmin())
        keep[worst] = False
        sums -= correlation[worst]
        sums[worst] = -math.inf
    return keep
