"""What one unit costs, for methods that weigh it against what the unit does."""

from __future__ import annotations

import torch

from topiarist.budget import cost
from topiarist.graph import Graph, Group


def macs_of_one_unit(graph: Graph, group: Group) -> int:
    """Returns the MACs that the network saves without one unit of the group; its units cost the same."""
    keep = torch.ones(group.units, dtype=torch.bool)
    keep[0] = False
    return cost(graph).macs - cost(graph, {group.name: keep}).macs
