"""Average percentage of zeros: prunes units that are rarely active behind a ReLU (Hu et al. 2016)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Keep, Scores, Site
from topiarist.measure import Stats, response_sites
from topiarist.methods.base import Method

_RECTIFIERS = ("ReLU", "ReLU6")


@dataclass(frozen=True)
class APoZ(Method):
    """Scores a unit by its average percentage of zeros (APoZ) behind the ReLU.

    Formula: ``APoZ_j = mean over examples and locations of [z_j = 0]``, with ``z_j`` the response after the ReLU, and
    ``s_j = 1 - APoZ_j``. Where the ReLU is a function that no hook sees, ``z_j`` is its input and the zeros are what
    the ReLU makes of values ``<= 0``. Needs the statistic ``activations``, on unaugmented data. Returns ``(units,)``
    for each group that can be seen while the model runs, from 0 (never active) to 1. Groups behind another activation
    module (sigmoid, GELU, leaky ReLU), which hardly makes zeros, are not pruned. With ``deviations`` the rule of the
    paper, for which no budget is needed: ``keep_j = APoZ_j <= mean(APoZ) + deviations * std(APoZ)`` in each group.

    Cost: one forward pass over the data; a few numbers for each unit.
    Use it: for networks of ReLUs, wide fully connected layers above all; the paper prunes a few units at a time and
    trains between. Not where no ReLU follows, or another activation that is a plain function (a transformer's residual
    stream): there it only counts signs, so exclude such groups from the budget.

    Raises:
        TopiaristError: ``deviations`` is negative or comes with a budget, nothing was measured, or no group that was
            measured is followed by a ReLU.

    Paper: Hu, Peng, Tai, Tang: "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep
    Architectures", arXiv 2016.

    Attributes:
        deviations: a unit is pruned if its APoZ is more than so many standard deviations above its group's mean; 1 is
            the paper's. Without it a budget says how much is kept.
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
            raise TopiaristError(f"deviations must be a number from 0 up, such as 1, but got {shown(self.deviations)}")

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``s_j = 1 - APoZ_j``."""
        names = [name for name, site in response_sites(graph).items() if _may_be_rectified(site)]
        measured = [name for name in names if (name, "activations.zeros") in stats.sums]
        scores = {name: 1 - stats.mean(name, "activations.zeros") for name in measured}
        if not scores:
            raise TopiaristError(
                "apoz found no ReLU whose zeros it could count: collect its statistic 'activations', or use l1 or "
                "fisher where the network has other activations"
            )
        return scores

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep | None:
        """Keeps ``APoZ_j <= mean + deviations * std``, if there are ``deviations``."""
        if self.deviations is None:
            return None
        if budget is not None:
            raise TopiaristError("deviations say by themselves how much is kept: leave the budget out, or deviations")
        scores = self.score(graph, stats)
        return {**graph.full(), **{name: _not_outlying(1 - active, self.deviations) for name, active in scores.items()}}


def _may_be_rectified(site: Site) -> bool:
    """Returns whether the response comes from a ReLU module, or from a layer that a ReLU function may follow."""
    return site.kind in _RECTIFIERS or not hasattr(nn.modules.activation, site.kind)


def _not_outlying(apoz: Tensor, deviations: float) -> Tensor:
    """Returns where the APoZ is not far above the mean; the lowest one never is, however sums are rounded."""
    return apoz <= (apoz.mean() + deviations * apoz.std(correction=0)).clamp(min=apoz.min())
