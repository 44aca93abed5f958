"""Sensitivity: how accurate a network is when units of one group alone are pruned (Li et al. 2017, figure 2)."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from topiarist.budget import Budget, allocate
from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Keep, Scores, hindrance, unwrapped
from topiarist.measure import Evaluation, check_fits, collect, evaluate_batches
from topiarist.methods import Criterion, Method, make
from topiarist.pruning.examples import Batches
from topiarist.surgery import copied, masked

RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Fractions kept, as in the paper's figure."""


@dataclass(frozen=True)
class Point:
    """Says how accurate the network is with one group cut to one width, and all others unpruned.

    Attributes:
        group: its name.
        stage: size of the feature map that its units are produced on.
        units: how many it has.
        ratio: the fraction to keep.
        kept: how many units that is.
        accuracy: of that network, in per cent of the held-out examples.
        loss: its mean cross entropy.
    """

    group: str
    stage: str
    units: int
    ratio: float
    kept: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Sensitivity:
    """Holds the result of a scan.

    Attributes:
        method: name of the method that ranked the units.
        data: name of the data.
        examples: number of held-out training examples that the network was evaluated on.
        accuracy: of the unpruned network on them, in per cent.
        loss: of the unpruned network on them.
        points: group after group in the order of execution, the largest width first.
        total: how many points there are when the scan is done.
    """

    method: str
    data: str
    examples: int
    accuracy: float
    loss: float
    points: tuple[Point, ...] = ()
    total: int = 0

    @property
    def groups(self) -> dict[str, tuple[Point, ...]]:
        """Returns group name → its points."""
        names = dict.fromkeys(point.group for point in self.points)
        return {name: tuple(point for point in self.points if point.group == name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for `json`."""
        return asdict(self)


def sensitivity(
    model: nn.Module,
    graph: Graph,
    data: Data,
    method: str | Method = "l1",
    ratios: Iterable[float] = RATIOS,
    *,
    held_out: float = 0.1,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[Sensitivity], object] | None = None,
) -> Sensitivity:
    """Cuts each group alone to several widths, and measures accuracy and loss without any training.

    The network is evaluated on training examples that are held out with `Data.split`, and the method measures what it
    needs on the rest; the test examples are never used, so that what is chosen by the scan can still be tested on
    them. A network that was trained on the held-out examples as well is more accurate on them than on new ones.

    Args:
        model: a trained classifier; it is not changed.
        graph: its graph.
        data: labelled images.
        method: what ranks the units within a group; its scores are computed once, and no method repairs here.
        ratios: fractions of the group's units that are kept.
        held_out: share of the training examples that the network is evaluated on.
        batch_size: examples a pass.
        seed: of the split.
        progress: called with the result so far, first without points, then after each of them.

    Returns:
        A point for each group that the method scores and each ratio.

    Raises:
        TopiaristError: the method scores no units, a ratio is not a fraction, the data are no `Data`, or the model does
            not fit them.
    """
    method = make(method)
    if not isinstance(method, Criterion):
        raise TopiaristError(f"{method.name} gives units no scores: use a method that does, such as l1")
    widths = sorted({Budget(ratio=ratio).ratio or 0.0 for ratio in ratios}, reverse=True)
    if not widths:
        raise TopiaristError("there is no ratio to scan: give fractions that are kept, such as 0.5")
    if not graph.groups:
        raise TopiaristError(hindrance(graph))
    if not isinstance(data, Data):
        raise TopiaristError(
            f"a scan holds out labelled examples, but data is a {type(data).__name__}: make a topiarist.Data, by "
            "Data.of or load_data"
        )
    model = unwrapped(model)
    check_fits(model, data)
    parts = data.split(held_out, seed)
    units = method.units(graph)
    stats = collect(model, units, Batches(parts, batch_size, seed), method.needs)
    scores = method.score(units, stats)
    if not scores:
        raise TopiaristError(f"{method.name} scores none of these units: use another method, or the graph of trace()")
    evaluate = partial(_evaluate, copied(model), units, list(parts.batches("test", batch_size)))
    unpruned = evaluate(units.full())
    total = sum(group.name in scores for group in units.groups) * len(widths)
    result = Sensitivity(method.name, data.name, len(parts.test_y), unpruned.accuracy, unpruned.loss, total=total)
    if progress is not None:
        progress(result)
    for point in _points(units, scores, widths, evaluate, unpruned):
        result = replace(result, points=(*result.points, point))
        if progress is not None:
            progress(result)
    return result


def _evaluate(model: nn.Module, graph: Graph, batches: list[Any], keep: Keep) -> Evaluation:
    with masked(model, graph, keep):
        return evaluate_batches(model, batches)


def _points(
    graph: Graph, scores: Scores, ratios: list[float], evaluate: Callable[[Keep], Evaluation], unpruned: Evaluation
) -> Iterator[Point]:
    """Yields the points, group after group."""
    for group in graph.groups:
        if group.name not in scores:
            continue
        known = {group.units: unpruned}
        for ratio in ratios:
            keep = allocate(graph, scores, Budget(ratios={glob.escape(group.name): ratio}))
            kept = int(keep[group.name].sum())
            if kept not in known:  # several ratios give a small group the same width
                known[kept] = evaluate(keep)
            yield Point(group.name, group.stage, group.units, ratio, kept, *known[kept])
