"""Data-free pruning: merges neurons of similar weights (Srinivas & Babu 2015)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import NamedTuple

import torch
from torch import Tensor, nn

from topiarist.budget import Budget, quota
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Group, Keep, Slice
from topiarist.measure import ACTIVATIONS, Stats
from topiarist.methods._reconstruction import readers
from topiarist.methods._residuals import kept_positions
from topiarist.methods.base import Method

_PRODUCERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TINY = 1e-12
"""Keeps quotients of distances finite: opposite neurons are far apart, and equal ones, all zero, not at all."""


@dataclass(frozen=True)
class SrinivasBabu(Method):
    """Merges similar neurons without data: removes one and adds its outgoing weights to the other's.

    Formula: ``s_ij = mean(a_j^2) * e_ij^2`` is the cost of pruning ``j`` with ``a_i <- a_i + a_j``, ``a_j`` being the
    weights that read ``j``. The pair of lowest saliency merges, ``s_ki`` is computed anew with the new ``a_i``, and so
    on. With ``W_k``, ``b_k`` the weights and bias of ``k`` divided by ``alpha_k = |W_k|``, and ``a_k`` times that,
    ``e_ij = |W_i - W_j| / |W_i + W_j| + |b_i - b_j| / |b_i + b_j|``; in the network's own numbers the merge is then
    ``a_i <- a_i + alpha_j / alpha_i * a_j``. Without ``normalised``: ``e_ij^2 = |W_i - W_j|^2 + (b_i - b_j)^2``.

    Without a budget each group is pruned as long as the lowest saliency is below the mode of the saliencies that all
    pairs have at the start: the middle of the fullest bin of their histogram, bins ``2 IQR / n^(1/3)`` wide (Freedman &
    Diaconis; the paper leaves the width open). Needs the weights alone. Selects units itself, bool ``(units,)`` for
    each group of neurons or channels that one layer produces and only linear layers and ungrouped convolutions read; a
    batch norm right behind the layer is folded into ``W`` and ``b``. Other groups, as residual streams, are not pruned.
    All groups are compared in the network as it is given.

    Cost: ``units^2`` numbers and distances for each group; no data, no training.

    Use it: where there is no data, on wide layers that have learned the same thing twice: the linear layers of the
    paper; the formula extends to channels, which are less often similar. Equal neurons merge without any change.

    Raises:
        TopiaristError: ``predicted`` is not a fraction or comes with a budget, there is no model, or no group fits.

    Paper: Srinivas, Babu: "Data-free Parameter Pruning for Deep Neural Networks", BMVC 2015.

    Attributes:
        normalised: neurons that differ by a positive factor count as equal, which is right where the activation
            function passes factors on, as ReLU does. Switch it off for others, as tanh.
        predicted: fraction pruned of the number of units that the mode predicts; the paper takes 0.25, 0.5 and 0.75
            in large networks.
    """

    family = "weight similarity"
    target = "automatic"
    formula = (
        r"s_{ij} = \langle a_j^2 \rangle\, \varepsilon_{ij}^2, \qquad "
        r"\varepsilon_{ij} = \frac{\| W_i - W_j \|}{\| W_i + W_j \|} + \frac{| b_i - b_j |}{| b_i + b_j |}, \qquad "
        r"a_i \leftarrow a_i + a_j"
    )
    paper = "Srinivas, Babu: Data-free Parameter Pruning for Deep Neural Networks, BMVC 2015"

    normalised: bool = True
    predicted: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.predicted <= 1:
            raise TopiaristError(f"predicted must be a fraction from 0 to 1, but got {shown(self.predicted)}")

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep:
        """Merges pairs of lowest saliency, up to the budget or to the mode."""
        if budget is not None and self.predicted != 1:
            raise TopiaristError("predicted says by itself how much is pruned: leave out the budget, or predicted")
        neurons_of = self._neurons(graph, stats)
        quotas = quota(graph, neurons_of, budget) if budget else {}
        keep = graph.full()
        for name, neurons in neurons_of.items():
            predicted = graph[name].units - quotas[name] if budget else int(self.predicted * below_the_mode(neurons))
            for merge in islice(merges(neurons), predicted):
                keep[name][merge.j] = False
        return keep

    def repair(self, model: nn.Module, graph: Graph, keep: Keep, stats: Stats) -> None:
        """Sets ``a_i <- a_i + alpha_j / alpha_i * a_j`` for each pruned unit ``j``, in the order of the merges."""
        for name, neurons in self._neurons(graph, stats).items():
            pruned = ~keep[name].cpu()
            if not pruned.any():
                continue
            into = torch.arange(len(pruned))
            for _, i, j in islice(merges(neurons, pruned), int(pruned.sum())):
                into[into == j] = i
            factors = neurons.alpha / neurons.alpha[into]
            for part in neurons.reading:
                rows = kept_positions(graph, keep, part.tensor, 0)
                _add_up(model.get_parameter(part.tensor), stats.tensor(part.tensor), part, into, factors, ~pruned, rows)

    def _neurons(self, graph: Graph, stats: Stats) -> dict[str, Neurons]:
        if stats.model is None:
            raise TopiaristError("srinivas_babu needs the layers of the model: collect its statistics")
        model = stats.model
        neurons = {}
        for name, reading in readers(graph, model).items():
            folded = _folded(graph[name], model, stats)
            if folded is not None and graph[name].units > 1:
                neurons[name] = Neurons.of(*folded, list(reading.values()), stats, self.normalised)
        if not neurons:
            raise TopiaristError(
                "srinivas_babu needs groups that one layer produces and only linear layers and ungrouped convolutions "
                "read, and this network has none: use l1"
            )
        return neurons


@dataclass(frozen=True, eq=False)
class Neurons:
    """Holds what the paper compares of the units of one group, float64 on the CPU.

    Attributes:
        distances: ``(units, units)``, ``e_ij^2``; infinite on the diagonal.
        outgoing: ``(units, entries)``, ``a`` times ``alpha``.
        alpha: ``(units,)``, the norm of each one's weights; 1 if they are all zero, or not to be normalised.
        reading: where the units sit in the weights that read them.
    """

    distances: Tensor
    outgoing: Tensor
    alpha: Tensor
    reading: list[Slice]

    @staticmethod
    def of(weights: Tensor, bias: Tensor, reading: list[Slice], stats: Stats, normalised: bool) -> Neurons:
        """Compares weights ``(units, inputs)`` and biases ``(units,)``."""
        norms = weights.norm(dim=1)
        alpha = torch.where(norms > 0, norms, 1.0) if normalised else torch.ones_like(norms)
        w, b = weights / alpha[:, None], (bias / alpha)[:, None]
        if normalised:
            squares = (_distance(w, w) / _distance(w, -w, _TINY) + _distance(b, b) / _distance(b, -b, _TINY)).square()
        else:
            squares = _distance(w, w).square() + _distance(b, b).square()
        outgoing = [_outgoing(stats.tensor(part.tensor), part).movedim(1, 0).flatten(1) for part in reading]
        return Neurons(squares.fill_diagonal_(math.inf), torch.cat(outgoing, 1) * alpha[:, None], alpha, reading)


class Merge(NamedTuple):
    """Prunes unit ``j`` and adds its outgoing weights to those of unit ``i``."""

    saliency: float
    i: int
    j: int


def merges(neurons: Neurons, pruned: Tensor | None = None) -> Iterator[Merge]:
    """Yields the merges in order, each of the pair of lowest saliency after those before it.

    Args:
        neurons: the units.
        pruned: bool ``(units,)``, those that may be pruned; all unless given.
    """
    units = len(neurons.alpha)
    distances, a = neurons.distances.clone(), neurons.outgoing.clone()
    open_ = torch.ones(units, dtype=torch.bool) if pruned is None else pruned.clone()
    squares = a.square().mean(1)
    nearest, which = distances.min(0)  # s_ij / <a_j^2> does not change, so that only each j's nearest i counts
    for _ in range(min(int(open_.sum()), units - 1)):
        saliency = torch.where(open_, squares * nearest, math.inf)
        j = int(saliency.argmin())
        i = int(which[j])
        yield Merge(float(saliency[j]), i, j)
        a[i] += a[j]
        squares[i] = a[i].square().mean()
        open_[j] = False
        distances[j] = math.inf
        orphans = which == j
        nearest[orphans], which[orphans] = distances[:, orphans].min(0)


def below_the_mode(neurons: Neurons) -> int:
    """Counts the merges before the first one whose saliency is no lower than the mode of all pairs."""
    pairs = neurons.distances * neurons.outgoing.square().mean(1)
    cutoff = mode(pairs[~torch.eye(len(pairs), dtype=torch.bool)])
    return sum(1 for _ in takewhile(lambda merge: merge.saliency < cutoff, merges(neurons)))


def mode(values: Tensor) -> float:
    """Returns the middle of a histogram's fullest bin, the lowest of several; bins are ``2 IQR / n^(1/3)`` wide."""
    ordered = values.sort().values
    n = len(ordered)
    width = float(2 * (ordered[3 * (n - 1) // 4] - ordered[(n - 1) // 4]) / n ** (1 / 3))
    if width == 0:
        return float(ordered[(n - 1) // 2])
    bins, counts = (ordered / width).floor().unique(return_counts=True)
    return float((bins[counts.argmax()] + 0.5) * width)


def _distance(x: Tensor, y: Tensor, least: float = 0) -> Tensor:
    """Returns ``|x_i - y_j|`` for all pairs of rows; exactly 0 where they are equal."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=least)


def _folded(group: Group, model: nn.Module, stats: Stats) -> tuple[Tensor, Tensor] | None:
    """Returns weights ``(units, inputs)`` and bias ``(units,)`` of the layer and batch norm that produce a group.

    Returns:
        ``None`` where it is not one layer, whose units all see the same inputs, or something else is on the way.
    """
    parts = {part.tensor: part for part in group.slices if part.role != "input"}
    produced = [part.tensor for part in parts.values() if part.role == "output"]
    if len(produced) != 1 or len(parts) + len(group.by_role("input")) != len(group.slices):
        return None
    if any(part.axis is None or part.positions.shape[1] != 1 for part in parts.values()):
        return None
    name, _, leaf = produced[0].rpartition(".")
    layer = model.get_submodule(name)
    if type(layer) not in _PRODUCERS or leaf != "weight" or getattr(layer, "groups", 1) != 1:
        return None

    def values(tensor: str, missing: float) -> Tensor:
        """Returns one row for each unit."""
        if tensor not in parts:
            return torch.full((group.units,), missing, dtype=torch.float64)
        part = parts[tensor]
        return stats.tensor(tensor).cpu().double().movedim(part.axis or 0, 0)[part.positions[:, 0]]

    w, b = values(f"{name}.weight", 0).flatten(1), values(f"{name}.bias", 0)
    others = {tensor.rpartition(".")[0] for tensor in parts} - {name}
    if not others:
        return w, b
    at = others.pop()
    norm = model.get_submodule(at)
    if others or not isinstance(norm, _NORMS) or norm.running_var is None or not _follows(group, name, at):
        return None
    scale = values(f"{at}.weight", 1) * (values(f"{at}.running_var", 1) + norm.eps).rsqrt()
    return w * scale[:, None], values(f"{at}.bias", 0) + (b - values(f"{at}.running_mean", 0)) * scale


def _follows(group: Group, layer: str, norm: str) -> bool:
    """Returns whether no activation function is seen between a layer and a norm that has all of its channels."""
    order = [site.module for site in group.sites]
    if layer not in order or norm not in order:
        return False
    between = group.sites[order.index(layer) : order.index(norm)]
    return order.index(layer) < order.index(norm) and not any(site.kind in ACTIVATIONS for site in between)


def _outgoing(weight: Tensor, part: Slice) -> Tensor:
    """Returns float64 ``(outputs, units, k, *kernel)`` of a weight that reads units."""
    return weight[:, part.positions.to(weight.device)].cpu().double()


@torch.no_grad()
def _add_up(
    weight: nn.Parameter, original: Tensor, part: Slice, into: Tensor, factors: Tensor, kept: Tensor, rows: Tensor
) -> None:
    """Writes the sum of the outgoing weights of all units that were merged into each kept one.

    Args:
        weight: of the masked network.
        original: the same before pruning.
        part: where the units sit in it.
        into: ``(units,)`` the kept unit that each one was merged into, itself if it is kept.
        factors: ``(units,)`` of each one's weights in that sum.
        kept: bool ``(units,)``.
        rows: bool ``(outputs,)``, the kept outputs; those of the others are 0.
    """
    outgoing = _outgoing(original, part)
    outgoing *= (rows[:, None] * factors).view(*outgoing.shape[:2], *[1] * (outgoing.ndim - 2))
    merged = torch.zeros_like(outgoing).index_add_(1, into, outgoing)
    weight[:, part.positions[kept].to(weight.device)] = merged[:, kept].to(weight)
