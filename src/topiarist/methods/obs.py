"""Optimal Brain Surgeon: the inverse Hessian says what goes and how the rest makes up (Hassibi & Stork 1992)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from topiarist.budget import Budget, allocate, matching
from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Keep
from topiarist.measure import Layer, Stats, Watch, on_calls
from topiarist.methods._inverse import adjusted, damped, inverse, removals
from topiarist.methods._slopes import Slopes, factors, on_slopes, patches, tensors_of, users
from topiarist.methods.base import Method, places_of

MOST = 5000
"""Weights that a network may have for its full Hessian: 200 MB for each copy of it, and minutes for its removals."""

_ALL = "all weights"


@dataclass(frozen=True)
class GaussNewton:
    """The Gauss-Newton matrix of the cross entropy by all weights of a small network.

    Keys, of no group but of ``"all weights"``: ``hessian-full.count`` (examples) and ``hessian-full.products``
    ``(weights, weights)``, the sum of ``J_n^T (diag(p) - p p^T) J_n`` over the examples; the weights of all groups of
    ``graph.weights()`` in turn.
    """

    name: str = "hessian-full"
    gradients: bool = True

    def watch(self, model: nn.Module, graph: Graph, run: Watch) -> Iterable[RemovableHandle]:
        """Adds up when the gradients are there."""
        count = sum(prod(graph.shapes[group.name]) for group in graph.weights().groups)
        if count > MOST:
            raise TopiaristError(
                f"the full Hessian is for at most {MOST:,} weights, but this network has {count:,}: take hessian "
                f"'layer'"
            )

        def see(slopes: Slopes, gradient: Tensor) -> None:
            run.add(_ALL, "hessian-full.count", len(gradient))
            for s in factors(slopes.z):
                rows = slopes.rows(s)
                run.add(_ALL, "hessian-full.products", rows.T @ rows)

        return on_slopes(model, graph, run, see)


@dataclass(frozen=True)
class Inputs:
    """What linear layers and convolutions read, at all places: ``sum of x x^T``, with the kernel's entries in ``x``.

    A tied weight's is that of all its layers. Keys, of each weight tensor: ``hessian-layer.count`` (places) and
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

        layers = users(model, [group.name for group in graph.weights().groups])
        return on_calls(((name, layer) for name, tied in layers.items() for layer in tied), show)


@dataclass(frozen=True)
class OBS(Method):
    """Optimal Brain Surgeon: prunes weights by the inverse Hessian and adjusts the remaining ones.

    Formula: the weight with the least ``L_q = w_q^2 / (2 [H^-1]_qq)`` goes, ``dw = -w_q / [H^-1]_qq H^-1 e_q`` changes
    the others, and row and column ``q`` leave the inverse, ``H^-1 -= H^-1 e_q e_q^T H^-1 / [H^-1]_qq``, so that later
    changes leave it at zero. ``full``: ``H = mean over examples of J^T (diag(p) - p p^T) J``, the Gauss-Newton matrix
    of the mean cross entropy by all weights of the network (the paper's outer products, weighted by the curvature of
    this loss). ``layer``: ``H = mean over places of x x^T`` for each layer, shared by all its rows, as in layer-wise
    OBS and Optimal Brain Compression: what changes least is the layer's output in the network as it is given. Then
    ``L`` is divided by ``1/2 sum over rows of w^T H w``, so that one threshold serves all layers: this project's
    choice. Either matrix gains ``damping`` times the mean of its diagonal, the paper's ``alpha``. The updates of all
    removals add up to the exact minimum of ``dw^T H dw`` without the removed weights, which is solved at once in
    the end. Selects bool ``(units,)`` for each weight tensor; biases stay as they are. With ``layer``, weights that
    other modules than linear layers and convolutions use stay whole.

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
            raise TopiaristError(f"hessian must be 'full' or 'layer', but got {self.hessian!r}")
        if not 0 <= self.damping < float("inf"):
            raise TopiaristError(f"damping must be a number of at least 0, but got {self.damping!r}")
        object.__setattr__(self, "needs", frozenset({GaussNewton() if self.hessian == "full" else Inputs()}))

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep:
        """Takes weights away in the order of their removals until the budget is met; a rehearsal in that of sizes."""
        if budget is None:
            raise TopiaristError("obs needs a budget: give macs, params or ratio, the fraction that stays")
        weights = self._weights(graph, stats)
        whole = {name for pattern in budget.exclude for name in matching(pattern, [g.name for g in graph.groups])}
        free = {name: w for name, w in weights.items() if name not in whole}

        def within_budget(costs: Mapping[str, Tensor]) -> Keep:
            scores = {name: cost[places_of(graph[name])] for name, cost in costs.items()}
            return allocate(graph, scores, budget, self.allocation)

        quick = within_budget({name: w.abs().cpu() for name, w in free.items()})  # refuses before anything long begins
        if self._rehearses:
            return quick
        return within_budget(self._full(weights, free, stats) if self.hessian == "full" else self._layers(free, stats))

    def repair(self, model: nn.Module, graph: Graph, keep: Keep, stats: Stats) -> None:
        """``w_S + H_SS^-1 H_ST w_T``: the sum of all updates."""
        if self._rehearses:
            return
        weights = self._weights(graph, stats)
        kept = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in weights.items()}
        for name, whole in kept.items():
            whole[places_of(graph[name])] = keep[name].to(whole.device)
        if self.hessian == "full":
            H = damped(stats.mean(_ALL, "hessian-full.products").to(_first(weights)), self.damping)
            joint = adjusted(torch.cat(list(weights.values())), torch.cat(list(kept.values())), H)
            found = dict(zip(weights, joint.split([w.numel() for w in weights.values()]), strict=True))
        else:
            found = {
                name: self._row_by_row(name, w, kept[name], stats)
                for name, w in weights.items()
                if not kept[name].all()
            }
        tensors = tensors_of(model)
        with torch.no_grad():
            for name, values in found.items():
                tensors[name].copy_(values.view(tensors[name].shape))

    def _weights(self, graph: Graph, stats: Stats) -> dict[str, Tensor]:
        """Float64, flattened: the tensors that the Hessian is known of.

        Weights that are gone since an earlier cut are zero in them: they cost nothing, so that they go first again.
        """
        for group in graph.groups:
            places_of(group)  # refuses units that are no weights
        found = {group.name: stats.tensor(group.name).flatten().double() for group in graph.groups}
        if self.hessian == "layer":
            found = {name: w for name, w in found.items() if (name, "hessian-layer.products") in stats.sums}
        elif (_ALL, "hessian-full.products") not in stats.sums:
            found = {}
        if not found:
            raise TopiaristError("obs has no Hessian of any weight: collect what this method needs, on data it sees")
        products = [sum_ for (_, key), sum_ in stats.sums.items() if key == f"hessian-{self.hessian}.products"]
        if not self._rehearses and not any(bool(each.any()) for each in products):
            nothing = "the loss has no curvature" if self.hessian == "full" else "no layer reads anything but zeros"
            raise TopiaristError(f"{nothing} on these data: give others, or take magnitude")
        return found

    def _full(self, weights: Mapping[str, Tensor], free: Mapping[str, Tensor], stats: Stats) -> dict[str, Tensor]:
        """What the removals cost among all weights; those that are not free change, but stay."""
        w = torch.cat(list(weights.values()))
        may = torch.cat([torch.full_like(v, name in free, dtype=torch.bool) for name, v in weights.items()])
        H = damped(stats.mean(_ALL, "hessian-full.products").to(w), self.damping)
        costs = removals(w[None], inverse(H), may)[0].cpu().split([v.numel() for v in weights.values()])
        return {name: cost for name, cost in zip(weights, costs, strict=True) if name in free}

    def _layers(self, weights: Mapping[str, Tensor], stats: Stats) -> dict[str, Tensor]:
        """What the removals cost in each layer, as a share of what its output is worth."""
        found = {}
        for at, (name, w) in enumerate(weights.items()):
            stats.report("layers", at, len(weights))
            parts = list(self._blocks(name, w, stats))
            worth = sum(float(((rows @ H) * rows).sum()) / 2 for rows, H in parts)
            unit = sqrt(worth) or 1.0  # all weights are zero, and cost nothing
            found[name] = torch.cat([removals(rows / unit, inverse(H)).flatten() for rows, H in parts]).cpu()
        return found

    def _blocks(self, name: str, w: Tensor, stats: Stats) -> Iterable[tuple[Tensor, Tensor]]:
        """The rows of each group of a layer's weight, ``(rows, inputs)``, and the matrix that they share."""
        products = stats.mean(name, "hessian-layer.products").to(w)
        for rows, H in zip(w.view(len(products), -1, products.shape[1]), products, strict=True):
            yield rows, damped(H, self.damping)

    def _row_by_row(self, name: str, w: Tensor, keep: Tensor, stats: Stats) -> Tensor:
        parts = list(self._blocks(name, w, stats))
        masks = keep.view(len(parts), -1, len(parts[0][1]))
        rows = [
            adjusted(row, m, H) for (ws, H), ms in zip(parts, masks, strict=True) for row, m in zip(ws, ms, strict=True)
        ]
        return torch.cat(rows)


def _first(weights: Mapping[str, Tensor]) -> Tensor:
    return next(iter(weights.values()))
