"""Labels: what must be removed together carries the same number.

Every position on every axis of every parameter gets a fresh integer. A vector of such labels travels with each axis of
each tensor; where two vectors meet, position by position, their labels are united. Label 0 means "pinned, never cut".
This file knows nothing of tensors: it is the algebra that the operators' rules (`rules/`) are written in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import NamedTuple, TypeGuard

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from topiarist.errors import TopiaristError
from topiarist.graph.code.places import Site

Labels = np.ndarray
"""int64 ``(length,)``: one label for each position on an axis."""


class Request(NamedTuple):
    """A size that the program asked for: its value, the site where a correction could act, and who asked."""

    value: int
    site: Site | None
    module: str
    line: str


@dataclass(eq=False)
class Free:
    """An axis that was expanded from size 1: it takes the labels of whatever it meets.

    Attributes:
        requests: sizes that the program gave for it; they must follow those labels.
        bound: the labels that it met first.
        fixed: it met an axis of fixed size, or all of its positions matter: no label may be cut because of it.
        same: the free axis that it met, and is one with from then on.
        zero: all that was expanded is zero, so that a dead position is.
    """

    requests: list[Request] = field(default_factory=list)
    bound: Labels | None = None
    fixed: bool = False
    same: Free | None = None
    zero: bool = False

    def root(self) -> Free:
        """Returns what stands for all free axes that met."""
        return self if self.same is None else self.same.root()

    def known(self) -> Free | Labels:
        """Returns the labels that it met; itself, as long as it met none."""
        root = self.root()
        return self if root.bound is None else root.bound


Vector = Labels | Free | None
"""The labels of an axis; ``None``: the axis is fixed; `Free`: it takes what it meets."""


Union = tuple[Labels, Labels, int]
"""``(a, b, origin)``: the labels ``a[i]`` and ``b[i]`` die together, by that `Origin`."""


class Origin(NamedTuple):
    """What made a union: the operator (or the reason of a pin), the module that ran it and the line of code."""

    what: str
    module: str
    line: str


@dataclass(frozen=True, eq=False)
class Line:
    """The equation ``merged[i, j, …] = factors[0][i] or factors[1][j] or …``: an entry dies with its row or its column.

    Attributes:
        merged: labels of the merged axis, shaped as its factors.
        factors: labels of each factor axis, outer first.
        origin: index of the `Origin` that wrote it.
    """

    merged: Labels
    factors: tuple[Labels, ...]
    origin: int


def labelled(vector: Vector) -> TypeGuard[Labels]:
    """Returns whether an axis carries labels, so that positions on it could die."""
    return isinstance(vector, np.ndarray)


def bound(vector: Vector) -> Labels | None:
    """Returns the labels of an axis; of one that was expanded, those that it met."""
    vector = vector.root().bound if isinstance(vector, Free) else vector
    return vector if labelled(vector) else None


class LabelAlgebra:
    """Unions and lines as a network is run; nothing is solved here (see `lines.py`).

    Attributes:
        count: labels given out so far; 0 is the pinned one.
        unions: what dies together.
        lines: the equations of split and merged axes.
        on_bound: called with each size that was asked for a free axis, once its labels are known.
        origins: who wrote what.
    """

    def __init__(self, limit: int, on_bound: Callable[[Request, Labels], None]) -> None:
        self.count = 1
        self.on_bound = on_bound
        self.limit = limit
        self.unions: list[Union] = []
        self.lines: list[Line] = []
        self.origins = [Origin("", "", "")]
        self._split: dict[tuple[bytes, tuple[int, ...]], list[Labels]] = {}
        self._merged: dict[tuple[bytes, ...], Labels] = {}

    def fresh(self, length: int) -> Labels:
        """Returns new labels that nothing else has."""
        if self.count + length > self.limit:
            raise TopiaristError(
                f"the network needs more than {self.limit:,} labels; trace it with a smaller example input, or raise "
                "the `labels` limit of trace()"
            )
        self.count += length
        return np.arange(self.count - length, self.count)

    def add_origin(self, what: str, module: str = "", line: str = "") -> int:
        """Notes what is writing unions from now on; returns its index."""
        self.origins.append(Origin(what, module, line))
        return self.origin

    @property
    def origin(self) -> int:
        """Returns the index of what is writing unions now."""
        return len(self.origins) - 1

    def pin(self, vector: Vector, reason: str) -> None:
        """Pins an axis: nothing on it may be cut."""
        if isinstance(vector, Free):
            free = vector.root()
            free.fixed = True
            vector = free.bound
        if not labelled(vector):
            return
        last = self.origins[-1]
        self.unions.append((vector, np.zeros_like(vector), self.add_origin(reason, last.module, last.line)))

    def pin_all(self, vectors: Iterable[Vector], reason: str) -> None:
        """Pins several axes."""
        for vector in vectors:
            self.pin(vector, reason)

    def unify(self, a: Vector, b: Vector, reason: str = "") -> Vector:
        """Unites two axes that meet position by position: what dies on one dies on the other."""
        if isinstance(a, Free):
            return self._bind(a, b)
        if isinstance(b, Free):
            return self._bind(b, a)
        if a is None or b is None:
            self.pin_all((a, b), reason or "meets an axis of fixed size")
            return None
        if len(a) != len(b):
            raise ValueError(f"{len(a)} positions meet {len(b)}")
        if a is not b:
            self.unions.append((a, b, self.origin))
        return a

    def _bind(self, free: Free, other: Vector) -> Vector:
        """Gives a free axis the labels that it meets; those that it meets later are united with them."""
        free = free.root()
        if isinstance(other, Free):
            other = other.root()
            if other is not free:
                self._join(free, other)
            return free
        if free.fixed or other is None:
            self.pin_all((free, other), "meets an axis of fixed size")
            return None
        if free.bound is None:
            free.bound = other
            for request in free.requests:
                self.on_bound(request, other)
            return other
        return self.unify(free.bound, other)

    def _join(self, free: Free, other: Free) -> None:
        """Makes one of two free axes that meet, which fits the sizes asked for either."""
        known, late = (free, other) if free.bound is not None else (other, free)
        if known.bound is not None and late.bound is not None:
            self.unify(known.bound, late.bound)
        elif known.bound is not None:
            for request in late.requests:
                self.on_bound(request, known.bound)
        free.bound, free.requests, other.same = known.bound, free.requests + other.requests, free
        free.zero = free.zero and other.zero
        if free.fixed or other.fixed:
            self.pin(free, "meets an axis of fixed size")

    def settle(self, vector: Vector, length: int) -> Vector:
        """Gives a free axis that met nothing labels of its own, since its positions are about to part."""
        return self.unify(vector, self.fresh(length)) if isinstance(vector, Free) else vector

    def split(self, vector: Vector, sizes: Sequence[int]) -> list[Vector]:
        """Returns the labels of the factors when an axis is seen as rows and columns."""
        if isinstance(vector, Free) and vector.root().requests:
            vector = self.settle(vector, prod(sizes))
        if not labelled(vector):
            return [self._adaptive([vector]) for _ in sizes]
        merged = vector.reshape(tuple(sizes))
        varying = [k for k in range(merged.ndim) if not (merged == merged.take([0], k)).all()]
        if not varying:
            self.pin(vector, "split along positions that die together")
            return [None] * len(sizes)
        for k in range(merged.ndim):
            if k not in varying:
                merged = merged.take([0], k)
        factors: list[Vector] = [None] * len(sizes)
        merged = np.ascontiguousarray(merged.reshape([sizes[k] for k in varying]))
        if len(varying) == 1:
            factors[varying[0]] = merged
            return factors
        key = (merged.tobytes(), merged.shape)
        if key not in self._split:  # splitting twice gives the same factors
            self._split[key] = [self.fresh(sizes[k]) for k in varying]
            self.lines.append(Line(merged, tuple(self._split[key]), self.origin))
        for k, factor in zip(varying, self._split[key], strict=True):
            factors[k] = factor
        return factors

    def merge(self, vectors: Sequence[Vector], sizes: Sequence[int]) -> Vector:
        """Returns the labels of an axis that flattens rows and columns."""
        live = [k for k, v in enumerate(vectors) if labelled(v)]
        if not live:
            return self._adaptive(vectors)
        factors = [v for v in vectors if labelled(v)]
        if len(live) == 1:
            merged = factors[0]
        else:
            key = tuple(factor.tobytes() for factor in factors)
            if key not in self._merged:
                shape = tuple(len(factor) for factor in factors)
                merged = self.fresh(int(np.prod(shape))).reshape(shape)
                self._merged[key] = merged
                self._split[merged.tobytes(), merged.shape] = factors
                self.lines.append(Line(merged, tuple(factors), self.origin))
            merged = self._merged[key]
        merged = merged.reshape([sizes[k] if k in live else 1 for k in range(len(sizes))])
        return np.broadcast_to(merged, tuple(sizes)).reshape(-1)

    def _adaptive(self, vectors: Sequence[Vector]) -> Free | None:
        """Returns a new free axis made of free ones that nobody sized; else a fixed one."""
        free = [v.root() for v in vectors if isinstance(v, Free)]
        if len(free) == len(vectors) and not any(v.requests or v.fixed or v.bound is not None for v in free):
            return Free()
        self.pin_all(free, "a view of an axis that was expanded to a size")
        return None

    def view(self, vectors: Sequence[Vector], old: Sequence[int], new: Sequence[int]) -> list[Vector]:
        """Returns the labels after a reshape from shape `old` to shape `new`.

        Both shapes are cut into the shortest runs of axes of equal size; inside a run every axis is split into the
        common factors and the new axes are merged from them.
        """
        out: list[Vector] = [None] * len(new)
        if not prod(old):
            self.pin_all(vectors, "a view of an empty tensor")
            return out
        mine, theirs = _spans(old), _spans(new)
        ends, other = ({n for span in spans.values() for n in span} for spans in (mine, theirs))
        for low, high in reversed(list(pairwise(sorted(ends & other)))):
            inner = sorted(n for n in ends | other if low <= n <= high)
            before, after = (
                {k: _factors(span, inner) for k, span in spans.items() if low <= span[0] < high}
                for spans in (mine, theirs)
            )
            if len(before) == len(after) == 1:
                out[next(iter(after))] = vectors[next(iter(before))]
            elif any(b % a for a, b in pairwise(inner)):
                self.pin_all([vectors[k] for k in before], "a view that does not follow rows and columns")
            elif any(vectors[k] is not None for k in before):
                parts: list[Vector] = []
                for k, factors in before.items():
                    parts += [vectors[k]] if len(factors) == 1 else self.split(vectors[k], factors)
                for k, factors in after.items():
                    own, parts = parts[: len(factors)], parts[len(factors) :]
                    out[k] = own[0] if len(factors) == 1 else self.merge(own, factors)
        return out


def components(count: int, a: np.ndarray, b: np.ndarray) -> tuple[int, np.ndarray]:
    """Returns how many components so many nodes have with edges from ``a[i]`` to ``b[i]``, and that of each node."""
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    number, of = connected_components(graph, directed=False)
    return int(number), of.astype(np.int64)


def _spans(shape: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Returns for each axis of more than one position its step in the flattened tensor, and that times its length."""
    steps = [prod(shape[k:]) for k in range(len(shape) + 1)]
    return {k: (steps[k + 1], steps[k]) for k, length in enumerate(shape) if length != 1}


def _factors(span: tuple[int, int], borders: Sequence[int]) -> list[int]:
    """Returns the sizes, outer first, into which borders cut the span of an axis."""
    return [b // a for a, b in pairwise(n for n in borders if span[0] <= n <= span[1])][::-1]
