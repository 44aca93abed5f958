"""Magnitude pruning of filters: prunes those of small norm (Li et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import shown, suggestion
from topiarist.graph import Graph, Group, Scores
from topiarist.measure import Stats
from topiarist.methods.base import Method, filters_of, sum_by_unit


@dataclass(frozen=True)
class L1(Method):
    """Scores a unit by the L1 norm of the filters that produce it.

    Formula: ``s_j = (sum over filters F_j of sum |w|^p)^(1/p)``, the sum over every weight (of two or more axes) that
    produces unit ``j``: one filter in a plain network, one per block where a residual stream ties them. Needs the
    weights alone. Returns ``(units,)`` for each group that weights produce, in units of the weights. The paper's
    presets are budgets of their own: pass no other.

    Raises:
        TopiaristError: ``p`` is not positive, the preset is unknown or made for another network.

    Paper: Li, Kadav, Durdanovic, Samet, Graf: "Pruning Filters for Efficient ConvNets", ICLR 2017.

    Attributes:
        p: order of the norm; 1 is the paper's, 2 is the Euclidean norm.
        preset: the paper's ratios and skipped layers for one network: ``vgg16-A``, ``resnet56-A``, ``resnet56-B``,
            ``resnet110-A``, ``resnet110-B``, ``resnet34-A`` or ``resnet34-B`` (of ResNets the first convolution of
            each block).
    """

    family = "weight magnitude and norms"
    formula = r"s_j = \left( \sum_{w \in F_j} |w|^p \right)^{1/p}, \qquad p = 1"
    paper = "Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets, ICLR 2017"

    p: float = 1
    preset: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.p < math.inf:
            raise TopiaristError(f"p must be a positive number, the order of the norm, but got {shown(self.p)}")
        if self.preset is not None and self.preset not in _PRESETS:
            raise TopiaristError(f"there is no preset {shown(self.preset)}: {suggestion(self.preset, _PRESETS)}")

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``s_j = (sum |F_j|^p)^(1/p)``."""
        scores = {}
        for group in graph.groups:
            if filters := filters_of(graph, group):
                powers = [sum_by_unit(part, self._power(stats.tensor(part.tensor))) for part in filters]
                scores[group.name] = torch.stack(powers).sum(0) ** (1 / self.p)
        return scores

    def budget(self, graph: Graph) -> Budget | None:
        """Returns the preset's ratios; ``kept = int(n * (1 - pruned))`` of a layer with ``n`` filters."""
        if self.preset is None:
            return None
        layers = _PRESETS[self.preset].items()
        return Budget(ratios={_group_of(graph, layer, self.preset): 1 - pruned for layer, pruned in layers})

    def _power(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.abs() if self.p == 1 else weight.double().abs() ** self.p


def _first_convs(blocks: tuple[int, ...], pruned: tuple[float, ...], skipped: set[int]) -> Mapping[str | int, float]:
    """Returns layer → fraction pruned, for the first convolution of each block.

    Args:
        blocks: number of blocks of each stage.
        pruned: fraction pruned of each stage; later stages are not pruned.
        skipped: convolutions that are not pruned, counted as the paper does: 1 is the stem, so first ones are even.
    """
    numbers = [(stage, block) for stage, count in enumerate(blocks) for block in range(count)]
    return {
        f"layer{stage + 1}.{block}.conv1": pruned[stage]
        for index, (stage, block) in enumerate(numbers)
        if stage < len(pruned) and pruned[stage] > 0 and 2 * index + 2 not in skipped
    }


# A layer is the name of its group, or its number among the convolutions where names say nothing.
_PRESETS: Mapping[str, Mapping[str | int, float]] = {
    "vgg16-A": dict.fromkeys((1, 8, 9, 10, 11, 12, 13), 0.5),
    "resnet56-A": _first_convs((9, 9, 9), (0.1, 0.1, 0.1), {16, 20, 38, 54}),
    "resnet56-B": _first_convs((9, 9, 9), (0.6, 0.3, 0.1), {16, 18, 20, 34, 38, 54}),
    "resnet110-A": _first_convs((18, 18, 18), (0.5, 0, 0), {36}),
    "resnet110-B": _first_convs((18, 18, 18), (0.5, 0.4, 0.3), {36, 38, 74}),
    "resnet34-A": _first_convs((3, 4, 6, 3), (0.3, 0.3, 0.3), {2, 8, 14, 16, 26, 28, 30, 32}),
    "resnet34-B": _first_convs((3, 4, 6, 3), (0.5, 0.6, 0.4), {2, 8, 14, 16, 26, 28, 30, 32}),
}


def _group_of(graph: Graph, layer: str | int, preset: str) -> str:
    """Returns the name of the group that a layer of a preset produces, also where a wrapper prefixes it."""
    if isinstance(layer, int):
        convs = [group for group in graph.groups if _is_conv(graph, group)]
        if layer <= len(convs):
            return convs[layer - 1].name
    else:
        for group in graph.groups:
            if group.name == layer or group.name.endswith(f".{layer}"):
                return group.name
    what = f"convolution {layer}" if isinstance(layer, int) else shown(layer)
    raise TopiaristError(
        f"the preset {shown(preset)} prunes {what}, which cannot be pruned here: use it with {_network_of(preset)}"
    )


def _network_of(preset: str) -> str:
    name = preset.partition("-")[0]
    return f"torchvision:{name}" if name == "resnet34" else f"zoo:{name}"


def _is_conv(graph: Graph, group: Group) -> bool:
    return any(len(graph.shapes[part.tensor]) > 2 for part in group.by_role("output"))
