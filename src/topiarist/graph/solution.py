"""The solved trace: dead positions of any vector, sizes after a cut, and the reason of every pin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import gcd
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import breadth_first_order
from torch import Tensor

from topiarist.errors import TopiaristError
from topiarist.files import shown, suggestion
from topiarist.graph.code.places import Place, Site
from topiarist.graph.groups import Group, Keep, Pinned
from topiarist.graph.labels import Labels, Origin, Vector, labelled
from topiarist.graph.lines import Added, Classes, Rectangles
from topiarist.graph.memory import Timeline
from topiarist.graph.record import Record
from topiarist.graph.sizes import (
    Attribute,
    Equation,
    Length,
    adds_plain_length,
    evaluate,
    holds_plain_length,
    kept_length,
    leaves,
    solve,
)


class Ratio(NamedTuple):
    """What a size should be, to what the program asks for, in lowest terms; asked 0: `right` itself, -1 to infer it."""

    right: int
    asked: int


UNCHANGED, INFERRED = Ratio(1, 1), Ratio(-1, 0)


class Correction(NamedTuple):
    """What is put right at one place in a module's code.

    Attributes:
        place: the expression.
        kind: as in `Site`, or ``"squeeze"``.
        at: the argument where the sizes begin.
        values: by slot, the ratio by which a size or number is multiplied, or the constant that stands for it; of a
            squeeze the axes.
    """

    place: Place
    kind: str
    at: int
    values: Mapping[int, Ratio | float]


GUARD = "guard"
"""A branch that no example took, and that a cut makes unsafe: it raises in the place of a wrong number."""
CORRECTIONS = ("sizes", "number", "border", "scale", "squeeze", GUARD)
Corrections = Mapping[str, tuple[Correction, ...]]
"""Module → what is corrected in its forward."""


@dataclass(frozen=True, eq=False)
class Solution:
    """What a graph knows beyond its groups.

    Attributes:
        record: what the run showed.
        rectangles: which units of a rectangle are offered.
        classes: solved labels.
        membership: classes × units: which units hold a class.
        first: index of each group's first unit.
        added: unions beyond those of the trace, with their reasons.
    """

    record: Record
    rectangles: Rectangles = "both"
    classes: Classes = field(default_factory=lambda: Classes(np.zeros(1, dtype=np.int64), 0, 1, []), repr=False)
    membership: csr_matrix = field(default_factory=lambda: csr_matrix((1, 0)), repr=False)
    first: Mapping[str, int] = field(default_factory=dict)
    added: tuple[Added, ...] = field(default=(), repr=False)

    def pinning(self, vectors: Iterable[Labels], reason: str) -> Solution:
        """Returns the record with labels that must be kept; it is to be solved anew."""
        return replace(self, added=(*self.added, *(Added(v, np.zeros_like(v), reason) for v in vectors)))

    def tying(self, vectors: Sequence[Labels], reason: str) -> Solution:
        """Returns the record with vectors of one length that lose the same positions; it is to be solved anew."""
        return replace(self, added=(*self.added, *(Added(vectors[0], v, reason) for v in vectors[1:])))

    def dead(self, keep: Keep) -> np.ndarray:
        """Returns bool over classes: True where any unit that holds the class is removed."""
        units = np.zeros(self.membership.shape[1], dtype=np.int64)
        for name, first in self.first.items():
            mask = keep.get(name)
            if mask is not None:
                units[first : first + len(mask)] = ~mask.numpy()
        return self.dead_without(units)

    def dead_without(self, units: np.ndarray) -> np.ndarray:
        """Returns the same, given 1 for each unit that is removed and 0 for the others."""
        return np.asarray(self.membership @ units > 0)

    def kept(self, vector: Vector, dead: np.ndarray) -> Tensor | None:
        """Returns the indices that are kept on an axis; ``None`` where all are."""
        if not labelled(vector):
            return None
        removed = dead[self.classes.of[vector]]
        return torch.from_numpy(np.flatnonzero(~removed)) if removed.any() else None

    def kept_of_tensors(self, dead: np.ndarray) -> dict[str, dict[int, Tensor]]:
        """Returns tensor name → axis → kept indices, for every parameter and buffer that loses something."""
        tensors: dict[str, dict[int, Tensor]] = {}
        for name, axis, labels in self.record.sources:
            kept = self.kept(labels, dead)
            if kept is not None:
                if not len(kept):
                    raise TopiaristError(f"this keep would empty axis {axis} of {name}; keep more units of its groups")
                tensors.setdefault(name, {})[axis] = kept
        return tensors

    @cached_property
    def timeline(self) -> Timeline:
        """Returns what the first run allocated over time, for the peak of memory."""
        return Timeline.of(self.record.storages, self.classes.of)

    # sizes

    @cached_property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the classes of all vectors of the record, one after the other, and where each ends."""
        vectors = [np.empty(0, np.int64), *self.record.vectors]
        return self.classes.of[np.concatenate(vectors)], np.cumsum([len(vector) for vector in vectors])

    def lengths(self, dead: np.ndarray) -> list[int]:
        """Returns the kept lengths of the vectors of the record."""
        classes, ends = self._ends
        return np.diff(np.concatenate([[0], np.cumsum(~dead[classes])])[ends]).tolist()

    def sizes(self, dead: np.ndarray) -> tuple[dict[Attribute, int], list[Equation]]:
        """Returns the attributes' new values, and the equations that neither they nor corrections can satisfy."""
        return self._solved(self.lengths(dead))

    def _solved(self, lengths: Sequence[int]) -> tuple[dict[Attribute, int], list[Equation]]:
        firm = [e for e in self.record.equations if e.site is None]
        soft = [e for e in self.record.equations if e.site is not None and not e.number]
        return solve(firm, soft, lengths, self.record.attributes)

    def corrections(self, dead: np.ndarray) -> dict[str, tuple[Correction, ...]]:
        """Returns what must be put right after a cut, by module: what the attributes do not."""
        corrections: dict[str, list[Correction]] = {}
        grouped: dict[tuple[str, Place, str, int], dict[int, Ratio | float]] = {}
        lengths = self.lengths(dead)
        stated, _ = self._stated(lengths, self._asked(lengths, self._solved(lengths)[0]))
        for module, sites in stated.items():
            for site, value in sites.items():
                grouped.setdefault((module, site.place, site.kind, site.at), {})[site.slot] = value
        for (module, place, kind, at), values in grouped.items():
            corrections.setdefault(module, []).append(Correction(place, kind, at, values))
        for (module, place), (dims, vectors) in self.record.squeezes.items():
            if any(kept_length(dead, self.classes.of[vector]) == 1 for vector in vectors):
                squeezed = Correction(place, "squeeze", 0, dict(enumerate(dims)))
                corrections.setdefault(module, []).append(squeezed)
        losing = self._losing(dead) if self.record.branches else set()
        for branch in self.record.branches:
            here = stated.get(branch.module, {})
            corrected = branch.sizes.intersection(site.text for site in here) or (branch.divides and here)
            unknown = branch.attributes - self._known_attributes.get(branch.module, set())
            if (branch.unsafe or corrected or unknown) and branch.module in losing:
                corrections.setdefault(branch.module, []).append(Correction(branch.place, GUARD, 0, {}))
        return {module: tuple(sorted(made, key=lambda c: c[:3])) for module, made in sorted(corrections.items())}

    @cached_property
    def _known_attributes(self) -> dict[str, set[str]]:
        """Returns by module the integers of which the run showed what they are the size of."""
        known: dict[str, set[str]] = {}
        for e in self.record.equations:
            for leaf in leaves(e.expression):
                if isinstance(leaf, Attribute):
                    known.setdefault(leaf.module, set()).add(leaf.name)
        return known

    def _losing(self, dead: np.ndarray) -> set[str]:
        """Returns the modules from which a cut takes something that they, or modules within them, compute with."""
        computed = [(name.rpartition(".")[0], labels) for name, _, labels in self.record.sources]
        computed += [(name, labels) for name, vectors in self.record.held.items() for labels in vectors]
        losing: set[str] = set()
        for name, labels in computed:
            if name not in losing and dead[self.classes.of[labels]].any():
                while name not in losing:
                    losing.add(name)
                    name = name.rpartition(".")[0]
        return losing

    def _stated(
        self, lengths: Sequence[int], asked_for: Sequence[int | None]
    ) -> tuple[dict[str, dict[Site, Ratio | float]], list[list[Equation]]]:
        """Returns by module and site what must stand there after a cut, and the equations that no one value satisfies.

        A place may run several times, in a loop or for a shared module. Where all that it views differ in one size,
        torch can work that one out.
        """
        needed: dict[tuple[str, Site], set[Ratio | float | None]] = {}
        equations: dict[tuple[str, Site], list[Equation]] = {}
        for e, asked in zip(self.record.equations, asked_for, strict=True):
            if e.site is not None and asked is not None:
                right = e.value if e.wanted is None else lengths[e.wanted]
                key = (e.module, e.site._replace(infers=True, text=""))  # the same place, whatever it was given
                needed.setdefault(key, set()).add(self._value(e, right, asked))
                equations.setdefault(key, []).append(e)
        several = Counter((module, site.place) for (module, site), values in needed.items() if len(values) > 1)
        stated: dict[str, dict[Site, Ratio | float]] = {}
        disagreeing = []
        for (module, site), values in needed.items():
            value, given = next(iter(values)), [e.site for e in equations[module, site] if e.site is not None]
            infers = all(each.infers for each in given)
            if len(values) > 1 and infers and several[module, site.place] == 1:
                stated.setdefault(module, {})[given[0]] = INFERRED
            elif len(values) > 1 or value is None:
                disagreeing.append(equations[module, site])
            elif value != UNCHANGED:
                stated.setdefault(module, {})[given[0]] = value
        return stated, disagreeing

    def _value(self, e: Equation, right: int, asked: int) -> Ratio | float | None:
        """Returns what a correction states in the place of a size; ``None``: it would not hold for another batch."""
        if right == asked:
            return UNCHANGED
        if e.constant is not None:
            return e.constant
        varies = self._varies(e)
        if adds_plain_length(e.expression):
            return None
        if asked == 0 or (e.number and not varies):
            return None if varies else Ratio(right, 0)
        common = gcd(right, asked)
        return Ratio(right // common, asked // common)

    def _varies(self, e: Equation) -> bool:
        """Returns whether an expression holds what may change with the input: a plain length, or one that is pinned."""
        pinned = self.classes.pinned
        lengths = [self.record.vectors[leaf.vector] for leaf in leaves(e.expression) if isinstance(leaf, Length)]
        return holds_plain_length(e.expression) or any((self.classes.of[v] == pinned).all() for v in lengths)

    def contradictions(self, dead: np.ndarray) -> tuple[list[Equation], list[list[Equation]]]:
        """Returns the sizes that nothing makes right after a cut, and those of one place that no one value satisfies.

        The first are equations that neither attributes nor corrections can satisfy, or that would divide by zero.
        """
        lengths = self.lengths(dead)
        solved, unsolved = self._solved(lengths)
        asked_for = self._asked(lengths, solved)
        impossible = [e for e, asked in zip(self.record.equations, asked_for, strict=True) if asked is None]
        return unsolved + impossible, self._stated(lengths, asked_for)[1]

    def _asked(self, lengths: Sequence[int], solved: Mapping[Attribute, int]) -> list[int | None]:
        """Returns what the program will compute after a cut, by equation; None where it would divide by zero."""
        values = {**self.record.attributes, **solved}
        return [evaluate(e.expression, values, lengths) for e in self.record.equations]

    def vectors_in(self, equation: Equation) -> list[Labels]:
        """Returns the vectors that an equation speaks of, also by attributes that it shares with others."""
        indices = set() if equation.wanted is None else {equation.wanted}
        attributes = set()
        for leaf in leaves(equation.expression):
            if isinstance(leaf, Attribute):
                attributes.add(leaf)
            else:
                indices.add(leaf.vector)
        for other in self.record.equations:
            if other.wanted is not None and attributes.intersection(leaves(other.expression)):
                indices.add(other.wanted)
        return [self.record.vectors[k] for k in sorted(indices)]

    # reasons

    @cached_property
    def _chain(self) -> np.ndarray:
        """Returns for every label the one before it on a shortest chain of unions from label 0; negative: none."""
        unions, count = self.classes.unions, self.record.algebra.count
        a = np.concatenate([u[0] for u in unions] or [np.empty(0, dtype=np.int64)])
        b = np.concatenate([u[1] for u in unions] or [np.empty(0, dtype=np.int64)])
        graph = coo_matrix((np.ones(2 * len(a), np.int8), (np.r_[a, b], np.r_[b, a])), shape=(count, count)).tocsr()
        _, before = breadth_first_order(graph, 0, directed=False)
        return np.asarray(before)

    @cached_property
    def _reasons(self) -> dict[int, int]:
        """Returns the origin of the pin, for every label that was pinned directly."""
        origins: dict[int, int] = {}
        for a, b, origin in self.classes.unions:
            if not b.any():
                for label in np.unique(a).tolist():
                    origins.setdefault(label, origin)
        return origins

    def _walk(self, labels: Labels) -> list[int]:
        """Returns the chain from a pinned one among labels to label 0; empty where none is pinned."""
        chain = labels[self.classes.of[labels] == self.classes.pinned][:1].tolist()
        while chain and self._chain[chain[-1]] >= 0:
            chain.append(int(self._chain[chain[-1]]))
        return chain

    def reason(self, labels: Labels) -> str:
        """Returns why an axis is pinned, in a few words."""
        chain = self._walk(labels)
        if not chain:
            return "its positions do not form two or more units that could be removed apart"
        origin = self.record.algebra.origins[self._reasons.get(chain[-2], 0) if len(chain) > 1 else 0]
        return _placed(origin, ", ") if origin.what else "tied to an axis that is pinned"

    def pinned(self, groups: Sequence[Group]) -> tuple[Pinned, ...]:
        """Returns every axis that no unit of the groups sits on, with the reason."""
        free = {(part.tensor, part.axis) for group in groups for part in group.slices}
        return tuple(
            Pinned(name, axis, self.reason(labels))
            for name, axis, labels in self.record.sources
            if (name, axis) not in free
        )

    def why(self, tensor: str, axis: int) -> str:
        """Returns the chain of unions from an axis to what pins it, one step a line."""
        labels = self.record.axis(tensor, axis)
        if labels is None:
            hint = suggestion(tensor, self.record.shapes, "`inspect` lists the names")
            raise TopiaristError(
                f"there is no axis {axis} of more than one position in a tensor named {shown(tensor)}: {hint}"
            )
        chain = self._walk(labels)
        if not chain:
            return f"axis {axis} of {tensor} is not pinned"
        names = {int(label): f"{name} axis {dim}" for name, dim, source in self.record.sources for label in source}
        edges = {}
        for a, b, number in self.classes.unions:
            edges.update({frozenset(pair): number for pair in zip(a.tolist(), b.tolist(), strict=True)})
        steps = [f"axis {axis} of {tensor}"]
        for here, there in pairwise(chain):
            origin = self.record.algebra.origins[edges.get(frozenset((here, there)), 0)]
            target = "must stay" if there == 0 else f"tied to {names.get(there, 'an activation')}"
            steps.append(f"  {target}: {_placed(origin, ' ')}")
        return "\n".join(steps)


def _placed(origin: Origin, separator: str) -> str:
    """Returns what made a union, and where."""
    where = separator.join(part for part in (origin.module and f"in {origin.module}", origin.line) if part)
    return f"{origin.what} ({where})" if where else origin.what
