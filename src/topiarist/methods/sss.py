"""Sparse structure selection: a scale on every block, group or channel, trained to exact zeros (Huang & Wang 2018)."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import GATE
from topiarist.graph import Graph, Group, Keep, Scores
from topiarist.measure import Stats
from topiarist.methods._multipliers import Multipliers, Place, Scaled, check_ranked, marked, multiplied, trained
from topiarist.methods.base import Method

_KINDS = ("block", "group", "channel")
_GATES = "sss"
"""Name of the submodule that holds the scales while the network trains."""
_LEFT = f"{GATE}sss"
"""What is put to a tensor's name for the buffer that keeps its scales after the training."""


@dataclass(frozen=True)
class SSS(Method):
    """Trains a scale on every structure; what comes to exactly 0 is removed: residual blocks, groups, or channels.

    Formula: ``L = loss + gamma * sum |lambda|`` with one ``lambda``, at first 1, for each structure: it multiplies a
    residual branch, ``x + lambda * F(x)``, or what is read of a group of convolutions (of a head) or of a channel.
    After each step of the optimiser, which does not move them, with the gradient ``g`` at ``lambda`` and the learning
    rate ``eta``: ``z = S(lambda - eta * g)``, ``v' = z - lambda + momentum * v``,
    ``lambda' = max(0, z + momentum * v')``, where ``S`` takes ``eta * gamma`` off the absolute value, at most to 0: the
    paper's accelerated proximal gradient, without weight decay. In the end each scale is multiplied into the
    parameters that it scaled, so that the network computes the same without it; filters in front of a batch norm, which
    small scales would leave short, keep their length, and the norm makes up for it. ``s_j = lambda_j``, without units:
    ``(units,)`` for the one group of all blocks, or for each group that layers read; 0 where these parameters are 0,
    and 1 where the network was not trained so. Channels and groups that frozen parameters read have no scales and stay
    whole. Without a budget all structures of score 0 go, but one of each group stays; with one, the lowest scores go
    over all groups.

    Cost: the training's own, and a product with the scaled parameters at each step.

    Use it: to let the network find its depth, or the number of groups in each layer, while it trains. ``gamma`` says
    how much goes; several runs find the one for a size. The scales are kept in a file beside the weights'
    (`topiarist.save`); of a state dict alone only the zeros speak. No fine-tuning is needed after zeros went.

    Raises:
        TopiaristError: a field is out of range, the network has no such structures, a block's last parameters are
            frozen, the gates are not attached, or a budget takes structures that were not trained with scales.

    Paper: Huang, Wang: "Data-Driven Sparse Structure Selection for Deep Neural Networks", ECCV 2018.

    Attributes:
        gamma: strength of the penalty; 0.01 for ResNet-50 in the paper.
        structure: ``"block"`` (residual branches), ``"group"`` (whole groups of grouped convolutions, whole attention
            heads) or ``"channel"``.
        momentum: of the accelerated step.
    """

    target = "automatic"
    needs = frozenset({"weights", "training"})
    allocation = "global"
    formula = (
        r"z = S_{\eta \gamma}(\lambda - \eta g), \qquad v \leftarrow z - \lambda_{\mathrm{old}} + \mu v, "
        r"\qquad \lambda \leftarrow (z + \mu v)_+"
    )
    paper = "Huang, Wang: Data-Driven Sparse Structure Selection for Deep Neural Networks, ECCV 2018"

    gamma: float = 0.01
    structure: Literal["block", "group", "channel"] = "block"
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise TopiaristError(
                f"gamma must be a number from 0 on, the strength of the penalty, but got {self.gamma!r}"
            )
        if not 0 <= self.momentum < 1:
            raise TopiaristError(f"momentum must be at least 0 and below 1, but got {self.momentum!r}")
        if self.structure not in _KINDS:
            raise TopiaristError(f"structure must be one of {', '.join(_KINDS)}, but got {self.structure!r}")

    def units(self, graph: Graph) -> Graph:
        """Residual blocks, or the graph as it is."""
        return graph.blocks() if self.structure == "block" else graph

    def gates(self, model: nn.Module, graph: Graph) -> AbstractContextManager[nn.Module]:
        """One scale for each structure; in the end they are multiplied into the parameters."""
        free = trained(model)
        scaled = self._scaled(graph, free)
        if frozen := scaled.places.keys() - free:
            raise TopiaristError(f"sss scales a block by {min(frozen)}, which is frozen: thaw it, requires_grad_()")
        return multiplied(model, graph, _GATES, _Gates(model, scaled), _LEFT)

    def proximal(self, model: nn.Module, graph: Graph, lr: float) -> None:
        """One step of the accelerated proximal gradient, from the point where the gradient was taken."""
        gates = getattr(model, _GATES, None)
        if not isinstance(gates, _Gates):
            raise TopiaristError("sss takes its step on gates: train with topiarist.train.fit or within attach()")
        old, velocity = gates.point, gates.velocity
        gradient = torch.zeros_like(old) if gates.scales.grad is None else gates.scales.grad
        z = old - lr * gradient
        z = z.sign() * (z.abs() - lr * self.gamma).clamp(min=0)
        velocity.copy_(z - old + self.momentum * velocity)
        old.copy_((z + self.momentum * velocity).clamp(min=0))
        gates.scales.copy_(old)  # whatever the optimiser made of them

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """``s_j = lambda_j``."""
        scaled = self._scaled(graph, marked(graph, stats, _LEFT))
        scales = scaled.left(stats, _LEFT, default=1.0) * scaled.alive(stats)
        return scaled.by_group(self.units(graph), scales)

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep | None:
        """What has not come to 0, where there is no budget; one structure of a group always stays."""
        if budget is not None:
            scaled = self._scaled(graph, marked(graph, stats, _LEFT))
            unranked = scaled.by_group(self.units(graph), scaled.unranked(stats, _LEFT))
            check_ranked(self, graph, self.score(graph, stats), unranked, budget)
            return None
        keep = dict(graph.full())
        for name, scales in self.score(graph, stats).items():
            keep[name] = scales > 0
            keep[name][scales.argmax()] = True
        return keep

    def _scaled(self, graph: Graph, free: Collection[str]) -> Scaled:
        """The entries of parameters that each structure's scale multiplies, of readers those that are free for it."""
        scaled, graph = Scaled({}, {}, 0), self.units(graph)
        for group in graph.groups:
            whole = ":rows" in group.name  # where two factors meet: whole groups of a convolution, whole heads
            if group.blocks:
                scaled = _with_blocks(scaled, graph, group)
            elif self.structure != "block" and whole == (self.structure == "group"):
                scaled = scaled.with_units(graph, group, free)
        if not scaled.total:
            told = {"block": "residual blocks that can be removed", "group": "groups of convolutions or heads"}
            raise TopiaristError(
                f"sss found no {told.get(self.structure, 'channels that layers read')} in this network with "
                "parameters that train: `topiarist inspect` says what pins them, or choose another structure"
            )
        return scaled


def _with_blocks(scaled: Scaled, graph: Graph, group: Group) -> Scaled:
    """Adds the last parameters of every block: those of its tips, which make its output as a whole."""
    places = dict(scaled.places)
    for number, block in enumerate(group.blocks, scaled.total):
        for name in graph.parameters:
            if name.rpartition(".")[0] in block.tips:
                places[name] = Place(None, torch.tensor(number))
    return Scaled(places, {**scaled.first, group.name: scaled.total}, scaled.total + group.units)


class _Gates(Multipliers):
    """The scales, and the state of their steps.

    Attributes:
        scales: ``(structures,)`` the lambdas, which are where the gradient is taken.
        point: the same, out of the optimiser's reach.
        velocity: of the accelerated step.
    """

    point: Tensor
    velocity: Tensor

    def __init__(self, model: nn.Module, scaled: Scaled) -> None:
        super().__init__(model, scaled)
        first = model.get_parameter(next(iter(scaled.places)))
        start = torch.ones(scaled.total, dtype=first.dtype, device=first.device)
        self.scales = nn.Parameter(start)
        self.register_buffer("point", start.clone())
        self.register_buffer("velocity", torch.zeros_like(start))

    def multipliers(self) -> Tensor:
        """The lambdas."""
        return self.scales

    def final(self) -> tuple[Tensor, Tensor]:
        """The lambdas, which are the score as well."""
        return self.scales, self.scales
