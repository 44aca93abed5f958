"""Closures: the smallest set of classes that can be removed together, around each factor of the lines.

All seeds of a cluster of lines are closed at once, as rows of a boolean matrix ``dead (seeds, classes)``: a dead factor
kills its line, a fully dead line explains itself, an unexplained dead entry kills its cheapest line, to a fixpoint.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from topiarist.errors import TopiaristError
from topiarist.graph.labels import components

CELLS = 1 << 23
"""Entries of the largest boolean array that is made at once (8 MB); seeds are closed in chunks that fit."""


@dataclass(frozen=True, eq=False)
class Unit:
    """Classes of labels that are removed together.

    Attributes:
        classes: ascending.
        roles: the lines that they are factors of, as (line, place): units of one group agree in them.
        column: the seed was not the outermost live factor of its line: a column rather than a row.
    """

    classes: np.ndarray
    roles: tuple[tuple[int, int], ...] = ()
    column: bool = False


class Rectangle:
    """A line in terms of classes: ``merged[i, j, …] = factors[0][i] or factors[1][j] or …``."""

    def __init__(self, merged: np.ndarray, factors: Sequence[np.ndarray]) -> None:
        self.merged, self.factors = merged, list(factors)

    @property
    def key(self) -> tuple[object, ...]:
        """Returns what is equal for equal lines."""
        return (self.merged.tobytes(), self.merged.shape, *(f.tobytes() for f in self.factors))

    @property
    def classes(self) -> np.ndarray:
        """Returns all classes in it, ascending."""
        return np.unique(np.concatenate([self.merged.ravel(), *self.factors]))

    def live(self, pinned: int) -> list[np.ndarray]:
        """Returns the factors that are not pinned altogether."""
        return [f for f in self.factors if (f != pinned).any()]


def distinct(lines: Sequence[Rectangle], pinned: int) -> list[Rectangle]:
    """Returns the lines that still have more than one live factor, each once."""
    by_key: dict[object, Rectangle] = {}
    for line in lines:
        if len(line.live(pinned)) > 1 and (line.merged != pinned).any():
            by_key.setdefault(line.key, line)
    return list(by_key.values())


class _Columns:
    """Columns of the matrix, which may repeat; `spread` ors into them."""

    def __init__(self, positions: np.ndarray) -> None:
        self.positions = positions.ravel()
        self.unique, self.first = np.unique(self.positions, return_index=True)
        self.alone = len(self.unique) == len(self.positions)
        self.order = np.argsort(self.positions, kind="stable")
        self.starts = np.searchsorted(self.positions[self.order], self.unique)

    def spread(self, dead: np.ndarray, hit: np.ndarray) -> None:
        """Computes ``dead[:, positions[e]] |= hit[:, e]``."""
        if self.alone:
            dead[:, self.positions] |= hit
        else:
            dead[:, self.unique] |= np.logical_or.reduceat(hit[:, self.order], self.starts, axis=1)


class _LocalLine:
    """A line of a cluster, its classes counted within the cluster."""

    def __init__(self, line: Rectangle, ids: np.ndarray) -> None:
        self.shape = line.merged.shape
        self.merged = _Columns(np.searchsorted(ids, line.merged))
        self.factors = [_Columns(np.searchsorted(ids, f)) for f in line.factors]
        self.others = [tuple(1 + q for q in range(len(self.shape)) if q != k) for k in range(len(self.shape))]

    def explained(self, dead: np.ndarray) -> np.ndarray:
        """Returns the entries that a dead factor kills, ``(seeds, *shape)``."""
        hit = np.zeros((len(dead), *self.shape), dtype=bool)
        for k, factor in enumerate(self.factors):
            shape = [len(dead)] + [-1 if q == k else 1 for q in range(len(self.shape))]
            hit |= dead[:, factor.positions].reshape(shape)
        return hit

    def dead_entries(self, dead: np.ndarray) -> np.ndarray:
        return dead[:, self.merged.positions].reshape(len(dead), *self.shape)


class Cluster:
    """Lines that share classes."""

    def __init__(self, lines: Sequence[Rectangle], pinned: int) -> None:
        self.ids = np.unique(np.concatenate([line.classes for line in lines]))
        self.lines = [_LocalLine(line, self.ids) for line in lines]
        place = int(np.searchsorted(self.ids, pinned))
        self.pinned = place if place < len(self.ids) and self.ids[place] == pinned else None
        self.cells = max(line.merged.positions.size for line in self.lines)

    def closures(self, seeds: np.ndarray, deadline: float) -> Iterator[tuple[int, np.ndarray | None]]:
        """Yields each seed (a class) with the classes that die with it; ``None`` where it cannot be removed."""
        chunk = max(1, CELLS // max(self.cells, len(self.ids)))
        for begin in range(0, len(seeds), chunk):
            part = seeds[begin : begin + chunk]
            dead = np.zeros((len(part), len(self.ids)), dtype=bool)
            dead[np.arange(len(part)), np.searchsorted(self.ids, part)] = True
            legal = self._close(dead, deadline)
            for seed, row, fine in zip(part.tolist(), dead, legal.tolist(), strict=True):
                yield seed, self.ids[row] if fine else None

    def _close(self, dead: np.ndarray, deadline: float) -> np.ndarray:
        """Closes every row in place; returns which rows are legal."""
        legal = np.ones(len(dead), dtype=bool)
        todo = np.arange(len(dead))
        while len(todo):
            if time.monotonic() > deadline:
                raise TopiaristError(
                    "grouping took longer than its time limit; restrict `rectangles` to 'rows' or 'columns', or raise "
                    "`seconds`"
                )
            rows = dead[todo]
            before = rows.sum(1)
            fine = self._propagate(rows)
            dead[todo] = rows
            legal[todo[~fine]] = False
            still = fine & (rows.sum(1) > before)
            settled = todo[fine & ~still]
            if len(settled):
                settled = settled[self._unexplained(dead[settled])]
            reopened = [int(s) for s in settled.tolist() if self._explain(dead, s, legal)]
            todo = np.concatenate([todo[still], np.array(reopened, dtype=np.int64)])
        return legal

    def _propagate(self, dead: np.ndarray) -> np.ndarray:
        """Kills the lines of dead factors, and the factors of fully dead lines; returns which rows are legal."""
        fine = np.ones(len(dead), dtype=bool)
        for line in self.lines:
            line.merged.spread(dead, line.explained(dead).reshape(len(dead), -1))
            entries = line.dead_entries(dead)
            fine &= ~entries.reshape(len(dead), -1).all(1)
            for factor, others in zip(line.factors, line.others, strict=True):
                factor.spread(dead, np.asarray(entries.all(axis=others)))
        return fine if self.pinned is None else fine & ~dead[:, self.pinned]

    def _unexplained(self, dead: np.ndarray) -> np.ndarray:
        """Returns the rows with dead entries that no dead factor explains."""
        rows = np.zeros(len(dead), dtype=bool)
        for line in self.lines:
            rows |= (line.dead_entries(dead) & ~line.explained(dead)).reshape(len(dead), -1).any(1)
        return rows

    def _explain(self, dead: np.ndarray, row: int, legal: np.ndarray) -> bool:
        """Kills the cheapest lines that explain a row's dead entries; False where nothing is left to explain."""
        mine = dead[row : row + 1]
        for line in self.lines:
            merged = line.merged.positions.reshape(line.shape)
            unexplained = line.dead_entries(mine)[0] & ~line.explained(mine)[0]
            if not unexplained.any():
                continue
            best: tuple[int, np.ndarray] | None = None
            for k, factor in enumerate(line.factors):
                need = unexplained.any(axis=tuple(q for q in range(merged.ndim) if q != k))
                slab, killers = merged.compress(need, axis=k), factor.positions[need]
                if self.pinned is not None and ((killers == self.pinned).any() or (slab == self.pinned).any()):
                    continue
                price = len(np.unique(slab[~mine[0][slab]]))
                if best is None or price < best[0]:
                    best = (price, killers)
            if best is None:
                legal[row] = False
                return False
            dead[row, best[1]] = True
            return True
        return False


def clusters(lines: Sequence[Rectangle], pinned: int) -> list[tuple[Cluster, list[int]]]:
    """Parts lines into clusters that share no class but the pinned one; with the lines' numbers."""
    if not lines:
        return []
    classes = [line.classes[line.classes != pinned] for line in lines]
    owner = np.repeat(np.arange(len(lines)), [len(c) for c in classes])
    size = len(lines) + 1 + int(max(c.max() for c in classes))
    _, part = components(size, owner, np.concatenate(classes) + len(lines))
    parts: dict[int, list[int]] = defaultdict(list)
    for i in range(len(lines)):
        parts[int(part[i])].append(i)
    return [(Cluster([lines[i] for i in numbers], pinned), numbers) for numbers in parts.values()]


def close_all(lines: Sequence[Rectangle], pinned: int, deadline: float) -> tuple[list[Unit], list[int]]:
    """Returns the distinct closures of all factor classes as units, or the seeds that have none.

    Short factors come first: where they are pinned, most of the long ones change with them.
    """
    roles: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, line in enumerate(lines):
        for place, factor in enumerate(line.factors):
            for k in np.unique(factor).tolist():
                roles[k].append((i, place))
    groups = clusters(lines, pinned)
    units: dict[bytes, Unit] = {}
    for first in (True, False):
        failed = []
        for cluster, numbers in groups:
            live = [lines[i].live(pinned) for i in numbers]
            short = set(np.concatenate([min(factors, key=len) for factors in live]).tolist()) - {pinned}
            every = set(np.concatenate([f for factors in live for f in factors]).tolist()) - {pinned}
            seeds = np.array(sorted(short if first else every - short), dtype=np.int64)
            for seed, closed in cluster.closures(seeds, deadline):
                if closed is None:
                    failed.append(seed)
                elif closed.tobytes() not in units:
                    units[closed.tobytes()] = _unit(seed, closed, lines, roles, pinned)
        if failed:
            return [], failed
    return list(units.values()), []


def _unit(
    seed: int, closed: np.ndarray, lines: Sequence[Rectangle], roles: dict[int, list[tuple[int, int]]], pinned: int
) -> Unit:
    line, place = roles[seed][0]
    outermost = next(k for k, f in enumerate(lines[line].factors) if (f != pinned).any())
    return Unit(closed, tuple(sorted({role for k in closed.tolist() for role in roles.get(k, ())})), place > outermost)
