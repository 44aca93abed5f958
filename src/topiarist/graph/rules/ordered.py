"""Operators in which each position of an axis depends on the others: the axis is pinned, the rest passes."""

from __future__ import annotations

from functools import reduce

from torch import Tensor

from topiarist.graph.labels import Vector
from topiarist.graph.rules.pointwise import broadcast
from topiarist.graph.rules.registry import Call, rule_for
from topiarist.graph.tracer import Tracer

FROM_ZEROS = {"cumsum", "cumprod", "cummax", "cummin", "sort", "topk", "median", "nanmedian", "kthvalue", "mode"}
"""Whose values of zeros are zeros; their indices are not."""


@rule_for(
    "_softmax", "_log_softmax", "_safe_softmax", "softmax", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp",
    "sort", "topk",
)  # fmt: skip
def along(t: Tracer, c: Call) -> None:
    vectors, dim = c.vectors, c["dim"] % max(c.x.ndim, 1)
    if c.x.ndim:
        t.algebra.pin(vectors[dim], c.depends)
        vectors[dim] = None
    for k, out in enumerate(c.outputs):
        t.put(out, vectors, k == 0 and c.name in FROM_ZEROS and c.traced.zero)


@rule_for("median", "nanmedian", "kthvalue", "mode")
def one_of(t: Tracer, c: Call) -> None:
    """Ends the axis from which one value is picked by its rank."""
    dims = c.dims()
    t.algebra.pin_all([c.vectors[d] for d in dims if c.x.ndim], c.depends)
    kept = [None if d in dims else v for d, v in enumerate(c.vectors)]
    ended = [v for d, v in enumerate(kept) if d not in dims]
    for k, out in enumerate(c.outputs):
        t.put(out, kept if out.ndim == c.x.ndim else ended, k == 0 and c.traced.zero)


@rule_for("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fourier(t: Tracer, c: Call) -> None:
    dims = c.dims()
    t.algebra.pin_all([c.vectors[d] for d in dims], "a Fourier transform over the axis depends on every position")
    t.put(c.out, [None if d in dims else v for d, v in enumerate(c.vectors)], c.traced.zero)


@rule_for("linalg_cross")
def cross(t: Tracer, c: Call) -> None:
    vectors = broadcast(t, c.tensors, c.out)
    t.algebra.pin(vectors[c["dim"]], "a cross product along the axis")
    vectors[c["dim"]] = None
    t.put(c.out, vectors)


@rule_for("bucketize", "searchsorted")
def bucketize(t: Tracer, c: Call) -> None:
    """Passes what is sorted into buckets, and pins their borders."""
    borders = c["boundaries"] if c.name == "bucketize" else c["sorted_sequence"]
    t.algebra.pin_all(t.vectors_of(borders), "borders of buckets")
    values = c["self"]
    vectors = list(t.vectors_of(values)) if isinstance(values, Tensor) else []
    if borders.ndim > 1:
        t.algebra.pin_all(vectors, "borders of buckets")
        vectors = [None] * len(vectors)
    t.put(c.out, vectors)


@rule_for("_cdist_forward", "_euclidean_dist", "_pdist_forward")
def distances(t: Tracer, c: Call) -> None:
    """Passes the rows that are compared; features end, since where both are zero they add nothing."""
    left, right = c.tensors[0], c.tensors[-1]
    *outer, rows, inner = t.vectors_of(left)
    *theirs, columns, reads = t.vectors_of(right)
    zero = t.zero_along(left, -1) and t.zero_along(right, -1)
    vector = t.algebra.unify(inner, reads)
    if not zero:
        t.algebra.pin(vector, "distances over features that are not zero")
    if len(c.tensors) == 1:
        t.algebra.pin(rows, "pairs of rows")
        t.put(c.out, [None])
        return
    batch: list[Vector] = []
    for back in range(c.out.ndim, 2, -1):
        meeting = [v[-back + 2] for v, x in ((outer, left), (theirs, right)) if x.ndim >= back and x.shape[-back] > 1]
        batch.append(reduce(t.algebra.unify, meeting) if meeting else None)
    t.put(c.out, [*batch, rows, columns])
