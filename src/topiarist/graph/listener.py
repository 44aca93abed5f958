"""The listener: notes the sizes that the program asks for, and gives out integers that remember."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from topiarist.graph.calls import INFERRING, READS, kind_of, sized_call
from topiarist.graph.code.branches import unwatched
from topiarist.graph.code.places import Here, Site, line_of_code, place_here
from topiarist.graph.inputs import Arguments, Keywords, tensors_in
from topiarist.graph.labels import Free, Vector, labelled
from topiarist.graph.record import Squeeze
from topiarist.graph.sizes import Attribute, Length, Plain, Size, expression_of, leaves
from topiarist.graph.stand_ins import StandIns, ValuesNeededError
from topiarist.graph.tracer import Tracer

OPAQUE = (F.multi_head_attention_forward,)
"""Functions of torch that compute sizes within themselves, where nobody can listen."""

PARTING = {"tensor_split", "hsplit", "vsplit", "dsplit", "array_split"}
"""Functions that compute where to part an axis from its length."""

LIKE = {"expand_as", "view_as", "reshape_as"}
"""Functions that take their sizes from a second tensor."""

INDEXING = {"__getitem__", "__setitem__"}
"""Methods that take an index, whose slices have borders."""

SELECTING = {*INDEXING, "select", "narrow"}
"""Those that select positions."""

LEAVING = {"numpy", "__array__", "tolist", "__dlpack__"}
"""Methods by which values leave torch: what the program computes from them cannot be followed."""


class Listener(TorchFunctionMode):
    """Sees the calls as the program wrote them.

    Attributes:
        seen: by module, the sizes that it read.
        settled: by module, the sizes whose use as a number was seen, and noted, where it was computed.
        inside: how many functions of torch are running.
    """

    def __init__(self, tracer: Tracer, stand_ins: StandIns | None = None) -> None:
        super().__init__()
        self.tracer, self.stand_ins = tracer, stand_ins
        self.seen: dict[str, dict[int, Size]] = defaultdict(dict)
        self.settled: dict[str, set[int]] = defaultdict(set)
        self.inside = 0

    def __torch_function__(self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None) -> Any:
        with unwatched():
            return self._listened(func, args, kwargs or {})

    def _listened(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        """Runs a call, and notes what it was given."""
        if func in READS:
            return self._shape(func, args, kwargs)
        if func in (torch.Tensor.numel, torch.Tensor.nelement, torch.numel):
            return self._numel(args[0])
        tracer = self.tracer
        before = tracer.call, tracer.caller, tracer.borders, tracer.by_data
        kind, name = kind_of(func), getattr(func, "__name__", "")
        if name in LEAVING:
            if self.stand_ins is not None and self.stand_ins.behind(args[:1]):
                raise ValuesNeededError(name)
            tracer.algebra.add_origin(name, tracer.stack.top, line_of_code())
            tracer.algebra.pin_all(tracer.vectors_of(args[0]), f"its values leave torch by {name}()")
            tracer.read_positions(args[:1])
            tracer.reads_values = True
        if kind == "squeeze":
            self._note_squeeze(args, kwargs)
        elif kind == "number":
            self._note_operands(name, args)
        elif kind == "scale":
            self._note_scale(args, kwargs)
        elif name in ("full", "new_full"):
            self._note_values(kwargs.get("fill_value", args[-1:]))
        elif kind is None and name != "repeat" and not name.startswith("__get") and not _spatial(name):
            self._note_values((args, kwargs))
        tracer.call, tracer.caller = _call_sizes(name, args, kwargs), name
        tracer.borders = _borders(args[1]) if name in INDEXING else []
        tracer.by_data = name in SELECTING and self._is_by_data((args[1:], kwargs))
        self.inside += 1
        try:
            out = func(*args, **kwargs)
        finally:
            self.inside -= 1
            tracer.call, tracer.caller, tracer.borders, tracer.by_data = before
        if kind in ("sizes", "fill"):
            self._note_sizes(func, args, kwargs, out)
        elif name == "rms_norm":  # made of smaller operators, which do not state its size
            sizes = _call_sizes(name, args, kwargs)
            for size, vector in zip(sizes, tracer.vectors_of(out)[-len(sizes) :], strict=True):
                tracer.note_size(size, vector)
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

    def _is_by_data(self, given: Any) -> bool:
        """Returns whether positions may be selected by values of tensors.

        By a tensor of one number; or, once the program has read values, by an integer that is not written here.
        """
        parts = [part for leaf in _leaves(given) for part in _parts_of(leaf)]
        if any(isinstance(part, Tensor) and part.ndim == 0 for part in parts):
            return True
        numbers = {abs(part) for part in parts if type(part) is int}
        if not self.tracer.reads_values or not numbers:
            return False
        here = place_here()
        return here is None or not numbers <= here.literals()

    # sizes that become numbers

    def became_number(self, size: Size, side: int | None) -> None:
        """Notes that the program computes a number from a size, where it does so.

        Args:
            size: the size.
            side: its side of the arithmetic; None where a call takes it, such as ``math.sqrt(size)``.
        """
        if self.inside:
            return  # torch converts what it was given, which was noted
        here = place_here(direct=True)
        site = None if here is None else here.only_argument() if side is None else here.operand(side)
        if site is not None and side != 0 and any(True for _ in leaves(size.expression)):  # C ** -0.5 is no 1 / C
            self.settled[self.tracer.stack.top].add(int(size))
        self.tracer.note_number(size, site)

    def were_equal(self, left: Size, right: Size) -> None:
        """Notes that the program compared the length of an axis with what a module says it is, and they were equal."""
        if self.inside:
            return
        for length, said in ((left, right), (right, left)):
            says = any(isinstance(leaf, Attribute) for leaf in leaves(said.expression))
            if isinstance(length.expression, Length) and says:
                self.tracer.note_size(said, self.tracer.record.vectors[length.expression.vector])

    def _sources(self, value: Any, here: Here | None = None) -> tuple[Size, ...]:
        """Returns the sizes that a number comes from, where that was not seen.

        Python forgets them in ``1.0 / C``: a float that is one over a size which the running module has seen, and that
        the code divides by, is taken to come from it. Where it does not, a correction holds a constant at its value.
        """
        if isinstance(value, Size):
            return (value,)
        top = self.tracer.stack.top
        if not isinstance(value, float) or not 1e-9 < value < 1 or value in self.tracer.memory.floats[top]:
            return ()  # what the module stores is a constant
        divisor = round(1 / value)
        if divisor in self.settled[top] or abs(1 / value - divisor) > 1e-9 * divisor:
            return ()
        if here is not None and not any(d is None or _is_cut_size(d, divisor) for d in here.divisors()):
            return ()
        mine = [self.seen[top][divisor]] if divisor in self.seen[top] else []
        return tuple(mine or self.tracer.memory.sizes.get((top, divisor), ()))

    def _note_operands(self, name: str, args: Arguments) -> None:
        """Notes the numbers that a tensor is multiplied with or divided by."""
        for position, value in enumerate(args):
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                continue
            here, site = place_here(), None
            sizes = self._sources(value, here)
            if here is not None and here.call is None:
                site = here.operand(1 - position if name.startswith("__r") else position)  # 2 * x is x.__rmul__(2)
            elif here is not None:
                site = here.argument(position)
            for size in sizes:
                self.tracer.note_number(size, site, None if isinstance(value, int) else float(value))
            if not sizes and site is not None:
                self.tracer.note_plain(site)

    def _note_scale(self, args: Arguments, kwargs: Keywords) -> None:
        """Notes attention's scale, which is computed from the width of its heads where it is not given."""
        given, here = kwargs.get("scale", args[6] if len(args) > 6 else None), place_here()
        if given is None:
            with torch._C.DisableTorchFunction():
                width = self._size(int(args[0].shape[-1]), self.tracer.vectors_of(args[0])[-1])
            sizes: tuple[Size, ...] = (width,)
            given = float(int(width)) ** -0.5
        else:
            sizes = self._sources(given, here)
        for size in sizes:
            self.tracer.note_number(size, here.scale() if here is not None else None, float(given))

    def _note_values(self, given: Any) -> None:
        """Notes sizes handed to any other function: values that must be kept."""
        for value in _leaves(given):
            for size in self._sources(value):
                self.tracer.note_number(size, None)

    # shapes that are read

    def _size(self, length: int, vector: Vector) -> Size:
        if isinstance(vector, Free) and (asked := _asked(vector)) is not None:
            return Size(int(length), expression_of(asked))
        if not labelled(vector):
            return Size(int(length), Plain(int(length)))
        size = Size(length, Length(self.tracer.index_of(vector)))
        self.seen[self.tracer.stack.top].setdefault(length, size)
        return size

    def _shape(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        tensor = args[0]
        plain = func(*args, **kwargs)
        vectors = self.tracer.vectors_of(tensor)
        # What these will meet is not known yet: a size remembers what the program asked for, if that can change.
        free = [v for v in vectors if isinstance(v, Free) and _asked(v) is None]
        self.tracer.algebra.pin_all(free, "its size is read where it was expanded from one position")
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

    # sizes that are asked for

    def _note_sizes(self, func: Any, args: Arguments, kwargs: Keywords, out: Any) -> None:
        if len(args) > 1 and isinstance(args[1], torch.dtype):
            return
        given, axis, at = sized_call(func, args, kwargs)
        here = place_here()
        infers = func.__name__ in INFERRING and -1 not in given
        sites = [here.sizes(k, at, infers=infers) if here is not None else None for k in range(len(given))]
        of = self.tracer.vectors_of
        if func.__name__ == "pad":
            self._note_pads(given, of(out), sites)
            return
        vectors = of(out)[axis:] if isinstance(out, Tensor) else [of(part)[axis] for part in out]
        for value, vector, site in zip(given, vectors, sites, strict=False):
            self.tracer.note_size(value, vector, site)

    def _note_pads(self, given: Sequence[int], vectors: Sequence[Vector], sites: Sequence[Site | None]) -> None:
        for slot, amount in enumerate(given):
            vector = vectors[len(vectors) - 1 - slot // 2]
            side = None
            if labelled(vector) and amount > 0:
                side = vector[:amount] if slot % 2 == 0 else vector[-amount:]
            self.tracer.note_size(amount, side, sites[slot])

    def _note_squeeze(self, args: Arguments, kwargs: Keywords) -> None:
        """Notes a squeeze without a named axis: one that a cut leaves with a single position would vanish too."""
        if len(args) > 1 or kwargs.get("dim") is not None:
            return
        with torch._C.DisableTorchFunction():
            dims = tuple(d for d, n in enumerate(args[0].shape) if n == 1)
        vectors = tuple(v for v in self.tracer.vectors_of(args[0]) if labelled(v))
        here = place_here()
        if vectors and (here is None or here.call is None):
            self.tracer.algebra.pin_all(vectors, "squeezed without a named axis, by code whose source is not at hand")
        elif vectors and here is not None:
            key = (self.tracer.stack.top, here.place)
            before = self.tracer.record.squeezes.get(key, Squeeze((), ()))
            both = tuple(sorted({*dims, *before.dims}))
            self.tracer.record.squeezes[key] = Squeeze(both, (*before.vectors, *vectors))


def _asked(free: Free) -> Size | None:
    """Returns the size that the program asked for an expanded axis, where a cut may change it."""
    sizes = (request.value for request in free.root().requests)
    return next((n for n in sizes if isinstance(n, Size) and any(True for _ in leaves(n.expression))), None)


def _is_cut_size(value: object, length: int) -> bool:
    """Returns whether a value is a size of this length that a cut may change."""
    return isinstance(value, Size) and value == length and any(True for _ in leaves(value.expression))


def _borders(index: Any) -> list[tuple[slice, Site | None, Site | None]]:
    """Returns the slices of an index, in order, with the places of their begins and ends."""
    entries = index if isinstance(index, tuple) else (index,)
    slices = [(k, each) for k, each in enumerate(entries) if isinstance(each, slice) and each != slice(None)]
    if not all(isinstance(border, int | None) for _, each in slices for border in (each.start, each.stop, each.step)):
        return []  # computed from data
    here = place_here() if slices else None
    if here is None:
        return [(each, None, None) for _, each in slices]
    return [(each, here.border(k, 0), here.border(k, 1)) for k, each in slices]


def _leaves(value: Any) -> list[Any]:
    """Returns the entries of a nested argument."""
    if isinstance(value, dict):
        return [leaf for entry in value.values() for leaf in _leaves(entry)]
    if isinstance(value, (tuple, list)):
        return [leaf for entry in value for leaf in _leaves(entry)]
    return [value]


def _parts_of(entry: Any) -> tuple[Any, ...]:
    return (entry.start, entry.stop, entry.step) if isinstance(entry, slice) else (entry,)


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
