"""Fisher pruning: prunes units whose removal changes the loss least, by its curvature (Theis et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Group, Scores, Site
from topiarist.measure import Stats, Watch, flat_response, on_responses, unit_sums
from topiarist.methods._unit_costs import macs_of_one_unit
from topiarist.methods.base import Method, checked_scores


@dataclass(frozen=True)
class FisherInformation:
    """Measures the curvature of the loss along each unit's size, as the mean square of a gradient (empirical Fisher).

    With ``m`` a factor on the unit's response, 1 now and 0 once it is pruned, ``dL/dm`` is the sum over locations of
    ``dL/dz * z``.

    Keys: ``fisher.count`` (examples) and ``fisher.squares`` ``(units,)``, the sum over examples of ``(dL/dm)^2`` with
    ``L`` the loss of that example.
    """

    name: str = "fisher"
    gradients: bool = True

    def watch(self, model: nn.Module, graph: Graph, run: Watch) -> Iterable[RemovableHandle]:
        """Adds up when the gradients are there."""

        def show(group: Group, site: Site, response: Tensor) -> None:
            def add(gradient: Tensor) -> None:
                by_factor = unit_sums(flat_response(response.detach().double() * gradient, site).sum(2).T, site)
                run.add(group.name, "fisher.count", by_factor.shape[1])
                run.add(group.name, "fisher.squares", by_factor.square().sum(1))

            run.gradient(response, add)

        return on_responses(model, graph, show, shield=True)


@dataclass(frozen=True)
class Fisher(Method):
    """Scores a unit by its Fisher information, the second-order rise of the loss without it.

    Formula: ``s_j = 1/2 * mean over examples of (sum over locations of dL/dz_j * z_j)^2``, with ``z_j`` the unit's
    response and ``L`` the loss of one example. It is Optimal Brain Damage with channels for weights: near a minimum the
    gradients average out to 0, and the curvature is the Fisher information, taken at the data's labels. After a ReLU or
    before it the score is the same. With ``beta`` units that cost much are favoured for removal, as the paper lowers
    ``L + beta C``: ``s_j = ... - beta * c_j`` with ``c_j`` the multiply-accumulates of one example that removing unit
    ``j`` alone saves. Needs data with targets. Returns ``(units,)`` for each group that can be seen while
    the model runs, in units of the loss, so that all layers compare and one threshold serves them.

    Cost: one forward and one backward pass over the data; as much memory as training on its batches, and a few numbers
    for each unit.
    Use it: for a trained network of any activations, where the budget is to find each layer's width. The estimate
    holds for one unit at a time and small steps, so prune a little and train, again and again. It says nothing where
    the network fits every example perfectly, as then all gradients are 0; use data that it was not trained on.

    Raises:
        TopiaristError: ``beta`` is negative or not finite, the statistic was not measured, all of it is 0, or the loss
            depends on no group that can be cut.

    Paper: Theis, Korshunova, Tejani, Huszár: "Faster gaze prediction with dense networks and Fisher pruning", arXiv
    2018.

    Attributes:
        beta: loss that one multiply-accumulate is worth; 0 leaves the cost out. The paper counts FLOPs and tunes it.
    """

    family = "loss sensitivity (gradients, Hessian)"
    target = "automatic"
    needs = frozenset({FisherInformation()})
    allocation = "global"
    formula = (
        r"s_j = \frac{1}{2 N} \sum_{n=1}^{N} \left( \sum_{m} \frac{\partial L_n}{\partial z_{njm}}\, "
        r"z_{njm} \right)^2 - \beta c_j"
    )
    paper = (
        "Theis, Korshunova, Tejani, Huszár: Faster gaze prediction with dense networks and Fisher pruning, arXiv 2018"
    )

    beta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise TopiaristError(f"beta must be a number from 0 on, the price of a MAC, but got {shown(self.beta)}")

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``s_j = mean (dL/dm_j)^2 / 2 - beta c_j``."""
        measured = [group.name for group in graph.groups if (group.name, "fisher.squares") in stats.sums]
        if not measured:
            raise TopiaristError(
                "fisher has no gradients of any group: collect what the method needs, with targets that the loss uses, "
                "on the graph whose units it scores"
            )
        scores = {name: stats.mean(name, "fisher.squares") / 2 for name in measured}
        checked_scores(self, scores, "use other data, or l1")
        if self.beta == 0:
            return scores
        return {name: s - self.beta * macs_of_one_unit(graph, graph[name]) for name, s in scores.items()}
