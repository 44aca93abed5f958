"""Sparse structure selection: scales on blocks, groups or channels, trained to exact zeros (Huang & Wang 2018)."""

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
from topiarist.files import GATE, shown
from topiarist.graph import Graph, Group, Keep, Scores
from topiarist.measure import Stats
from topiarist.methods._gates import Gated, GateIndex, Gates, check_trained, gating, trainable, trained_with_gates
from topiarist.methods.base import Method

_KINDS = ("block", "group", "channel")
_GATES = "sss"
"""Name of the submodule that holds the scales while the network trains."""
_LEFT = f"{GATE}sss"
"""Added to a tensor's name for the buffer that keeps its scales after the training."""


@dataclass(frozen=True)
class SSS(Method):
    """Trains a scale on each block, group or channel, and removes those of scale 0.

    Formula: ``L = loss + gamma * sum |lambda|`` with one ``lambda``, at first 1, for each structure: it multiplies a
    residual branch, ``x + lambda * F(x)``, or what is read of a group of convolutions (of a head) or of a channel.
    After each step of the optimiser, which does not move them, with the gradient ``g`` at ``lambda`` and the learning
    rate ``eta``: ``z = S(lambda - eta * g)``, ``v' = z - lambda + momentum * v``, ``lambda' = max(0, z + momentum *
    v')``, where ``S`` takes ``eta * gamma`` off the absolute value, at most to 0: the paper's accelerated proximal
    gradient, without weight decay. In the end each scale is multiplied into the parameters that it scaled, so that the
    network computes the same without it; filters in front of a batch norm, which small scales would leave short, keep
    their length, and the norm makes up for it. ``s_j = lambda_j``, without units: ``(units,)`` for the one group of all
    blocks, or for each group that layers read; 0 where these parameters are 0, and 1 where the network was not trained
    so. Channels and groups that frozen parameters read have no scales and are not pruned. Without a budget all
    structures of score 0 are pruned, but one of each group; with one, those of the lowest scores over all groups.

    Cost: the training's own, and a product with the scaled parameters at each step.

    Use it: to let the network find its depth, or the number of groups in each layer, while it trains. ``gamma`` says
    how much is pruned; several runs find the one for a size. The scales are saved in a file beside the weights
    (`topiarist.save`); a state dict alone has only their zeros. No fine-tuning is needed after zeros were pruned.

    Raises:
        TopiaristError: a field is out of range, the network has no such structures, a block's last parameters are
            frozen, the gates are not attached, or a budget prunes structures that were not trained with scales.

    Paper: Huang, Wang: "Data-Driven Sparse Structure Selection for Deep Neural Networks", ECCV 2018.

    Attributes:
        gamma: strength of the penalty; 0.01 for ResNet-50 in the paper.
        structure: ``"block"`` (residual branches), ``"group"`` (groups of convolutions, attention heads) or
            ``"channel"``.
        momentum: of the accelerated step.
    """

    family = "structure selection"
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
                f"gamma must be a number from 0 on, the strength of the penalty, but got {shown(self.gamma)}"
            )
        if not 0 <= self.momentum < 1:
            raise TopiaristError(f"momentum must be at least 0 and below 1, but got {shown(self.momentum)}")
        if self.structure not in _KINDS:
            raise TopiaristError(f"structure must be one of {', '.join(_KINDS)}, but got {shown(self.structure)}")

    def units(self, graph: Graph) -> Graph:
        """Returns the residual blocks, or the graph as it is."""
        return graph.blocks() if self.structure == "block" else graph

    def gates(self, model: nn.Module, graph: Graph) -> AbstractContextManager[nn.Module]:
        """Attaches one scale for each structure; in the end they are multiplied into the parameters."""
        free = trainable(model)
        gated = self._gated(graph, free)
        if frozen := gated.tensors.keys() - free:
            raise TopiaristError(f"sss scales a block by {min(frozen)}, which is frozen: unfreeze it, requires_grad_()")
        return gating(model, graph, _GATES, _Gates(model, gated), _LEFT)

    def proximal(self, model: nn.Module, graph: Graph, lr: float) -> None:
        """Takes a step of the accelerated proximal gradient, from the point where the gradient was taken."""
        gates = getattr(model, _GATES, None)
        if not isinstance(gates, _Gates):
            raise TopiaristError("sss needs its gates in training: use topiarist.train.fit, or train within attach()")
        old, velocity = gates.point, gates.velocity
        gradient = torch.zeros_like(old) if gates.scales.grad is None else gates.scales.grad
        z = old - lr * gradient
        z = z.sign() * (z.abs() - lr * self.gamma).clamp(min=0)
        velocity.copy_(z - old + self.momentum * velocity)
        old.copy_((z + self.momentum * velocity).clamp(min=0))
        gates.scales.copy_(old)  # whatever the optimiser did to them

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``s_j = lambda_j``."""
        gated = self._gated(graph, trained_with_gates(graph, stats, _LEFT))
        scales = gated.saved(stats, _LEFT, default=1.0) * gated.nonzero(stats)
        return gated.by_group(self.units(graph), scales)

    def select(self, graph: Graph, stats: Stats, budget: Budget | None) -> Keep | None:
        """Keeps what has not come to 0, and at least one structure of each group, where there is no budget."""
        if budget is not None:
            gated = self._gated(graph, trained_with_gates(graph, stats, _LEFT))
            untrained = gated.by_group(self.units(graph), gated.untrained(stats, _LEFT))
            check_trained(self, graph, self.score(graph, stats), untrained, budget)
            return None
        keep = dict(graph.full())
        for name, scales in self.score(graph, stats).items():
            keep[name] = scales > 0
            keep[name][scales.argmax()] = True
        return keep

    def _gated(self, graph: Graph, free: Collection[str]) -> Gated:
        """Returns the entries of parameters that each structure's scale multiplies, of readers those that are free."""
        gated, graph = Gated(), self.units(graph)
        for group in graph.groups:
            is_group = ":rows" in group.name  # where two factors meet: groups of a convolution, attention heads
            if group.blocks:
                gated = _with_blocks(gated, graph, group)
            elif self.structure != "block" and is_group == (self.structure == "group"):
                gated = gated.with_units(graph, group, free)
        if not gated.total:
            kinds = {"block": "residual blocks that can be removed", "group": "groups of convolutions or heads"}
            raise TopiaristError(
                f"sss found no {kinds.get(self.structure, 'channels that layers read')} with trainable parameters in "
                "this network: see what pins them by `topiarist inspect`, or choose another structure"
            )
        return gated


def _with_blocks(gated: Gated, graph: Graph, group: Group) -> Gated:
    """Adds the last parameters of every block: those of its tips, which make its entire output."""
    tensors = dict(gated.tensors)
    for number, block in enumerate(group.blocks, gated.total):
        for name in graph.parameters:
            if name.rpartition(".")[0] in block.tips:
                tensors[name] = GateIndex(None, torch.tensor(number))
    return gated.with_group(tensors, group)


class _Gates(Gates):
    """Holds the scales, and the state of their steps.

    Attributes:
        scales: ``(gates,)`` the lambdas, which are where the gradient is taken.
        point: the same, out of the optimiser's reach.
        velocity: of the accelerated step.
    """

    point: Tensor
    velocity: Tensor

    def __init__(self, model: nn.Module, gated: Gated) -> None:
        super().__init__(model, gated)
        first = model.get_parameter(next(iter(gated.tensors)))
        start = torch.ones(gated.total, dtype=first.dtype, device=first.device)
        self.scales = nn.Parameter(start)
        self.register_buffer("point", start.clone())
        self.register_buffer("velocity", torch.zeros_like(start))

    def multipliers(self) -> Tensor:
        """Returns the lambdas."""
        return self.scales

    def final(self) -> tuple[Tensor, Tensor]:
        """Returns the lambdas, which are the score as well."""
        return self.scales, self.scales
