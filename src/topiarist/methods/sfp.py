"""Soft filter pruning: sets small filters to zero between epochs, which may come back (He et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Scores
from topiarist.measure import Stats, collect
from topiarist.methods.base import Method
from topiarist.methods.l1 import L1


@dataclass(frozen=True)
class Sfp(Method):
    """Soft filter pruning: zeroes filters of small norm after each epoch; they may recover.

    Formula: ``s_j = sqrt(sum of w^2 over all filters of unit j)``. Before training and after each epoch the ``min(n -
    1, int(n * (1 - rate)))`` units of smallest ``s`` in each group of ``n`` become zero, their filters and their
    biases. All of them train on with their momentum, so that those which matter come back. Batch norms stay as they
    are: a ReLU after one passes a zeroed filter gradients only where the shift is positive, so that what is zero before
    the first epoch of a new network (shifts 0) is zero ever after. Needs a network trained so: give a recipe and data,
    then a budget that leaves about ``rate``. Returns ``(units,)`` for each group that weights produce, in units of the
    weights.

    Cost: a pass over the weights for each epoch. No data beyond the training's own.

    Use it: to train and prune at once, from the first epoch or from a trained network (then at a tenth of the learning
    rate). The shape is given beforehand, the same ``rate`` everywhere.

    Raises:
        TopiaristError: ``rate`` is not above 0 and at most 1, or no weights produce units that can be pruned.

    Paper: He, Kang, Dong, Fu, Yang: "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks",
    IJCAI 2018.

    Attributes:
        rate: fraction of each group's units that is not set to zero.
    """

    family = "weight magnitude and norms"
    needs = frozenset({"weights", "training"})
    formula = (
        r"s_j = \lVert F_j \rVert_2, \qquad F_j \leftarrow 0 \text{ after each epoch for the } \lfloor n "
        r"(1 - \mathrm{rate}) \rfloor \text{ smallest}"
    )
    paper = (
        "He, Kang, Dong, Fu, Yang: Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, IJCAI 2018"
    )

    rate: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise TopiaristError(f"rate must be above 0 and at most 1, the fraction kept, but got {shown(self.rate)}")

    @torch.no_grad()
    def soften(self, model: nn.Module, graph: Graph, done: int, epochs: int) -> None:
        """Zeroes the ``int(n * (1 - rate))`` smallest filters; all are scored before the first one changes."""
        for name, scores in self.score(graph, collect(model, graph)).items():
            units = len(scores)
            zeroed = min(units - 1, int(units * (1 - self.rate) + 1e-9))  # 10 * (1 - 0.9) is 0.9999999999999998
            smallest = scores.argsort(stable=True)[:zeroed].cpu()
            for part in (*graph[name].by_role("output"), *graph[name].by_role("bias")):
                if part.tensor in graph.parameters and part.axis is not None:
                    parameter = model.get_parameter(part.tensor)
                    parameter.index_fill_(part.axis, part.positions[smallest].flatten().to(parameter.device), 0)

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``s_j = ||F_j||``."""
        scores = L1(p=2).score(graph, stats)
        if not scores:
            raise TopiaristError("sfp found no filters that can be pruned: see what pins them by `topiarist inspect`")
        return scores
