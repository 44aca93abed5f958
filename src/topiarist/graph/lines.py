"""Lines: from labels to units that can be removed in any combination.

A view that splits an axis into rows and columns says ``merged[i, j] = rows[i] or columns[j]``: an entry is dead when
its row or its column is. Unions and lines are solved together:

1. connected components of the unions make classes of labels;
2. to a fixpoint: where all factors of an entry but one are pinned, the entry and that factor are one class; where an
   entry is pinned so are its factors, and the other way round;
3. what remains is closed under union, so its minimal closed sets are the units: a dead factor kills its line, a fully
   dead line explains itself, an unexplained dead entry kills its cheapest line. A closure that would empty an axis or
   reach the pinned class pins its seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from topiarist.graph.closures import Rectangle, Unit, close_all, distinct
from topiarist.graph.labels import LabelAlgebra, Labels, Line, Union, components

Rectangles = Literal["both", "rows", "columns"]


@dataclass(frozen=True, eq=False)
class Classes:
    """Solved labels.

    Attributes:
        of: class of each label.
        pinned: the class of label 0.
        count: number of classes.
        unions: all unions, with those that the lines added.
    """

    of: np.ndarray
    pinned: int
    count: int
    unions: list[Union]


@dataclass(frozen=True, eq=False)
class Units:
    """The units of a network: the closures of lines, and classes that are units by themselves."""

    closed: list[Unit]
    plain: np.ndarray

    def __len__(self) -> int:
        return len(self.closed) + len(self.plain)


class Added(NamedTuple):
    """A union beyond those of the trace: labels that die together, or must be kept with label 0, and why."""

    labels: Labels
    others: Labels
    reason: str


def solve_lines(
    algebra: LabelAlgebra,
    axes: Sequence[Labels],
    rectangles: Rectangles,
    added: Sequence[Added],
    deadline: float,
) -> tuple[Classes, Units]:
    """Finds the units of a traced network.

    Args:
        algebra: its unions and lines.
        axes: the vectors that no unit may empty.
        rectangles: whether units of a rectangle are rows, columns, or both kinds.
        added: further unions.
        deadline: `time.monotonic` by which it must be done.

    Raises:
        TopiaristError: the deadline has passed.
    """
    extra = [(labels, others, algebra.add_origin(reason)) for labels, others, reason in added]
    while True:
        classes = _classes(algebra, extra, rectangles)
        lines = [Rectangle(classes.of[line.merged], [classes.of[f] for f in line.factors]) for line in algebra.lines]
        lines = distinct(lines, classes.pinned)
        units, failed = close_all(lines, classes.pinned, deadline)
        if not failed:
            return classes, Units(units, _plain(classes, lines, axes))
        origin = algebra.add_origin("its removal would empty an axis or reach a pinned one")
        representative = np.zeros(classes.count, dtype=np.int64)
        representative[classes.of] = np.arange(algebra.count)
        seeds = representative[np.array(failed)]
        extra.append((seeds, np.zeros_like(seeds), origin))


def _classes(algebra: LabelAlgebra, extra: list[Union], rectangles: Rectangles) -> Classes:
    """Steps 1 and 2: components of the unions, and of what the lines add to them, to a fixpoint."""
    unions = [*algebra.unions, *extra]
    before = -1
    restricted = rectangles == "both"
    while True:
        ends = [np.concatenate([np.empty(0, np.int64), *(union[end] for union in unions)]) for end in (0, 1)]
        count, of = components(algebra.count, *ends)
        pinned = of == of[0]
        implied = [] if count == before else [u for line in algebra.lines for u in _consequences(line, pinned)]
        if not implied and restricted:
            return Classes(of, int(of[0]), count, unions)
        if not implied:
            implied = [*_restrict(algebra.lines, pinned, rectangles)]
            restricted = True
        unions += implied
        before = count


def _restrict(lines: Sequence[Line], pinned: np.ndarray, rectangles: Rectangles) -> Iterator[Union]:
    """Pins the columns (or rows) of the rectangles that have both."""
    for line in lines:
        live = [f for f in line.factors if not pinned[f].all()]
        for factor in (live[1:] if rectangles == "rows" else live[:-1]) if len(live) > 1 else ():
            yield factor, np.zeros_like(factor), line.origin


def _consequences(line: Line, pinned: np.ndarray) -> Iterator[Union]:
    """Returns the unions that a line implies, given which labels are pinned."""
    merged = line.merged
    axes = [factor.reshape([-1 if q == k else 1 for q in range(merged.ndim)]) for k, factor in enumerate(line.factors)]
    alive = [~pinned[axis] for axis in axes]
    live = sum(np.broadcast_to(part, merged.shape).astype(np.int64) for part in alive)
    dead = pinned[merged]
    never = (live == 0) & ~dead
    if never.any():
        yield merged[never], np.zeros(int(never.sum()), dtype=np.int64), line.origin
    for axis, part in zip(axes, alive, strict=True):
        spread = np.broadcast_to(axis, merged.shape)
        alone = (live == 1) & part
        if alone.any():
            yield merged[alone], spread[alone], line.origin
        stuck = dead & part
        if stuck.any():
            yield spread[stuck], np.zeros(int(stuck.sum()), dtype=np.int64), line.origin


def _plain(classes: Classes, lines: Sequence[Rectangle], axes: Sequence[Labels]) -> np.ndarray:
    """Returns the classes that no line touches: they are units as they are."""
    used = np.zeros(classes.count, dtype=bool)
    for line in lines:
        used[line.classes] = True
    present = np.zeros(classes.count, dtype=bool)
    for axis in axes:
        present[classes.of[axis]] = True
    present[classes.pinned] = False
    return np.flatnonzero(present & ~used)
