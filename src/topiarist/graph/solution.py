"""The solved trace: dead positions of any vector, sizes after a cut, and the reason of every pin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import breadth_first_order
from torch import Tensor

from topiarist.errors import TopiaristError
from topiarist.files import suggestion
from topiarist.graph.calls import Ratio
from topiarist.graph.groups import Group, Keep, Pinned
from topiarist.graph.labels import Labels, Origin, Vector, labelled
from topiarist.graph.lines import Classes, Rectangles
from topiarist.graph.record import Record
from topiarist.graph.sizes import Attribute, Equation, Length, Term, evaluate, kept_length, leaves, solve


class Correction(NamedTuple):
    """What a shim puts right in a module's forward.

    By call: sizes, numbers that keep their values, axes to squeeze. By reading of a shape: axes whose length the
    program reads as it was traced.
    """

    sizes: Mapping[int, tuple[Ratio | None, ...]]
    numbers: Mapping[int, float]
    squeezes: Mapping[int, tuple[int, ...]]
    reads: Mapping[int, Mapping[int, int]]


@dataclass(frozen=True, eq=False)
class Solution:
    """What a graph knows beyond its groups.

    Attributes:
        record: what the run showed.
        rectangles: which units of a rectangle are offered.
        classes: solved labels.
        membership: classes × units: which units hold a class.
        first: index of each group's first unit.
        pins: ``(labels, reason)`` beyond those of the trace.
        deceived: modules that read shapes as they were traced, since they could not compute with smaller ones.
    """

    record: Record
    rectangles: Rectangles = "both"
    classes: Classes = field(default_factory=lambda: Classes(np.zeros(1, dtype=np.int64), 0, 1, []), repr=False)
    membership: csr_matrix = field(default_factory=lambda: csr_matrix((1, 0)), repr=False)
    first: Mapping[str, int] = field(default_factory=dict)
    pins: tuple[tuple[Labels, str], ...] = field(default=(), repr=False)
    deceived: frozenset[str] = frozenset()

    def dead(self, keep: Keep) -> np.ndarray:
        """Returns bool over classes: True where any unit that holds the class is removed."""
        units = np.zeros(self.membership.shape[1], dtype=np.int64)
        for name, first in self.first.items():
            mask = keep.get(name)
            if mask is not None:
                units[first : first + len(mask)] = ~mask.numpy()
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

    # sizes

    def length(self, dead: np.ndarray, vector: int) -> int:
        """Returns the kept length of a vector, by its index in the record."""
        return kept_length(dead, self.classes.of[self.record.vectors[vector]])

    def sizes(self, dead: np.ndarray) -> tuple[dict[Attribute, int], list[Equation]]:
        """Returns the attributes' new values, and the equations that neither they nor shims can satisfy."""
        firm = [e for e in self.record.equations if not self.correctable(e)]
        soft = [e for e in self.record.equations if self.correctable(e) and not e.number]
        read = partial(self._read, dead)
        return solve(firm, soft, lambda vector: self.length(dead, vector), read, self.record.attributes)

    def _read(self, dead: np.ndarray, length: Length) -> int:
        """Returns what the program reads as the length of an axis after a cut."""
        if length.reader in self.deceived:
            return len(self.record.vectors[length.vector])
        return self.length(dead, length.vector)

    def deceivable(self, e: Equation) -> bool:
        """Returns whether the module that asks could read all shapes as traced, and shims correct what follows."""
        reading = [
            other
            for other in self.record.equations
            if any(isinstance(leaf, Length) and leaf.reader == e.module for leaf in leaves(other.expression))
        ]
        return e.number and e.module not in self.deceived and all(self.correctable(other) for other in (e, *reading))

    def correctable(self, e: Equation) -> bool:
        """Returns whether a shim can correct it: the call is known, and the module's calls can be counted."""
        if e.module in self.record.unsteady:
            return False
        return bool(self.record.numbers.get(e.module)) if e.number else e.site is not None

    def corrections(self, dead: np.ndarray) -> dict[str, Correction]:
        """Returns what shims must put right after a cut, by module: what the attributes do not."""
        solved, _ = self.sizes(dead)
        sizes: dict[str, dict[int, dict[int, Ratio]]] = {}
        frozen: set[str] = set()
        for e in self.record.equations:
            if not self.correctable(e):
                continue
            right = e.value if e.wanted is None else self.length(dead, e.wanted)
            asked = self._asked(e, solved, dead)
            if asked == right:
                continue
            if e.number:
                frozen.add(e.module)
            elif e.site is not None and asked is not None:
                sizes.setdefault(e.site.module, {}).setdefault(e.site.call, {})[e.site.slot] = Ratio(right, asked)
        squeezed: dict[str, dict[int, tuple[int, ...]]] = {}
        for (module, call), (dims, vectors) in self.record.squeezes.items():
            if any(kept_length(dead, self.classes.of[vector]) == 1 for vector in vectors):
                squeezed.setdefault(module, {})[call] = dims
        corrections: dict[str, Correction] = {}
        # Where a module reads what has not changed, there is nothing to deceive it about.
        reads = {module: self.record.shapes_read[module] for module in self.deceived if self._shrinks(module, dead)}
        for module in sorted({*sizes, *frozen, *squeezed, *reads}):
            calls = sizes.get(module, {})
            corrections[module] = Correction(
                {n: tuple(slots.get(k) for k in range(max(slots) + 1)) for n, slots in calls.items()},
                dict(self.record.numbers[module]) if module in frozen else {},
                squeezed.get(module, {}),
                reads.get(module, {}),
            )
        return corrections

    def _shrinks(self, module: str, dead: np.ndarray) -> bool:
        """Returns whether a cut changes what a module would read."""
        read = {leaf for e in self.record.equations for leaf in leaves(e.expression) if isinstance(leaf, Length)}
        mine = [leaf.vector for leaf in read if leaf.reader == module]
        return any(self.length(dead, vector) != len(self.record.vectors[vector]) for vector in mine)

    def impossible(self, dead: np.ndarray) -> list[Equation]:
        """Returns the sizes that cannot be computed after a cut, or are computed as 0 to scale by them."""
        solved, _ = self.sizes(dead)
        values = [(e, self._asked(e, solved, dead)) for e in self.record.equations if isinstance(e.expression, Term)]
        return [e for e, value in values if value is None or (e.number and value == 0)]

    def _asked(self, e: Equation, solved: Mapping[Attribute, int], dead: np.ndarray) -> int | None:
        """Returns what the program will compute after a cut; None where it would divide by zero."""
        traced = self.record.attributes
        return evaluate(e.expression, lambda a: solved.get(a, traced[a]), partial(self._read, dead))

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
                f"there is no axis {axis} of more than one position in a tensor named {tensor!r}: {hint}"
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
