"""Places: where in a module's code something was computed, precise to the expression, and the code's own source.

A correction belongs to a place, never to a count of calls: another branch, another loop or an export runs other calls,
but the expression that computes a size is the same one. A place is the way from a module's ``forward`` down to the
expression, through the helper functions that it calls, each step by function, source and position.
"""

from __future__ import annotations

import ast
import sys
import types
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, NamedTuple

from torch.nn.modules import module as torch_module

from topiarist.graph.code.source import NESTED, Span, Written, assigned_to, name_of, recompiles, spans_of, written
from topiarist.graph.inputs import call_model

MACHINERY = torch_module.__file__
"""The file in which torch calls a module's forward."""
DROPINS = "topiarist.graph.dropins"
LIBRARIES = {"torch", "numpy", "scipy", "typing", "collections", "functools", "contextlib", "weakref", "re", "enum"}
"""Whose code is no network's."""


class Step(NamedTuple):
    """One function on the way to a place: ``"module:qualified name"``, a hash of its source, the expression in it."""

    function: str
    source: str
    span: Span


Place = tuple[Step, ...]
"""From a module's forward to the expression: every step but the last is a call."""


class Site(NamedTuple):
    """Where a correction can put a size or a number right.

    Attributes:
        place: the expression in the code.
        kind: ``"sizes"``: entry `slot` of the sizes that a call is given from argument `at` on; ``"number"``: operand
            or argument `slot`; ``"border"``: begin (even) or end (odd) of entry ``slot // 2`` of an index; ``"scale"``:
            attention's scale.
        infers: whether torch could work the size out, for which the call gives all of them.
        text: the size as it is written, where the call gives it by itself.
    """

    place: Place
    kind: str
    slot: int = 0
    at: int = 0
    infers: bool = False
    text: str = ""


def _is_ours(frame: FrameType) -> bool:
    """Returns whether code of this package, and none of the network's, is running."""
    name = frame.f_globals.get("__name__", "")
    return name.startswith(("topiarist.graph.", "topiarist.surgery.")) and name != DROPINS


def _is_torch(frame: FrameType) -> bool:
    """Returns whether code of torch is running that is no module's forward."""
    name = frame.f_globals.get("__name__", "")
    if name.startswith("torch.nn.modules."):
        return frame.f_code.co_filename == MACHINERY
    return name == "torch" or name.startswith("torch.")


def line_of_code() -> str:
    """Returns ``file:line`` of the network's code that is running, torch's own modules left out."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (_is_ours(frame) or frame.f_globals.get("__name__", "").partition(".")[0] == "torch"):
        frame = None if frame.f_code is call_model.__code__ else frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}" if frame is not None else ""


@dataclass(frozen=True)
class Here:
    """Where the network's code is: the place, the function that its last step is in, and the names that it knows."""

    place: Place
    function: Written
    names: Mapping[str, object]

    @property
    def call(self) -> ast.Call | None:
        """Returns the call that is running."""
        return self.function.call(self.place[-1].span)

    def divisors(self) -> list[Any]:
        """Returns what the running expression, or what its names hold, divides by; None where that is not known."""
        node = self.call or self.function.operation(self.place[-1].span)
        parts = list(ast.walk(node)) if node is not None else []
        names = {part.id for part in parts if isinstance(part, ast.Name)}
        parts += [part for value in assigned_to(names, self.function.node) for part in ast.walk(value)]
        return [self._value(p.right) for p in parts if isinstance(p, ast.BinOp) and isinstance(p.op, ast.Div)]

    def _value(self, node: ast.expr) -> Any:
        """Returns what names and their products stand for; None where there is anything else."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            left, right = self._value(node.left), self._value(node.right)
            return left * right if isinstance(left, int) and isinstance(right, int) else None
        return None

    def sizes(self, slot: int, at: int, *, infers: bool) -> Site | None:
        """Returns the site of a size that the running call is given.

        Args:
            slot: which of its sizes.
            at: the positional argument where they begin, of those that begin with the tensor.
            infers: whether torch could work it out.
        """
        if (call := self.call) is None:
            return None
        at -= self._bound(call)
        return Site(self.place, "sizes", slot, at, infers, _text(call, at, slot))

    def operand(self, side: int) -> Site | None:
        """Returns the site of one side of the arithmetic that is running: 0 or 1."""
        operation = self.function.operation(self.place[-1].span)
        if operation is None or (side == 0 and isinstance(operation, ast.AugAssign)):
            return None
        return Site(self.place, "number", side)

    def argument(self, position: int) -> Site | None:
        """Returns the site of a positional argument of the running call, the tensor counted."""
        call = self.call
        if call is None:
            return None
        position -= self._bound(call)
        plain = 0 <= position < len(call.args) and not any(isinstance(a, ast.Starred) for a in call.args)
        return Site(self.place, "number", position) if plain else None

    def only_argument(self) -> Site | None:
        """Returns the site of the one argument of the running call, such as ``math.sqrt(n)``."""
        call = self.call
        single = call is not None and len(call.args) == 1 and not call.keywords
        return Site(self.place, "number", 0) if single else None

    def border(self, entry: int, side: int) -> Site | None:
        """Returns the site of the begin (0) or end (1) of a slice, by its number among the entries of the index."""
        node = self.function.subscript(self.place[-1].span)
        written = None if node is None else slice_of(node, entry)
        given = None if written is None else (written.lower, written.upper)[side]
        return None if given is None else Site(self.place, "border", 2 * entry + side)

    def literals(self) -> set[int]:
        """Returns the whole numbers, without their sign, that the running call or index is given as such."""
        index = self.function.subscript(self.place[-1].span)
        given: list[ast.expr | None] = [] if index is None else [*_entries(index)]
        if (call := self.call) is not None:
            given = [*call.args, *(keyword.value for keyword in call.keywords)]
        given += [end for part in given if isinstance(part, ast.Slice) for end in (part.lower, part.upper, part.step)]
        plain = [part.operand if isinstance(part, ast.UnaryOp) else part for part in given]
        return {part.value for part in plain if isinstance(part, ast.Constant) and type(part.value) is int}

    def scale(self) -> Site | None:
        """Returns the site of attention's scale."""
        call = self.call
        plain = call is not None and len(call.args) <= 6 and all(k.arg is not None for k in call.keywords)
        return Site(self.place, "scale") if plain else None

    def _bound(self, call: ast.Call) -> int:
        """Returns 1 where the tensor is no argument as it is written, ``x.view(…)``; 0: ``torch.reshape(x, …)``."""
        root: ast.expr = call.func
        while isinstance(root, ast.Attribute):
            root = root.value
        of_module = isinstance(root, ast.Name) and isinstance(self.names.get(root.id), types.ModuleType)
        return int(isinstance(call.func, ast.Attribute) and not of_module)


def _entries(node: ast.Subscript) -> Sequence[ast.expr]:
    return node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]


def slice_of(node: ast.Subscript, entry: int) -> ast.Slice | None:
    """Returns an entry of an index, where it is written as a slice."""
    entries = _entries(node)
    plain = entry < len(entries) and not any(isinstance(each, ast.Starred) for each in entries[: entry + 1])
    return each if plain and isinstance(each := entries[entry], ast.Slice) else None


def _text(call: ast.Call, at: int, slot: int) -> str:
    """Returns a size as a call gives it; empty where it is in a value with others."""
    given: Sequence[ast.expr] = call.args[at:]
    if len(given) == 1 and isinstance(given[0], ast.Tuple | ast.List):
        given = given[0].elts
    plain = slot < len(given) and not any(isinstance(size, ast.Starred) for size in given[: slot + 1])
    return ast.unparse(given[slot]) if plain else ""


def place_here(*, direct: bool = False) -> Here | None:
    """Returns where the network's code is; ``None`` where its source is not at hand.

    Args:
        direct: whether code of torch must not run in between.
    """
    frames: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != MACHINERY:
        inside = not frames and _is_torch(frame)
        if inside and direct:
            return None
        if not inside and not _is_ours(frame):
            frames.append(frame)
        frame = frame.f_back
    return _place(frames) if frame is not None and frames and _is_forward(frames[-1], frame) else None


def _is_forward(frame: FrameType, caller: FrameType) -> bool:
    """Returns whether torch calls a module's forward there, and not a hook."""
    module = caller.f_locals.get("self")
    code = getattr(getattr(module, "forward", None), "__code__", None)
    return code is None or code.co_qualname == frame.f_code.co_qualname


class Root(NamedTuple):
    """A function of the network's code, or a forward: the steps that lead to it, and the names that it knows."""

    steps: Place
    function: Written
    name: str
    names: dict[str, Any]


def callers(frame: FrameType) -> Iterator[object]:
    """Yields what calls a function, up to its module's forward."""
    outer = frame.f_back
    while outer is not None and outer.f_code.co_filename != MACHINERY:
        yield outer.f_code
        yield outer.f_lasti
        outer = outer.f_back


def is_library(frame: FrameType) -> bool:
    """Returns whether a frame runs code that is no network's."""
    module = frame.f_globals.get("__name__", "")
    return module == DROPINS or module.partition(".")[0] in LIBRARIES or _is_ours(frame)


def root_of(frame: FrameType) -> Root | None:
    """Returns the function that a frame is in; ``None`` where it is no code of the network's, or outside a forward.

    A function that is written inside one that is running, such as a comprehension, is a part of it.
    """
    if is_library(frame):
        return None
    frames = [frame]
    outer = frame.f_back
    while outer is not None and outer.f_code.co_filename != MACHINERY:
        if not _is_ours(outer):
            frames.append(outer)
        elif outer.f_globals.get("__name__", "").startswith("topiarist.graph."):
            return None  # called by what watches the network
        outer = outer.f_back
    if outer is None or (own := written(frame.f_code)) is None or not _is_forward(frames[-1], outer):
        return None
    at = max(k for k, f in enumerate(frames) if k == 0 or ((w := written(f.f_code)) is not None and w.holds(own)))
    root = frames[at]
    function = written(root.f_code)
    if function is None or root.f_code.co_name in NESTED:
        return None
    name = name_of(root.f_code, root.f_globals.get("__name__", ""))
    if at + 1 == len(frames):
        return Root((), function, name, root.f_globals)
    here = _place(frames[at + 1 :])
    return None if here is None or here.call is None else Root(here.place, function, name, root.f_globals)


Trail = tuple[tuple[CodeType, int], ...]
"""Instructions of the network's code that call each other, given from the inside."""


class Trails(NamedTuple):
    """Where an operator runs: the way from its module's forward, and from there to the network's."""

    inner: Trail
    outer: Trail


def trails_here(until: CodeType | None = None) -> Trails:
    """Returns where the network's code is, instruction by instruction, up to the code that calls the network."""
    inner: list[tuple[CodeType, int]] = []
    outer: list[tuple[CodeType, int]] = []
    here = inner
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not until:
        if frame.f_code.co_filename == MACHINERY:
            here = outer
        elif not (_is_ours(frame) or _is_torch(frame)):
            here.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return Trails(tuple(inner), tuple(outer))


def _place(frames: Sequence[FrameType]) -> Here | None:
    """Returns the way through frames, given from the inside: a function that another one holds is a part of it."""
    steps: list[Step] = []
    functions = [written(frame.f_code) for frame in frames]
    innermost: Written | None = None
    k = 0
    while k < len(frames):
        inner, spans, at = functions[k], spans_of(frames[k].f_code), frames[k].f_lasti // 2
        span = spans[at] if at < len(spans) else None
        if inner is None or span is None:
            return None
        nested = frames[k].f_code.co_name in NESTED
        outer = [
            j
            for j in range(k + 1, len(frames))
            if (f := functions[j]) is not None and f.holds(inner) and (nested or f.node is not inner.node)
        ]
        k = outer[-1] if outer else k
        function, code = functions[k], frames[k].f_code
        if function is None or code.co_name in NESTED or not recompiles(code):
            return None
        first = function.first
        here = Span(span[0] - first, span[1], span[2] - first, span[3])
        if steps and function.call(here) is None:
            return None  # it was not called by a call, such as an operator of a class
        innermost = innermost or function
        steps.append(Step(name_of(code, frames[k].f_globals.get("__name__", "")), function.source, here))
        k += 1
    names = ChainMap(frames[0].f_locals, frames[0].f_globals)
    return Here(tuple(reversed(steps)), innermost, names) if innermost is not None else None
