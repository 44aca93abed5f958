"""What a network costs: MACs, parameters and the memory of activations, as a closed form of a keep."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from topiarist.graph import Graph, Keep, removed_blocks


@dataclass(frozen=True)
class Cost:
    """Holds what a network costs, for one example.

    Attributes:
        macs: multiply-accumulates of convolutions, products and attention.
        params: parameters.
        memory: bytes of activations at the peak of a forward pass, in eval mode and without gradients.
    """

    macs: int
    params: int
    memory: int = 0


def cost(graph: Graph, keep: Keep | None = None) -> Cost:
    """Computes MACs, parameters and peak activation memory of a keep, without running the network.

    A product of tensors costs as many MACs as the product of its kept lengths, summed over all products:
    ``MACs = Σ_products Π_axes kept(axis)``, and ``params = Σ_tensors Π_axes kept(axis)``. Where individual
    weights are removed, both count nonzero weights only. What lies in a removed block counts nothing.

    Memory is the most that is held at once: ``memory = max_t Σ_storages held at t bytes · Π_axes kept(axis) / length``.
    A storage is held from the operator that allocates it until nothing refers to it, as eager torch counts references;
    views share one, and operators that work in place make none. Parameters, buffers and the network's inputs are held
    by whoever called it, and are not counted, nor is what a kernel needs while it runs. The tensors of individual
    weights and removed blocks keep their size, since zeros stand in their place. `nn.MultiheadAttention` counts as
    what it is in a pruned network. Operators are those that were traced; where one head or one position of an axis is
    left, torch may choose others.

    Args:
        graph: of the network.
        keep: group name → bool ``(units,)``; None or a missing group keeps everything.

    Returns:
        The cost for one example (the batch of the example input is divided out). MACs and memory grow with the batch,
        but for tables and masks that do not depend on it.
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
    memory = graph.solution.timeline.peak(dead)
    return Cost(round(macs / record.batch), round(params), round(memory / record.batch))
