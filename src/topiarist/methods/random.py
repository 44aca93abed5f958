"""Random pruning, the control: scores are random numbers."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch

from topiarist.graph import Graph, Scores
from topiarist.measure import Stats
from topiarist.methods.base import Method


@dataclass(frozen=True)
class Random(Method):
    """Scores every unit at random: the control that any other method has to beat.

    Formula: ``s_j ~ U(0, 1)``, drawn for each group from its name and the seed, so that a group's scores do not depend
    on which other groups there are. Needs nothing; works for structured and unstructured pruning. Returns ``(units,)``
    for each group, without unit. Raises nothing.

    Paper: Mittal, Bhardwaj, Khapra, Ravindran: "Recovering from Random Pruning", WACV 2018.

    Attributes:
        seed: another seed draws other scores.
    """

    family = "controls"
    needs = frozenset()
    formula = r"s_j \sim U(0, 1)"
    paper = "Mittal, Bhardwaj, Khapra, Ravindran: Recovering from Random Pruning, WACV 2018"

    seed: int = 0

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Draws ``s_j ~ U(0, 1)``."""
        return {group.name: torch.rand(group.units, generator=self._chance(group.name)) for group in graph.groups}

    def _chance(self, group: str) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed}:{group}".encode()))
