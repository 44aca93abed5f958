"""Contractions: convolutions, matrix products and attention. The axis that is summed over unites both sides."""

from __future__ import annotations

from functools import reduce
from math import prod

from torch import Tensor

from topiarist.graph.labels import Free, Vector, labelled
from topiarist.graph.rules.pointwise import broadcast
from topiarist.graph.rules.registry import Call, rule_for
from topiarist.graph.tracer import Tracer

INPUT = "reads an input of fixed size"


def summed(t: Tracer, a: Vector, b: Vector, left: Tensor, right: Tensor, axis: int = -1) -> Vector:
    """Unites the axis that is summed over: dead products vanish where one side is zero, else by the mask.

    `axis` is where the left side carries it. What was expanded from one position is not known to be zero.
    """
    zero = any(t.of(x).zero and (not isinstance(v, Free) or v.root().zero) for x, v in ((left, a), (right, b)))
    zero = zero and not (t.undefined(left) or t.undefined(right))  # 0 · NaN is no 0
    vector = t.algebra.unify(a, b, INPUT)
    if not zero and (isinstance(a, Free) or isinstance(b, Free)):
        t.algebra.pin(vector, "summed over where dead positions are not zero")
    elif not zero:
        carried: list[Vector] = [None] * left.ndim
        carried[axis] = t.vectors_of(left)[axis]
        t.note_mixing("product", carried)
    return vector


@rule_for("convolution")
def convolution(t: Tracer, c: Call) -> None:
    x, weight, bias, groups = c["input"], c["weight"], c["bias"], c["groups"]
    batch, channels, *inner = t.vectors_of(x)
    kernel = t.vectors_of(weight)
    t.algebra.pin_all((*kernel[2:], *inner), "a kernel's or a feature map's own axis")
    if c["transposed"]:
        out, reads = _transposed(t, c, channels)
    else:
        out, reads = kernel[0], kernel[1]
        if groups == 1:
            summed(t, channels, reads, x, weight, 1)
        else:
            out = _grouped(t, c, channels)
    stage = "x".join(map(str, c.out.shape[2:]))
    t.mark(reads, "input")
    t.mark(kernel[1 if c["transposed"] else 0], "output", stage)
    if bias is not None:
        t.mark(t.vectors_of(bias)[0], "bias")
        out = t.algebra.unify(out, t.vectors_of(bias)[0])
    positions = prod(x.shape[2:] if c["transposed"] else c.out.shape[2:])
    factors = zip(weight.shape, kernel, strict=True)
    t.note_product((x.shape[0], batch), positions, *factors, weight=t.of(weight).source, stage=stage)
    zero = t.of(weight).zero and (bias is None or t.of(bias).zero)
    zero = zero and (not labelled(batch) or (bias is None and t.of(x).zero))
    t.put(c.out, [batch, out] + [None] * (c.out.ndim - 2), zero)
    if not c["transposed"]:
        _layer(t, c.out, weight, kernel[0], bias)


def _layer(t: Tracer, out: Tensor, weight: Tensor, outputs: Vector, bias: Tensor | None) -> None:
    """Notes a layer, where weight and bias are entire tensors of the model, and the weight has its outputs first."""
    source, shift = t.of(weight).source, None if bias is None else t.entire_source(bias)
    if source is None or prod(t.record.shapes[source]) != weight.numel():
        return
    if bias is not None and (shift is None or bias.numel() != t.record.shapes[source][0]):
        return
    if t.axes[source][0] is outputs:
        t.norms.layer(out, source, shift)


def _grouped(t: Tracer, c: Call, channels: Vector) -> Vector:
    """Splits input and output channels into rows (groups) and columns (positions within a group)."""
    x, weight, groups = c["input"], c["weight"], c["groups"]
    out, reads = t.vectors_of(weight)[:2]
    rows: Vector = channels
    if x.shape[1] > groups:
        rows, columns = t.algebra.split(channels, [groups, x.shape[1] // groups])
        summed(t, columns, reads, x, weight, 1)
    rows = t.algebra.unify(rows, _rows(t, out, c.out.shape[1], groups), INPUT)
    t.note_size(t.call[0] if t.call else groups, rows)
    return out


def _rows(t: Tracer, vector: Vector, length: int, groups: int) -> Vector:
    """Returns the rows (groups) of an axis."""
    return t.algebra.split(vector, [groups, length // groups])[0] if length > groups else vector


def _transposed(t: Tracer, c: Call, channels: Vector) -> tuple[Vector, Vector]:
    """Returns outputs and inputs of a transposed kernel: (inputs, outputs of one group, …)."""
    groups = c["groups"]
    reads, out = t.vectors_of(c["weight"])[:2]
    summed(t, channels, reads, c["input"], c["weight"], 1)
    if groups > 1:
        rows = _rows(t, reads, c["weight"].shape[0], groups)
        out = t.algebra.merge([rows, out], [groups, c["weight"].shape[1]])
        t.note_size(t.call[0] if t.call else groups, rows)
    return out, reads


@rule_for("mm", "addmm", "bmm", "baddbmm", "mv", "dot", "vdot", "addmv")
def product(t: Tracer, c: Call) -> None:
    added = c.get("self") if c.name in ("addmm", "baddbmm", "addmv") else None
    left, right = [x for x in c.tensors if x is not added][:2]
    a, b = t.vectors_of(left), t.vectors_of(right)
    inner = summed(t, a[-1], b[0] if right.ndim == 1 else b[-2], left, right)
    vectors: list[Vector] = list(a[-2:-1]) + ([b[-1]] if right.ndim > 1 else [])
    factors: list[tuple[int, Vector]] = [(left.shape[-1], inner)]
    factors += zip(left.shape[-2:-1], a[-2:-1], strict=True)
    factors += [(right.shape[-1], b[-1])] if right.ndim > 1 else []
    if c.name in ("bmm", "baddbmm"):
        vectors.insert(0, t.algebra.unify(a[0], b[0]))
        factors.append((left.shape[0], vectors[0]))
    weight = t.of(right).source or t.of(left).source
    weighs = bool(t.of(right).source) and right.ndim == 2
    stage = str(max(1, left.shape[0] // t.record.batch)) if weighs else ""
    t.note_product(*factors, weight=weight, stage=stage)
    if weighs:
        t.mark(b[0], "input")
        t.mark(b[1], "output", stage)
        _layer(t, c.out, right, b[1], added)
    ends = [(left, a[:-1]), (right, b[:-2] + b[-1:] if right.ndim > 1 else ())]
    zero = all(t.of(side).zero or not any(labelled(v) for v in outer) for side, outer in ends)
    t.put(c.out, vectors, zero)
    if isinstance(added, Tensor):
        if t.of(added).source and added.ndim == 1:
            t.mark(t.vectors_of(added)[0], "bias")
        theirs: list[Vector] = [None] * (c.out.ndim - added.ndim) + list(t.vectors_of(added))
        covered = all(labelled(theirs[d]) for d, v in enumerate(vectors) if labelled(v))
        t.put(c.out, broadcast(t, [c.out, added], c.out), zero and t.of(added).zero and covered)


@rule_for("_grouped_mm")
def grouped_product(t: Tracer, c: Call) -> None:
    """Multiplies the rows that fall to each expert with its own matrix: ``(rows, k) · (experts, k, n)``."""
    rows, experts = c["self"], c["mat2"]
    if (rows.ndim, experts.ndim) != (2, 3):
        raise ValueError("not rows and experts")
    a, b = t.vectors_of(rows), t.vectors_of(experts)
    t.algebra.pin_all((a[0], b[0]), "rows are shared out among experts")
    inner = summed(t, a[1], b[1], rows, experts)
    t.mark(b[1], "input")
    t.mark(b[2], "output", "1")
    widths = (rows.shape[1], inner), (experts.shape[2], b[2])
    t.note_product(rows.shape[0], *widths, weight=t.of(experts).source)
    t.put(c.out, [None, b[2]], t.of(experts).zero)


@rule_for("attention")
def attention(t: Tracer, c: Call) -> None:
    """Passes heads and the width of v through softmax(q·kᵀ·scale + mask)·v; that of q and k is summed over."""
    query, key, value = c["query"], c["key"], c["value"]
    q, k, v = t.vectors_of(query), t.vectors_of(key), t.vectors_of(value)
    width = summed(t, q[-1], k[-1], query, key)
    outer: list[Vector] = []
    for d in range(query.ndim - 2):
        theirs = (_shared(t, vectors[d], x.shape[d], query.shape[d]) for vectors, x in ((k, key), (v, value)))
        outer.append(reduce(t.algebra.unify, theirs, q[d]))
    bias = c.get("attn_mask", c.get("attn_bias"))
    sequence = [q[-2], k[-2], v[-2]]
    if isinstance(bias, Tensor):
        sequence += t.vectors_of(bias)[-2:]
        for d in range(bias.ndim - 2):
            axis = query.ndim - bias.ndim + d
            if bias.shape[d] > 1:
                outer[axis] = t.algebra.unify(outer[axis], t.vectors_of(bias)[d])
    t.algebra.pin_all(sequence, "the sequence that attention runs over")
    around = list(zip(query.shape[:-2], outer, strict=True))
    for inner, vector in ((query.shape[-1], width), (value.shape[-1], v[-1])):
        t.note_product(query.shape[-2], key.shape[-2], *around, (inner, vector))
    for out in c.outputs[1:]:  # of each head and query, and the state of dropout
        t.put(out, [*outer, None] if out.shape == query.shape[:-1] else [None] * out.ndim)
    t.put(c.outputs[0], [*outer, None, v[-1]], t.of(value).zero)


def _shared(t: Tracer, vector: Vector, heads: int, queries: int) -> Vector:
    """Returns heads of keys or values as the queries meet them: neighbours share one (`enable_gqa`)."""
    return vector if heads == queries else t.algebra.merge([vector, None], [heads, queries // heads])
