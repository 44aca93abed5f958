"""Geometric median: prunes the filters that are nearest to all others of their layer (He et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Scores, Slice
from topiarist.measure import Stats
from topiarist.methods.base import Method, filters_of

_COLUMNS = 4096
"""How many weights of each filter are in double precision at a time."""


@dataclass(frozen=True)
class FPGM(Method):
    """Scores a filter by its distance to the others: near the geometric median means replaceable.

    Formula: ``s_j = sum over i of ||F_i - F_j||``, Euclidean, where ``F_j`` joins every weight (of two or more axes)
    that produces unit ``j``: one filter in a plain network, one per block where a residual stream ties them. The filter
    of the smallest sum is nearest to the geometric median, and the others can replace it. Needs the weights alone.
    Returns ``(units,)`` for each group that weights produce, in units of the weights times filters: sums of layers of
    different width do not compare, so it shares a budget out uniformly, as the paper does.

    Cost: no data; ``units^2`` products of filters for each group, ``8 units^2`` bytes and one copy of a weight.
    Use it: where filters have much the same norm or none is small, which norms need to tell them apart. Layers with
    few filters have little to replace; shift and scale of a batch norm behind the filter are not considered.

    Raises:
        TopiaristError: no group is produced by a weight of two or more axes.

    Paper: He, Liu, Wang, Hu, Yang: "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
    Acceleration", CVPR 2019.
    """

    family = "weight similarity"
    formula = r"s_j = \sum_{i} \lVert F_i - F_j \rVert_2"
    paper = (
        "He, Liu, Wang, Hu, Yang: "
        "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration, CVPR 2019"
    )

    def score(self, graph: Graph, stats: Stats) -> Scores:
        """Computes ``s_j = sum over i of ||F_i - F_j||``."""
        scores = {}
        for group in graph.groups:
            if parts := filters_of(graph, group):
                squares = torch.stack([_squared_distances(_filters(part, stats)) for part in parts]).sum(0)
                scores[group.name] = squares.sqrt().sum(1)
        if not scores:
            raise TopiaristError("fpgm found no filters: give it the graph of trace(), with layers that can be pruned")
        return scores


def _filters(part: Slice, stats: Stats) -> Tensor:
    """Returns the filter of each unit in one tensor, ``(units, weights)``."""
    assert part.axis is not None  # an output lies on an axis
    return stats.tensor(part.tensor).movedim(part.axis, 0)[part.positions].flatten(1)


def _squared_distances(filters: Tensor) -> Tensor:
    """Returns ``|F_i|^2 + |F_j|^2 - 2 F_i F_j``, float64 ``(units, units)``; those of joined filters are their sum."""
    products = torch.zeros(len(filters), len(filters), dtype=torch.float64, device=filters.device)
    for columns in filters.split(_COLUMNS, 1):
        centred = columns.double() - columns.mean(0, dtype=torch.float64)  # the same distances, smaller rounding errors
        products += centred @ centred.T
    norms = products.diagonal()
    return (norms[:, None] + norms - products - products.T).clamp(min=0)
