"""What a method keeps: by its own selection, by its own rule, or by its scores and a budget."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from topiarist.budget import Allocation, Budget, Cost, allocate
from topiarist.errors import TopiaristError
from topiarist.files import listed, shown
from topiarist.graph import Graph, Keep, Scores
from topiarist.measure import Stats
from topiarist.methods import Criterion, Method, Rule, Selector


@dataclass(frozen=True, eq=False)
class Choice:
    """Holds what a method keeps, and why.

    Attributes:
        keep: group name → bool ``(units,)``.
        scores: group name → ``(units,)``, high = keep; empty where the method selects without scores.
    """

    keep: Keep
    scores: Scores


def choose(
    method: Method,
    graph: Graph,
    stats: Stats,
    budget: Budget | Callable[[Collection[str]], Budget] | None = None,
    *,
    cost: Callable[[Keep], Cost] | None = None,
) -> Keep:
    """Returns what a method keeps: the keep of `make_choice`, whose arguments these are."""
    return make_choice(method, graph, stats, budget, cost=cost).keep


def make_choice(
    method: Method,
    graph: Graph,
    stats: Stats,
    budget: Budget | Callable[[Collection[str]], Budget] | None = None,
    *,
    cost: Callable[[Keep], Cost] | None = None,
) -> Choice:
    """Chooses what a method keeps: by its own selection, its own rule, or its scores and a budget.

    Args:
        method: plays `Selector` or `Criterion`, and perhaps `Rule`.
        graph: the groups that it works on (``graph.weights()`` for methods of granularity ``"weight"``).
        stats: what it needs measured.
        budget: how much is kept, or a function from the names of the groups that take part to that; ``None``, or one
            that only excludes, where the method brings its own rule.
        cost: as in `allocate`.

    Raises:
        TopiaristError: there is no budget, there are two, or `allocate` refuses it.
    """
    rule = method.budget(graph) if isinstance(method, Rule) else None
    if rule is not None and isinstance(budget, Budget) and budget.only_excludes:
        rule, budget = replace(rule, exclude=budget.exclude), None
    if rule is not None and budget is not None:
        raise TopiaristError(f"{method.name} brings a budget of its own with these fields; leave out one of the two")
    budget = budget if rule is None else rule
    if isinstance(method, Selector):
        asked = budget([group.name for group in graph.groups]) if callable(budget) else budget
        own = asked is not None and asked.only_excludes
        keep = method.select(graph, stats, None if own else asked)
        if keep is not None:
            whole = {} if asked is None else asked.excluded(graph)
            return Choice({name: kept | whole[name] if name in whole else kept for name, kept in keep.items()}, {})
    if not isinstance(method, Criterion):
        raise TopiaristError(f"{method.name} neither scores units nor selects them: choose a method that does")
    if budget is None:
        raise TopiaristError(f"{method.name} needs a budget: give macs, params or ratio, the fraction that is kept")
    scores = method.score(graph, stats)
    amount = budget(scores) if callable(budget) else budget
    return Choice(allocate(graph, scores, amount, method.allocation, cost=cost), scores)


def warn_of_single_units(graph: Graph, keep: Keep, allocation: Allocation) -> None:
    """Warns where a ranking of all units together keeps one unit of a layer, through which everything must pass."""
    if allocation != "global" or graph.kind != "structure":
        return
    thin = [group.name for group in graph.groups if group.units > 2 and int(keep[group.name].sum()) == 1]
    if thin:
        warnings.warn(
            f"the global ranking keeps one unit of {listed([*map(shown, thin)])}, through which everything "
            "must pass: give the budget floor=0.1, or allocation='uniform'",
            stacklevel=4,
        )
