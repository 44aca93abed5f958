"""Positions that are read or written by number: the indexed axis is pinned, the others pass.

Where the values of a tensor say which positions (gather, scatter, index), a cut cannot know them. Where a number in the
code does (select), only those that it counts must stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from topiarist.graph.labels import Vector, labelled
from topiarist.graph.record import Gather
from topiarist.graph.rules.movement import BY_DATA, as_written
from topiarist.graph.rules.registry import Call, rule_for
from topiarist.graph.sizes import Size, leaves
from topiarist.graph.tracer import Tracer

MASKS = (torch.bool, torch.uint8)
"""Types of an index of truth values, one for each position."""


@rule_for("select")
def select(t: Tracer, c: Call) -> None:
    """Pins the selected position and those that its number counts: before it, or behind it where it is negative.

    All of them, where the number came out of a tensor: another example may give another one.
    """
    vectors, position = c.vectors, c["index"]
    vector, written = vectors.pop(c["dim"] % c.x.ndim), as_written(t, position)
    computed = isinstance(written, Size) and any(True for _ in leaves(written.expression))
    if t.by_data:
        t.algebra.pin(vector, BY_DATA)
    if labelled(vector) and not computed:
        if c.traced.source is not None:
            t.record.left_out.append((c.traced.source, vector))
        vector = vector[position:] if position < 0 else vector[: position + 1]
    t.algebra.pin(vector, "one position is selected by its number")
    t.put(c.out, vectors, c.traced.zero)


@rule_for("unbind")
def unbind(t: Tracer, c: Call) -> None:
    vectors = c.vectors
    t.algebra.pin(vectors.pop(c["dim"] % c.x.ndim), "the axis is unbound into single positions")
    for part in c.out:
        t.put(part, vectors, c.traced.zero)


# x[index] and x[index] = values, where an index holds numbers, or truth values for one axis or several


@rule_for("index", "_unsafe_index")
def index(t: Tracer, c: Call) -> None:
    chosen = [(d, i) for d, i in enumerate(c["indices"]) if i is not None]
    if len(chosen) == 1 and chosen[0][1].ndim == 1 and chosen[0][1].dtype not in MASKS:
        read_by(t, c, *chosen[0])
        return
    dims, new, at = _indexed(c)
    rest = _pin_indexed(t, c, dims)
    t.put(c.out, [*rest[:at], *[None] * new, *rest[at:]], c.traced.zero)


@rule_for("index_put", "index_put_", "_unsafe_index_put", "_index_put_impl_")
def index_put(t: Tracer, c: Call) -> None:
    """Pins the axes that are written to by number; the others meet those of the values."""
    mask, values = c["indices"][0], c["values"]
    if len(c["indices"]) == 1 and mask.dtype in MASKS and values.numel() == 1:
        own = c.vectors[: mask.ndim]  # x[x > 0] = 1: a choice at each position
        _written(t, c, [*_united(t, own, t.vectors_of(mask)), *c.vectors[mask.ndim :]], zero=False)
        return
    dims, new, at = _indexed(c)
    rest = _pin_indexed(t, c, dims)
    mine: list[Vector] = [*rest[:at], *[None] * new, *rest[at:]]
    theirs = [None] * (len(mine) - values.ndim) + list(t.vectors_of(values))
    lengths = [1] * (len(mine) - values.ndim) + list(values.shape)
    met = [t.algebra.unify(a, b) if n > 1 else a for a, b, n in zip(mine, theirs, lengths, strict=True)]
    carried = [back for back, vector in enumerate(reversed(met), 1) if labelled(vector)]
    zero = all(back <= values.ndim and t.zero_along(values, -back) for back in carried)
    passed = iter([*met[:at], *met[at + new :]])
    vectors = [None if d in dims else next(passed) for d in range(c.x.ndim)]
    _written(t, c, vectors, zero=zero and _zero_in(t, vectors, c.x))


def _indexed(c: Call) -> tuple[list[int], int, int]:
    """Returns the indexed axes, how many axes come out in their place, and where."""
    dims: list[int] = []
    new, at = 0, 0
    for given in c["indices"]:
        masked = given is not None and given.dtype in MASKS
        width = given.ndim if masked else 1
        if given is not None:
            dims += range(at, at + width)
            new = max(new, 1 if masked else given.ndim)
        at += width
    if not dims:
        raise ValueError("indexed by a single truth value")
    return dims, new, dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0


def _pin_indexed(t: Tracer, c: Call, dims: Sequence[int]) -> list[Vector]:
    """Pins the indexed axes, and what indexes them; returns the vectors of the others."""
    given = [i for i in c["indices"] if i is not None]
    masked = any(i.dtype in MASKS for i in given)
    t.algebra.pin_all([c.vectors[d] for d in dims], "picked by a mask" if masked else "indexed by position")
    t.algebra.pin_all([v for i in given for v in t.vectors_of(i)], "used as an index")
    return [v for d, v in enumerate(c.vectors) if d not in dims]


def _united(t: Tracer, *sides: Sequence[Vector]) -> list[Vector]:
    """Unites vectors axis by axis."""
    return [reduce(t.algebra.unify, meeting) for meeting in zip(*sides, strict=True)]


def _zero_in(t: Tracer, vectors: Sequence[Vector], *tensors: Tensor) -> bool:
    """Returns whether all tensors hold zeros at dead positions of a result."""
    return all(t.zero_along(x, d) for x in tensors for d, vector in enumerate(vectors) if labelled(vector))


def _written(t: Tracer, c: Call, vectors: Sequence[Vector], *, zero: bool) -> None:
    """Sends on what was written into the first tensor, or into a copy of it."""
    in_place = c.name.endswith("_")
    t.put(c.out, vectors, zero, c.traced.source if in_place else None)
    if in_place and not zero:
        t.note_nonzero(c.x)


@rule_for("index_select")
def index_select(t: Tracer, c: Call) -> None:
    read_by(t, c, c["dim"] % c.x.ndim, c["index"])


def read_by(t: Tracer, c: Call, dim: int, picked: Tensor) -> None:
    """Pins what ``out[k] = x[picked[k]]`` reads; what is picked is removed with the numbers in the buffer.

    The picked positions are not zero where they are dead, since the mask says nothing about what they pick.
    """
    vectors, source = c.vectors, t.of(picked).source
    numbers = t.vectors_of(picked)[0]
    if source is None:  # numbers that were computed: nothing says that they stay in range in a mask
        t.algebra.pin(numbers, "used as an index")
        numbers = None
    t.algebra.pin(vectors[dim], f"read by number (picked by {source})" if source else "indexed by position")
    vectors[dim] = numbers
    t.put(c.out, vectors, c.traced.zero and not labelled(numbers))
    if source is not None:
        t.mark(numbers, "index", "x".join(map(str, c.out.shape[2:])) or "1")
        if c.traced.scale is not None and dim == 1:
            t.record.gathers[source] = Gather(c.traced.scale, picked.detach().clone())


# an index as long as what is read or written, or along one axis


@rule_for("gather")
def gather(t: Tracer, c: Call) -> None:
    vectors = _beside(t, c["dim"], c.x, c["index"])
    t.put(c.out, vectors, _zero_in(t, vectors, c.x))


@rule_for("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(t: Tracer, c: Call) -> None:
    source = [src] if isinstance(src := c.get("src"), Tensor) else []
    vectors = _beside(t, c["dim"], c.x, *source, c["index"])
    zero = bool(source) or c["value"] == 0
    _written(t, c, vectors, zero=zero and _zero_in(t, vectors, c.x, *source))


@rule_for("index_add", "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_")
def index_add(t: Tracer, c: Call) -> None:
    t.algebra.pin_all(t.vectors_of(c["index"]), "used as an index")
    vectors = _beside(t, c["dim"], c.x, c["source"])
    _written(t, c, vectors, zero=_zero_in(t, vectors, c.x, c["source"]))


@rule_for("index_fill", "index_fill_")
def index_fill(t: Tracer, c: Call) -> None:
    t.algebra.pin_all(t.vectors_of(c["index"]), "used as an index")
    vectors = _beside(t, c["dim"], c.x)
    value = c["value"]
    zero = not isinstance(value, Tensor) and value == 0
    _written(t, c, vectors, zero=zero and _zero_in(t, vectors, c.x))


def _beside(t: Tracer, dim: int, *tensors: Tensor) -> list[Vector]:
    """Pins the indexed axis, and unites the others; where one tensor has only the first positions, all stay."""
    vectors: list[Vector] = []
    for d in range(tensors[0].ndim):
        meeting = [t.vectors_of(x)[d] for x in tensors]
        indexed, lengths = d == dim % tensors[0].ndim, {x.shape[d] for x in tensors}
        if indexed or len(lengths) > 1:
            t.algebra.pin_all(
                meeting, "indexed by position" if indexed else "the first positions of the axis are taken"
            )
        vectors.append(None if indexed or len(lengths) > 1 else reduce(t.algebra.unify, meeting))
    return vectors


@rule_for("take", "masked_select", "nonzero")
def take(t: Tracer, c: Call) -> None:
    """Pins all: positions of the flattened tensor are picked."""
    t.algebra.pin_all([v for x in c.tensors for v in t.vectors_of(x)], "positions of all axes are picked together")
    for out in c.outputs:
        t.put(out, [None] * out.ndim)


@rule_for("masked_scatter", "masked_scatter_")
def masked_scatter(t: Tracer, c: Call) -> None:
    """Passes the last axis, where the mask is the same all along it: whole rows of the source are put in one by one."""
    mask, source, vectors = c["mask"], c["source"], c.vectors
    over, theirs = list(t.vectors_of(mask)), list(t.vectors_of(source))
    last: Vector = None
    alike = not over or mask.shape[-1] == 1 or mask.stride(-1) == 0
    if alike and theirs and source.shape[-1] == c.x.shape[-1]:
        last = t.algebra.unify(vectors.pop(), theirs.pop())
        if over and (free := over.pop()) is not None:
            last = t.algebra.unify(last, free)
    t.algebra.pin_all([*vectors, *theirs, *over], "filled one by one where a mask says so")
    met = [None] * (c.x.ndim - 1) + [last]
    zero = all(t.zero_along(x, -1) for x in (c.x, source)) if labelled(last) else c.traced.zero
    _written(t, c, met, zero=zero)


# tables


@rule_for("embedding")
def embedding(t: Tracer, c: Call) -> None:
    words, features = t.vectors_of(c["weight"])
    t.algebra.pin(words, "looked up by number (embedding)")
    t.algebra.pin_all(t.vectors_of(c["indices"]), "used as an index")
    t.mark(features, "output", "x".join(map(str, c["indices"].shape[1:])) or "1")
    t.put(c.out, [None] * c["indices"].ndim + [features], t.of(c["weight"]).zero)


@rule_for("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(t: Tracer, c: Call) -> None:
    words, features = t.vectors_of(c["weight"])
    t.algebra.pin(words, "looked up by number (embedding)")
    beside = [c["indices"], c["offsets"], c["per_sample_weights"]]
    t.algebra.pin_all([v for x in beside if x is not None for v in t.vectors_of(x)], "used as an index")
    t.mark(features, "output", "1")
    t.put(c.outputs[0], [None, features], t.of(c["weight"]).zero)
    for out in c.outputs[1:]:  # where each bag is, and of what each maximum
        t.put(out, [None] * out.ndim)
