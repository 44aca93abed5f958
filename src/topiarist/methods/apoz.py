"""Units that a ReLU keeps at zero most of the time go first (Hu et al. 2016)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Keep, Scores, Site
from topiarist.measure import Stats, response_sites
from topiarist.methods.base import Method

_RECTIFIERS = ("ReLU", "ReLU6")


@dataclass(frozen=True)
class APoZ(Method):
    """Scores a unit by its average percentage of zeros (APoZ) behind the ReLU.

    Formula: ``APoZ_j = mean over examples and places of [z_j = 0]``, with ``z_j`` the response after the ReLU, and
    ``s_j = 1 - APoZ_j``. Where the ReLU is a function that no hook sees, ``z_j`` is its input and the zeros are what
    the ReLU makes of values ``<= 0``. Needs the statistic ``activations``, on unaugmented data. Returns ``(units,)``
    for each group that can be seen while the model runs, from 0 (never fires) to 1. Groups behind another activation
    module (sigmoid, GELU, leaky ReLU), which hardly makes zeros, stay whole. With ``deviations`` the rule of the
    paper, for which no budget is needed: ``keep_j = APoZ_j <= mean(APoZ) + deviations * std(APoZ)`` in each group.

    Cost: one forward pass over the data; a few numbers for each unit.
    Use it: for networks of ReLUs, wide fully connected layers above all; the paper trims little at a time and trains
    between. Not where units go on without a ReLU, or through another activation that is a plain function (a stream of
    a transformer): there it only counts signs, so exclude such groups from the budget.

    Raises:
        TopiaristError: ``deviations`` is negative or comes with a budget, nothing was measured, or no group that was
            measured is followed by a ReLU.

    Paper: Hu, Peng, Tai, Tang: "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep
    Architectures", arXiv 2016.

    Attributes:
        deviations: how many standard deviations above its group's mean an APoZ must lie for the unit to go; 1 is the
            paper's. Without it a budget says how much stays.
    """

    family = "activation statistics"
    needs = frozenset({"activations"})
    formula = (
        r"s_j = 1 - \mathrm{APoZ}_j, \qquad \mathrm{APoZ}_j = \frac{1}{N M} \sum_{n=1}^{N} \sum_{m=1}^{M} "
        r"[\, z_{njm} = 0 \,]"
    )
    paper = (
        "Hu, Peng, Tai, Tang: Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep "
        "Architectures, arXiv 2016"
    )

    deviations: float | None = None

    def __post_init__(self) -> None:
        if self.deviations is not None and not 0 <= self.deviations < math.inf:
            raise TopiaristError(f"deviations must be a number from 0 up, such as 1, but got {self.deviations!r}")

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """``s_j = 1 - APoZ_j``."""
        rectified = [name for name, site in response_sites(graph).items() if _may_be_rectified(site)]
        scores = {name: 1 - stats.mean(name, "activations.zeros") for name in rectified if _seen(stats, name)}
        if not scores:
            raise TopiaristError(
                "apoz found no ReLU to count zeros of: collect its statistic 'activations', or take l1 or fisher where "
                "the network has other activations"
            )
        return scores

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep | None:
        """``APoZ_j <= mean + deviations * std``, if there are ``deviations``."""
        if self.deviations is None:
            return None
        if budget is not None:
            raise TopiaristError("deviations say by themselves how much stays: leave out the budget, or the deviations")
        ours = {name: _common(1 - fires, self.deviations) for name, fires in self.score(graph, stats).items()}
        return {**graph.full(), **ours}


def _may_be_rectified(site: Site) -> bool:
    """Whether the response comes from a ReLU module, or from a layer that a ReLU function may follow."""
    return site.kind in _RECTIFIERS or not hasattr(nn.modules.activation, site.kind)


def _seen(stats: Stats, group: str) -> bool:
    return (group, "activations.zeros") in stats.sums


def _common(apoz: Tensor, deviations: float) -> Tensor:
    """Where the APoZ is not far above the mean; the lowest one never is, however sums are rounded."""
    return apoz <= (apoz.mean() + deviations * apoz.std(correction=0)).clamp(min=apoz.min())
