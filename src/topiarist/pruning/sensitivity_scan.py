"""Sensitivity: how well a network does when one group of units alone loses some of them (Li et al. 2017, figure 2)."""

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
from topiarist.graph import Graph, Keep, Scores
from topiarist.measure import Evaluation, check_fits, collect, evaluate_batches
from topiarist.methods import Criterion, Method, make
from topiarist.pruning.pipeline import Batches
from topiarist.surgery import copied, masked

RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Fractions kept, as in the paper's figure."""


@dataclass(frozen=True)
class Point:
    """One group cut to one width, all others whole.

    Attributes:
        group: its name.
        stage: size of the feature map that its units are produced on.
        units: how many it has.
        ratio: the fraction to keep.
        kept: how many units that is.
        accuracy: of the network then, in per cent of the held-out examples.
        loss: mean cross entropy then.
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
    """What a scan found.

    Attributes:
        method: name of the method that ranked the units.
        data: name of the data.
        examples: number of held-out training examples that the network was judged by.
        accuracy: of the whole network on them, in per cent.
        loss: of the whole network on them.
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
        """Group name → its points."""
        names = dict.fromkeys(point.group for point in self.points)
        return {name: tuple(point for point in self.points if point.group == name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
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

    The network is judged by training examples that are held out with `Data.split`, and the method measures what it
    needs on the rest; the test examples are never looked at, so that what is chosen by the scan can still be tested
    on them. A network that was trained on the held-out examples as well does better on them than on new ones.

    Args:
        model: a trained classifier; it stays as it is.
        graph: its graph.
        data: labelled images.
        method: what ranks the units within a group; its scores are computed once, and no method repairs here.
        ratios: fractions of the group's units that stay.
        held_out: share of the training examples that the network is judged by.
        batch_size: examples a pass.
        seed: of the split.
        progress: called with what has been found so far, first without points, then after each of them.

    Returns:
        A point for each group that the method scores and each ratio.

    Raises:
        TopiaristError: the method scores no units, a ratio is not a fraction, or the model does not fit the data.
    """
    method = make(method)
    if not isinstance(method, Criterion):
        raise TopiaristError(f"{method.name} gives units no scores to cut a group by: take another method, such as l1")
    widths = sorted({Budget(ratio=ratio).ratio or 0.0 for ratio in ratios}, reverse=True)
    if not widths:
        raise TopiaristError("there is no ratio to scan: give fractions that stay, such as 0.5")
    if not graph.groups:
        raise TopiaristError("nothing in this network can be cut; `topiarist inspect` says what pins each layer")
    check_fits(model, data)
    parts = data.split(held_out, seed)
    rooms = method.units(graph)
    stats = collect(model, rooms, Batches(parts, batch_size, seed), method.needs)
    scores = method.score(rooms, stats)
    if not scores:
        raise TopiaristError(f"{method.name} scores none of these units: take another method, or the graph of trace()")
    judged = partial(_judged, copied(model), rooms, list(parts.batches("test", batch_size)))
    whole = judged(rooms.full())
    found = Sensitivity(method.name, data.name, len(parts.test_y), whole.accuracy, whole.loss)
    found = replace(found, total=sum(group.name in scores for group in rooms.groups) * len(widths))
    if progress is not None:
        progress(found)
    for point in _points(rooms, scores, widths, judged, whole):
        found = replace(found, points=(*found.points, point))
        if progress is not None:
            progress(found)
    return found


def _judged(model: nn.Module, graph: Graph, batches: list[Any], keep: Keep) -> Evaluation:
    with masked(model, graph, keep):
        return evaluate_batches(model, batches)


def _points(
    graph: Graph, scores: Scores, widths: list[float], judged: Callable[[Keep], Evaluation], whole: Evaluation
) -> Iterator[Point]:
    """The points, group after group."""
    for group in graph.groups:
        if group.name not in scores:
            continue
        known = {group.units: whole}
        for ratio in widths:
            keep = allocate(graph, scores, Budget(ratios={glob.escape(group.name): ratio}))
            kept = int(keep[group.name].sum())
            if kept not in known:  # small groups come to the same width by several ratios
                known[kept] = judged(keep)
            accuracy, loss = known[kept]
            yield Point(group.name, group.stage, group.units, ratio, kept, accuracy, loss)
