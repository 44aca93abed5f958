"""The listener: notes the sizes that the program asks for, and gives out integers that remember."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from topiarist.graph.calls import READS, kind_of, line_of_code, sized_call
from topiarist.graph.inputs import Arguments, Keywords, tensors_in
from topiarist.graph.labels import Free, Vector, labelled
from topiarist.graph.sizes import Length, Size, holds_constant, sizes_of
from topiarist.graph.tracer import Tracer

OPAQUE = (F.multi_head_attention_forward,)
"""Functions of torch that compute sizes within themselves, where nobody can listen."""

PARTING = {"tensor_split", "hsplit", "vsplit", "dsplit", "array_split"}
"""Functions that compute where to part an axis from its length."""

LIKE = {"expand_as", "view_as", "reshape_as"}
"""Functions that take their sizes from a second tensor."""

LEAVING = {"numpy", "__array__", "tolist", "__dlpack__"}
"""Methods by which values leave torch: what the program computes from them cannot be followed."""


class Listener(TorchFunctionMode):
    """Sees the calls as the program wrote them."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer
        self.seen: dict[str, dict[int, Size]] = defaultdict(dict)

    def __torch_function__(self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None) -> Any:
        kwargs = kwargs or {}
        if func in READS:
            return self._shape(func, args, kwargs)
        if func in (torch.Tensor.numel, torch.Tensor.nelement, torch.numel):
            return self._numel(args[0])
        tracer, before = self.tracer, (self.tracer.call, self.tracer.caller)
        kind, name = kind_of(func), getattr(func, "__name__", "")
        if name in LEAVING:
            tracer.algebra.add_origin(name, tracer.stack.top, line_of_code())
            tracer.algebra.pin_all(tracer.vectors_of(args[0]), f"its values leave torch by {name}()")
        call = tracer.stack.count(kind) if kind is not None else None
        if call is not None and kind == "squeeze":
            self._note_squeeze(call, args, kwargs)
        elif call is not None and kind != "sizes":
            self._note_number(kind, call, args, kwargs)
        elif kind is None and not name.startswith("__get") and not _spatial(name):
            self._note_values((args, kwargs))
        tracer.call, tracer.caller = _call_sizes(name, args, kwargs), name
        try:
            out = func(*args, **kwargs)
        finally:
            tracer.call, tracer.caller = before
        if call is not None and kind == "sizes":
            self._note_sizes(func, args, kwargs, out, call)
        elif name in LIKE:
            for ours, theirs in zip(tracer.vectors_of(out), tracer.vectors_of(args[1]), strict=True):
                tracer.algebra.unify(ours, theirs)
        elif name == "repeat_interleave":
            free = [vector for vector in tracer.vectors_of(out) if isinstance(vector, Free)]
            tracer.algebra.pin_all(free, "repeated a fixed number of times")
        elif func in OPAQUE or name in PARTING:
            for tensor in tensors_in((args, kwargs)):
                tracer.algebra.pin_all(tracer.vectors_of(tensor), f"{name} computes sizes from it")
        return out

    def forgets(self, size: Size) -> None:
        """Notes that a size was made a plain float: see `_sources`."""
        self.seen[self.tracer.stack.top].setdefault(int(size), size)

    def _size(self, length: int, vector: Vector) -> int:
        if not labelled(vector):
            return int(length)
        size = Size(length, Length(self.tracer.index_of(vector), self.tracer.stack.top))
        self.seen[self.tracer.stack.top].setdefault(length, size)
        return size

    def _sources(self, value: Any) -> tuple[Size, ...]:
        """Returns the sizes that a number comes from.

        Python forgets them in ``1.0 / C`` and ``math.sqrt(C)``: a float that is a power of a size which the running
        module has seen is taken to come from it. Where it does not, the shim holds a constant at its own value.
        """
        known = sizes_of(value)
        if known or not isinstance(value, float):
            return known
        top = self.tracer.stack.top
        if value in self.tracer.memory.floats[top]:
            return ()  # stored by the module, hence a constant
        near = [n for n in (value**-4, value**-2, 1 / value, value, value**2, value**4) if n < 1e9] if value > 0 else []
        integers = {round(n) for n in near if n > 1.5 and abs(n - round(n)) <= 1e-9 * n}
        mine = [self.seen[top][n] for n in integers if n in self.seen[top]]
        return tuple(mine) or tuple(size for n in integers for size in self.tracer.memory.sizes.get((top, n), ()))

    def _shape(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        tensor = args[0]
        plain = func(*args, **kwargs)
        vectors = self.tracer.vectors_of(tensor)
        number = self.tracer.stack.read()
        if fixed := {axis: int(n) for axis, n in _entries(plain, args, kwargs) if labelled(vectors[axis])}:
            self.tracer.record.shapes_read[self.tracer.stack.top][number] = fixed
        free = [v for v in vectors if isinstance(v, Free)]  # what these meet is not known yet, so no size remembers it
        self.tracer.algebra.pin_all(free, "its size is read where it was expanded from one position")
        if not any(labelled(v) for v in vectors):
            return plain
        with torch._C.DisableTorchFunction():
            shape = tuple(tensor.shape)
        if isinstance(plain, int):
            dim = (args[1] if len(args) > 1 else kwargs["dim"]) % len(shape)
            return self._size(shape[dim], vectors[dim])
        return torch.Size([self._size(n, v) for n, v in zip(shape, vectors, strict=True)])

    def _numel(self, tensor: Tensor) -> int:
        with torch._C.DisableTorchFunction():
            shape = tuple(tensor.shape)
        total = 1
        for length, vector in zip(shape, self.tracer.vectors_of(tensor), strict=True):
            total = self._size(length, vector) * total
        return total

    def _note_number(self, kind: str | None, call: int, args: Arguments, kwargs: Keywords) -> None:
        """Notes a call that multiplies or divides by a number, where it comes from a size."""
        tracer, top = self.tracer, self.tracer.stack.top
        if kind == "scale":
            given = kwargs.get("scale", args[6] if len(args) > 6 else None)
            with torch._C.DisableTorchFunction():
                width = self._size(int(args[0].shape[-1]), tracer.vectors_of(args[0])[-1])
            scalars = [width] if given is None else [given]
            value = float(int(width) ** -0.5 if given is None else given)
        else:
            scalars = [a for a in args if isinstance(a, (int, float)) and not isinstance(a, bool)]
            value = scalars[0] if scalars else 0.0
        for scalar in scalars:
            sizes = self._sources(scalar)
            for size in sizes:
                tracer.note_number(size.expression, int(size), correctable=not holds_constant(size.expression))
            if sizes:
                tracer.record.numbers[top][call] = int(value) if isinstance(value, int) else float(value)

    def _note_values(self, given: Any) -> None:
        """Notes sizes handed to any other function: values that must be kept."""
        for value in _leaves(given):
            for size in self._sources(value):
                self.tracer.note_number(size.expression, int(size), correctable=False)

    def _note_sizes(self, func: Any, args: Arguments, kwargs: Keywords, out: Any, call: int) -> None:
        if len(args) > 1 and isinstance(args[1], torch.dtype):
            return
        given, axis, _ = sized_call(func, args, kwargs)
        if func.__name__ == "pad":
            self._note_pads(given, out, call)
            return
        of = self.tracer.vectors_of
        vectors = of(out)[axis:] if isinstance(out, Tensor) else [of(part)[axis] for part in out]
        for slot, value in enumerate(given):
            self.tracer.note_size(value, vectors[slot], slot, call)

    def _note_squeeze(self, call: int, args: Arguments, kwargs: Keywords) -> None:
        """Notes a squeeze without a named axis: one that a cut leaves with a single position would vanish too."""
        if len(args) > 1 or kwargs.get("dim") is not None:
            return
        with torch._C.DisableTorchFunction():
            dims = tuple(d for d, n in enumerate(args[0].shape) if n == 1)
        vectors = [v for v in self.tracer.vectors_of(args[0]) if labelled(v)]
        if vectors:
            self.tracer.record.squeezes[self.tracer.stack.top, call] = (dims, vectors)

    def _note_pads(self, given: Sequence[int], out: Tensor, call: int) -> None:
        vectors = self.tracer.vectors_of(out)
        for slot, amount in enumerate(given):
            vector = vectors[out.ndim - 1 - slot // 2]
            if labelled(vector) and amount > 0:
                self.tracer.note_size(amount, vector[:amount] if slot % 2 == 0 else vector[-amount:], slot, call)


def _entries(plain: Any, args: Arguments, kwargs: Keywords) -> list[tuple[int, int]]:
    """Returns the axes that a program reads, with their lengths."""
    if isinstance(plain, int):
        return [((args[1] if len(args) > 1 else kwargs["dim"]) % args[0].ndim, plain)]
    return list(enumerate(plain))


def _leaves(value: Any) -> list[Any]:
    """Returns the entries of a nested argument."""
    if isinstance(value, dict):
        return [leaf for entry in value.values() for leaf in _leaves(entry)]
    if isinstance(value, (tuple, list)):
        return [leaf for entry in value for leaf in _leaves(entry)]
    return [value]


def _spatial(name: str) -> bool:
    """Returns whether a call's integers are kernels, strides and axes, or sizes that a rule asks for itself."""
    return any(part in name for part in ("conv", "pool", "norm", "interpolate", "fold", "permute", "transpose"))


def _call_sizes(name: str, args: Arguments, kwargs: Keywords) -> list[Any]:
    """Returns the integers that a rule will ask for: groups of a convolution or a norm, shapes, borders."""
    if "conv" in name:
        return [kwargs.get("groups", args[6] if len(args) > 6 else 1)]
    if name == "group_norm":
        return [kwargs.get("num_groups", args[1] if len(args) > 1 else None)]
    if name in ("layer_norm", "rms_norm"):
        return list(kwargs.get("normalized_shape", args[1] if len(args) > 1 else ()))
    sizes = [value for value in _leaves((args[1:], kwargs)) if isinstance(value, Size)]
    slices = [entry for entry in _leaves(args[1:]) if isinstance(entry, slice)]
    return sizes + [border for entry in slices for border in (entry.start, entry.stop)]
