"""Guided pruning: the widths of pruned networks, stage by stage, as a plan for others (Liu et al. 2019, section 5)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch

from topiarist.architecture import Architecture
from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import check_fields, shown
from topiarist.graph import Graph, Group, Keep
from topiarist.guided.pattern import Pattern, groups_of


@dataclass(frozen=True)
class WidthPattern(Pattern):
    """Holds the fraction of units that is kept in each stage.

    Formula: ``f_s = Σ kept / Σ units`` over the groups of stage ``s`` in all architectures. Scaled by ``t``, a group
    of ``n`` units in stage ``s`` has ``max(1, ⌊min(1, t f_s) n + ½⌋)``; one ``t`` for the whole network meets a budget.

    Attributes:
        stages: size of the feature map, as ``"14x14"`` → fraction kept, in (0, 1]. Only their ratios matter.

    Raises:
        TopiaristError: there is no stage, or a fraction is out of range.

    References:
        Liu, Sun, Zhou, Huang, Darrell. Rethinking the Value of Network Pruning. ICLR 2019.
    """

    kind = "widths"

    stages: Mapping[str, float]

    def __post_init__(self) -> None:
        check_fields(self, "the pattern")
        if not self.stages:
            raise TopiaristError("a pattern needs at least one stage: give sizes of feature maps and fractions kept")
        for stage, kept in self.stages.items():
            if not 0 < kept <= 1:
                raise TopiaristError(
                    f"the pattern keeps {shown(kept)} of the stage {shown(stage)}: give a fraction above 0 and at "
                    "most 1"
                )

    @classmethod
    def of(cls, *architectures: Architecture) -> Self:
        """Averages what some pruned networks keep.

        Args:
            architectures: of networks from structured pruning, for example by network slimming.

        Raises:
            TopiaristError: there is none, or its units are individual weights or blocks.
        """
        kept: dict[str, int] = defaultdict(int)
        units: dict[str, int] = defaultdict(int)
        for _, group, keep in groups_of(architectures):
            _check(group)
            kept[group.stage] += int(keep.sum())
            units[group.stage] += group.units
        return cls({stage: kept[stage] / units[stage] for stage in units})

    @classmethod
    def uniform(cls, graph: Graph) -> Self:
        """Returns the pattern that prunes every layer alike: what guided pruning has to beat."""
        return cls(dict.fromkeys(graph.stages, 1.0))

    @property
    def shares(self) -> dict[tuple[str], float]:
        """Stage → fraction of the units kept, in the form of `KernelPattern.shares`."""
        return {(stage,): kept for stage, kept in self.stages.items()}

    def keep(self, graph: Graph, budget: Budget) -> Keep:
        """Returns a keep of any budget in this pattern, for `Architecture.of` and its `build`.

        The pattern is scaled by one factor; stages that reach their full width are not scaled further. Which units of a
        group are kept makes no difference to a network that is trained from scratch: it is the first ones.

        Args:
            graph: what `topiarist.trace` returns for any network with these stages.
            budget: how much is kept; groups that it excludes or gives a ratio need no stage in the pattern.

        Returns:
            Group name → bool ``(units,)``. The budget is never exceeded; the next step of the growth would exceed it.

        Raises:
            TopiaristError: the pattern lacks a stage, the budget cannot be met, or the units are no channels.
        """
        for group in graph.groups:
            _check(group)
        widths = {g.name: (torch.arange(g.units, dtype=torch.float64) + 0.5) / g.units for g in graph.groups}
        thresholds = {g.name: widths[g.name] / self.stages.get(g.stage, 1.0) for g in graph.groups}
        return self._grown(graph, budget, thresholds)

    def _lacks(self, graph: Graph, group: Group) -> str:
        return "" if group.stage in self.stages else f"stage {group.stage!r}"

    def _plain(self) -> dict[str, object]:
        return dict(self.stages)


def _check(group: Group) -> None:
    if group.kind != "structure":
        raise TopiaristError(
            f"the units of {group.name!r} are not channels, neurons or heads: use the graph or the architecture of a "
            "structured method, or a KernelPattern for individual weights"
        )
