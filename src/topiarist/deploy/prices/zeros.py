"""What layers cost by their zeros: the network's own kernels, timed while it runs, at several densities."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import nn

from topiarist import sparse
from topiarist.budget import LayerZeros, ZerosTable
from topiarist.deploy.prices.table import fastest, machine
from topiarist.deploy.target import Target
from topiarist.graph import Graph, Inputs, arguments_of, tensors_in
from topiarist.measure import OnStep
from topiarist.surgery import copied

DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""At which layers are measured."""


def zeros_table(
    model: nn.Module, graph: Graph, inputs: Inputs, target: Target, on_step: OnStep | None = None
) -> ZerosTable:
    """Returns what each weight tensor costs at each density, measured in the whole network.

    Args:
        model: the network, in eval mode.
        graph: the units that are pruned: weights.
        inputs: of the batch that counts.
        target: the runtime with its threads, one that zeros make faster.
        on_step: called with what is done, how many densities are measured, and of how many.

    Raises:
        TopiaristError: the runtime is missing, or does not take the network.
    """
    whole = fastest(target.prepare(model, inputs), inputs, seconds=1.0)
    args, kwargs = arguments_of(inputs)
    found: list[dict[str, float]] = []
    for done, density in enumerate(DENSITIES):
        if on_step is not None:
            on_step("latencies at densities", done, len(DENSITIES))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # all densities are priced by kernels, also where torch is faster
            compiled = sparse.compile(_pruned(model, graph, density), inputs, target.threads, always=True)
            found.append(compiled.seconds(*args, **kwargs))
    layers = [
        LayerZeros(
            group.name,
            group.units,
            np.array(DENSITIES),
            np.array([1000 * each.get(group.slices[0].tensor.rpartition(".")[0], 0.0) for each in found]),
        )
        for group in graph.groups
    ]
    priced = sum(float(layer.ms[0]) for layer in layers)
    return ZerosTable(
        f"{target.name} {target.version}",
        machine(),
        target.threads,
        next((t.shape[0] for t in tensors_in(inputs) if t.ndim), 1),
        [layer for layer in layers if layer.ms.any()],
        1000 * sum(found[0].values()) - priced,
        1000 * whole,
    )


def _pruned(model: nn.Module, graph: Graph, density: float) -> nn.Module:
    """Returns a copy whose weights keep the largest of each tensor, so many of them."""
    made = copied(model).eval()
    tensors = dict(made.named_parameters())
    for group in graph.groups:
        weight = tensors[group.slices[0].tensor].detach()
        kept = max(1, round(density * weight.numel()))
        least = weight.abs().flatten().kthvalue(weight.numel() - kept + 1).values
        with torch.no_grad():
            weight[weight.abs() < least] = 0
    return made
