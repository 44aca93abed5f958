"""Data movement: labels move as the data does."""

from __future__ import annotations

from typing import Any

import numpy as np

from topiarist.graph.calls import FILLS
from topiarist.graph.code.places import Site
from topiarist.graph.labels import Free, Vector, labelled
from topiarist.graph.rules.registry import Call, rule_for
from topiarist.graph.sizes import Size
from topiarist.graph.tracer import Tracer

BY_DATA = "positions are selected by what data gave"
"""Why an axis is pinned whose other positions another example may select."""


@rule_for(
    "new_empty_strided", "scalar_tensor", "_local_scalar_dense", "is_same_size", "empty_strided",
)  # fmt: skip
def nothing(t: Tracer, c: Call) -> None:
    """Leaves outputs without labels."""


@rule_for(*FILLS, *(f"new_{name}" for name in FILLS))
def fill(t: Tracer, c: Call) -> None:
    """Makes axes that take what they meet; the listener notes the sizes that the program gave."""
    zero = c.name.endswith("zeros") or c.get("fill_value") == 0
    t.put(c.out, [Free(zero=zero) for _ in c.out.shape], zero)


@rule_for(
    "clone", "detach", "detach_", "alias", "_to_copy", "lift_fresh", "lift_fresh_copy", "contiguous", "zeros_like",
    "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "fill_", "zero_", "lift", "_conj",
    "_conj_physical", "conj_physical", "_neg_view", "resolve_conj", "resolve_neg",
)  # fmt: skip
def same(t: Tracer, c: Call) -> None:
    copied = "like" not in c.name and c.name != "fill_"
    t.put(c.out, c.vectors, c.traced.zero if copied else c.name == "zeros_like", c.traced.source if copied else None)
    if c.name == "fill_" and c["value"] != 0:
        t.note_nonzero(c.x)


@rule_for("bernoulli_", "uniform_", "normal_", "exponential_", "random_", "log_normal_", "cauchy_", "geometric_")
def drawn(t: Tracer, c: Call) -> None:
    """Keeps the labels of what is filled with noise, which is not zero anywhere."""
    t.put(c.x, c.vectors)
    t.note_nonzero(c.x)


SHARED = {"all_reduce", "all_reduce_", "broadcast", "broadcast_", "wait_tensor", "_wrap_tensor_autograd"}


@rule_for(*(f"_c10d_functional::{name}" for name in SHARED), "c10d::allreduce_", "c10d::broadcast_")
def same_on_all(t: Tracer, c: Call) -> None:
    """Passes what processes share, position by position."""
    for x, out in zip(c.tensors, c.outputs, strict=False):
        t.put(out, t.vectors_of(x), t.of(x).zero, t.of(x).source if "broadcast" in c.name else None)


@rule_for("view", "_unsafe_view", "reshape", "_reshape_alias")
def view(t: Tracer, c: Call) -> None:
    t.put(c.out, t.algebra.view(c.vectors, c.x.shape, c.out.shape), c.traced.zero, c.traced.source)


@rule_for("as_strided", "as_strided_")
def as_strided(t: Tracer, c: Call) -> None:
    if tuple(c["size"]) != tuple(c.x.shape):
        raise ValueError("strides that do not follow the axes")
    t.put(c.out, c.vectors, c.traced.zero)


@rule_for("permute", "transpose", "transpose_", "t", "t_", "numpy_T", "swapaxes")
def permute(t: Tracer, c: Call) -> None:
    order = list(range(c.x.ndim))
    if c.name == "permute":
        order = c.dims("dims")
    elif c.name in ("transpose", "transpose_", "swapaxes"):
        a, b = (c.get(name, c.get(other)) % c.x.ndim for name, other in (("dim0", "axis0"), ("dim1", "axis1")))
        order[a], order[b] = order[b], order[a]
    else:
        order.reverse()
    t.put(c.out, [c.vectors[d] for d in order], c.traced.zero, c.traced.source)


@rule_for("unsqueeze")
def unsqueeze(t: Tracer, c: Call) -> None:
    vectors = c.vectors
    vectors.insert(c["dim"] % (c.x.ndim + 1), None)
    t.put(c.out, vectors, c.traced.zero, c.traced.source)


@rule_for("squeeze")
def squeeze(t: Tracer, c: Call) -> None:
    squeezed = [d for d in c.dims() if c.x.shape[d] == 1]
    t.put(c.out, [v for d, v in enumerate(c.vectors) if d not in squeezed], c.traced.zero, c.traced.source)


@rule_for("squeeze_", "unsqueeze_")
def moved_in_place(t: Tracer, c: Call) -> None:
    """Moves the labels of a tensor whose axes have been moved in place, so that its shape is the new one."""
    vectors = c.vectors
    if c.name == "unsqueeze_":
        vectors.insert(c["dim"] % c.out.ndim, None)
    elif len(vectors) > c.out.ndim:
        del vectors[c["dim"] % len(vectors)]
    t.put(c.out, vectors, c.traced.zero, c.traced.source)


@rule_for("expand")
def expand(t: Tracer, c: Call) -> None:
    new = c.out.ndim - c.x.ndim
    grown = [Free() if c.x.shape[d] == 1 < c.out.shape[d + new] else v for d, v in enumerate(c.vectors)]
    t.put(c.out, [Free() for _ in range(new)] + grown, c.traced.zero)


@rule_for("repeat")
def repeat(t: Tracer, c: Call) -> None:
    new = c.out.ndim - c.x.ndim
    sizes, olds = [1] * new + list(c.x.shape), [None] * new + c.vectors
    vectors: list[Vector] = []
    for vector, size, times in zip(olds, sizes, c["repeats"], strict=True):
        if times == 1:
            vectors.append(vector)
        elif size == 1:
            vectors.append(free := Free())
            t.note_size(as_written(t, times), free)
        else:
            if isinstance(written := as_written(t, times), Size):
                t.note_number(written, None)
            vector = t.algebra.settle(vector, size)
            vectors.append(np.tile(vector, times) if labelled(vector) else None)
    t.put(c.out, vectors, c.traced.zero)


@rule_for("slice")
def slice_(t: Tracer, c: Call) -> None:
    vectors, dim = c.vectors, c["dim"] % c.x.ndim
    if c.out.shape[dim] != c.x.shape[dim]:
        vectors[dim] = t.algebra.settle(vectors[dim], c.x.shape[dim])
    vector, length = vectors[dim], c.x.shape[dim]
    begin, end, step = slice(c["start"], c["end"], c["step"]).indices(length)
    sites = _border_sites(t, (begin, end, step), length)
    if not labelled(vector):
        for border, site in zip((c["start"], c["end"]), sites, strict=True):
            if site is not None:
                t.note_size(as_written(t, border), None, site)
    else:
        if t.by_data:
            t.algebra.pin(vector, BY_DATA)
        if step != 1 and begin < step and end == len(vector) and len(vector) % step == 0:
            blocks = vector.reshape(-1, step)  # steps keep their positions where entire blocks are removed
            for k in range(1, step):
                t.algebra.unify(blocks[:, 0], blocks[:, k])
        elif step != 1:
            t.algebra.pin(vector, "taken in steps along the axis")
        both = (begin, c["start"], vector[:begin]), (end, c["end"], vector[:end])
        for (border, given, part), site in zip(both, sites, strict=True):
            if step == 1 and 0 < border < len(vector):
                asked = as_written(t, given)
                t.note_size(-asked if given < 0 else asked, vector[border:] if given < 0 else part, site)
            elif site is not None:
                t.note_size(as_written(t, given), None, site)
        if t.caller == "narrow" and begin > 0 and end == len(vector):
            t.note_size(as_written(t, end - begin), vector[begin:])
        if c.traced.source is not None:
            t.record.left_out += [(c.traced.source, part) for part in (vector[:begin], vector[end:])]
        vectors[dim] = vector[begin : end : c["step"]]
        t.record.parts.append(vectors[dim])
    t.put(c.out, vectors, c.traced.zero, c.traced.source)


def _border_sites(t: Tracer, indices: tuple[int, int, int], length: int) -> tuple[Site | None, Site | None]:
    """Returns where the code states the borders of the next slice of an index; operators take them in order."""
    while t.borders:
        written, *sites = t.borders.pop(0)
        if written.indices(length) == indices:
            return sites[0], sites[1]
    return None, None


def as_written(t: Tracer, value: int) -> Any:
    """Returns the integer as the program gave it, so that it remembers; the plain value where it did not."""
    return next((given for given in t.call if isinstance(given, int) and given == value), value)


@rule_for("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "split_copy", "split_with_sizes_copy")
def split(t: Tracer, c: Call) -> None:
    vectors, dim = c.vectors, c["dim"] % c.x.ndim
    if len(c.out) > 1:
        vectors[dim] = t.algebra.settle(vectors[dim], c.x.shape[dim])
    vector = vectors[dim]
    if labelled(vector) and "sizes" not in c.name and len(c.out) > 1:
        size = c.out[0].shape[dim]
        if len(vector) % size:
            t.algebra.pin(vector, "split into unequal parts by one size")
        else:  # equal parts stay equal only if they lose the same positions
            parts = vector.reshape(-1, size)
            for part in parts[1:]:
                t.algebra.unify(parts[0], part)
    begin = 0
    for part in c.out:
        end = begin + part.shape[dim]
        if labelled(vector):
            t.record.parts.append(vector[begin:end])
            vectors[dim] = t.record.parts[-1]
        t.put(part, vectors, c.traced.zero, c.traced.source)
        begin = end


@rule_for("cat")
def cat(t: Tracer, c: Call) -> None:
    parts = [part for part in c["tensors"] if part.ndim == c.out.ndim]  # an empty vector fits anything
    dim = c["dim"] % c.out.ndim
    vectors: list[Vector] = list(t.vectors_of(parts[0]))
    for part in parts[1:]:
        for d, vector in enumerate(t.vectors_of(part)):
            if d != dim:
                vectors[d] = t.algebra.unify(vectors[d], vector)
    along: list[Vector] = [t.vectors_of(part)[dim] for part in parts]
    if len(parts) > 1:
        along = [t.algebra.settle(vector, part.shape[dim]) for vector, part in zip(along, parts, strict=True)]
    vectors[dim] = along[0] if len(parts) == 1 else None
    if any(labelled(v) for v in along):
        fixed = [np.zeros(part.shape[dim], dtype=np.int64) for part in parts]
        vectors[dim] = np.concatenate([v if labelled(v) else zeros for v, zeros in zip(along, fixed, strict=True)])
    t.put(c.out, vectors, all(t.of(part).zero for part in parts))


@rule_for("stack")
def stack(t: Tracer, c: Call) -> None:
    vectors: list[Vector] = list(t.vectors_of(c["tensors"][0]))
    for part in c["tensors"][1:]:
        vectors = [t.algebra.unify(a, b) for a, b in zip(vectors, t.vectors_of(part), strict=True)]
    vectors.insert(c["dim"] % c.out.ndim, None)
    t.put(c.out, vectors, all(t.of(part).zero for part in c["tensors"]))


@rule_for("constant_pad_nd")
def pad(t: Tracer, c: Call) -> None:
    vectors, amounts = c.vectors, c["pad"]
    for k in range(len(amounts) // 2):
        dim, (before, after) = c.x.ndim - 1 - k, amounts[2 * k : 2 * k + 2]
        if before or after:
            vectors[dim] = t.algebra.settle(vectors[dim], c.x.shape[dim])
        vector = vectors[dim]
        if not labelled(vector) or not (before or after):
            continue
        if min(before, after) < 0:
            t.algebra.pin(vector, "cropped by padding with a negative amount")
            vectors[dim] = None
        else:
            vectors[dim] = np.concatenate([t.algebra.fresh(before), vector, t.algebra.fresh(after)])
    t.put(c.out, vectors, c.traced.zero and c["value"] == 0)


@rule_for("roll")
def roll(t: Tracer, c: Call) -> None:
    t.algebra.pin_all([c.vectors[dim] for dim in c.dims("dims")], "rolled along the axis")
    t.put(c.out, c.vectors, c.traced.zero)


@rule_for("rot90", "tril", "triu")
def turned(t: Tracer, c: Call) -> None:
    """Pins the two axes of a plane in which data moves by its place."""
    plane = c.dims("dims") if c.name == "rot90" else [c.x.ndim - 2, c.x.ndim - 1]
    t.algebra.pin_all([c.vectors[d] for d in plane], c.depends)
    t.put(c.out, [None if d in plane else v for d, v in enumerate(c.vectors)], c.traced.zero)


@rule_for("diagonal")
def diagonal(t: Tracer, c: Call) -> None:
    plane = [c[name] % c.x.ndim for name in ("dim1", "dim2")]
    t.algebra.pin_all([c.vectors[d] for d in plane], "a diagonal is taken")
    t.put(c.out, [*(v for d, v in enumerate(c.vectors) if d not in plane), None], c.traced.zero)


@rule_for("diag_embed")
def diag_embed(t: Tracer, c: Call) -> None:
    *vectors, last = c.vectors
    t.algebra.pin(last, "put on a diagonal")
    for d in sorted(c[name] % c.out.ndim for name in ("dim1", "dim2")):
        vectors.insert(d, None)
    t.put(c.out, vectors, c.traced.zero)


@rule_for("view_as_real")
def view_as_real(t: Tracer, c: Call) -> None:
    t.put(c.out, [*c.vectors, None], c.traced.zero)


@rule_for("view_as_complex")
def view_as_complex(t: Tracer, c: Call) -> None:
    *vectors, parts = c.vectors
    t.algebra.pin(parts, "real and imaginary parts")
    t.put(c.out, vectors, c.traced.zero)


@rule_for("flip")
def flip(t: Tracer, c: Call) -> None:
    turned = c.dims("dims")
    vectors = [v[::-1] if d in turned and labelled(v) else v for d, v in enumerate(c.vectors)]
    t.put(c.out, vectors, c.traced.zero)


@rule_for("unfold")
def unfold(t: Tracer, c: Call) -> None:
    vectors, dim = c.vectors, c["dimension"] % c.x.ndim
    t.algebra.pin(vectors[dim], "unfolded into windows")
    vectors[dim] = None
    t.put(c.out, [*vectors, None], c.traced.zero)


@rule_for("im2col", "pixel_unshuffle")
def channels_to_columns(t: Tracer, c: Call) -> None:
    batch, channels, *places = c.vectors
    t.algebra.pin_all(places, "a feature map's own axis")
    inner = c.out.shape[1] // c.x.shape[1]
    columns = t.algebra.merge([channels, None], [c.x.shape[1], inner])
    t.put(c.out, [batch, columns] + [None] * (c.out.ndim - 2), c.traced.zero)


@rule_for("col2im", "pixel_shuffle")
def columns_to_channels(t: Tracer, c: Call) -> None:
    batch, columns, *places = c.vectors
    t.algebra.pin_all(places, "a feature map's own axis")
    channels, inner = t.algebra.split(columns, [c.out.shape[1], c.x.shape[1] // c.out.shape[1]])
    t.algebra.pin(inner, "positions of a pixel shuffle")
    t.put(c.out, [batch, channels] + [None] * (c.out.ndim - 2), c.traced.zero)


@rule_for("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(t: Tracer, c: Call) -> None:
    vectors, groups = c.vectors, c["groups"]
    width = c.x.shape[1] // groups
    rows, columns = t.algebra.split(vectors[1], [groups, width])
    t.algebra.pin(rows, "groups of a channel shuffle")
    vectors[1] = t.algebra.merge([columns, None], [width, groups])
    t.put(c.out, vectors, c.traced.zero)
