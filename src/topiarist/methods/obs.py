"""Optimal Brain Surgeon: prunes by the inverse Hessian and adjusts the kept weights (Hassibi & Stork 1992)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from topiarist.budget import Budget, allocate
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Keep
from topiarist.measure import Layer, Stats, Watch, on_calls
from topiarist.methods._example_gradients import (
    ExampleGradients,
    curvature_factors,
    layers_of_weights,
    on_example_gradients,
    patches,
    tensors_of,
)
from topiarist.methods._inverse_hessian import adjusted, damped, inverse, removal_costs
from topiarist.methods.base import Method, indices_of

MOST = 5000
"""Weights that a network may have for its full Hessian: 200 MB for each copy of it, and minutes for its removals."""

_ALL = "all weights"


@dataclass(frozen=True)
class GaussNewton:
    """Measures the Gauss-Newton matrix of the cross entropy by all weights of a small network.

    Keys, of no group but of ``"all weights"``: ``hessian-full.count`` (examples) and ``hessian-full.products``
    ``(weights, weights)``, the sum of ``J_n^T (diag(p) - p p^T) J_n`` over the examples; the weights of all groups of
    ``graph.weights()`` in turn.
    """

    name: str = "hessian-full"
    gradients: bool = True
    of_cross_entropy: bool = True

    def watch(self, model: nn.Module, graph: Graph, run: Watch) -> Iterable[RemovableHandle]:
        """Adds up when the gradients are there."""
        count = sum(prod(graph.shapes[group.name]) for group in graph.weights().groups)
        if count > MOST:
            raise TopiaristError(
                f"the full Hessian is for at most {MOST:,} weights, but this network has {count:,}: use hessian 'layer'"
            )

        def show(gradients: ExampleGradients, by_scores: Tensor) -> None:
            run.add(_ALL, "hessian-full.count", len(by_scores))
            for s in curvature_factors(gradients.z):
                rows = gradients.rows(s)
                run.add(_ALL, "hessian-full.products", rows.T @ rows)

        return on_example_gradients(model, graph, run, show)


@dataclass(frozen=True)
class Inputs:
    """Measures ``sum over locations of x x^T``, with ``x`` what a linear layer or convolution reads under its kernel.

    A tied weight's is that of all its layers. Keys, of each weight tensor: ``hessian-layer.count`` (locations) and
    ``hessian-layer.products`` ``(groups, inputs, inputs)``.
    """

    name: str = "hessian-layer"
    gradients: bool = False

    def watch(self, model: nn.Module, graph: Graph, run: Watch) -> Iterable[RemovableHandle]:
        """Adds up in the forward pass."""

        def show(name: str, layer: Layer, x: Tensor, _: Tensor) -> None:
            rows = patches(layer, x).movedim(1, 0).flatten(1, 2).double()  # (groups, locations, inputs)
            run.add(name, "hessian-layer.count", rows.shape[1])
            run.add(name, "hessian-layer.products", rows.mT @ rows)

        layers = layers_of_weights(model, [group.name for group in graph.weights().groups])
        return on_calls(((name, layer) for name, tied in layers.items() for layer in tied), show)


@dataclass(frozen=True)
class OBS(Method):
    """Optimal Brain Surgeon: prunes weights by the inverse Hessian and adjusts the remaining ones.

    Formula: the weight with the least ``L_q = w_q^2 / (2 [H^-1]_qq)`` is removed, ``dw = -w_q / [H^-1]_qq H^-1 e_q``
    changes the others, and row and column ``q`` leave the inverse, ``H^-1 -= H^-1 e_q e_q^T H^-1 / [H^-1]_qq``, so that
    later changes leave it at zero. ``full``: ``H = mean over examples of J^T (diag(p) - p p^T) J``, the Gauss-Newton
    matrix of the mean cross entropy by all weights of the network (the paper's outer products, weighted by the
    curvature of this loss). ``layer``: ``H = mean over locations of x x^T`` for each layer, shared by its rows, as in
    layer-wise OBS and Optimal Brain Compression: what changes least is the layer's output in the network as it is
    given. Then ``L`` is divided by ``1/2 sum over rows of w^T H w``, so that one threshold serves all layers: this
    project's choice. Either matrix gains ``damping`` times the mean of its diagonal, the paper's ``alpha``. The updates
    of all removals add up to the exact minimum of ``dw^T H dw`` without the removed weights, which is solved at once in
    the end. Selects bool ``(units,)`` for each weight tensor; biases do not change. With ``layer``, weights that other
    modules than linear layers and convolutions use are not pruned.

    Cost: ``full`` takes the backward passes of OBD and ``n^3`` operations for ``n`` weights in all, 5000 at most;
    ``layer`` takes one forward pass, and ``n^3`` operations for each of a layer's rows of ``n`` weights: minutes for
    rows of a thousand, hours for several thousand. Memory: ``n^2`` float64 numbers.
    Use it: for trained networks, most of all where there is no time to train on. ``full`` needs data with targets and a
    loss of cross entropy, ``layer`` inputs alone.

    Raises:
        TopiaristError: a field is out of range, there is no budget or one that cannot be met, nothing was measured, all
            of it is 0, the network has too many weights for ``full``, or the matrix has no inverse.

    Paper: Hassibi, Stork: "Second order derivatives for network pruning: Optimal Brain Surgeon", NIPS 1992.

    Attributes:
        hessian: ``"full"`` for all weights of a small network, or ``"layer"`` for one of each layer.
        damping: what the diagonal gains, relative to its mean; 0 needs more data than weights.
    """

    family = "loss sensitivity (gradients, Hessian)"
    granularity = "weight"
    target = "automatic"
    needs = frozenset({Inputs()})
    allocation = "global"
    formula = (
        r"L_q = \frac{w_q^2}{2\, [H^{-1}]_{qq}}, \qquad \delta w = -\frac{w_q}{[H^{-1}]_{qq}}\, H^{-1} e_q, \qquad "
        r"H^{-1} \leftarrow H^{-1} - \frac{H^{-1} e_q e_q^{\top} H^{-1}}{[H^{-1}]_{qq}}"
    )
    paper = "Hassibi, Stork: Second order derivatives for network pruning: Optimal Brain Surgeon, NIPS 1992"

    hessian: Literal["full", "layer"] = "layer"
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.hessian not in ("full", "layer"):
            raise TopiaristError(f"hessian must be 'full' or 'layer', but got {shown(self.hessian)}")
        if not 0 <= self.damping < float("inf"):
            raise TopiaristError(f"damping must be a number of at least 0, but got {shown(self.damping)}")
        object.__setattr__(self, "needs", frozenset({GaussNewton() if self.hessian == "full" else Inputs()}))

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep:
        """Prunes weights in the order of their removals until the budget is met; a dry run in that of magnitudes."""
        if budget is None:
            raise TopiaristError("obs needs a budget: give macs, params or ratio, the fraction kept")
        weights = self._weights(graph, stats)
        excluded = budget.excluded(graph)
        free = {name: w for name, w in weights.items() if name not in excluded}

        def within_budget(costs: Mapping[str, Tensor]) -> Keep:
            scores = {name: cost[indices_of(graph[name])] for name, cost in costs.items()}
            return allocate(graph, scores, budget, self.allocation)

        quick = within_budget({name: w.abs().cpu() for name, w in free.items()})  # refuses before anything long begins
        if self.is_dry_run:
            return quick
        return within_budget(self._full(weights, free, stats) if self.hessian == "full" else self._layers(free, stats))

    def repair(self, model: nn.Module, graph: Graph, keep: Keep, stats: Stats) -> None:
        """Sets ``w_S + H_SS^-1 H_ST w_T``: the sum of all updates."""
        if self.is_dry_run:
            return
        weights = self._weights(graph, stats)
        kept = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in weights.items()}
        for name, mask in kept.items():
            mask[indices_of(graph[name])] = keep[name].to(mask.device)
        if self.hessian == "full":
            H = damped(stats.mean(_ALL, "hessian-full.products").to(_first(weights)), self.damping)
            joint = adjusted(torch.cat(list(weights.values())), torch.cat(list(kept.values())), H)
            new = dict(zip(weights, joint.split([w.numel() for w in weights.values()]), strict=True))
        else:
            pruned = {name: w for name, w in weights.items() if not kept[name].all()}
            new = {name: self._row_by_row(name, w, kept[name], stats) for name, w in pruned.items()}
        tensors = tensors_of(model)
        with torch.no_grad():
            for name, values in new.items():
                tensors[name].copy_(values.view(tensors[name].shape))

    def _weights(self, graph: Graph, stats: Stats) -> dict[str, Tensor]:
        """Returns the tensors that the Hessian is known of, flattened, float64.

        Weights that were pruned before are zero in them: they cost nothing, so that they are removed first again.
        """
        for group in graph.groups:
            indices_of(group)  # refuses units that are no weights
        weights = {group.name: stats.tensor(group.name).flatten().double() for group in graph.groups}
        if self.hessian == "layer":
            weights = {name: w for name, w in weights.items() if (name, "hessian-layer.products") in stats.sums}
        elif (_ALL, "hessian-full.products") not in stats.sums:
            weights = {}
        if not weights:
            raise TopiaristError("obs has no Hessian of any weight: collect what this method needs, on data it sees")
        products = [total for (_, key), total in stats.sums.items() if key == f"hessian-{self.hessian}.products"]
        if not self.is_dry_run and not any(bool(each.any()) for each in products):
            zeros = "the loss has no curvature" if self.hessian == "full" else "layers read nothing but zeros"
            raise TopiaristError(f"{zeros} on this data; use other data, or magnitude")
        return weights

    def _full(self, weights: Mapping[str, Tensor], free: Mapping[str, Tensor], stats: Stats) -> dict[str, Tensor]:
        """Returns what the removals cost among all weights; those that are not free change, but are kept."""
        w = torch.cat(list(weights.values()))
        removable = torch.cat([torch.full_like(v, name in free, dtype=torch.bool) for name, v in weights.items()])
        H = damped(stats.mean(_ALL, "hessian-full.products").to(w), self.damping)
        costs = removal_costs(w[None], inverse(H), removable)[0].cpu().split([v.numel() for v in weights.values()])
        return {name: cost for name, cost in zip(weights, costs, strict=True) if name in free}

    def _layers(self, weights: Mapping[str, Tensor], stats: Stats) -> dict[str, Tensor]:
        """Returns what the removals cost in each layer, relative to the energy of its output."""
        costs = {}
        for at, (name, w) in enumerate(weights.items()):
            stats.report("layers", at, len(weights))
            blocks = list(self._blocks(name, w, stats))
            energy = sum(float(((rows @ H) * rows).sum()) / 2 for rows, H in blocks)
            unit = sqrt(energy) or 1.0  # all weights are zero, and cost nothing
            costs[name] = torch.cat([removal_costs(rows / unit, inverse(H)).flatten() for rows, H in blocks]).cpu()
        return costs

    def _blocks(self, name: str, w: Tensor, stats: Stats) -> Iterable[tuple[Tensor, Tensor]]:
        """Yields the rows of each group of a layer's weight, ``(rows, inputs)``, and the Hessian that they share."""
        products = stats.mean(name, "hessian-layer.products").to(w)
        for rows, H in zip(w.view(len(products), -1, products.shape[1]), products, strict=True):
            yield rows, damped(H, self.damping)

    def _row_by_row(self, name: str, w: Tensor, keep: Tensor, stats: Stats) -> Tensor:
        blocks = list(self._blocks(name, w, stats))
        masks = keep.view(len(blocks), -1, len(blocks[0][1]))
        return torch.cat(
            [
                adjusted(row, mask, H)
                for (rows, H), row_masks in zip(blocks, masks, strict=True)
                for row, mask in zip(rows, row_masks, strict=True)
            ]
        )


def _first(weights: Mapping[str, Tensor]) -> Tensor:
    return next(iter(weights.values()))
