"""The tracer: runs a network once and lets labels travel through it.

Two modes listen. Below, the `Tracer` sees every operator with its real tensors and applies the rule of its family
(`rules/`). Above, the `Listener` (`listener.py`) sees the calls as the program wrote them and notes the sizes that
it asked for (`sizes.py`).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from topiarist.errors import TopiaristError
from topiarist.graph.blocks import Descent
from topiarist.graph.calls import ModuleStack, line_of_code, mixing_kind, tensors_in
from topiarist.graph.dropins import DESCRIBED
from topiarist.graph.labels import Free, LabelAlgebra, Labels, Origin, Request, Vector, labelled
from topiarist.graph.norms import Norms
from topiarist.graph.rules.registry import apply_rule
from topiarist.graph.sizes import Attribute, Equation, Expression, Site, expression_of, leaves, remembering


class Traced(NamedTuple):
    """What travels with a tensor.

    Attributes:
        vectors: one for each axis.
        zero: its dead positions hold zeros in the masked network.
        source: the parameter or buffer that it is, or is a part of, perhaps seen with its axes moved.
        scale: the parameter that has just scaled its channels, where a batch norm put it out.
    """

    vectors: tuple[Vector, ...]
    zero: bool = False
    source: str | None = None
    scale: str | None = None


class Contraction(NamedTuple):
    """A product of tensors: its multiplications are the product of the (kept) lengths in `factors`.

    `weight` names the parameter that is multiplied, where there is one: each of its elements is used equally often.
    `stage` is the size of the feature map that comes out, as in `Group`.
    """

    factors: tuple[int | Labels, ...]
    weight: str | None
    module: str
    stage: str = ""


class Statistic(NamedTuple):
    """An operator that mixes positions, so that dead ones must be left out: its kind, the vectors of its input."""

    kind: str
    vectors: tuple[Vector, ...]


class Gather(NamedTuple):
    """Channels picked by the numbers in a buffer: which parameter scales them, and the numbers."""

    scale: str
    picked: Tensor


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
        statistics: operators that mix positions by (module, call of the module, kind, how many before in that call).
        outputs: vectors of each module's outputs, by (module, call).
        equations: sizes that the program asked for.
        numbers: by module and call, the numbers that were computed from sizes.
        shapes_read: by module and reading of a shape, the labelled axes read and their lengths.
        squeezes: by module and call, the axes that went where no axis was named, and the vectors that must not.
        unsteady: modules whose correctable calls differ between calls or modes, so that no shim can count them.
        parts: vectors of split axes, which no unit may empty.
        gathers: by the buffer that holds the numbers, what was picked right behind a batch norm.
        held: vectors that tensors carried, by the module that made them.
        unknown: operators without a rule, and how often.
        touched: names of the tensors that an operator used.
        descent: which calls of modules each tensor descends from, for the blocks.
        norms: which batch norms see a layer's output as it comes.
    """

    def __init__(self, model: nn.Module, limit: int, deadline: float) -> None:
        super().__init__()
        self.algebra = LabelAlgebra(limit, self._request)
        self.algebra.origins.append(Origin("", "", ""))
        self.deadline = deadline
        self.sources: list[tuple[str, int, Labels]] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.contractions: list[Contraction] = []
        self.statistics: dict[tuple[str, int, str, int], Statistic] = {}
        self.inputs: dict[tuple[str, int], list[Traced]] = {}
        self.outputs: dict[tuple[str, int], list[Traced]] = {}
        self.equations: list[Equation] = []
        self.numbers: dict[str, dict[int, float]] = defaultdict(dict)
        self.shapes_read: dict[str, dict[int, dict[int, int]]] = defaultdict(dict)
        self.squeezes: dict[tuple[str, int], tuple[tuple[int, ...], list[Labels]]] = {}
        self.kinds: dict[str, list[str]] = {}
        self.unsteady: set[str] = set()
        self.vectors: list[Labels] = []
        self.unknown: Counter[str] = Counter()
        self.marks: list[Mark] = []
        self.held: dict[str, list[Labels]] = defaultdict(list)
        self.parts: list[Labels] = []
        self.gathers: dict[str, Gather] = {}
        self.touched: set[str] = set()
        self.types = {name: type(module) for name, module in model.named_modules()}
        self.call: list[Any] = []
        self.caller = ""
        self.batch = 1
        self.descent: Descent
        self.norms: Norms
        self.stack: ModuleStack
        self.memory: remembering
        self._traced: Any = WeakTensorKeyDictionary()
        self._index: dict[int, int] = {}
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
        """The labels of a tensor's axes."""
        return self.of(tensor).vectors

    def whole(self, tensor: Tensor) -> str | None:
        """The parameter or buffer that a tensor is: all of it, in its own order."""
        traced = self.of(tensor)
        if traced.source is None or self.shapes[traced.source] != tuple(tensor.shape):
            return None
        own = ((axis, labels) for name, axis, labels in self.sources if name == traced.source)
        return traced.source if all(traced.vectors[axis] is labels for axis, labels in own) else None

    def put(self, tensor: Tensor, vectors: Sequence[Vector], zero: bool = False, source: str | None = None) -> None:
        """Sends vectors on with a tensor; an axis of size 1 carries none."""
        sent: list[Vector] = []
        for vector, size in zip(vectors, tensor.shape, strict=True):
            if size == 1:
                if labelled(vector):
                    self.algebra.pin(vector, "a single position is taken out of the axis")
                sent.append(None)
                continue
            if labelled(vector) and len(vector) != size:
                raise ValueError(f"{len(vector)} labels for an axis of {size}")
            sent.append(vector)
        self._traced[tensor] = Traced(tuple(sent), zero, source)
        top = self.stack.top
        self.held[top] += [v for v in sent if labelled(v)]

    def scaled(self, tensor: Tensor, scale: str | None) -> None:
        """Notes which parameter has just scaled the channels of a tensor."""
        self._traced[tensor] = self.of(tensor)._replace(scale=scale)

    def soil(self, tensor: Tensor) -> None:
        """An operator wrote into a tensor what is not zero at dead positions: nothing on its storage is any more."""
        storage = tensor.untyped_storage()._cdata
        for other, travelled in list(self._traced.items()):
            if travelled.zero and other.untyped_storage()._cdata == storage:
                self._traced[other] = travelled._replace(zero=False)

    def index_of(self, vector: Labels) -> int:
        """A number for a vector, by which equations refer to it."""
        if id(vector) not in self._index:
            self._index[id(vector)] = len(self.vectors)
            self.vectors.append(vector)  # keeps it alive, so that its id stays its own
        return self._index[id(vector)]

    # what rules report

    def mark(self, vector: Vector, role: str, stage: str = "") -> None:
        """Notes the role that a parameter's labels play."""
        if labelled(vector):
            self.marks.append(Mark(vector, role, stage))

    def contract(self, *factors: int | Vector | tuple[int, Vector], weight: str | None = None, stage: str = "") -> None:
        """Notes a product; a factor is a number, or the length and vector of an axis."""
        kept: list[int | Labels] = []
        for factor in factors:
            length, vector = factor if isinstance(factor, tuple) else (factor, None)
            kept.append(vector if labelled(vector) else length)  # type: ignore[arg-type]
        self.contractions.append(Contraction(tuple(kept), weight, self.stack.top, stage))

    def mixes(self, kind: str, vectors: Sequence[Vector]) -> None:
        """Notes an operator that mixes positions, with the vectors of its input that it runs over."""
        top = self.stack.top
        if any(labelled(vector) for vector in vectors):
            place = (top, self.stack.calls[top], kind, self.stack.mixed[-1][kind])
            self.statistics[place] = Statistic(kind, tuple(vectors))

    def asks(self, value: Any, vector: Vector, slot: int | None = None, call: int | None = None) -> None:
        """An equation: the program gave `value` for an axis that carries `vector`."""
        if not isinstance(value, int) or isinstance(value, bool) or value == -1:
            return
        request = Request(value, slot, call, self.stack.top, line_of_code())
        if not isinstance(vector, Free):
            self._request(request, vector)
            return
        free = vector.root()
        free.requests.append(request)
        if free.bound is not None:
            self._request(request, free.bound)

    def _request(self, request: Request, vector: Labels | None) -> None:
        value, slot, call, module, line = request
        expression = expression_of(value)
        wanted: int | None = None
        if labelled(vector):
            if len(vector) != value:
                return
            wanted = self.index_of(vector)
        elif not any(True for _ in leaves(expression)):
            return  # nothing that a cut could change
        site = Site(module, call, slot) if slot is not None and call is not None else None
        self.equations.append(Equation(expression, int(value), wanted, site, False, module, line))

    def used_as_number(self, expression: Expression, value: int, *, correctable: bool) -> None:
        """A size became part of a value (a scale, a mean): it must keep its traced value, or a shim its number."""
        self.equations.append(Equation(expression, value, None, None, correctable, self.stack.top, line_of_code()))

    def describe_sizes(self) -> None:
        """Ties attributes that describe a layer to its axes, where the program computes with them."""
        used = {leaf for e in self.equations for leaf in leaves(e.expression) if isinstance(leaf, Attribute)}
        axes = {(name, axis): labels for name, axis, labels in self.sources}
        for leaf in sorted(used, key=str):
            for tensor, axis in DESCRIBED.get(leaf.name, ()):
                labels = axes.get((f"{leaf.module}.{tensor}".lstrip("."), axis))
                if labels is not None and len(labels) == self.memory.traced[leaf]:
                    self.equations.append(
                        Equation(leaf, len(labels), self.index_of(labels), None, False, leaf.module, "")
                    )
                    break

    # the dispatch mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if time.monotonic() > self.deadline:
            raise TopiaristError(
                "tracing took longer than its time limit; trace with a smaller example input, or raise `seconds`"
            )
        name = func.overloadpacket.__name__
        self.algebra.origins.append(Origin(name, self.stack.top, line_of_code()))
        given = tensors_in(args) + tensors_in(kwargs)
        sources = [source for tensor in given if (source := self.of(tensor).source) is not None]
        self.touched.update(sources)
        self.descent.follow(func, args, kwargs, given, sources, out)
        if given:
            try:
                known = apply_rule(self, func, args, kwargs, out, given)
            except (ValueError, IndexError, KeyError, TypeError, AssertionError, RuntimeError):
                known = False
            if not known:
                self._pin_unknown(str(func), given, out)
        moved = {self.of(tensor).source for tensor in tensors_in(out)}  # a view of a weight is no use of it yet
        self.norms.read(given, set(sources) - moved)
        if (kind := mixing_kind(func, args, kwargs)) is not None:
            self.stack.mix(kind)
        return out

    def _pin_unknown(self, operator: str, given: Sequence[Tensor], out: Any) -> None:
        reached = [v for tensor in given for v in self.vectors_of(tensor) if v is not None]
        if any(labelled(v) for v in reached):
            self.unknown[operator] += 1
        for vector in reached:
            self.algebra.pin(vector, f"operator without a rule: {operator}")
        for tensor in tensors_in(out):
            self.put(tensor, [None] * tensor.ndim)

    # module hooks

    def entered(self, name: str, call: int, args: Any) -> None:
        """Hook: remembers what travels into a module."""
        self.descent.enter(name)
        self.inputs[name, call] = [self.of(tensor) for tensor in tensors_in(args)]

    def left(self, name: str, call: int, output: Any) -> None:
        """Hook: remembers what travels out of it, and whether its correctable calls are the same every time."""
        self.descent.leave(name, output)
        if self.kinds.setdefault(name, self.stack.kinds[-1]) != self.stack.kinds[-1]:
            self.unsteady.add(name)
        self.outputs[name, call] = [self.of(tensor) for tensor in tensors_in(output)]
