"""Guided sparsification: where in its kernels a sparse network keeps its weights (Liu et al. 2019, section 5)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Self

import torch
from torch import Tensor

from topiarist.architecture import Architecture
from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import check_fields, shown
from topiarist.graph import Graph, Group, Keep
from topiarist.guided.pattern import Pattern, groups_of

ONE = "1"
"""The kernel of a linear layer: one weight for each pair of input and output."""

_LEAST = 1e-9
"""Positions that no network kept are filled last."""


@dataclass(frozen=True)
class KernelPattern(Pattern):
    """Holds the probability that each position of a kernel is kept, for each stage and size of kernel.

    Formula: ``p[i, j]`` is the mean of the masks over all kernels of one size (all pairs of input and output channel)
    of all layers of a stage in all architectures. Scaled by ``t``, a new mask keeps a weight at ``(i, j)`` with
    probability ``min(1, t p[i, j])``; one ``t`` for the whole network meets a budget.

    Attributes:
        stages: size of the feature map → size of the kernel, as ``"3x3"``, or ``"1"`` for linear layers → the
            probabilities, row by row, in [0, 1]. Only their ratios matter.

    Raises:
        TopiaristError: there is no stage, a size does not fit its probabilities, or one of these is out of range.

    References:
        Liu, Sun, Zhou, Huang, Darrell. Rethinking the Value of Network Pruning. ICLR 2019.
    """

    kind = "kernels"

    stages: Mapping[str, Mapping[str, tuple[float, ...]]]

    def __post_init__(self) -> None:
        check_fields(self, "the pattern")
        if not self.stages or not all(self.stages.values()):
            raise TopiaristError("a pattern needs at least one stage, and a size of kernel in each: give those")
        for stage, kernels in self.stages.items():
            for size, kept in kernels.items():
                _check(stage, size, kept)

    @classmethod
    def of(cls, *architectures: Architecture) -> Self:
        """Averages what some sparse networks keep.

        Args:
            architectures: of networks from unstructured pruning, for example by magnitude.

        Raises:
            TopiaristError: there is none, or its units are not individual weights.
        """
        kept: dict[tuple[str, str], Tensor] = {}
        count: dict[tuple[str, str], int] = defaultdict(int)
        for architecture, group, keep in groups_of(architectures):
            _check_weights(group)
            shape = architecture.shapes[group.slices[0].tensor]
            kernels = keep.view(-1, _positions(shape, group))
            key = group.stage, _size(shape, group)
            kept[key] = kept.get(key, torch.zeros(kernels.shape[1], dtype=torch.int64)) + kernels.sum(0)
            count[key] += len(kernels)
        stages: dict[str, dict[str, tuple[float, ...]]] = {}
        for (stage, size), total in kept.items():
            stages.setdefault(stage, {})[size] = tuple((total.double() / count[stage, size]).tolist())
        return cls(stages)

    @classmethod
    def uniform(cls, graph: Graph) -> Self:
        """Returns the pattern that prunes all layers and positions alike: what guided sparsification has to beat."""
        stages: dict[str, dict[str, tuple[float, ...]]] = {}
        for group in graph.weights().groups:
            shape = graph.shapes[group.slices[0].tensor]
            stages.setdefault(group.stage, {})[_size(shape, group)] = (1.0,) * _positions(shape, group)
        return cls(stages)

    def on(self, graph: Graph) -> Self:
        """Returns the same pattern for a network on feature maps of other sizes: by their order, first for first.

        Args:
            graph: of the network.

        Raises:
            TopiaristError: the network has more or fewer sizes of maps than the pattern.
        """
        return super().on(graph.weights())

    @property
    def shares(self) -> dict[tuple[str, str], float]:
        """Stage and size of the kernel → fraction of the weights kept, the mean over the positions."""
        kept = {(stage, size): kept for stage, sizes in self.stages.items() for size, kept in sizes.items()}
        return {key: sum(probabilities) / len(probabilities) for key, probabilities in kept.items()}

    def keep(self, graph: Graph, budget: Budget, *, seed: int = 0) -> Keep:
        """Draws a mask in this pattern, of any density, for `topiarist.train.reinitialise` and `fit`.

        In every layer each position keeps as many weights as its probability says, up to one, at random. The masks of
        one seed are nested: a larger budget keeps what a smaller one did.

        Args:
            graph: of any network with these stages; the mask is one of ``graph.weights()``.
            budget: how much is kept; groups that it excludes or gives a ratio need no stage in the pattern.
            seed: of the draw.

        Returns:
            Group name → bool ``(units,)`` of ``graph.weights()``. The budget is never exceeded, and met within one
            weight.

        Raises:
            TopiaristError: the pattern lacks a stage or a size of kernel in it, or the budget cannot be met.
        """
        graph = graph.weights()
        generator = torch.Generator().manual_seed(seed)
        thresholds = {}
        for group in graph.groups:
            shape = graph.shapes[group.slices[0].tensor]
            positions = _positions(shape, group)
            kept = self.stages.get(group.stage, {}).get(_size(shape, group), (1.0,) * positions)
            probability = torch.tensor(kept, dtype=torch.float64).clamp(min=_LEAST)
            thresholds[group.name] = (_drawn(group.units // positions, positions, generator) / probability).flatten()
        return self._grown(graph, budget, thresholds)

    def _lacks(self, graph: Graph, group: Group) -> str:
        size = _size(graph.shapes[group.slices[0].tensor], group)
        return "" if size in self.stages.get(group.stage, {}) else f"kernel {size} on {group.stage!r}"

    def _plain(self) -> dict[str, object]:
        return {stage: {size: list(kept) for size, kept in sizes.items()} for stage, sizes in self.stages.items()}


def _drawn(kernels: int, positions: int, generator: torch.Generator) -> Tensor:
    """Draws ``(kernels, positions)`` numbers uniform in [0, 1), evenly spread in every column: ``(i + v) / kernels``.

    ``i`` is a random order and ``v`` one number a column, so that of each column ``⌊t kernels⌋`` or one more lie below
    ``t``: no layer is denser than another by chance.
    """
    order = torch.rand(kernels, positions, generator=generator, dtype=torch.float64).argsort(0)
    return (order + torch.rand(positions, generator=generator, dtype=torch.float64)) / kernels


def _kernel(shape: Sequence[int], group: Group) -> Sequence[int]:
    """Returns the axes of a weight behind its inputs and outputs; products without a feature map have none."""
    return shape[2:] if group.stage else ()


def _size(shape: Sequence[int], group: Group) -> str:
    return "x".join(map(str, _kernel(shape, group))) or ONE


def _positions(shape: Sequence[int], group: Group) -> int:
    return prod(_kernel(shape, group))


def _check(stage: str, size: str, kept: tuple[float, ...]) -> None:
    """Refuses a size and probabilities that are not what a file or a user may give."""
    if not re.fullmatch(r"\d{1,4}(x\d{1,4}){0,3}", size):
        raise TopiaristError(
            f"the pattern has {shown(size)} on {stage!r} where the size of a kernel belongs: write 3x3"
        )
    if len(kept) != prod(map(int, size.split("x"))):
        raise TopiaristError(
            f"the kernel {size} on {stage!r} needs one probability for each of its positions: give those"
        )
    if not all(0 <= p <= 1 for p in kept) or not any(kept):
        raise TopiaristError(
            f"the kernel {size} on {stage!r} has no valid probabilities: give numbers from 0 to 1, and one above 0"
        )


def _check_weights(group: Group) -> None:
    if group.kind != "weight":
        raise TopiaristError(
            f"the units of {group.name!r} are not individual weights: use the architecture of an unstructured method, "
            "such as magnitude, or a WidthPattern for channels"
        )
