"""Latency as a closed form of a keep: a table of what each layer costs at each width, as measured on one machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from topiarist.graph import Graph, Keep

Floats = NDArray[np.float64]

Shares = Mapping[str, "float | Floats"]
"""Group name → fraction kept of its units; several at once where it is an array. A missing group is whole."""


@dataclass(frozen=True)
class Axis:
    """The positions along one side of a layer, and the groups whose units lie there.

    Attributes:
        parts: (number of positions, the groups that lie on each of them); a position where several groups lie, such as
            a row of heads and a column of their widths, is kept where all of them keep it.
        step: positions of one unit, where one group alone lies there; else 1.
    """

    parts: tuple[tuple[int, tuple[str, ...]], ...]
    step: int = 1

    @property
    def size(self) -> int:
        """Returns how many positions there are."""
        return sum(positions for positions, _ in self.parts)

    @property
    def groups(self) -> frozenset[str]:
        """Returns the groups that can make it shorter."""
        return frozenset(name for _, names in self.parts for name in names)

    def width(self, shares: Shares) -> float | Floats:
        """Returns how many positions are kept: ``Σ_parts positions · Π_groups share``."""
        return sum(positions * prod(shares.get(name, 1.0) for name in names) for positions, names in self.parts)


@dataclass(frozen=True, eq=False)
class LayerLatency:
    """What one layer costs at each width.

    Attributes:
        layer: its name.
        inputs: the axis that it reads.
        outputs: the axis that it produces.
        grid: widths of inputs, and widths of outputs, at which it was measured, ascending.
        milliseconds: ``(inputs, outputs)`` for one run of the layer alone.
        positions: outputs that one channel holds, times the batch: what elementwise work behind the layer scales with.
        macs: multiply-accumulates of the whole layer in one run.
    """

    layer: str
    inputs: Axis
    outputs: Axis
    grid: tuple[Floats, Floats]
    milliseconds: Floats
    positions: float
    macs: float

    @property
    def groups(self) -> frozenset[str]:
        """Returns the groups whose widths change its cost."""
        return self.inputs.groups | self.outputs.groups

    def at(self, shares: Shares) -> float | Floats:
        """Returns the milliseconds at these widths, interpolated linearly between those that were measured."""
        reads, makes = (_place(axis.width(shares), on) for axis, on in zip(self._axes, self.grid, strict=True))
        ms, (i, p), (o, q) = self.milliseconds, reads, makes
        lower = ms[i, o] * (1 - q) + ms[i, o + 1] * q if ms.shape[1] > 1 else ms[i, o]
        if ms.shape[0] == 1:
            return lower
        upper = ms[i + 1, o] * (1 - q) + ms[i + 1, o + 1] * q if ms.shape[1] > 1 else ms[i + 1, o]
        return lower * (1 - p) + upper * p

    def along_outputs(self, reads: float) -> Floats:
        """Returns the milliseconds at each width of outputs of the grid, with so many inputs."""
        return np.array([np.interp(reads, self.grid[0], column) for column in self.milliseconds.T])

    @property
    def _axes(self) -> tuple[Axis, Axis]:
        return self.inputs, self.outputs


def _place(width: float | Floats, grid: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Returns the interval of the grid that a width lies in, and how far along; outside the grid its end."""
    if len(grid) == 1:
        return np.zeros_like(np.asarray(width), dtype=np.int64), np.zeros_like(np.asarray(width, dtype=np.float64))
    clipped = np.clip(width, grid[0], grid[-1])
    at = np.clip(np.searchsorted(grid, clipped, side="right") - 1, 0, len(grid) - 2)
    return at, (clipped - grid[at]) / (grid[at + 1] - grid[at])


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """What a network costs on one machine and runtime: its layers, and all else.

    ``latency(keep) = call + scale · Σ_layers (ms(inputs, outputs) + rest · positions · outputs)``: what a run costs
    before anything is computed, the measured layers without that, and elementwise work (activations, additions, norms
    that are not folded) in proportion to what the layers put out.

    Attributes:
        target: the runtime, with its version.
        machine: the processor.
        threads: that one run uses.
        batch: examples in one run.
        layers: in the order of execution.
        whole: milliseconds of the whole network, as measured.
        rest: milliseconds of all else for one output.
        scale: what corrects the sum, so that the whole network's is what was measured.
        call: milliseconds of a run that computes next to nothing.
        correction: what a measurement of a pruned network near the budget corrects the fraction by.
    """

    target: str
    machine: str
    threads: int
    batch: int
    layers: tuple[LayerLatency, ...]
    whole: float
    rest: float = 0.0
    scale: float = 1.0
    call: float = 0.0
    correction: float = 1.0

    @staticmethod
    def fitted(table: LatencyTable) -> LatencyTable:
        """Returns the table with ``rest`` and ``scale``, so that the whole network's sum is what was measured."""
        alone = float(sum(layer.at({}) for layer in table.layers))
        outputs = sum(layer.positions * layer.outputs.size for layer in table.layers)
        computed = max(table.whole - table.call, 0.0)
        if alone < computed and outputs:
            return replace(table, rest=(computed - alone) / outputs, scale=1.0)
        return replace(table, rest=0.0, scale=computed / alone if alone else 1.0)

    def layer(self, layer: LayerLatency, shares: Shares) -> float | Floats:
        """Returns the milliseconds of one layer, and of the elementwise work behind it."""
        return self.scale * (layer.at(shares) + self.rest * layer.positions * layer.outputs.width(shares))

    def milliseconds(self, shares: Shares) -> float:
        """Returns the latency at these widths."""
        return self.call + float(sum(self.layer(layer, shares) for layer in self.layers))

    def fraction(self, shares: Shares) -> float:
        """Returns the latency at these widths as a fraction of the whole network's."""
        return self.correction * self.milliseconds(shares) / max(self.whole, 1e-12)

    def of(self, keep: Keep) -> float:
        """Returns the fraction of a keep."""
        return self.fraction({name: float(kept.double().mean()) for name, kept in keep.items()})

    def corrected(self, predicted: float, measured: float) -> LatencyTable:
        """Returns the table that predicts what was measured where it predicted something else."""
        return replace(self, correction=self.correction * measured / predicted)


def axis_of(graph: Graph, labels: NDArray[np.int64] | int, places: Mapping[str, NDArray[np.bool_]]) -> Axis:
    """Returns an axis with the groups on it.

    Args:
        graph: the network's groups.
        labels: of its positions; a number where none of them can be removed.
        places: group name → bool over the graph's classes, where its units lie.
    """
    if isinstance(labels, int):
        return Axis(((labels, ()),))
    classes = graph.solution.classes.of[labels]
    on = {name: mask[classes] for name, mask in places.items() if mask[classes].any()}
    if not on:
        return Axis(((len(labels), ()),))
    covered, counts = np.unique(np.stack(list(on.values())), axis=1, return_counts=True)
    parts = tuple(
        (int(count), tuple(name for name, lies in zip(on, column, strict=True) if lies))
        for column, count in zip(covered.T, counts, strict=True)
    )
    alone = len(parts) == 1 and len(parts[0][1]) == 1
    return Axis(parts, max(1, len(labels) // graph[parts[0][1][0]].units) if alone else 1)


def places_of(graph: Graph) -> dict[str, NDArray[np.bool_]]:
    """Returns where the units of each group lie: group name → bool over the graph's classes."""
    return {
        group.name: graph.dead({group.name: ~keep}) for group in graph.groups for keep in [graph.full()[group.name]]
    }
