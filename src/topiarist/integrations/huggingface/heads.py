"""Budgets whose shapes a configuration can state: heads are removed whole, and stay as wide as they are."""

from __future__ import annotations

from torch import Tensor

from topiarist.graph import Graph, Group


def whole_heads(graph: Graph) -> dict[str, float]:
    """Returns ratios for a budget under which attention loses whole heads, and none becomes narrower.

    A scale that a configuration derives from the width of a head (``1/√width``) is then the one that the network was
    trained with. A unit within heads is known by its places: alone in each of several heads.

    Args:
        graph: what `topiarist.trace` returned.

    Returns:
        Group name → 1.0, for ``topiarist.Budget(ratio=0.5, ratios=whole_heads(graph))``.
    """
    return {group.name: 1.0 for group in graph.groups if _is_within_heads(group)}


def _is_within_heads(group: Group) -> bool:
    return any(part.role == "output" and part.axis is not None and _scattered(part.positions) for part in group.slices)


def _scattered(positions: Tensor) -> bool:
    """Returns whether units have several positions, no two of which are neighbours."""
    return positions.shape[1] > 1 and bool((positions.sort(dim=1).values.diff(dim=1) > 1).all())
