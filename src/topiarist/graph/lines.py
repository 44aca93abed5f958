"""Lines: from labels to units that can be removed in any combination.

A view that splits an axis into rows and columns says ``whole[i, j] = rows[i] or columns[j]``: an entry is dead when its
row or its column is. Unions and lines are solved together:

1. connected components of the unions make classes of labels;
2. to a fixpoint: where all factors of an entry but one are pinned, the entry and that factor are one class; where an
   entry is pinned so are its factors, and the other way round;
3. what is left is closed under union, so its minimal closed sets are the units: a dead factor kills its line, a fully
   dead line explains itself, an unexplained dead entry kills its cheapest line. A closure that would empty an axis or
   reach the pinned class pins its seed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from topiarist.errors import TopiaristError
from topiarist.graph.labels import LabelAlgebra, Labels, Line, Origin

Rectangles = Literal["both", "rows", "columns"]


@dataclass(frozen=True, eq=False)
class Unit:
    """Classes of labels that go together.

    Attributes:
        classes: ascending.
        roles: the lines that they are factors of, as (line, place): units of one group agree in them.
        column: the seed was not the outermost live factor of its line: a column rather than a row.
    """

    classes: np.ndarray
    roles: tuple[tuple[int, int], ...] = ()
    column: bool = False


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
    unions: list[tuple[Labels, Labels, int]]


def solve_lines(
    algebra: LabelAlgebra, axes: Sequence[Labels], rectangles: Rectangles, deadline: float
) -> tuple[Classes, list[Unit]]:
    """Finds the units of a traced network.

    Args:
        algebra: its unions and lines.
        axes: the vectors that no unit may empty.
        rectangles: whether units of a rectangle are whole rows, whole columns, or both kinds.
        deadline: `time.monotonic` by which it must be done.

    Raises:
        TopiaristError: the deadline has passed.
    """
    extra: list[tuple[Labels, Labels, int]] = []
    while True:
        classes = _classes(algebra, extra, rectangles)
        lines = [_Rectangle(classes.of[line.whole], [classes.of[f] for f in line.factors]) for line in algebra.lines]
        closures = _Closures(_distinct(lines, classes.pinned), classes, deadline)
        units, failed = closures.units()
        if not failed:
            return classes, units + _plain(classes, closures.used, axes)
        algebra.origins.append(Origin("its removal would empty a whole axis or reach a pinned one", "", ""))
        representative = np.zeros(classes.count, dtype=np.int64)
        representative[classes.of] = np.arange(algebra.count)
        seeds = representative[np.array(failed)]
        extra.append((seeds, np.zeros_like(seeds), algebra.origin))


def _components(count: int, unions: Sequence[tuple[Labels, Labels, int]]) -> tuple[int, np.ndarray]:
    if not unions:
        return count, np.arange(count)
    a = np.concatenate([u[0] for u in unions])
    b = np.concatenate([u[1] for u in unions])
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    found, of = connected_components(graph, directed=False)
    return int(found), of.astype(np.int64)


def _classes(algebra: LabelAlgebra, extra: list[tuple[Labels, Labels, int]], rectangles: Rectangles) -> Classes:
    """Steps 1 and 2: components of the unions, and of what the lines add to them, to a fixpoint."""
    unions = [*algebra.unions, *extra]
    before = -1
    restricted = rectangles == "both"
    while True:
        count, of = _components(algebra.count, unions)
        if count == before:
            if restricted:
                return Classes(of, int(of[0]), count, unions)
            unions += _restrict(algebra.lines, of == of[0], rectangles)
            restricted = True
        before = count
        pinned = of == of[0]
        for line in algebra.lines:
            unions += _consequences(line, pinned)


def _restrict(lines: Sequence[Line], pinned: np.ndarray, rectangles: Rectangles) -> Iterator[tuple[Labels, Labels, int]]:
    """Pins the columns (or rows) of the rectangles that have both."""
    for line in lines:
        live = [f for f in line.factors if not pinned[f].all()]
        for factor in (live[1:] if rectangles == "rows" else live[:-1]) if len(live) > 1 else ():
            yield factor, np.zeros_like(factor), line.origin


def _consequences(line: Line, pinned: np.ndarray) -> Iterator[tuple[Labels, Labels, int]]:
    """The unions that a line implies, given which labels are pinned."""
    whole = line.whole
    axes = [factor.reshape([-1 if q == k else 1 for q in range(whole.ndim)]) for k, factor in enumerate(line.factors)]
    alive = [~pinned[axis] for axis in axes]
    live = np.zeros(whole.shape, dtype=np.int64)
    for part in alive:
        live = live + part
    gone = pinned[whole]
    never = (live == 0) & ~gone
    if never.any():
        yield whole[never], np.zeros(int(never.sum()), dtype=np.int64), line.origin
    for axis, part in zip(axes, alive, strict=True):
        spread = np.broadcast_to(axis, whole.shape)
        alone = (live == 1) & part
        if alone.any():
            yield whole[alone], spread[alone], line.origin
        stuck = gone & part
        if stuck.any():
            yield spread[stuck], np.zeros(int(stuck.sum()), dtype=np.int64), line.origin


class _Rectangle:
    """A line in terms of classes."""

    def __init__(self, whole: np.ndarray, factors: list[np.ndarray]) -> None:
        self.whole = whole
        self.factors = factors
        self.others = [tuple(q for q in range(whole.ndim) if q != k) for k in range(whole.ndim)]
        self.key = (whole.tobytes(), whole.shape, *(f.tobytes() for f in factors))

    def explained(self, dead: np.ndarray) -> np.ndarray:
        """The entries that a dead factor kills."""
        result = np.zeros(self.whole.shape, dtype=bool)
        for k, factor in enumerate(self.factors):
            result |= dead[factor].reshape([-1 if q == k else 1 for q in range(self.whole.ndim)])
        return result


def _distinct(lines: Sequence[_Rectangle], pinned: int) -> list[_Rectangle]:
    """The lines that still have more than one live factor, each once."""
    found: dict[object, _Rectangle] = {}
    for line in lines:
        if (line.whole != pinned).any() and sum(bool((f != pinned).any()) for f in line.factors) > 1:
            found.setdefault(line.key, line)
    return list(found.values())


class _Closures:
    """Step 3: the smallest closed set around each factor class."""

    def __init__(self, lines: list[_Rectangle], classes: Classes, deadline: float) -> None:
        self.lines, self.pinned, self.count, self.deadline = lines, classes.pinned, classes.count, deadline
        self.uses: dict[int, list[int]] = defaultdict(list)
        self.roles: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for i, line in enumerate(lines):
            involved = [line.whole.ravel(), *line.factors]
            for k in np.unique(np.concatenate(involved)).tolist():
                self.uses[k].append(i)
            for place, factor in enumerate(line.factors):
                for k in np.unique(factor).tolist():
                    self.roles[k].append((i, place))
        self.used = np.zeros(classes.count, dtype=bool)
        self.used[list(self.uses)] = True

    def units(self) -> tuple[list[Unit], list[int]]:
        """The distinct closures as units, or the seeds that have none. Short factors first: they pin the most."""
        short: set[int] = set()
        for line in self.lines:
            live = [f for f in line.factors if (f != self.pinned).any()]
            short.update(min(live, key=len).tolist())
        found: dict[bytes, Unit] = {}
        for seeds in (short, set(self.roles) - short):
            failed = []
            for seed in sorted(seeds - {self.pinned}):
                closed = self.closure(seed)
                if closed is None:
                    failed.append(seed)
                else:
                    found.setdefault(closed.tobytes(), self._unit(seed, closed))
            if failed:
                return [], failed
        return list(found.values()), []

    def _unit(self, seed: int, closed: np.ndarray) -> Unit:
        roles = sorted({role for k in closed.tolist() for role in self.roles.get(k, ())})
        line, place = self.roles[seed][0]
        outermost = next(k for k, f in enumerate(self.lines[line].factors) if (f != self.pinned).any())
        return Unit(closed, tuple(roles), place > outermost)

    def closure(self, seed: int) -> np.ndarray | None:
        """The classes that die with `seed`; None where an axis would be emptied or a pinned class reached."""
        dead = np.zeros(self.count, dtype=bool)
        dead[seed] = True
        todo, touched = set(self.uses[seed]), set(self.uses[seed])

        def kill(classes: np.ndarray) -> None:
            for k in classes[~dead[classes]].tolist():
                dead[k] = True
                todo.update(self.uses[k])
                touched.update(self.uses[k])

        while True:
            while todo:
                if not self._propagate(self.lines[todo.pop()], dead, kill):
                    return None
            if time.monotonic() > self.deadline:
                raise TopiaristError(
                    "grouping took longer than its time limit; restrict `rectangles` to 'rows' or 'columns', or raise "
                    "`seconds`"
                )
            cheapest = self._unexplained(touched, dead)
            if cheapest is None:
                return np.flatnonzero(dead)
            if not len(cheapest):
                return None
            kill(cheapest)

    def _propagate(self, line: _Rectangle, dead: np.ndarray, kill: object) -> bool:
        """A dead factor kills its line; a fully dead line explains itself."""
        assert callable(kill)
        hit = line.explained(dead)
        kill(np.unique(line.whole[hit]))
        gone = dead[line.whole]
        if dead[self.pinned] or gone.all():
            return False
        for factor, others in zip(line.factors, line.others, strict=True):
            full = gone.all(axis=others)
            if full.any():
                kill(np.unique(factor[full]))
        return not dead[self.pinned]

    def _unexplained(self, touched: set[int], dead: np.ndarray) -> np.ndarray | None:
        """The cheapest factor classes that explain dead entries; None: all are explained, empty: none can."""
        for i in sorted(touched):
            line = self.lines[i]
            open_ = dead[line.whole] & ~line.explained(dead)
            if not open_.any():
                continue
            best: tuple[int, np.ndarray] | None = None
            for k, factor in enumerate(line.factors):
                need = open_.any(axis=line.others[k])
                slab = line.whole.compress(need, axis=k)
                if (factor[need] == self.pinned).any() or (slab == self.pinned).any():
                    continue
                cost = len(np.unique(slab[~dead[slab]]))
                if best is None or cost < best[0]:
                    best = (cost, np.unique(factor[need]))
            return np.empty(0, dtype=np.int64) if best is None else best[1]
        return None


def _plain(classes: Classes, used: np.ndarray, axes: Sequence[Labels]) -> list[Unit]:
    """The classes that no line touches are units as they are."""
    present = np.zeros(classes.count, dtype=bool)
    for axis in axes:
        present[classes.of[axis]] = True
    present[classes.pinned] = False
    return [Unit(np.array([k])) for k in np.flatnonzero(present & ~used)]
