"""What a network costs: parameters and MACs as a closed form of a keep, latency as measured."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from topiarist.graph import Graph, Keep, removed_blocks


@dataclass(frozen=True)
class Cost:
    """Holds MACs (multiply-accumulates of convolutions, products and attention, for one example) and parameters."""

    macs: int
    params: int


def cost(graph: Graph, keep: Keep | None = None) -> Cost:
    """Computes MACs and parameters of a keep, without running the network.

    A product of tensors costs as many MACs as the product of its kept lengths, summed over all products:
    ``MACs = Σ_products Π_axes kept(axis)``, and ``params = Σ_tensors Π_axes kept(axis)``. Where individual
    weights are removed, both count nonzero weights only. What lies in a removed block counts nothing.

    Args:
        graph: of the network.
        keep: group name → bool ``(units,)``; None or a missing group keeps everything.

    Returns:
        The cost for one example (the batch of the example input is divided out).
    """
    keep = keep or {}
    record = graph.solution.record
    dead = graph.dead(keep)
    removed = removed_blocks(graph.groups, keep)
    lengths: dict[int, int] = {}

    def kept(axis: int | np.ndarray) -> int:
        if isinstance(axis, int):
            return axis
        if id(axis) not in lengths:
            lengths[id(axis)] = int(len(axis) - dead[graph.solution.classes.of[axis]].sum())
        return lengths[id(axis)]

    density = {
        group.slices[0].tensor: int(keep[group.name].count_nonzero()) / prod(graph.shapes[group.slices[0].tensor])
        for group in graph.groups
        if group.name in keep and group.kind == "weight"
    }

    def is_removed(name: str) -> bool:
        return any(block.holds(name) for block in removed)

    macs = sum(
        prod(kept(f) for f in c.factors) * density.get(c.weight or "", 1.0)
        for c in record.contractions
        if not is_removed(c.module)
    )
    axes = {(name, axis): labels for name, axis, labels in record.sources}
    params = sum(
        prod(kept(axes.get((name, k), n)) for k, n in enumerate(graph.shapes[name])) * density.get(name, 1.0)
        for name in graph.parameters
        if not is_removed(name)
    )
    return Cost(round(macs / record.batch), round(params))
