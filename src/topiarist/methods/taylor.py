"""Taylor criterion: prunes units whose removal changes the loss least, to first order (Molchanov et al. 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Scores
from topiarist.measure import Stats
from topiarist.methods._schedules import linear
from topiarist.methods._unit_costs import macs_of_one_unit
from topiarist.methods.base import Method, checked_scores


@dataclass(frozen=True)
class Taylor(Method):
    """Scores a unit by the first-order Taylor expansion of the loss: gradient times activation.

    Formula: ``Theta_j = mean over examples of |mean over locations of dL/dz_j * z_j|`` with ``z`` the response of the
    unit and ``L`` the loss of the example; ``s_j = Theta_j / sqrt(sum_i Theta_i^2) - lam * Theta_flops``, the sum over
    the units of the group; ``Theta_flops = m / sqrt(sum over groups of m^2)`` with ``m`` the MACs saved by removing one
    unit of the group alone. A group without any effect scores ``-lam * Theta_flops``. Needs data with targets. Returns
    ``(units,)`` without a unit for each group whose responses a module shows; other groups are not pruned. As a
    schedule it prunes equally many units in every step: ``kept = 1 - (1 - target) * step / steps``; the paper removes a
    few, trains on and measures again.

    Cost: one forward and one backward pass over the data, and the responses of one batch in memory; with ``lam`` also
    one count of MACs for each group.

    Use it: where there is data with targets and the budget is to find each layer's width, best in many small steps
    with training between them. Not where the loss is at a minimum for every example, since the gradients then say
    nothing, nor to prune most of a network at once.

    Raises:
        TopiaristError: ``lam`` is negative or not finite, no effect was measured or all are 0, or a step is not one of
            the steps.

    Paper: Molchanov, Tyree, Karras, Aila, Kautz: "Pruning Convolutional Neural Networks for Resource Efficient
    Inference", ICLR 2017.

    Attributes:
        lam: how much units that cost many MACs are favoured for removal; 0 does not, the paper's is 1e-3 (of its own
            measure of FLOPs, so that it may need another value here).
    """

    family = "loss sensitivity (gradients, Hessian)"
    needs = frozenset({"gradients"})
    target = "automatic"
    allocation = "global"
    formula = (
        r"\Theta_j = \frac{1}{N} \sum_{n} \left| \frac{1}{M} \sum_{m} \frac{\partial L_n}{\partial "
        r"z_{njm}}\, z_{njm} \right|, \qquad s_j = \frac{\Theta_j}{\sqrt{\sum_i \Theta_i^2}} - \lambda\, "
        r"\Theta^{\mathrm{flops}}"
    )
    paper = (
        "Molchanov, Tyree, Karras, Aila, Kautz: "
        "Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017"
    )

    lam: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise TopiaristError(
                f"lam must be 0 or a positive number, the weight of the MACs, but got {shown(self.lam)}"
            )

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``s_j = Theta_j / |Theta| - lam * Theta_flops``."""
        groups = [group for group in graph.groups if (group.name, "gradients.taylor") in stats.sums]
        if not groups:
            raise TopiaristError(
                "taylor has no gradients of any group: collect 'gradients' on pairs (inputs, target), or use l1"
            )
        effects = {group.name: _normalised(stats.mean(group.name, "gradients.taylor")) for group in groups}
        checked_scores(self, effects, "use other data, or l1")
        if self.lam == 0:
            return effects
        saved = torch.tensor([macs_of_one_unit(graph, group) for group in groups], dtype=torch.float64)
        flops = dict(zip(effects, _normalised(saved), strict=True))
        return {name: effect - self.lam * flops[name] for name, effect in effects.items()}

    def kept(self, step: int, steps: int, target: float) -> float:
        """Computes ``1 - (1 - target) * step / steps``."""
        return linear(step, steps, target)


def _normalised(values: Tensor) -> Tensor:
    """Returns ``v / sqrt(sum v^2)``, and 0 where all are."""
    norm = values.norm()
    return values if norm == 0 else values / norm
