"""The tracer: what rules and the listener report to while a network runs.

Two modes watch the run. Below, `OperatorMode` (`operators.py`) sees every operator with its real tensors and applies
the rule of its family (`rules/`). Above, the `Listener` (`listener.py`) sees the calls as the program wrote them and
notes the sizes that it asked for (`sizes.py`). Both report to the tracer, which knows what travels with each tensor and
fills the `Record`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from topiarist.graph.blocks import Descent
from topiarist.graph.by_tensor import ByTensor
from topiarist.graph.calls import ModuleStack
from topiarist.graph.code.branches import Taken, unwatched
from topiarist.graph.code.places import Site, line_of_code, trails_here
from topiarist.graph.dropins import DESCRIBED
from topiarist.graph.inputs import Arguments, Keywords, call_model, modules_of, named_tensors, tensors_in
from topiarist.graph.labels import Free, LabelAlgebra, Labels, Request, Vector, bound, labelled
from topiarist.graph.memory import Lifetimes
from topiarist.graph.norms import Norms
from topiarist.graph.record import Contraction, Mark, Record, Source, Statistic, Traced
from topiarist.graph.sizes import Attribute, Equation, Size, expression_of, leaves, remembering

SMALL = 12
"""Modules that a module may hold, itself included, to be run alone."""


class Blank(NamedTuple):
    """The shape and type of a tensor that a module was given."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def filled(self) -> Tensor:
        """Returns a tensor like it."""
        return torch.ones(self.shape, dtype=self.dtype, device=self.device)


class Tracer:
    """Knows what travels with each tensor, and takes the notes of rules and the listener.

    Attributes:
        record: what the run showed so far.
        algebra: its labels, unions and lines.
        descent: which calls of modules each tensor descends from, for the blocks, and for what nothing reads.
        norms: which batch norms see a layer's output as it comes.
        own: the parameters, buffers and constants of the network.
        axes: the labels of each of them.
        stack: the modules that are running.
        memory: the integers of the modules, which remember where they came from.
        call: the integers that the call of the program, below which an operator runs, was given.
        caller: name of that call.
        borders: the slices of the index that it was given, with the sites of their begins and ends.
        lifetimes: of what the operators allocate, in the first run alone.
        taken: which of the network's code ran.
        ran: names of the modules that ran.
        reads_values: whether the program has taken numbers, or sizes that depend on them, out of tensors.
        by_data: whether the call of the program selects positions by such numbers.
        given: what small modules with code of their own were given, tensors as blanks; None where calls differ.
        mixes_in_training: whether a batch norm would mix units in training.
    """

    def __init__(self, model: nn.Module, limit: int) -> None:
        modules = modules_of(model)
        self.algebra = LabelAlgebra(limit, self._note_request)
        self.record = Record(self.algebra, {name: type(module) for name, module in modules.items()})
        self.call: list[Any] = []
        self.caller = ""
        self.borders: list[tuple[slice, Site | None, Site | None]] = []
        self.descent: Descent
        self.norms: Norms
        self.stack: ModuleStack
        self.memory: remembering
        self.lifetimes: Lifetimes | None = None
        self.taken = Taken(lambda: self.stack.top)
        self._mixed: tuple[Vector, ...] = ()
        self._runs = 0
        self.ran: set[str] = set()
        self.reads_values = self.by_data = False
        self.given: dict[str, Given | None] = {}
        self.mixes_in_training = False
        self._small = {name for name, module in modules.items() if _is_small(module)}
        self._traced = ByTensor[Traced]()
        self._undefined = ByTensor[bool]()
        self._positions = ByTensor[tuple[list[Labels], str]]()
        # By storage, the tensors on it that held zeros at dead positions when they were made.
        self._zeros: dict[int, ByTensor[None]] = {}
        self.axes: dict[str, tuple[Vector, ...]] = {}
        self._index: dict[int, int] = {}
        self._asked: list[Free] = []
        self.own = named_tensors(model)
        for name, tensor in self.own.items():
            vectors: list[Vector] = []
            for axis, size in enumerate(tensor.shape):
                vectors.append(labels := self.algebra.fresh(size) if size > 1 else None)
                if labels is not None:
                    self.record.sources.append(Source(name, axis, labels))
            self.record.shapes[name] = tuple(tensor.shape)
            self.axes[name] = tuple(vectors)
            self._send(tensor, Traced(tuple(vectors), zero=True, source=name))

    def begin(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        """Prepares for a run on these inputs."""
        self._runs += 1
        self.record.batch = inputs[0].shape[0] if inputs and inputs[0].ndim else 1
        self.stack = ModuleStack(model, self._entered, self._left)
        self.norms = Norms()
        self.memory = remembering(model)
        self.descent = Descent(model, inputs)
        self.lifetimes = Lifetimes(self.own.values()) if self._runs == 1 else None
        self._products: list[tuple[tuple[tuple[int, Vector], ...], str | None, str, str]] = []

    def finish(self, outputs: Sequence[Tensor], *, training: bool) -> None:
        """Notes what the network returned, in eval or in training mode: it is read once more, and keeps its shape."""
        if self.lifetimes is not None:
            self.record.storages = self.lifetimes.finish()
        self.descent.finish(outputs)
        for axes, weight, module, stage in self._products:
            # Only now is it known which labels an expanded axis met.
            factors = tuple(length if (known := bound(vector)) is None else known for length, vector in axes)
            self.record.contractions.append(Contraction(factors, weight, module, stage))
        if self._runs == 1:
            self.record.blocks, self.record.irremovable = self.descent.residual_blocks()
        self._tie_descriptive_attributes()
        self.record.attributes = {**self.record.attributes, **self.memory.traced}
        self.norms.read(outputs)
        self.read_positions(outputs)
        own = {source for tensor in outputs if (source := self.of(tensor).source) is not None}
        self.record.read[training] |= own | self.descent.read_by(outputs)
        for tensor in outputs:
            self.algebra.pin_all(self.vectors_of(tensor), "the network's output")
        for free in {id(root): root for root in (free.root() for free in self._asked)}.values():
            for request in free.requests if free.bound is None else ():
                self._note_request(request, None)  # it met no units, so its size stays
        self._asked.clear()

    # what travels with a tensor

    def of(self, tensor: Tensor) -> Traced:
        """Returns what travels with a tensor; nothing, where it came from outside."""
        traced = self._traced.get(tensor) or Traced((None,) * tensor.ndim)
        met = [v for v in traced.vectors if isinstance(v, Free) and labelled(v.known())]
        if not met:
            return traced
        vectors = tuple(v.known() if isinstance(v, Free) else v for v in traced.vectors)
        return traced._replace(vectors=vectors, zero=traced.zero and all(free.root().zero for free in met))

    def vectors_of(self, tensor: Tensor) -> tuple[Vector, ...]:
        """Returns the labels of a tensor's axes."""
        return self.of(tensor).vectors

    def zero_along(self, tensor: Tensor, axis: int) -> bool:
        """Returns whether dead positions of an axis are known to hold zeros in the masked network."""
        traced = self.of(tensor)
        vector = traced.vectors[axis]
        return traced.zero and (labelled(vector) or (isinstance(vector, Free) and vector.root().zero))

    def entire_source(self, tensor: Tensor) -> str | None:
        """Returns the parameter or buffer that a tensor is: all of it, in its own order."""
        traced = self.of(tensor)
        if traced.source is None or self.record.shapes[traced.source] != tuple(tensor.shape):
            return None
        own = zip(traced.vectors, self.axes[traced.source], strict=True)
        return traced.source if all(vector is labels for vector, labels in own) else None

    def put(self, tensor: Tensor, vectors: Sequence[Vector], zero: bool = False, source: str | None = None) -> None:
        """Sends vectors on with a tensor; an axis of size 1 carries none."""
        sent: list[Vector] = []
        for vector, size in zip(vectors, tensor.shape, strict=True):
            if size == 1:
                self.algebra.pin(vector if labelled(vector) else None, "a single position is taken out of the axis")
                sent.append(None)
                continue
            if labelled(vector) and len(vector) != size:
                raise ValueError(f"{len(vector)} labels for an axis of {size}")
            sent.append(vector)
        self._send(tensor, Traced(tuple(sent), zero, source))
        self.record.held[self.stack.top] += [v for v in sent if labelled(v)]

    def _send(self, tensor: Tensor, traced: Traced) -> None:
        self._traced[tensor] = traced
        if traced.zero:
            self._zeros.setdefault(tensor.untyped_storage()._cdata, ByTensor())[tensor] = None

    def note_scale(self, tensor: Tensor, scale: str | None) -> None:
        """Notes which parameter has just scaled the channels of a tensor."""
        self._traced[tensor] = self.of(tensor)._replace(scale=scale)

    def undefined(self, tensor: Tensor) -> bool:
        """Returns whether dead positions may hold NaN or infinity in the masked network, as 0 / 0 does."""
        return self._undefined.get(tensor) is not None

    def note_undefined(self, tensors: Sequence[Tensor]) -> None:
        """Notes tensors whose dead positions may hold NaN or infinity."""
        for tensor in tensors:
            self._undefined[tensor] = True
            self._traced[tensor] = self.of(tensor)._replace(zero=False)

    def note_positions(self, tensor: Tensor, vectors: list[Labels], reason: str) -> None:
        """Notes that a tensor counts positions along these vectors: a cut numbers them anew."""
        self._positions[tensor] = vectors, reason

    def read_positions(self, tensors: Sequence[Tensor]) -> None:
        """Pins what is counted by tensors that the program uses."""
        for tensor in tensors:
            if (counted := self._positions.get(tensor)) is not None:
                self.algebra.pin_all(*counted)

    def note_nonzero(self, tensor: Tensor) -> None:
        """Notes that an operator wrote into a tensor what is not zero at dead positions, for all on its storage."""
        storage = tensor.untyped_storage()._cdata
        for other in self._zeros.pop(storage, ()):
            self._traced.change(other, self._traced.at(other)._replace(zero=False))

    def index_of(self, vector: Labels) -> int:
        """Returns a number for a vector, by which equations refer to it."""
        if id(vector) not in self._index:
            self._index[id(vector)] = len(self.record.vectors)
            self.record.vectors.append(vector)  # keeps it alive, so that its id stays its own
        return self._index[id(vector)]

    # what rules and the listener report

    def mark(self, vector: Vector, role: str, stage: str = "") -> None:
        """Notes the role that a parameter's labels play."""
        if labelled(vector):
            self.record.marks.append(Mark(vector, role, stage))

    def note_product(
        self, *factors: int | Vector | tuple[int, Vector], weight: str | None = None, stage: str = ""
    ) -> None:
        """Notes a product; a factor is a number, or the length and vector of an axis."""
        axes = tuple(factor if isinstance(factor, tuple) else (cast("int", factor), None) for factor in factors)
        self._products.append((axes, weight, self.stack.top, stage))

    def note_mixing(self, kind: str, vectors: Sequence[Vector]) -> None:
        """Notes the vectors of its input that an operator runs over, which mixes positions."""
        if any(labelled(vector) for vector in vectors):
            self._mixed = tuple(vectors)

    def mixed(self, kind: str) -> None:
        """Notes that an operator has run that mixes positions, over the vectors that its rule noted."""
        top = self.stack.top
        call = (self._runs, self.stack.calls[top])
        statistic = Statistic(kind, self._mixed, top, call, trails_here(call_model.__code__))
        self.record.statistics.append(statistic)
        self._mixed = ()

    def note_size(self, value: object, vector: Vector, site: Site | None = None) -> None:
        """Notes an equation: the program gave `value` for an axis that carries `vector`."""
        if not isinstance(value, int) or isinstance(value, bool) or value == -1:
            return
        request = Request(value, site, self.stack.top, line_of_code())
        if not isinstance(vector, Free):
            self._note_request(request, vector)
            return
        free = vector.root()
        free.requests.append(request)
        self._asked.append(free)
        if free.bound is not None:
            self._note_request(request, free.bound)

    def _note_request(self, request: Request, vector: Labels | None) -> None:
        value, site, module, line = request
        expression = expression_of(value)
        wanted: int | None = None
        if labelled(vector):
            if len(vector) != value:
                return
            wanted = self.index_of(vector)
        elif site is None and not any(True for _ in leaves(expression)):
            return  # nothing that a cut could change, nor a correction for another run of the same place
        self.record.equations.append(Equation(expression, int(value), wanted, site, False, module, line))

    def note_number(self, size: Size, site: Site | None, constant: float | None = None) -> None:
        """Notes that a size became part of a value (a scale, a mean), which must be what it was while tracing."""
        top = self.stack.top
        if any(True for _ in leaves(size.expression)):
            equation = Equation(size.expression, int(size), None, site, True, top, line_of_code(), constant)
            self.record.equations.append(equation)
        elif site is not None:
            self.note_plain(site)

    def note_plain(self, site: Site) -> None:
        """Notes a run of a place with what no cut changes, so that no correction for another run changes it."""
        self.record.equations.append(Equation(1, 1, None, site, True, self.stack.top, line_of_code()))

    def _tie_descriptive_attributes(self) -> None:
        """Ties attributes that describe a layer to its axes, where the program computes with them."""
        equations = self.record.equations
        used = {leaf for e in equations for leaf in leaves(e.expression) if isinstance(leaf, Attribute)}
        axes = {(name, axis): labels for name, axis, labels in self.record.sources}
        for leaf in sorted(used, key=str):
            for tensor, axis in DESCRIBED.get(leaf.name, ()):
                labels = axes.get((f"{leaf.module}.{tensor}".lstrip("."), axis))
                if labels is not None and len(labels) == self.memory.traced[leaf]:
                    equations.append(Equation(leaf, len(labels), self.index_of(labels), None, False, leaf.module, ""))
                    break

    # hooks of modules

    def _entered(self, name: str, call: int, args: Arguments, kwargs: Keywords) -> None:
        with unwatched():
            self.ran.add(name)
            self.descent.enter(name)
            if name in self._small:
                given = _blanks(args, kwargs)
                self.given[name] = given if self.given.setdefault(name, given) == given else None
            received = (vector for tensor in tensors_in(args) for vector in self.vectors_of(tensor))
            self.record.held[name] += [vector for vector in received if labelled(vector)]

    def _left(self, name: str, call: int, output: object) -> None:
        """Notes what travels out of a module."""
        with unwatched():
            self.descent.leave(name, output)
            self.record.outputs[name, call] = [self.of(tensor) for tensor in tensors_in(output)]


Given = tuple[list[object], dict[str, object]]
"""What a module was called with, tensors as blanks."""


def _blanks(args: Arguments, kwargs: Keywords) -> Given | None:
    """Returns what a module was called with; ``None`` where it was more than tensors and plain values."""
    if not all(isinstance(value, Tensor) or _is_plain(value) for value in (*args, *kwargs.values())):
        return None
    return [_blank(value) for value in args], {key: _blank(value) for key, value in kwargs.items()}


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str | None) or (
        isinstance(value, tuple | list) and all(map(_is_plain, value))
    )


def _blank(value: object) -> object:
    with torch._C.DisableTorchFunction():
        return Blank(tuple(value.shape), value.dtype, value.device) if isinstance(value, Tensor) else value


def _is_small(module: nn.Module) -> bool:
    """Returns whether a module has code of its own, and could be run alone at little cost."""
    own = not type(module).__module__.startswith("torch.")
    return own and sum(1 for _ in islice(module.modules(), SMALL + 1)) <= SMALL
