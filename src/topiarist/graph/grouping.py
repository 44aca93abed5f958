"""From units to groups: units that sit in the same axes, equally often, compete with each other."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
import torch
from scipy.sparse import csc_matrix, csr_matrix

from topiarist.graph.groups import Group, Site, Slice
from topiarist.graph.labels import labelled
from topiarist.graph.lines import Classes, Units
from topiarist.graph.record import Record


@dataclass(frozen=True, eq=False)
class Grouped:
    """Solved units, in the order of their groups.

    Attributes:
        groups: with their slices.
        membership: classes × units: which units hold a class (any dead one of them kills it).
        first: index of each group's first unit.
    """

    groups: tuple[Group, ...]
    membership: csr_matrix
    first: dict[str, int]


def group_units(record: Record, classes: Classes, units: Units) -> Grouped:
    """Sorts units into groups, and finds their slices."""
    axes = [classes.of[labels] for _, _, labels in record.sources]
    guarded = axes + [classes.of[part] for part in record.parts]
    members = _indicator(units, classes.count)
    counts = _counts(guarded, classes.count) @ members  # axes × units: positions of a unit on an axis
    counts = counts.tocoo()
    sizes = np.array([len(a) for a in guarded], dtype=np.int64)
    legal = np.ones(len(units), dtype=bool)
    legal[counts.col[counts.data >= sizes[counts.row]]] = False  # it would empty an axis
    present = np.zeros(len(units), dtype=bool)
    present[counts.col[counts.row < len(axes)]] = True
    teams = _teams(counts.row, counts.col, counts.data, units, np.flatnonzero(legal & present))
    order = np.concatenate([*teams, np.empty(0, dtype=np.int64)])
    placed = _axes_of(axes, members[:, order], [len(team) for team in teams])
    return _named(record, units, classes, members, teams, placed)


def only_numbering(record: Record, units: Grouped) -> tuple[Group, str] | None:
    """Returns a group that sits in whole numbers alone, and why to pin it: they count or mask, and compute nothing."""
    for group in units.groups:
        if all(part.tensor in record.numbering for part in group.slices):
            return group, "a buffer of whole numbers, whose positions no weight shares"
    return None


def emptiable(record: Record, classes: Classes, units: Grouped) -> tuple[Group, str] | None:
    """Returns a group whose units could empty an axis together with those of others, and why to pin it.

    An axis is safe if some of its positions show every combination of one kept unit from each group that holds them:
    then one of them survives any legal keep. That holds for rectangles; it can fail where rectangles overlap askew.
    """
    owner = np.repeat(np.arange(len(units.groups)), [g.units for g in units.groups])
    axes = [(f"axis {axis} of {name}", labels) for name, axis, labels in record.sources]
    meeting = np.diff(units.membership.indptr)  # units that hold a class
    known: set[bytes] = set()
    for where, labels in axes + [("an activation", part) for part in record.parts]:
        per_position = meeting[classes.of[labels]]
        if per_position.max(initial=0) < 2 or not per_position.all():
            continue  # no units meet here, or a position is kept whatever is removed
        if (key := classes.of[labels].tobytes()) in known:
            continue
        known.add(key)
        held = units.membership[classes.of[labels]]
        if any(
            _complete(np.sort(held.indices[held.indptr[:-1][rows, None] + np.arange(depth)], axis=1), owner, units)
            for depth in np.unique(per_position)
            if len(rows := np.flatnonzero(per_position == depth))
        ):
            continue
        least = min({int(g) for g in owner[held.indices]}, key=lambda g: units.groups[g].units)
        return units.groups[least], f"its units and those of other groups together could empty {where}"
    return None


def _complete(held: np.ndarray, owner: np.ndarray, units: Grouped) -> bool:
    """Returns whether positions ``(positions, depth)`` of some groups show every combination of their units."""
    teams = owner[held]
    for team in np.unique(teams, axis=0):
        if len(np.unique(team)) < len(team):
            continue
        seen = np.unique(held[(teams == team).all(1)], axis=0)
        if len(seen) == prod(units.groups[g].units for g in team):
            return True
    return False


def _indicator(units: Units, rows: int) -> csr_matrix:
    """Classes × units: 1 where a unit holds a class."""
    sizes = [len(unit.classes) for unit in units.closed]
    columns = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), len(sizes) + np.arange(len(units.plain))])
    classes = np.concatenate([*(unit.classes for unit in units.closed), units.plain])
    return csr_matrix((np.ones(len(classes), dtype=np.int64), (classes, columns)), shape=(rows, len(units)))


def _counts(axes: Sequence[np.ndarray], count: int) -> csr_matrix:
    """Axes × classes: positions of a class on an axis."""
    rows = np.repeat(np.arange(len(axes)), [len(a) for a in axes])
    columns = np.concatenate(axes) if axes else np.empty(0, dtype=np.int64)
    return csr_matrix((np.ones(len(columns), dtype=np.int64), (rows, columns)), shape=(len(axes), count))


Teams = list[np.ndarray]


def _teams(rows: np.ndarray, columns: np.ndarray, data: np.ndarray, units: Units, legal: np.ndarray) -> Teams:
    """Returns units with the same counts on every axis and the same roles, by a random 64-bit fingerprint."""
    generator = np.random.default_rng(0)
    random = generator.integers(1, 2**63, size=int(rows.max(initial=0)) + 1, dtype=np.uint64)
    fingerprint = np.zeros(len(units), dtype=np.uint64)
    np.add.at(fingerprint, columns, random[rows] * data.astype(np.uint64))
    kinds = {roles: k for k, roles in enumerate({unit.roles: None for unit in units.closed})}
    salts = generator.integers(1, 2**63, size=len(kinds), dtype=np.uint64)
    fingerprint[: len(units.closed)] += salts[[kinds[unit.roles] for unit in units.closed]]
    order = legal[np.argsort(fingerprint[legal], kind="stable")]
    borders = np.flatnonzero(np.diff(fingerprint[order])) + 1
    return [team for team in np.split(order, borders) if len(team) > 1]


AxisPositions = tuple[int, np.ndarray]
"""An axis and the positions ``(units, k)`` of a group's units on it."""


def _axes_of(axes: Sequence[np.ndarray], members: csr_matrix, sizes: Sequence[int]) -> list[list[AxisPositions]]:
    """Returns for each group the axes that it sits on, with the positions of its units."""
    axes_of: list[list[AxisPositions]] = [[] for _ in sizes]
    if not sizes or not axes:
        return axes_of
    lengths = np.array([len(a) for a in axes])
    begins = np.concatenate([[0], np.cumsum(lengths)])
    held = members[np.concatenate(axes)]
    place = np.repeat(np.arange(begins[-1]), np.diff(held.indptr))
    axis_of = np.repeat(np.arange(len(axes)), lengths)[place]
    units = int(sum(sizes))
    order = np.argsort(axis_of * units + held.indices, kind="stable")  # by axis, then unit, then place
    axis_of, place, unit = axis_of[order], (place - begins[axis_of])[order], held.indices[order]
    key = axis_of * len(sizes) + np.repeat(np.arange(len(sizes)), sizes)[unit]
    borders = [0, *(np.flatnonzero(np.diff(key)) + 1).tolist(), len(key)]
    for begin, end in pairwise(borders):
        axis, team = divmod(int(key[begin]), len(sizes))
        axes_of[team].append((axis, place[begin:end].reshape(sizes[team], -1)))
    return axes_of


def _named(
    record: Record, units: Units, classes: Classes, members: csr_matrix, teams: Teams, placed: list[list[AxisPositions]]
) -> Grouped:
    """Gives groups their names and stages, in the order in which the network produces them."""
    marks = _Marks(record)
    drafts: list[tuple[tuple[int, int, int], tuple[Slice, ...], str, np.ndarray]] = []
    for team, axes in zip(teams, placed, strict=True):
        labels = [int(record.sources[axis][2][positions[0, 0]]) for axis, positions in axes]
        birth, lead = min((marks.birth(label), k) for k, label in enumerate(labels))
        rank = np.argsort(axes[lead][1][:, 0], kind="stable")
        parts = []
        for k in (lead, *range(lead), *range(lead + 1, len(axes))):
            axis, positions = axes[k]
            name, dim, _ = record.sources[axis]
            parts.append(Slice(name, dim, torch.from_numpy(positions[rank]), marks.role(labels[k])))
        drafts.append(
            ((birth, axes[lead][0], int(axes[lead][1].min())), tuple(parts), marks.stage(labels[lead]), team[rank])
        )
    drafts.sort(key=lambda draft: draft[0])
    closed = len(units.closed)
    columns = [bool(team[0] < closed and units.closed[team[0]].column) for _, _, _, team in drafts]
    names = _names([(slices[0].tensor, column) for (_, slices, _, _), column in zip(drafts, columns, strict=True)])
    by_unit = members.tocsc()
    groups: list[Group] = []
    first: dict[str, int] = {}
    members_in_order: list[int] = []
    for name, (_, slices, stage, team) in zip(names, drafts, strict=True):
        first[name] = len(members_in_order)
        members_in_order += team.tolist()
        groups.append(Group(name, len(team), slices, stage, _Sites(record, classes, by_unit, team)))
    return Grouped(tuple(groups), members[:, members_in_order], first)


LEADING = re.compile(r"\.(weight(_[ih]h(_l\d+)?)?|indices)$")
"""How the first tensors of layers end, without which groups are named; also those of recurrent layers."""


class _Marks:
    """By label: its role, when the network produced it, and on which feature map. The first mark counts."""

    def __init__(self, record: Record) -> None:
        self.marks = record.marks
        self.first = np.full(record.algebra.count, len(self.marks))
        self.produced = np.full(record.algebra.count, len(self.marks))
        for time in range(len(self.marks) - 1, -1, -1):
            self.first[self.marks[time].labels] = time
            if self.marks[time].role in ("output", "index"):
                self.produced[self.marks[time].labels] = time

    def role(self, label: int) -> str:
        return self.marks[self.first[label]].role if self.first[label] < len(self.marks) else "other"

    def birth(self, label: int) -> int:
        return int(self.produced[label])

    def stage(self, label: int) -> str:
        return self.marks[self.produced[label]].stage if self.produced[label] < len(self.marks) else ""


def _names(leads: Sequence[tuple[str, bool]]) -> list[str]:
    """Names groups after the first tensor; those that share one are rows and columns, and numbered."""
    plain = [LEADING.sub("", tensor) for tensor, _ in leads]
    sided = [f"{name}:{'columns' if column else 'rows'}" for name, (_, column) in zip(plain, leads, strict=True)]
    count = Counter(plain)
    seen: dict[str, int] = defaultdict(int)
    result = []
    for name, side in zip(plain, sided, strict=True):
        seen[side] += 1
        result.append(name if count[name] == 1 else side if seen[side] == 1 else f"{side}{seen[side]}")
    return result


class _Sites:
    """The module outputs that carry a group, in the order of execution; computed when asked for."""

    def __init__(self, record: Record, classes: Classes, members: csc_matrix, team: np.ndarray) -> None:
        self.record, self.classes, self.members, self.team = record, classes, members, team

    def __iter__(self) -> Iterator[Site]:
        members = self.members[:, self.team].tocsr()
        for (module, call), leaves in self.record.outputs.items():
            for axis, vector in enumerate(leaves[0].vectors if leaves else ()):
                if not labelled(vector):
                    continue
                held = members[self.classes.of[vector]].tocoo()
                per_unit = np.bincount(held.col, minlength=members.shape[1])
                if held.nnz and per_unit.min() == per_unit.max():
                    order = np.lexsort((held.row, held.col))
                    positions = held.row[order].reshape(len(per_unit), -1).astype(np.int64)
                    kind = self.record.types[module].__name__
                    yield Site(module, axis, torch.from_numpy(positions), kind, call)
