"""Design patterns: what pruned networks have in common, as a plan for new ones of any budget, depth, or data set.

Examples:
    >>> from topiarist import guided
    >>> pattern = guided.of(*[each.architecture for each in pruned])  # doctest: +SKIP
    >>> keep = pattern.keep(graph, topiarist.Budget(params=0.2))  # of any network with these stages # doctest: +SKIP
    >>> model = topiarist.Architecture.of(graph, keep).build(make_model)  # to be trained from scratch # doctest: +SKIP
"""

from __future__ import annotations

import os

from topiarist.architecture import Architecture
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.guided.kernels import ONE, KernelPattern
from topiarist.guided.pattern import Pattern, read
from topiarist.guided.widths import WidthPattern

__all__ = ["ONE", "KernelPattern", "Pattern", "WidthPattern", "load", "of"]


def of(*architectures: Architecture) -> WidthPattern | KernelPattern:
    """Averages pruned networks into a pattern: of kernels where individual weights were pruned, of widths otherwise.

    Raises:
        TopiaristError: there is none, or they are not of one kind.
    """
    known = [each for each in architectures if isinstance(each, Architecture)]
    sparse = any(group.kind == "weight" for architecture in known for group in architecture.groups)
    return KernelPattern.of(*architectures) if sparse else WidthPattern.of(*architectures)


def load(path: str | os.PathLike[str]) -> WidthPattern | KernelPattern:
    """Reads a pattern of either kind.

    Raises:
        TopiaristError: there is no such file, or it is no pattern.
    """
    value = read(path)
    kinds: dict[object, type[WidthPattern | KernelPattern]] = {
        each.kind: each for each in (WidthPattern, KernelPattern)
    }
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in kinds:
        raise TopiaristError(
            f"{path} is a pattern of {shown(kind)}, which this release does not know; upgrade topiarist"
        )
    return kinds.get(kind if isinstance(kind, str) else None, WidthPattern).from_json(value)
