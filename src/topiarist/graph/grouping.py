"""From units to groups: units that sit in the same axes, equally often, compete with each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
import torch
from scipy.sparse import csr_matrix

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
    blocks = _blocks(axes, members[:, order], [len(team) for team in teams])
    return _named(record, units, classes, members, teams, blocks)


def emptiable(record: Record, classes: Classes, found: Grouped) -> tuple[Group, str] | None:
    """A group whose units could, together with those of other groups, empty an axis; and the reason to pin it.

    An axis is safe if some of its positions show every combination of one kept unit from each group that holds them:
    then one of them survives any legal keep. That holds for rectangles; it can fail where rectangles overlap askew.
    """
    owner = np.repeat(np.arange(len(found.groups)), [g.units for g in found.groups])
    axes = [(f"axis {axis} of {name}", labels) for name, axis, labels in record.sources]
    meeting = np.diff(found.membership.indptr)  # units that hold a class
    known: set[bytes] = set()
    for where, labels in axes + [("an activation", part) for part in record.parts]:
        per_position = meeting[classes.of[labels]]
        if per_position.max(initial=0) < 2 or not per_position.all():
            continue  # no units meet here, or a position stays whatever is removed
        if (key := classes.of[labels].tobytes()) in known:
            continue
        known.add(key)
        held = found.membership[classes.of[labels]]
        if any(
            _complete(np.sort(held.indices[held.indptr[:-1][rows, None] + np.arange(depth)], axis=1), owner, found)
            for depth in np.unique(per_position)
            if len(rows := np.flatnonzero(per_position == depth))
        ):
            continue
        least = min({int(g) for g in owner[held.indices]}, key=lambda g: found.groups[g].units)
        return found.groups[least], f"its units and those of other groups together could empty {where}"
    return None


def _complete(held: np.ndarray, owner: np.ndarray, found: Grouped) -> bool:
    """Whether the positions ``(positions, depth)`` of some set of groups show every combination of their units."""
    teams = owner[held]
    for team in np.unique(teams, axis=0):
        if len(np.unique(team)) < len(team):
            continue
        seen = np.unique(held[(teams == team).all(1)], axis=0)
        if len(seen) == prod(found.groups[g].units for g in team):
            return True
    return False


def _indicator(units: Units, rows: int) -> csr_matrix:
    """Classes × units: 1 where a unit holds a class."""
    sizes = [len(unit.classes) for unit in units.closed]
    columns = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), len(sizes) + np.arange(len(units.plain))])
    places = np.concatenate([*(unit.classes for unit in units.closed), units.plain])
    return csr_matrix((np.ones(len(places), dtype=np.int64), (places, columns)), shape=(rows, len(units)))


def _counts(axes: Sequence[np.ndarray], count: int) -> csr_matrix:
    """Axes × classes: positions of a class on an axis."""
    rows = np.repeat(np.arange(len(axes)), [len(a) for a in axes])
    columns = np.concatenate(axes) if axes else np.empty(0, dtype=np.int64)
    return csr_matrix((np.ones(len(columns), dtype=np.int64), (rows, columns)), shape=(len(axes), count))


Teams = list[np.ndarray]


def _teams(rows: np.ndarray, columns: np.ndarray, data: np.ndarray, units: Units, legal: np.ndarray) -> Teams:
    """Units with the same counts on every axis and the same roles: told by a random 64-bit sum, a fingerprint."""
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


Block = tuple[int, np.ndarray]
"""An axis and the positions ``(units, k)`` of a group's units on it."""


def _blocks(axes: Sequence[np.ndarray], members: csr_matrix, sizes: Sequence[int]) -> list[list[Block]]:
    """For each group the axes that it sits on, with the positions of its units."""
    found: list[list[Block]] = [[] for _ in sizes]
    if not sizes or not axes:
        return found
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
        found[team].append((axis, place[begin:end].reshape(sizes[team], -1)))
    return found


def _named(
    record: Record, units: Units, classes: Classes, members: csr_matrix, teams: Teams, blocks: list[list[Block]]
) -> Grouped:
    """Gives groups their names and stages, in the order in which the network produces them."""
    marks = _Marks(record)
    drafts: list[tuple[tuple[int, int], tuple[Slice, ...], str, np.ndarray]] = []
    for team, block in zip(teams, blocks, strict=True):
        labels = [int(record.sources[axis][2][positions[0, 0]]) for axis, positions in block]
        birth, lead = min((marks.birth(label), k) for k, label in enumerate(labels))
        rank = np.argsort(block[lead][1][:, 0], kind="stable")
        slices = []
        for k in (lead, *range(lead), *range(lead + 1, len(block))):
            axis, positions = block[k]
            name, dim, _ = record.sources[axis]
            slices.append(Slice(name, dim, torch.from_numpy(positions[rank]), marks.role(labels[k])))
        drafts.append(((birth, block[lead][0]), tuple(slices), marks.stage(labels[lead]), team[rank]))
    drafts.sort(key=lambda draft: draft[0])
    closed = len(units.closed)
    columns = [bool(team[0] < closed and units.closed[team[0]].column) for _, _, _, team in drafts]
    names = _names([(slices[0].tensor, column) for (_, slices, _, _), column in zip(drafts, columns, strict=True)])
    groups: list[Group] = []
    first: dict[str, int] = {}
    order: list[int] = []
    for name, (_, placed, stage, team) in zip(names, drafts, strict=True):
        first[name] = len(order)
        order += team.tolist()
        groups.append(Group(name, len(team), placed, stage, _Sites(record, classes, members[:, team])))
    return Grouped(tuple(groups), members[:, order], first)


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
    """Names after the first tensor; groups that share one are told apart as rows and columns, and by number."""
    plain = [tensor.removesuffix(".weight").removesuffix(".indices") for tensor, _ in leads]
    sided = [f"{name}:{'columns' if column else 'rows'}" for name, (_, column) in zip(plain, leads, strict=True)]
    seen: dict[str, int] = defaultdict(int)
    result = []
    for name, side in zip(plain, sided, strict=True):
        seen[side] += 1
        alone = plain.count(name) == 1
        result.append(name if alone else side if seen[side] == 1 else f"{side}{seen[side]}")
    return result


class _Sites:
    """The module outputs that carry a group, in the order of execution; found when asked for."""

    def __init__(self, record: Record, classes: Classes, members: csr_matrix) -> None:
        self.record, self.classes, self.members = record, classes, members

    def __iter__(self) -> Iterator[Site]:
        for (module, call), leaves in self.record.outputs.items():
            for axis, vector in enumerate(leaves[0].vectors if leaves else ()):
                if not labelled(vector):
                    continue
                held = self.members[self.classes.of[vector]].tocoo()
                per_unit = np.bincount(held.col, minlength=self.members.shape[1])
                if held.nnz and per_unit.min() == per_unit.max():
                    order = np.lexsort((held.row, held.col))
                    positions = held.row[order].reshape(len(per_unit), -1).astype(np.int64)
                    kind = self.record.types[module].__name__
                    yield Site(module, axis, torch.from_numpy(positions), kind, call)
