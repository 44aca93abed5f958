"""A latency budget for weights: what each layer costs at each density, and which zeros pay most for their loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from topiarist.graph import Keep

Floats = np.ndarray
"""float64."""
LEVELS = 96
"""Densities that a layer may take, in equal ratios from one to the next."""


@dataclass(frozen=True, eq=False)
class LayerZeros:
    """What one weight tensor costs at each density.

    Attributes:
        group: the group of its weights.
        weights: how many there are.
        densities: fraction of them that is not zero, ascending to 1, ``(n,)``.
        ms: milliseconds there, ``(n,)``.
    """

    group: str
    weights: int
    densities: Floats
    ms: Floats

    def at(self, density: Floats | float) -> Floats:
        """Returns milliseconds; never more than with fewer zeros, for a layer may be computed dense."""
        cheapest = np.minimum.accumulate(self.ms[::-1])[::-1]
        return np.asarray(np.interp(density, self.densities, cheapest))


@dataclass(frozen=True, eq=False)
class ZerosTable:
    """What a network costs by the zeros of its layers: ``latency = factor · (rest + Σ_layers ms(density))``.

    Attributes:
        target: the runtime, with its version.
        machine: the processor.
        threads: that one run uses.
        batch: examples in one run.
        layers: their costs.
        rest: milliseconds of what no zero changes.
        whole: milliseconds of the whole network, without zeros.
        factor: what measurements of pruned networks corrected it by.
    """

    target: str
    machine: str
    threads: int
    batch: int
    layers: Sequence[LayerZeros]
    rest: float
    whole: float
    factor: float = 1.0

    def fraction(self, densities: Mapping[str, float]) -> float:
        """Returns the latency as a fraction of the whole network's.

        Args:
            densities: by group; 1 where none is given.
        """
        layers = sum(float(layer.at(densities.get(layer.group, 1.0))) for layer in self.layers)
        return self.factor * (self.rest + layers) / self.whole

    def of(self, keep: Keep) -> float:
        """Returns the latency that is predicted for a keep, as a fraction of the whole network's."""
        return self.fraction({group: float(kept.double().mean()) for group, kept in keep.items()})

    def corrected(self, predicted: float, measured: float) -> ZerosTable:
        """Returns the table by which what was measured is predicted."""
        return replace(self, factor=self.factor * measured / predicted)


def densities_for(price: float, losses: Mapping[str, Floats], table: ZerosTable) -> dict[str, float]:
    """Returns for each group the density that minimises ``loss + price · ms`` (of the table's layers).

    Args:
        price: of a millisecond.
        losses: by group, what is lost at each of `levels`.
        table: what the layers cost.
    """
    chosen = {}
    for layer in table.layers:
        if layer.group in losses:
            steps = levels(layer.weights)
            chosen[layer.group] = float(steps[np.argmin(losses[layer.group] + price * layer.at(steps))])
    return chosen


def levels(weights: int) -> Floats:
    """Returns the densities that a layer may take: one weight to all, ascending."""
    return np.geomspace(1 / max(1, weights), 1.0, LEVELS)
