"""Arithmetic that keeps positions apart (pointwise), or ends an axis (reductions), or normalises over it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

from torch import Tensor
from torch._ops import OpOverload

from topiarist.graph.calls import PRODUCTS, REDUCING, in_training
from topiarist.graph.inputs import Arguments
from topiarist.graph.labels import Free, Vector, labelled
from topiarist.graph.rules.registry import Call, rule_for
from topiarist.graph.tracer import Tracer

ZERO_TO_ZERO = {
    "relu", "gelu", "silu", "tanh", "abs", "neg", "sqrt", "leaky_relu", "elu", "hardswish", "mish", "sin", "sign",
    "celu", "selu", "_prelu_kernel", "relu6", "softsign", "square", "expm1", "log1p", "tan", "asinh", "atan", "erf",
    "round", "floor", "ceil", "trunc", "hardshrink", "softshrink", "native_dropout", "threshold_backward", "copy",
}  # fmt: skip
"""Pointwise functions with f(0) = 0: they keep dead positions at zero."""


ADDITIVE = ("sum", "nansum", "count_nonzero", "norm", "linalg_vector_norm")
"""Reductions to which zeros add nothing."""


def broadcast(t: Tracer, tensors: Sequence[Tensor], out: Tensor) -> list[Vector]:
    """Unifies the vectors that meet on each axis of the output."""
    vectors: list[Vector] = [None] * out.ndim
    for d in range(out.ndim):
        meeting = [
            t.vectors_of(x)[d - out.ndim + x.ndim]
            for x in tensors
            if x.ndim >= out.ndim - d and x.shape[d - out.ndim + x.ndim] > 1
        ]
        if meeting:
            vectors[d] = meeting[0]
            for vector in meeting[1:]:
                vectors[d] = t.algebra.unify(vectors[d], vector)
    return vectors


def stays_zero(t: Tracer, c: Call) -> bool:
    """Returns whether dead positions of a result are zero: 0·y = 0 and 0 + 0 = 0, but sigmoid(0) = 0.5."""
    name = c.name.rstrip("_")
    tensors = c.tensors
    if name in ("mul", "div", "bitwise_and", "logical_and"):
        sides = tensors[:1] if name == "div" else tensors
        out = c.outputs[0]
        for d in range(out.ndim):
            meeting = [(x, d - out.ndim + x.ndim) for x in tensors if x.ndim >= out.ndim - d]
            if any(labelled(t.vectors_of(x)[k]) for x, k in meeting) and not any(
                t.zero_along(x, k) for x, k in meeting if any(x is s for s in sides)
            ):
                return False
        return True
    if name in ("add", "sub", "where", "maximum", "minimum", "lerp"):
        operands = tensors[1:] if name == "where" else tensors
        other = c.get("other")
        return (isinstance(other, Tensor) or not other) and all(
            x.ndim >= back and t.zero_along(x, -back)
            for x in operands
            for back in range(1, c.outputs[0].ndim + 1)
            if any(y.ndim >= back and labelled(t.vectors_of(y)[-back]) for y in operands)
        )
    if name in ("clamp", "hardtanh"):
        low, high = c.get("min", c.get("min_val")), c.get("max", c.get("max_val"))
        return t.of(tensors[0]).zero and (low is None or low <= 0) and (high is None or high >= 0)
    if name == "pow":
        exponent = c.get("exponent")
        return t.of(tensors[0]).zero and isinstance(exponent, (int, float)) and exponent > 0
    if name == "copy":
        return t.of(tensors[-1]).zero
    return name in ZERO_TO_ZERO and t.of(tensors[0]).zero


UNDEFINED_AT_ZERO = {"div": 1, "floor_divide": 1, "fmod": 1, "remainder": 1}
UNDEFINED_AT_ZERO |= dict.fromkeys(("log", "log2", "log10", "reciprocal", "rsqrt"), 0)
"""Functions that make NaN or infinity of zeros in this argument; so does a negative power."""


def undefined_after(func: OpOverload, args: Arguments, given: Sequence[Tensor], t: Tracer) -> bool:
    """Returns whether dead positions of a result may hold NaN or infinity, as of x / 0, or of what is computed from it.

    A product over the only axis that holds them runs over the kept positions alone.
    """
    name = func.overloadpacket.__name__.rstrip("_")
    inverse = name == "pow" and isinstance(args[1], int | float) and args[1] < 0
    at = 0 if inverse else UNDEFINED_AT_ZERO.get(name, len(args))
    tensor = args[at] if at < len(args) else None
    if isinstance(tensor, Tensor) and t.of(tensor).zero and any(labelled(v) for v in t.vectors_of(tensor)):
        return True
    summed_up = 1 if name in PRODUCTS else 0
    return any(t.undefined(x) and sum(labelled(v) for v in t.vectors_of(x)) > summed_up for x in given)


@rule_for(
    "pointwise", "copy_", "masked_fill", "masked_fill_", "prelu", "_prelu_kernel", "native_dropout", "where", "dropout",
    "bernoulli", "hardswish", "hardswish_", "log_sigmoid_forward", "rrelu_with_noise", "floor_divide",
    "complex", "polar", "leaky_relu", "leaky_relu_",  # which old versions of torch do not tag
)  # fmt: skip
def pointwise(t: Tracer, c: Call) -> None:
    zero = stays_zero(t, c)
    for added in c.tensors if c.name.startswith("add") else ():
        if t.of(added).source and added.ndim == 1:
            t.mark(t.vectors_of(added)[0], "bias")
    source = c.traced.source if c.name == "copy_" else None
    for out in c.outputs:
        t.put(out, broadcast(t, c.tensors, out), zero, source)
    if c.name.endswith("_") and not zero:
        t.note_nonzero(c.x)


@rule_for("glu")
def glu(t: Tracer, c: Call) -> None:
    """Unites the two halves of an axis: one is multiplied by a gate of the other."""
    vectors, dim = c.vectors, c["dim"] % c.x.ndim
    if labelled(whole := t.algebra.settle(vectors[dim], c.x.shape[dim])):
        half, gate = whole.reshape(2, -1)
        t.record.parts.append(half)
        t.algebra.unify(half, gate)
        whole = half
    vectors[dim] = whole
    t.put(c.out, vectors, c.traced.zero)


@rule_for(*REDUCING)
def reduction(t: Tracer, c: Call) -> None:
    """Ends an axis: where dead values would count, the mask leaves them out."""
    if len(c.tensors) > 1:
        pointwise(t, c)  # max(x, y)
        return
    dims = c.dims()
    order = c.get("ord", c.get("p"))
    additive = c.traced.zero and c.name in ADDITIVE and (order is None or order > 0)
    over = [v if d in dims else None for d, v in enumerate(c.vectors)]
    for d in dims:
        if isinstance(over[d], Free) or not (additive or _survivable(c, dims, d)):
            t.algebra.pin(over[d], c.depends)
    if not additive:
        t.note_mixing("reduction", over)
    zero = c.traced.zero and c.name != "logsumexp"
    for k, out in enumerate(c.outputs):
        if (k == 1 and c.name in ("max", "min")) or c.name in ("argmax", "argmin"):
            t.note_positions(out, [v for v in over if labelled(v)], c.depends)
        kept = [None if d in dims else v for d, v in enumerate(c.vectors)]
        t.put(out, kept if out.ndim == c.x.ndim else [v for d, v in enumerate(kept) if d not in dims], zero)


def _survivable(c: Call, dims: Sequence[int], axis: int) -> bool:
    """Returns whether a reduction makes sense over the kept positions of an axis, be it a single one.

    An unbiased variance needs more than one value: where only labelled axes can give
    it, the first of them may shrink and the others stay.
    """
    if c.name not in ("var", "std", "var_mean", "std_mean"):
        return True
    correction = c.get("correction")
    taken = float(c.get("unbiased", True)) if correction is None else correction
    moving = [d for d in dims if labelled(c.vectors[d])]
    rest = prod(c.x.shape[d] for d in dims if d not in moving)
    return rest > taken or (axis == moving[0] and rest * prod(c.x.shape[d] for d in moving[1:]) > taken)


@rule_for("_weight_norm_interface")
def weight_norm(t: Tracer, c: Call) -> None:
    """Scales rows, g · v / |v|, the norm over all axes but one: dead positions add nothing, dead rows are left out."""
    vectors, dim = c.vectors, c["dim"]
    vectors[dim] = t.algebra.unify(vectors[dim], t.vectors_of(c["g"])[dim])
    t.note_mixing("weight norm", [v if d == dim else None for d, v in enumerate(vectors)])
    t.put(c.outputs[0], vectors, c.traced.zero)
    t.put(c.outputs[1], [vectors[dim] if d == dim else None for d in range(c.x.ndim)])


NORM_ROLES = {"weight": "scale", "bias": "shift", "running_mean": "statistic", "running_var": "statistic"}


def normalised(t: Tracer, c: Call, first: int) -> list[Vector]:
    """Returns the vectors of a norm's input, unified from axis `first` on with its affine and running tensors."""
    vectors = c.vectors
    for name, role in NORM_ROLES.items():
        if isinstance(affine := c.get(name), Tensor):
            for k, vector in enumerate(t.vectors_of(affine), first):
                t.mark(vector, role)
                vectors[k] = t.algebra.unify(vectors[k], vector)
    return vectors


@rule_for("batch_norm")
def batch_norm(t: Tracer, c: Call) -> None:
    vectors = normalised(t, c, 1)
    if training := in_training(c.func, c.given):
        t.note_mixing("batch", [v if d != 1 else None for d, v in enumerate(vectors)])
    shifted = c.get("bias")
    elsewhere = any(labelled(v) for d, v in enumerate(vectors) if d != 1)  # dead there becomes the shift
    t.mixes_in_training |= elsewhere
    t.put(c.outputs[0], vectors, c.traced.zero if shifted is None else t.of(shifted).zero and not elsewhere)
    for statistic in c.outputs[1:]:
        if statistic.shape == c.x.shape[1:2]:
            t.put(statistic, [vectors[1]])
    if isinstance(weight := c.get("weight"), Tensor) and (source := t.of(weight).source) is not None:
        t.note_scale(c.outputs[0], source)
    if not training:
        own = [t.entire_source(x) if isinstance(x := c.get(name), Tensor) else None for name in NORM_ROLES]
        t.norms.norm(c.x, own[0], own[2], own[3], c.get("eps", c.get("epsilon")))


@rule_for("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(t: Tracer, c: Call) -> None:
    shape = c["normalized_shape"]
    first = c.x.ndim - len(shape)
    vectors = normalised(t, c, first)
    for k, size in enumerate(shape):
        written = t.call[k] if k < len(t.call) else size
        t.note_size(written, vectors[first + k])
    t.note_mixing("layer", [*([None] * first), *vectors[first:]])
    elsewhere = any(labelled(v) for v in vectors[:first])  # dead there becomes the shift
    t.mixes_in_training |= elsewhere
    t.put(c.outputs[0], vectors, not elsewhere or (c.traced.zero and c.get("bias") is None))


@rule_for("native_group_norm")
def group_norm(t: Tracer, c: Call) -> None:
    vectors, groups = normalised(t, c, 1), c["group"]
    t.algebra.pin_all(vectors[2:], "group norm over the axis depends on every position")
    rows: Vector = None
    if groups > 1:
        rows, _ = t.algebra.split(vectors[1], [groups, c.x.shape[1] // groups])
        t.note_size(t.call[0] if t.call else groups, rows)
    for statistic in c.outputs[1:]:
        t.put(statistic, [vectors[0], rows])
    t.note_mixing("group", [None, vectors[1]] + [None] * (len(vectors) - 2))
    t.put(c.outputs[0], vectors, not labelled(vectors[0]))


@rule_for("spatial")
def spatial(t: Tracer, c: Call) -> None:
    """Passes channels through pooling, resizing and border padding, and pins the map's own axes."""
    dims = re.search(r"(\d)d", c.name)
    if dims is None or c.outputs[0].ndim != c.x.ndim:
        raise ValueError("not a map of channels")
    inner = int(dims.group(1))
    t.algebra.pin_all(c.vectors[-inner:], "an axis of the feature map")
    for out in c.outputs:
        t.put(out, c.vectors[:-inner] + [None] * inner, c.traced.zero)


@rule_for("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def grid_sampler(t: Tracer, c: Call) -> None:
    """Passes the channels of a map that is read at places, of which there may be more or fewer: ``N C places``."""
    (batch, channels, *inner), (examples, *places, coordinates) = c.vectors, t.vectors_of(c["grid"])
    t.algebra.pin_all([*inner, coordinates], "an axis of the feature map")
    zero = (
        c.traced.zero and not any(labelled(place) for place in places) and (labelled(batch) or not labelled(examples))
    )
    t.put(c.out, [t.algebra.unify(batch, examples), channels, *places], zero)
