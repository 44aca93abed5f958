"""ThiNet: prunes the channels that the next layer's outputs need least (Luo et al. 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from topiarist.budget import Budget, quota
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Keep
from topiarist.measure import Stats
from topiarist.methods._reconstruction import Locations, grams, scale_inputs
from topiarist.methods.base import Method


@dataclass(frozen=True)
class ThiNet(Method):
    """Feature reconstruction: removes channels greedily by the next layer's error and rescales the rest.

    Formula: ``y_m = sum over c of xhat_mc`` at sampled outputs ``m`` of the layers that read the units, biases left
    out. The pruned set ``T`` grows greedily by the unit that leaves ``sum over m of (sum over c in T of xhat_mc)^2``
    least; with ``G = sum over m of xhat_m xhat_m^T`` that is ``1_T^T G 1_T``. The kept units ``S`` are then scaled in
    the weights that read them by ``w = argmin |y - xhat_S w|^2``, hence ``G_SS w = G_S,all 1``; scales that the samples
    leave open stay at 1. Needs the model and data, no targets. Selects units itself, ``(units,)`` for each group that
    only linear layers and ungrouped convolutions read; other groups are not pruned. All groups are measured in the
    network as it is given, and at a sampled location all output channels count, where the paper draws one of them and
    fine-tunes between layers.

    Cost: one pass over the examples for the selection and one for the repair, and in each, for every reading layer
    with kernels of ``k`` entries, about ``(locations + outputs * batches) * units^2 * k^2 / 2`` products: larger
    batches are quicker. Memory: ``units^2`` float64 numbers for each group and layer that reads it, and the inputs of
    one layer at the sampled locations of one batch.

    Use it: for networks of plain layers or the inner layers of residual blocks, where there is data and little time
    to fine-tune. Not to find the widths of layers: the budget says how much of each is kept.

    Raises:
        TopiaristError: a field is out of range, there is no budget or no data, or no group can be reconstructed.

    Paper: Luo, Wu, Lin: "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression", ICCV 2017.

    Attributes:
        samples: locations drawn in each example and layer; all where there are fewer.
        examples: examples used, at most: the first ones of the data.
        seed: another seed draws other locations.
    """

    family = "feature reconstruction"
    needs = frozenset({"weights", "evaluations"})
    formula = (
        r"\min_{T} \sum_{m} \left( \sum_{c \in T} \hat{x}_{mc} \right)^2, \qquad w = \arg\min_{w} \sum_{m} "
        r"\left( y_m - \sum_{c \notin T} w_c\, \hat{x}_{mc} \right)^2"
    )
    paper = "Luo, Wu, Lin: ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression, ICCV 2017"

    samples: int = 10
    examples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "examples"):
            if not getattr(self, name) >= 1:
                raise TopiaristError(f"{name} must be at least 1, but got {shown(getattr(self, name))}")

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep:
        """Adds to ``T`` the unit that leaves ``1_T^T G 1_T`` least, until as many are kept as the budget allows."""
        grams_of = self._grams(graph, stats)
        keep = graph.full()
        for name, kept in quota(graph, grams_of, budget).items():
            keep[name][greedy(grams_of[name], graph[name].units - kept)] = False
        return keep

    def repair(self, model: nn.Module, graph: Graph, keep: Keep, stats: Stats) -> None:
        """Solves ``G_SS w = G_S,all 1``, and multiplies ``w`` into the weights that read the kept units."""
        if all(bool(keep[group.name].all()) for group in graph.groups):
            return
        for name, gram in self._grams(graph, stats).items():
            if not keep[name].all():
                scale_inputs(model, graph[name].by_role("input"), scales(gram, keep[name].cpu()))

    def _grams(self, graph: Graph, stats: Stats) -> dict[str, Tensor]:
        return grams(graph, stats, Locations(self.samples, self.examples, self.seed))


def greedy(gram: Tensor, count: int) -> list[int]:
    """Returns the pruned units, in the order in which they are pruned.

    Args:
        gram: ``(units, units)``.
        count: how many are pruned.
    """
    pruned: list[int] = []
    value = gram.diagonal().clone()  # 1_T^T G 1_T for T with each unit added, less what all have in common
    for _ in range(count):
        unit = int(value.argmin())
        pruned.append(unit)
        value += 2 * gram[unit]
        value[unit] = math.inf
    return pruned


def scales(gram: Tensor, keep: Tensor) -> Tensor:
    """Returns the least squares scale of each kept unit, ``(units,)``, and 1 of the others.

    ``G_SS (w - 1) = G_S,T 1``, solved for the smallest change, so that the scales of dead and doubled units are near 1.
    """
    inside, outside = gram[keep][:, keep], gram[keep][:, ~keep]
    w = torch.ones(len(keep), dtype=torch.float64)
    w[keep] += torch.linalg.pinv(inside, rtol=_RTOL, hermitian=True) @ outside.sum(1)
    return w


_RTOL = 1e-10
"""Directions of less energy than this, against the strongest, are rounding and not data."""
