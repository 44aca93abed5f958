"""SNIP: prunes weights by connection sensitivity, before any training (Lee et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Group, Scores
from topiarist.measure import Stats, Watch, on_calls
from topiarist.methods.base import Method, indices_of, weights_of


@dataclass(frozen=True)
class WeightGradients:
    """Measures the gradient of the loss with respect to each weight, summed over the examples.

    Keys, one group for each parameter among ``graph.weights()``: ``weight-gradients.sum`` ``(units,)``.
    """

    name: str = "weight-gradients"
    gradients: bool = True

    def watch(self, model: nn.Module, graph: Graph, run: Watch) -> Iterable[RemovableHandle]:
        """Asks for the gradients of each batch, of frozen weights as well."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        weights = {group.name: parameters[group.name] for group in graph.weights().groups if group.name in parameters}
        for weight in weights.values():
            weight.requires_grad_()

        def add(name: str, gradient: Tensor) -> None:
            run.add(name, "weight-gradients.sum", gradient.flatten())

        def ask(*_: object) -> None:
            for name, weight in weights.items():
                run.gradient(weight, partial(add, name))

        return on_calls([("", model)], ask)


@dataclass(frozen=True)
class Snip(Method):
    """Scores a weight by its connection sensitivity: gradient times value, before any training.

    Formula: ``s_k = |g_k w_k| / sum over all weights of |g w|`` with ``g = dL/dw`` and ``L`` the mean loss of the
    examples; ``|g_k w_k| = |dL/dc_k|`` for a switch ``c_k = 1`` on the weight. One threshold for the whole network.
    Needs data with targets. Returns float64 ``(units,)`` for each weight tensor that the loss reaches, without a unit,
    all together 1; biases and other parameters are not pruned. Like all statistics, the gradients are those in eval
    mode: batch norms use their running statistics, which are 0 and 1 before any training.

    Cost: one forward and one backward pass over the data, and one number for each weight.

    Use it: on a network as it was initialised, with the variance of its responses kept from layer to layer, and one
    batch of a few examples of every class; then train the pruned network. Not on a network trained to the end, where
    ``g`` is 0 on average, nor to keep very few weights, when layers may lose all of theirs.

    Raises:
        TopiaristError: the gradients were not measured, all of them vanish, or the graph is not one of weights.

    Paper: Lee, Ajanthan, Torr: "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019.
    """

    family = "loss sensitivity (gradients, Hessian)"
    granularity = "weight"
    target = "automatic"
    needs = frozenset({WeightGradients()})
    allocation = "global"
    formula = (
        r"s_k = \frac{|g_k\, w_k|}{\sum_l |g_l\, w_l|}, \qquad "
        r"g_k = \frac{\partial}{\partial w_k} \frac{1}{N} \sum_{n=1}^{N} L_n"
    )
    paper = "Lee, Ajanthan, Torr: SNIP: Single-shot Network Pruning based on Connection Sensitivity, ICLR 2019"

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``|g w| / sum |g w|``; how many examples the gradient is a sum of makes no difference."""
        sensitivity = {
            group.name: (weights_of(group, stats).cpu() * _gradients(group, stats)).abs()
            for group in graph.groups
            if group.kind != "weight" or (group.name, "weight-gradients.sum") in stats.sums
        }
        if not sensitivity:
            raise TopiaristError(
                "snip has no gradients of any weight: collect what the method needs, on pairs (inputs, target)"
            )
        total = torch.stack([values.sum() for values in sensitivity.values()]).sum()
        if total == 0:
            raise TopiaristError("all scores are zero on this data; initialise the network anew, or use magnitude")
        return {name: values / total for name, values in sensitivity.items()}


def _gradients(group: Group, stats: Stats) -> Tensor:
    return stats.sum(group.name, "weight-gradients.sum")[indices_of(group)]
