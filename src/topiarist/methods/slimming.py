"""Network Slimming: batch norm's scales, trained sparse, say which channels to prune (Liu et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Scores, Slice
from topiarist.measure import Stats
from topiarist.methods.base import Method, sum_by_unit


@dataclass(frozen=True)
class Slimming(Method):
    """Trains with an L1 penalty on batch norm scales and prunes channels of small scale.

    Formula: ``L = loss + lam * sum |gamma|``, whose subgradient at 0 is 0; ``s_j = |gamma_j|``, the mean over its
    scales where a channel passes several batch norms (a residual stream). Needs a network with batch norms, trained
    with the penalty. Returns ``(units,)`` for each group with batch norms, in units of gamma; other groups are not
    pruned. In pre-activation and dense networks declare channel selectors first (``add_selectors``, ``--selectors
    auto``): then the scales of a norm select the inputs of the layer behind it, as in the paper, and the norm is not
    pruned. For the paper's several passes give ``steps``, with a ``floor`` of 0.5 for its cap on what a layer loses in
    each. The paper's global threshold is the default allocation with a budget's ``ratio``.

    Raises:
        TopiaristError: ``lam`` is negative, or no batch norm with a scale can be pruned.

    Paper: Liu, Li, Shen, Huang, Yan, Zhang: "Learning Efficient Convolutional Networks through Network Slimming",
    ICCV 2017.

    Attributes:
        lam: strength of the penalty: 1e-4 for VGG, 1e-5 for ResNet-164 and DenseNet-40 in the paper.
    """

    family = "sparsity penalties"
    target = "automatic"
    needs = frozenset({"weights", "training"})
    allocation = "global"
    formula = r"L = \mathrm{loss} + \lambda \sum_{j} |\gamma_j|, \qquad s_j = |\gamma_j|"
    paper = (
        "Liu, Li, Shen, Huang, Yan, Zhang: "
        "Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017"
    )

    lam: float = 1e-4

    def __post_init__(self) -> None:
        if not self.lam >= 0:
            raise TopiaristError(f"lam must not be negative, the strength of the penalty, but got {shown(self.lam)}")

    def penalty(self, model: nn.Module, graph: Graph) -> Tensor:
        """Computes ``lam * sum |gamma|``, each gamma once."""
        by_tensor: dict[str, list[Slice]] = {}  # several groups may share a batch norm
        for part in (part for group in graph.groups for part in graph.scales(group)):
            by_tensor.setdefault(part.tensor, []).append(part)
        scales = [_gamma(model, parts) for parts in by_tensor.values()] or _refuse()
        return self.lam * torch.stack([gamma.abs().sum() for gamma in scales]).sum()

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``s_j = |gamma_j|``."""
        scores = {}
        for group in graph.groups:
            parts = graph.scales(group)
            if parts:
                total = torch.stack([sum_by_unit(part, stats.tensor(part.tensor).abs()) for part in parts]).sum(0)
                scores[group.name] = total / sum(part.positions.shape[1] for part in parts)
        return scores or _refuse()


def _refuse() -> NoReturn:
    raise TopiaristError(
        "slimming found no batch norm with scales that can be pruned: put batch norms after the layers, or use l1"
    )


def _gamma(model: nn.Module, parts: list[Slice]) -> Tensor:
    """Returns the entries of one batch norm's scale that belong to units."""
    gamma = model.get_parameter(parts[0].tensor)
    if any(part.positions.numel() == gamma.numel() for part in parts):
        return gamma
    positions = torch.cat([part.positions.flatten() for part in parts]).unique()
    return gamma[positions.to(gamma.device)]
