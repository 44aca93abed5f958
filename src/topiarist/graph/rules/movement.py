"""Data movement: labels move as the data does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from topiarist.graph.calls import FILLS
from topiarist.graph.code.places import Site
from topiarist.graph.labels import Free, Vector, labelled
from topiarist.graph.record import Gather
from topiarist.graph.rules.registry import Call, rule
from topiarist.graph.tracer import Tracer


@rule(
    "new_empty_strided", "scalar_tensor", "_local_scalar_dense", "is_same_size", "empty_strided", "bernoulli_",
    "uniform_", "normal_",
)  # fmt: skip
def nothing(t: Tracer, c: Call) -> None:
    """Leaves outputs without labels."""


@rule(*FILLS, *(f"new_{name}" for name in FILLS))
def fill(t: Tracer, c: Call) -> None:
    """Makes axes that take what they meet; the listener notes the sizes that the program gave."""
    zero = c.name.endswith("zeros") or c.get("fill_value") == 0
    t.put(c.out, [Free(zero=zero) for _ in c.out.shape], zero)


@rule(
    "clone", "detach", "detach_", "alias", "_to_copy", "lift_fresh", "lift_fresh_copy", "contiguous", "zeros_like",
    "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "fill_", "zero_", "lift",
)  # fmt: skip
def same(t: Tracer, c: Call) -> None:
    copied = "like" not in c.name and c.name != "fill_"
    t.put(c.out, c.vectors, c.traced.zero if copied else c.name == "zeros_like", c.traced.source if copied else None)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias")
def view(t: Tracer, c: Call) -> None:
    t.put(c.out, t.algebra.view(c.vectors, c.x.shape, c.out.shape), c.traced.zero, c.traced.source)


@rule("as_strided", "as_strided_")
def as_strided(t: Tracer, c: Call) -> None:
    if tuple(c["size"]) != tuple(c.x.shape):
        raise ValueError("strides that do not follow the axes")
    t.put(c.out, c.vectors, c.traced.zero)


@rule("permute", "transpose", "transpose_", "t", "t_", "numpy_T", "swapaxes")
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


@rule("unsqueeze")
def unsqueeze(t: Tracer, c: Call) -> None:
    vectors = c.vectors
    vectors.insert(c["dim"] % (c.x.ndim + 1), None)
    t.put(c.out, vectors, c.traced.zero, c.traced.source)


@rule("squeeze")
def squeeze(t: Tracer, c: Call) -> None:
    squeezed = [d for d in c.dims() if c.x.shape[d] == 1]
    t.put(c.out, [v for d, v in enumerate(c.vectors) if d not in squeezed], c.traced.zero, c.traced.source)


@rule("expand")
def expand(t: Tracer, c: Call) -> None:
    new = c.out.ndim - c.x.ndim
    grown = [Free() if c.x.shape[d] == 1 < c.out.shape[d + new] else v for d, v in enumerate(c.vectors)]
    t.put(c.out, [Free() for _ in range(new)] + grown, c.traced.zero)


@rule("repeat")
def repeat(t: Tracer, c: Call) -> None:
    new = c.out.ndim - c.x.ndim
    sizes, olds = [1] * new + list(c.x.shape), [None] * new + c.vectors
    vectors: list[Vector] = []
    for vector, size, times in zip(olds, sizes, c["repeats"], strict=True):
        if times == 1:
            vectors.append(vector)
        elif size == 1:
            vectors.append(free := Free())
            t.note_size(_as_written(t, times), free)
        else:
            vector = t.algebra.settle(vector, size)
            vectors.append(np.tile(vector, times) if labelled(vector) else None)
    t.put(c.out, vectors, c.traced.zero)


@rule("select")
def select(t: Tracer, c: Call) -> None:
    vectors = c.vectors
    t.algebra.pin(vectors.pop(c["dim"] % c.x.ndim), "one position is selected by its number")
    t.put(c.out, vectors, c.traced.zero)


@rule("unbind")
def unbind(t: Tracer, c: Call) -> None:
    vectors = c.vectors
    t.algebra.pin(vectors.pop(c["dim"] % c.x.ndim), "the axis is unbound into single positions")
    for part in c.out:
        t.put(part, vectors, c.traced.zero)


@rule("slice")
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
                t.note_size(_as_written(t, border), None, site)
    else:
        if step != 1 and begin < step and end == len(vector) and len(vector) % step == 0:
            blocks = vector.reshape(-1, step)  # steps keep their positions where entire blocks are removed
            for k in range(1, step):
                t.algebra.unify(blocks[:, 0], blocks[:, k])
        elif step != 1:
            t.algebra.pin(vector, "taken in steps along the axis")
        both = (begin, c["start"], vector[:begin]), (end, c["end"], vector[:end])
        for (border, given, part), site in zip(both, sites, strict=True):
            if step == 1 and 0 < border < len(vector):
                asked = _as_written(t, given)
                t.note_size(-asked if given < 0 else asked, vector[border:] if given < 0 else part, site)
            elif site is not None:
                t.note_size(_as_written(t, given), None, site)
        if t.caller == "narrow" and begin > 0 and end == len(vector):
            t.note_size(_as_written(t, end - begin), vector[begin:])
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


def _as_written(t: Tracer, value: int) -> Any:
    """Returns the integer as the program gave it, so that it remembers; the plain value where it did not."""
    return next((given for given in t.call if isinstance(given, int) and given == value), value)


@rule("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "split_copy", "split_with_sizes_copy")
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


@rule("cat")
def cat(t: Tracer, c: Call) -> None:
    parts = [part for part in c["tensors"] if part.numel()]
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


@rule("stack")
def stack(t: Tracer, c: Call) -> None:
    vectors: list[Vector] = list(t.vectors_of(c["tensors"][0]))
    for part in c["tensors"][1:]:
        vectors = [t.algebra.unify(a, b) for a, b in zip(vectors, t.vectors_of(part), strict=True)]
    vectors.insert(c["dim"] % c.out.ndim, None)
    t.put(c.out, vectors, all(t.of(part).zero for part in c["tensors"]))


@rule("constant_pad_nd")
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


@rule("roll")
def roll(t: Tracer, c: Call) -> None:
    t.algebra.pin_all([c.vectors[dim] for dim in c.dims("dims")], "rolled along the axis")
    t.put(c.out, c.vectors, c.traced.zero)


@rule("flip")
def flip(t: Tracer, c: Call) -> None:
    turned = c.dims("dims")
    vectors = [v[::-1] if d in turned and labelled(v) else v for d, v in enumerate(c.vectors)]
    t.put(c.out, vectors, c.traced.zero)


@rule("index")
def index(t: Tracer, c: Call) -> None:
    chosen = [(d, i) for d, i in enumerate(c["indices"]) if i is not None]
    if any(i.dtype in (torch.bool, torch.uint8) for _, i in chosen):
        raise ValueError("indexed by a mask")
    if len(chosen) == 1 and chosen[0][1].ndim == 1:
        return gather(t, c, *chosen[0])
    for dim, picked in chosen:
        t.algebra.pin(c.vectors[dim], "indexed by position")
        t.algebra.pin_all(t.vectors_of(picked), "used as an index")
    dims = [d for d, _ in chosen]
    new: list[Vector] = [None] * max(i.ndim for _, i in chosen)
    rest: list[Vector] = [v for d, v in enumerate(c.vectors) if d not in dims]
    at = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    t.put(c.out, rest[:at] + new + rest[at:], c.traced.zero)
    return None


@rule("index_select")
def index_select(t: Tracer, c: Call) -> None:
    gather(t, c, c["dim"] % c.x.ndim, c["index"])


def gather(t: Tracer, c: Call, dim: int, picked: Tensor) -> None:
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


@rule("embedding")
def embedding(t: Tracer, c: Call) -> None:
    words, features = t.vectors_of(c["weight"])
    t.algebra.pin(words, "looked up by number (embedding)")
    t.algebra.pin_all(t.vectors_of(c["indices"]), "used as an index")
    t.mark(features, "output", "x".join(map(str, c["indices"].shape[1:])) or "1")
    t.put(c.out, [None] * c["indices"].ndim + [features], t.of(c["weight"]).zero)


@rule("unfold")
def unfold(t: Tracer, c: Call) -> None:
    vectors, dim = c.vectors, c["dimension"] % c.x.ndim
    t.algebra.pin(vectors[dim], "unfolded into windows")
    vectors[dim] = None
    t.put(c.out, [*vectors, None], c.traced.zero)


@rule("im2col", "pixel_unshuffle")
def channels_to_columns(t: Tracer, c: Call) -> None:
    batch, channels, *_ = c.vectors
    inner = c.out.shape[1] // c.x.shape[1]
    columns = t.algebra.merge([channels, None], [c.x.shape[1], inner])
    t.put(c.out, [batch, columns] + [None] * (c.out.ndim - 2), c.traced.zero)


@rule("col2im", "pixel_shuffle")
def columns_to_channels(t: Tracer, c: Call) -> None:
    batch, columns, *_ = c.vectors
    channels, inner = t.algebra.split(columns, [c.out.shape[1], c.x.shape[1] // c.out.shape[1]])
    t.algebra.pin(inner, "positions of a pixel shuffle")
    t.put(c.out, [batch, channels] + [None] * (c.out.ndim - 2), c.traced.zero)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(t: Tracer, c: Call) -> None:
    vectors, groups = c.vectors, c["groups"]
    width = c.x.shape[1] // groups
    rows, columns = t.algebra.split(vectors[1], [groups, width])
    t.algebra.pin(rows, "groups of a channel shuffle")
    vectors[1] = t.algebra.merge([columns, None], [width, groups])
    t.put(c.out, vectors, c.traced.zero)
