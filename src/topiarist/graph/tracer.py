"""The tracer: runs a network once and lets labels travel through it.

Two modes listen. Below, a `TorchDispatchMode` sees every operator with its real tensors and applies the rule of its
family (`rules_*.py`). Above, a `TorchFunctionMode` sees the calls as the program wrote them and notes the sizes that it
asked for (`sizes.py`).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from topiarist.errors import TopiaristError
from topiarist.graph.calls import ModuleStack, kind_of, line_of_code, sizes_argument, tensors_in
from topiarist.graph.labels import FREE, LabelAlgebra, Labels, Origin, Vector, labelled
from topiarist.graph.sizes import Attribute, Equation, Length, Site, Size, expression_of, leaves, remembering


class Traced(NamedTuple):
    """What travels with a tensor.

    Attributes:
        vectors: one for each axis.
        zero: its dead positions hold zeros in the masked network.
        source: the parameter or buffer that it is, perhaps seen with its axes moved.
    """

    vectors: tuple[Vector, ...]
    zero: bool = False
    source: str | None = None


class Contraction(NamedTuple):
    """A product of tensors: its multiplications are the product of the (kept) lengths in `factors`.

    `weight` names the parameter that is multiplied, where there is one: each of its elements is used equally often.
    """

    factors: tuple[int | Labels, ...]
    weight: str | None
    module: str


class Statistic(NamedTuple):
    """A normalisation whose statistics mix positions: its kind (layer, group, batch) and the vectors of its input."""

    kind: str
    vectors: tuple[Vector, ...]


class Mark(NamedTuple):
    """A role that labels of a parameter play, with the size of the feature map for outputs."""

    labels: Labels
    role: str
    stage: str


class Tracer(TorchDispatchMode):
    """Everything that one run of a network tells; plain records, solved later by `lines.py`.

    Attributes:
        algebra: labels, unions and lines.
        sources: ``(tensor, axis, labels)`` of every parameter and buffer.
        contractions: products, for the costs.
        statistics: normalisations by (module, call of the module, how many before in that call).
        outputs: vectors of each module's outputs, by (module, call).
        equations: sizes that the program asked for.
        parts: vectors of split axes, which no unit may empty.
        held: vectors that tensors carried, by the module that made them.
        unknown: operators without a rule, and how often.
        touched: names of the tensors that an operator used.
    """

    def __init__(self, model: nn.Module, limit: int, deadline: float) -> None:
        super().__init__()
        self.algebra = LabelAlgebra(limit)
        self.algebra.origins.append(Origin("", "", ""))
        self.deadline = deadline
        self.sources: list[tuple[str, int, Labels]] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.contractions: list[Contraction] = []
        self.statistics: dict[tuple[str, int, int], Statistic] = {}
        self.inputs: dict[tuple[str, int], list[Traced]] = {}
        self.outputs: dict[tuple[str, int], list[Traced]] = {}
        self.equations: list[Equation] = []
        self.numbers: dict[str, dict[int, float]] = defaultdict(dict)
        self.vectors: list[Labels] = []
        self.unknown: Counter[str] = Counter()
        self.marks: list[Mark] = []
        self.held: dict[str, list[Labels]] = defaultdict(list)
        self.parts: list[Labels] = []
        self.touched: set[str] = set()
        self.types = {name: type(module) for name, module in model.named_modules()}
        self.call: tuple[str, list[Any]] = ("", [])
        self.batch = 1
        self.stack: ModuleStack
        self.memory: remembering
        self._traced: Any = WeakTensorKeyDictionary()
        self._index: dict[int, int] = {}
        self._mixing: Counter[tuple[str, int]] = Counter()
        for tensors in (model.named_parameters(), model.named_buffers()):
            for name, tensor in tensors:
                vectors: list[Vector] = []
                for axis, size in enumerate(tensor.shape):
                    vectors.append(self.algebra.fresh(size) if size > 1 else None)
                    if size > 1:
                        self.sources.append((name, axis, vectors[-1]))  # type: ignore[arg-type]
                self.shapes[name] = tuple(tensor.shape)
                self._traced[tensor] = Traced(tuple(vectors), zero=True, source=name)

    # what travels with a tensor

    def of(self, tensor: Any) -> Traced:
        """What travels with a tensor; nothing, where it came from outside."""
        return self._traced.get(tensor) or Traced((None,) * tensor.ndim)

    def vectors_of(self, tensor: Any) -> tuple[Vector, ...]:
        return self.of(tensor).vectors

    def put(
        self, tensor: Tensor, vectors: Sequence[Vector], zero: bool = False, source: str | None = None
    ) -> None:
        """Sends vectors on with a tensor; an axis of size 1 carries none."""
        sent: list[Vector] = []
        for vector, size in zip(vectors, tensor.shape, strict=True):
            if size == 1:
                if labelled(vector):
                    self.algebra.pin(vector, "a single position is taken out of the axis")
                sent.append(None)
                continue
            if labelled(vector) and len(vector) != size:  # type: ignore[arg-type]
                raise ValueError(f"{len(vector)} labels for an axis of {size}")  # type: ignore[arg-type]
            sent.append(vector)
        self._traced[tensor] = Traced(tuple(sent), zero, source)
        top = self.stack.top
        self.held[top] += [v for v in sent if v is not None and v is not FREE]

    def index_of(self, vector: Labels) -> int:
        """A number for a vector, by which equations refer to it."""
        if id(vector) not in self._index:
            self._index[id(vector)] = len(self.vectors)
            self.vectors.append(vector)  # keeps it alive, so that its id stays its own
        return self._index[id(vector)]

    # what rules report

    def mark(self, vector: Vector, role: str, stage: str = "") -> None:
        if vector is not None and vector is not FREE:
            self.marks.append(Mark(vector, role, stage))

    def contract(self, *factors: int | Vector | tuple[int, Vector], weight: str | None = None) -> None:
        """Notes a product; a factor is a number, or the length and vector of an axis."""
        kept: list[int | Labels] = []
        for factor in factors:
            length, vector = factor if isinstance(factor, tuple) else (factor, None)
            kept.append(vector if labelled(vector) else length)  # type: ignore[arg-type]
        self.contractions.append(Contraction(tuple(kept), weight, self.stack.top))

    def mixes(self, kind: str, vectors: Sequence[Vector]) -> None:
        """Notes a normalisation, with the vectors that its statistics run over."""
        top = self.stack.top
        call = (top, self.stack.calls[top])
        self.statistics[(*call, self._mixing[call])] = Statistic(kind, tuple(vectors))
        self._mixing[call] += 1

    def asks(self, value: Any, vector: Vector, slot: int | None = None, number: int | None = None) -> None:
        """An equation: the program gave `value` for an axis that carries `vector`."""
        if not isinstance(value, int) or isinstance(value, bool) or value == -1:
            return
        expression = expression_of(value)
        wanted: int | None = None
        if vector is not None and vector is not FREE:
            if len(vector) != value:
                return
            wanted = self.index_of(vector)
        elif vector is FREE or not any(isinstance(leaf, Length) for leaf in leaves(expression)):
            return  # nothing that a cut could change
        top = self.stack.top
        site = Site(top, number, slot) if slot is not None and number is not None else None
        self.equations.append(Equation(expression, int(value), wanted, site, False, top, line_of_code()))

    def used_as_number(self, size: Size, site: Site | None = None, frozen: bool = True) -> None:
        """A size became part of a value (a scale, a mean): it must keep its traced value."""
        self.equations.append(
            Equation(size.expression, int(size), None, site, frozen, self.stack.top, line_of_code())
        )

    # the dispatch mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from topiarist.graph.rules import apply_rule

        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if time.monotonic() > self.deadline:
            raise TopiaristError(
                "tracing took longer than its time limit; trace with a smaller example input, or raise `seconds`"
            )
        name = func.overloadpacket.__name__
        self.algebra.origins.append(Origin(name, self.stack.top, line_of_code()))
        given = tensors_in(args) + tensors_in(kwargs)
        for tensor in given:
            if (source := self.of(tensor).source) is not None:
                self.touched.add(source)
        if given:
            try:
                known = apply_rule(self, func, args, kwargs, out)
            except (ValueError, IndexError, KeyError, TypeError, AssertionError, RuntimeError):
                known = False
            if not known:
                self._pin_unknown(str(func), given, out)
        return out

    def _pin_unknown(self, operator: str, given: Sequence[Tensor], out: Any) -> None:
        reached = [v for tensor in given for v in self.vectors_of(tensor) if labelled(v)]
        if reached:
            self.unknown[operator] += 1
        for vector in reached:
            self.algebra.pin(vector, f"operator without a rule: {operator}")
        for tensor in tensors_in(out):
            self.put(tensor, [None] * tensor.ndim)

    # module hooks

    def entered(self, name: str, call: int, args: Any) -> None:
        self.inputs[name, call] = [self.of(tensor) for tensor in tensors_in(args)]

    def left(self, name: str, call: int, output: Any) -> None:
        self.outputs[name, call] = [self.of(tensor) for tensor in tensors_in(output)]


class Listener(TorchFunctionMode):
    """Notes the sizes that the program asks for, and gives out those that remember."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.shape.__get__, torch.Tensor.size):  # type: ignore[attr-defined]
            return self._shape(func, args, kwargs)
        if func in (torch.Tensor.numel, torch.Tensor.nelement, torch.numel):
            return self._numel(args[0])
        kind = kind_of(func)
        name = getattr(func, "__name__", "")
        tracer, before = self.tracer, self.tracer.call
        number = tracer.stack.count() if kind is not None else None
        if kind == "number" or kind == "scale":
            self._note_number(kind, number, args, kwargs)
        elif kind is None and not name.startswith("__get") and not _spatial(name):
            for size in _sizes((args[1:], kwargs)):
                tracer.used_as_number(size, frozen=False)
        tracer.call = (name, _call_sizes(name, args, kwargs))
        try:
            out = func(*args, **kwargs)
        finally:
            tracer.call = before
        if kind == "sizes":
            self._note_sizes(func, args, kwargs, out, number)
        return out

    def _size(self, length: int, vector: Vector) -> int:
        if vector is None or vector is FREE:
            return int(length)
        return Size(length, Length(self.tracer.index_of(vector)))

    def _shape(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensor = args[0]
        plain = func(*args, **kwargs)
        vectors = self.tracer.vectors_of(tensor)
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

    def _note_number(self, kind: str, number: int | None, args: Any, kwargs: Any) -> None:
        tracer = self.tracer
        assert number is not None
        if kind == "scale":
            scale = kwargs.get("scale", args[6] if len(args) > 6 else None)
            with torch._C.DisableTorchFunction():
                width = int(args[0].shape[-1])
            tracer.numbers[tracer.stack.top][number] = float(width**-0.5 if scale is None else scale)
            size = self._size(width, tracer.vectors_of(args[0])[-1])
            if scale is None and isinstance(size, Size):
                tracer.used_as_number(size, Site(tracer.stack.top, number, 0))
            return
        scalars = [a for a in args if isinstance(a, (int, float)) and not isinstance(a, bool)]
        if scalars:
            tracer.numbers[tracer.stack.top][number] = float(scalars[0])
        for scalar in scalars:
            if isinstance(scalar, Size):
                tracer.used_as_number(scalar)

    def _note_sizes(self, func: Any, args: Any, kwargs: Any, out: Any, number: int | None) -> None:
        if len(args) > 1 and isinstance(args[1], torch.dtype):
            return
        given, axis = sizes_argument(func, args, kwargs)
        if func.__name__ == "pad":
            return self._note_pads(given, out, number)
        if isinstance(out, Tensor):
            vectors = self.tracer.vectors_of(out)
            for slot, value in enumerate(given):
                self.tracer.asks(value, vectors[axis + slot], slot, number)
            return
        parts = [self.tracer.vectors_of(part)[axis] for part in out]
        for slot, value in enumerate(given):
            self.tracer.asks(value, parts[slot], slot, number)


    def _note_pads(self, given: Sequence[int], out: Tensor, number: int | None) -> None:
        vectors = self.tracer.vectors_of(out)
        for slot, amount in enumerate(given):
            vector = vectors[out.ndim - 1 - slot // 2]
            if vector is not None and vector is not FREE and amount > 0:
                self.tracer.asks(amount, vector[:amount] if slot % 2 == 0 else vector[-amount:], slot, number)


def _sizes(value: Any) -> list[Size]:
    """The sizes that remember, anywhere in a nested argument."""
    if isinstance(value, Size):
        return [value]
    if isinstance(value, dict):
        return [s for entry in value.values() for s in _sizes(entry)]
    if isinstance(value, (tuple, list)):
        return [s for entry in value for s in _sizes(entry)]
    return []


def _spatial(name: str) -> bool:
    """Calls whose integers are kernels, strides and axes, or whose sizes a rule asks for itself."""
    return any(part in name for part in ("conv", "pool", "norm", "pad", "interpolate", "fold", "permute", "transpose"))


def _call_sizes(name: str, args: Any, kwargs: Any) -> list[Any]:
    """The integers that a rule will ask for below: groups of a convolution or a norm, shapes, borders of slices."""
    if "conv" in name:
        return [kwargs.get("groups", args[6] if len(args) > 6 else 1)]
    if name == "group_norm":
        return [kwargs.get("num_groups", args[1] if len(args) > 1 else None)]
    if name in ("layer_norm", "rms_norm"):
        return list(kwargs.get("normalized_shape", args[1] if len(args) > 1 else ()))
    return _sizes((args[1:], kwargs)) + [s for entry in _slices(args[1:]) for s in (entry.start, entry.stop)]


def _slices(value: Any) -> list[slice]:
    if isinstance(value, slice):
        return [value]
    return [s for entry in value for s in _slices(entry)] if isinstance(value, tuple) else []
