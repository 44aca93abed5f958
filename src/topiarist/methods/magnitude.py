"""Magnitude pruning of individual weights (Han et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from topiarist.budget import Budget, matching
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Group, Keep, Scores
from topiarist.measure import Stats
from topiarist.methods.base import Method, weights_of


@dataclass(frozen=True)
class Magnitude(Method):
    """Scores a weight by its absolute value: unstructured magnitude pruning, globally or layer by layer.

    Formula: ``s = |w|`` under a budget, with one threshold for the network as in "Rethinking the Value of Network
    Pruning". With ``quality`` the rule of the paper, for which no budget is needed: layer ``l`` keeps ``|w| >= q_l *
    std(w_l)``, and at least its largest weight. With ``block`` the score is the mean of ``|w|`` over so many
    neighbouring output channels at one input and place, so that these are kept or pruned together: the kernels of
    `topiarist.sparse` compute them together, up to twice as fast. Needs the weights alone, of the graph of individual
    weights. Returns ``(units,)`` for each weight tensor, in units of the weights.

    Raises:
        TopiaristError: ``quality`` is negative or names no layer, ``layers`` is neither word, ``block`` is less than 1,
            a budget or a block comes with ``quality``, or the graph is not one of weights.

    Paper: Han, Pool, Tran, Dally: "Learning both Weights and Connections for Efficient Neural Networks", NIPS 2015.

    Attributes:
        layers: ``"all"`` weights, or those of convolutions only (``"conv"``, as in Liu et al. 2019).
        quality: the paper's ``q``: one number, or glob pattern on weight names → number; the last pattern that
            matches counts, and layers that none matches are not pruned.
        block: output channels whose weights are pruned together; of a block the budget's count may leave a part.
    """

    family = "weight magnitude and norms"
    granularity = "weight"
    target = "automatic"
    allocation = "global"
    formula = r"s = |w|, \qquad \text{or keep where } |w| \ge q_l \, \mathrm{std}(w_l)"
    paper = "Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks, NIPS 2015"

    layers: Literal["all", "conv"] = "all"
    quality: float | Mapping[str, float] | None = None
    block: int = 1

    def __post_init__(self) -> None:
        if self.layers not in ("all", "conv"):
            raise TopiaristError(f"layers must be 'all' or 'conv', but got {shown(self.layers)}")
        if not all(q >= 0 for q in self._qualities().values()):
            raise TopiaristError(f"quality must not be negative, but got {shown(self.quality)}")
        if not isinstance(self.block, int) or isinstance(self.block, bool) or self.block < 1:
            raise TopiaristError(f"block must be a whole number of at least 1, but got {shown(self.block)}")
        if self.block > 1 and self.quality is not None:
            raise TopiaristError("quality chooses each weight by itself: leave out the block, or the quality")

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``s = |w|``, or its mean over blocks of output channels."""
        scores = {group.name: weights_of(group, stats).abs() for group in self._layers(graph)}
        if self.block == 1:
            return scores
        shapes = {group.name: graph.shapes[group.slices[0].tensor] for group in self._layers(graph)}
        return {name: self._by_block(s.reshape(shapes[name])).flatten() for name, s in scores.items()}

    def _by_block(self, s: Tensor) -> Tensor:
        """Returns the mean over each block of outputs, for all of them."""
        return torch.cat([part.mean(0, keepdim=True).expand_as(part) for part in s.split(self.block)])

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep | None:
        """Keeps ``|w| >= q_l * std(w_l)``, if there is a ``q``."""
        if self.quality is None:
            return None
        if budget is not None:
            raise TopiaristError("quality says by itself how much is kept: leave out the budget, or the quality")
        layers = {group.name: group for group in self._layers(graph)}
        quality = {name: q for pattern, q in self._qualities().items() for name in matching(pattern, layers)}
        keep = dict(graph.full())
        for name, q in quality.items():
            w = weights_of(layers[name], stats)
            keep[name] = w.abs() >= (q * w.std(correction=0)).clamp(max=w.abs().max())
        return keep

    def _layers(self, graph: Graph) -> list[Group]:
        """Returns the weight tensors that are pruned."""
        least = 3 if self.layers == "conv" else 1
        groups = [group for group in graph.groups if len(graph.shapes[group.slices[0].tensor]) >= least]
        if not groups:
            raise TopiaristError("there are no weights to prune: use layers 'all' where there is no convolution")
        return groups

    def _qualities(self) -> Mapping[str, float]:
        if self.quality is None:
            return {}
        return self.quality if isinstance(self.quality, Mapping) else {"*": self.quality}
