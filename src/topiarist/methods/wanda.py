"""Wanda: prunes small weights on small inputs, equally many in every row (Sun et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from topiarist.budget import Budget, allocate
from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Keep, Scores
from topiarist.measure import Layer, Stats, Watch, is_plain, on_calls, windows_of
from topiarist.methods.base import Method, indices_of, weights_of


@dataclass(frozen=True)
class InputEnergies:
    """Measures sums over examples and locations of the square of what each weight of a layer is multiplied with.

    Keys, one group for each weight of linear layers and convolutions among ``graph.weights()``:
    ``input-energies.sum``, in the weight's own shape but with one row for each group of a convolution.
    """

    name: str = "input-energies"
    gradients: bool = False

    def watch(self, model: nn.Module, graph: Graph, run: Watch) -> Iterable[RemovableHandle]:
        """Adds up at each call of a layer, a tied weight's over all its layers."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        weights = [group.name for group in graph.weights().groups if group.name in parameters]
        names = {id(parameters[name]): name for name in weights}
        layers = [layer for layer in model.modules() if is_plain(layer) and id(layer.weight) in names]

        def show(name: str, layer: Layer, x: Tensor, _: Tensor) -> None:
            run.add(name, "input-energies.sum", energies(layer, x))

        return on_calls(((names[id(layer.weight)], layer) for layer in layers), show)


def energies(layer: Layer, x: Tensor) -> Tensor:
    """Returns ``sum over examples and locations of x_j^2`` of each input ``j``, ``(groups, inputs, *kernel)``.

    A convolution's inputs are the entries of the patches under its kernel, zeros of the padding among them.
    """
    cells, windows = windows_of(layer, x)
    squares = cells.double().square().sum(0)
    sums = squares[:, windows.to(x.device).T].sum(2)  # (inputs, entries)
    return sums.view(getattr(layer, "groups", 1), *layer.weight.shape[1:])


@dataclass(frozen=True)
class Wanda(Method):
    """Scores a weight by its absolute value times its input's norm, within each output.

    Formula: ``s_ij = |W_ij| * ||X_j||_2`` with ``X_j`` all values of the input ``j`` over examples and locations; for
    a convolution ``j`` is an entry of the patch under the kernel, a channel at an offset. Of each row ``W_i`` the
    weights with the lowest scores are pruned, equally many in every row. Needs inputs without targets. Returns float64
    ``(units,)`` for each weight tensor of the linear layers and convolutions that the data run through; others are not
    pruned.

    A budget says how many weights a tensor keeps, uniformly unless it asks for a global allocation, which ranks all
    scores to find that number. Of ``k`` weights, each of ``r`` rows keeps ``floor(k / r)``; the other ``k mod r`` are
    of the rows whose next weight has the highest score, so that the budget is met to one weight. N:M sparsity, such as
    2:4, compares within its blocks alone.

    Cost: one forward pass over the data, and one number for each weight of a row.

    Use it: on large trained networks, transformers above all, with a few examples and no training afterwards, to keep
    half of the weights or more. Not to keep very few, nor where each layer should find its own share.

    Raises:
        TopiaristError: nothing was measured, the graph is not one of weights, or `allocate` refuses the budget.

    Paper: Sun, Liu, Bair, Kolter: "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024.
    """

    family = "activation statistics"
    granularity = "weight"
    needs = frozenset({InputEnergies()})
    formula = r"s_{ij} = |W_{ij}| \, \| X_j \|_2, \qquad \text{compared within each row } i"
    paper = "Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024"

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``|W_ij| * ||X_j||``."""
        weights = {group.name: weights_of(group, stats) for group in graph.groups}
        measured = [name for name in weights if (name, "input-energies.sum") in stats.sums]
        if not measured:
            raise TopiaristError(
                "wanda saw no input of a linear layer or convolution: collect what it needs on data, or use magnitude"
            )
        scores = {}
        for name in measured:
            norms = stats.sum(name, "input-energies.sum").sqrt()
            rows = graph.shapes[name][0] // len(norms)
            norms = norms.repeat_interleave(rows, 0).flatten()
            scores[name] = weights[name].cpu().abs() * norms[indices_of(graph[name])]
        return scores

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep | None:
        """Keeps the highest scores of each row, as many in each as in the others."""
        if budget is None or budget.n_of_m is not None:
            return None
        scores = self.score(graph, stats)
        keep = dict(allocate(graph, scores, budget, self.allocation))
        for name, s in scores.items():
            keep[name] = _keep_in_rows(graph, name, s, int(keep[name].sum()))
        return keep


def _keep_in_rows(graph: Graph, name: str, scores: Tensor, count: int) -> Tensor:
    """Returns bool ``(units,)``; weights that an earlier step has pruned are the last of their rows."""
    shape, indices = graph.shapes[name], indices_of(graph[name])
    full = torch.full((prod(shape),), -math.inf, dtype=scores.dtype).index_copy_(0, indices, scores)
    return keep_in_rows(full.view(shape[0], -1), count).flatten()[indices]


def keep_in_rows(scores: Tensor, count: int) -> Tensor:
    """Returns bool ``(rows, columns)``: True for the highest of each row, equally many in each, ``count`` in all.

    Where ``count`` is no multiple of the rows, those keep one more whose next entry is the highest.
    """
    each, more = divmod(count, len(scores))
    order = scores.argsort(stable=True, dim=1, descending=True)
    keep = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :each], True)
    if more:
        following = scores.gather(1, order[:, each : each + 1])[:, 0]
        rows = following.argsort(stable=True, descending=True)[:more]
        keep[rows, order[rows, each]] = True
    return keep
