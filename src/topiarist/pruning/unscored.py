"""Groups that a method does not score: they keep all units, which the user hears of, with methods that score them."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from torch import nn

from topiarist.budget import Budget, UnreachableError
from topiarist.errors import TopiaristError
from topiarist.files import listed
from topiarist.graph import Graph, Keep
from topiarist.measure import Stats, collect
from topiarist.methods import Criterion, Method, make, names

WORTH_SAYING = 0.1
"""How much more than a budget's ratio is kept where it counts a part of the units alone."""


def named(error: UnreachableError, method: Method, graph: Graph, stats: Stats) -> TopiaristError:
    """Returns the error with the groups that the method does not score; as it is where it scores all."""
    if not error.unscored:
        return error
    return TopiaristError(
        f"{error.asked}, but {method.name} gives no score for {listed(error.unscored)}, so that at least "
        f"{error.least:g} is kept: {_advice(error.unscored, method, graph, stats)}ask for that"
    )


def warn_of_unscored(method: Method, budget: Budget | None, graph: Graph, keep: Keep, model: nn.Module) -> None:
    """Warns where more than a budget's ratio is kept, since it counts only groups that the method scores."""
    if budget is None or budget.ratio is None:
        return
    apart = {*budget.own_ratios(graph), *(name for name, units in budget.excluded(graph).items() if units.all())}
    counted = {group.name: keep[group.name] for group in graph.groups if group.name not in apart}
    whole = [name for name, kept in counted.items() if kept.all()]
    share = sum(int(kept.sum()) for kept in counted.values()) / max(sum(map(len, counted.values())), 1)
    if whole and share > budget.ratio + WORTH_SAYING:
        advice = _advice(whole, method, graph, collect(model, graph))
        warnings.warn(
            f"{method.name} prunes nothing in {listed(whole)}, which the ratio of {budget.ratio:g} does not count, so "
            f"that {share:.1%} of all units are kept: {advice}name them in exclude",
            stacklevel=5,
        )


def _advice(groups: Collection[str], method: Method, graph: Graph, stats: Stats) -> str:
    """Returns ``"use A, B or C, or "``, of the methods that score these groups by weights alone."""
    found = [name for name in names() if _scores(make(name), groups, method, graph, stats)]
    return f"use {' or '.join(filter(None, [', '.join(found[:-1]), found[-1]]))}, or " if found else ""


def _scores(other: Method, groups: Collection[str], method: Method, graph: Graph, stats: Stats) -> bool:
    """Returns whether another method of the same granularity scores these groups by weights alone."""
    if other.name == method.name or other.granularity != method.granularity or not other.needs <= {"weights"}:
        return False
    try:
        return isinstance(other, Criterion) and set(groups) <= set(other.score(graph, stats))
    except TopiaristError:
        return False
