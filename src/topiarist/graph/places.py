"""Places: where in a module's code something was computed, precise to the expression, and the code's own source.

A correction belongs to a place, never to a count of calls: another branch, another loop or an export runs other calls,
but the expression that computes a size is the same one. A place is the way from a module's ``forward`` down to the
expression, through the helper functions that it calls, each step by function, source and position.
"""

from __future__ import annotations

import ast
import hashlib
import linecache
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any, NamedTuple

from torch.nn.modules import module as torch_module

from topiarist.graph.inputs import call_model

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
NESTED = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}
"""Code that Python makes of a part of a function."""
MACHINERY = torch_module.__file__
"""The file in which torch calls a module's forward."""
DROPINS = "topiarist.graph.dropins"
LIBRARIES = {"torch", "numpy", "scipy", "typing", "collections", "functools", "contextlib", "weakref", "re", "enum"}
"""Whose code is no network's."""


class Span(NamedTuple):
    """An expression: lines from the first one of its function, columns in bytes."""

    line: int
    column: int
    end_line: int
    end_column: int


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
            or argument `slot`; ``"scale"``: attention's scale.
        infers: whether torch could work the size out, for which the call gives all of them.
    """

    place: Place
    kind: str
    slot: int = 0
    at: int = 0
    infers: bool = False


@dataclass(frozen=True, eq=False)
class Written:
    """A function as it is written.

    Attributes:
        node: its syntax, with the positions of its file; not to be changed.
        first: its first line, decorators included.
        owner: the class in whose body it is written, for names that begin with two underscores.
        source: a hash of its lines.
        filename: its file.
        imports: those of its file, by which Python decides how a name is called.
    """

    node: FunctionNode
    first: int
    owner: str | None
    source: str
    filename: str
    imports: Sequence[ast.stmt]

    def holds(self, other: Written) -> bool:
        """Returns whether another function is this one, or written inside it."""
        return self.filename == other.filename and other.node in _inside(self.node)

    def call(self, span: Span) -> ast.Call | None:
        """Returns the call at a position; Python has a method's call on several lines begin at the method's name."""
        for node in _inside(self.node):
            if not isinstance(node, ast.Call) or self.span(node)[2:] != span[2:]:
                continue
            begin = [self.span(node)[:2]]
            if isinstance(node.func, ast.Attribute):
                _, _, line, column = self.span(node.func)
                begin.append((line, column - len(node.func.attr.encode())))
            if span[:2] in begin:
                return node
        return None

    def operation(self, span: Span) -> ast.BinOp | ast.AugAssign | None:
        """Returns the arithmetic at a position."""
        for node in _inside(self.node):
            if isinstance(node, (ast.BinOp, ast.AugAssign)) and self.span(node) == span:
                return node
        return None

    def span(self, node: ast.expr | ast.stmt) -> Span:
        """Returns the position of a part of the function."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        first = self.first
        return Span(node.lineno - first, node.col_offset, node.end_lineno - first, node.end_col_offset)


@lru_cache(maxsize=4096)
def _inside(node: FunctionNode) -> frozenset[ast.AST]:
    return frozenset(ast.walk(node))


class _File(NamedTuple):
    functions: tuple[tuple[FunctionNode, str | None], ...]
    imports: tuple[ast.stmt, ...]


@lru_cache(maxsize=256)
def _file(filename: str, text: str) -> _File:
    """Returns the functions of a file, each with the class in whose body it is written, and the file's imports."""

    def walk(node: ast.AST, owner: str | None) -> Iterator[tuple[FunctionNode, str | None]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, FunctionNode):
                yield child, owner
                yield from walk(child, None)
            else:
                yield from walk(child, child.name if isinstance(child, ast.ClassDef) else owner)

    def imports(node: ast.AST) -> Iterator[ast.stmt]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                if getattr(child, "module", None) != "__future__":
                    yield child
            elif not isinstance(child, (FunctionNode, ast.ClassDef)):
                yield from imports(child)

    try:
        tree = ast.parse(text, filename)
        return _File(tuple(walk(tree, None)), tuple(imports(tree)))
    except (SyntaxError, ValueError, RecursionError):
        return _File((), ())


def _first_line(node: FunctionNode) -> int:
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


@lru_cache(maxsize=4096)
def spans_of(code: CodeType) -> tuple[tuple[int, int, int, int] | None, ...]:
    """Returns the position of every instruction."""
    spans = []
    for line, end_line, column, end_column in code.co_positions():
        known = line is not None and end_line is not None and column is not None and end_column is not None
        spans.append((line, column, end_line, end_column) if known else None)
    return tuple(spans)  # type: ignore[arg-type]


def written(code: CodeType) -> Written | None:
    """Returns the function that code was compiled from; ``None`` where its source is not at hand, or not what runs."""
    return _written(code, code.co_filename)  # equal code of two files is two things


@lru_cache(maxsize=4096)
def _written(code: CodeType, filename: str) -> Written | None:
    lines = linecache.getlines(filename)
    spans = [span for span in spans_of(code) if span is not None and span[:2] != span[2:]]
    if not lines or not spans:
        return None
    file = _file(filename, "".join(lines))
    begin, end = min(span[:2] for span in spans), max(span[2:] for span in spans)
    around = [
        (node, owner)
        for node, owner in file.functions
        if (_first_line(node), 0) <= begin and end <= (node.end_lineno or 0, node.end_col_offset or 0)
        if (node.lineno, node.col_offset) <= begin or not isinstance(node, ast.Lambda)
    ]
    name = code.co_name
    if name not in NESTED:
        wanted = [n for n in around if _first_line(n[0]) == code.co_firstlineno and getattr(n[0], "name", name) == name]
        around = [n for n in wanted if isinstance(n[0], ast.Lambda) == (name == "<lambda>")]
    if not around:
        return None
    node, owner = max(around, key=lambda n: (n[0].lineno, n[0].col_offset))
    first = _first_line(node)
    source = hashlib.sha256("".join(lines[first - 1 : node.end_lineno]).encode()).hexdigest()[:16]
    return Written(node, first, owner, source, filename, file.imports)


def name_of(code: CodeType, module: str) -> str:
    """Returns a function's name as steps have it."""
    return f"{module}:{code.co_qualname}"


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

    def sizes(self, slot: int, at: int, *, infers: bool) -> Site | None:
        """Returns the site of a size that the running call is given.

        Args:
            slot: which of its sizes.
            at: the positional argument where they begin, of those that begin with the tensor.
            infers: whether torch could work it out.
        """
        call = self.call
        return Site(self.place, "sizes", slot, at - self._bound(call), infers) if call is not None else None

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
    return _place(frames) if frame is not None and frames else None


class Root(NamedTuple):
    """A function of the network's code, or a forward: the steps that lead to it, and the names that it knows."""

    steps: Place
    function: Written
    name: str
    names: dict[str, Any]


def root_of(frame: FrameType) -> Root | None:
    """Returns the function that a frame is in; ``None`` where it is no code of the network's, or outside a forward.

    A function that is written inside one that is running, such as a comprehension, is a part of it.
    """
    module = frame.f_globals.get("__name__", "")
    if module == DROPINS or module.partition(".")[0] in LIBRARIES or _is_ours(frame):
        return None
    frames = [frame]
    outer = frame.f_back
    while outer is not None and outer.f_code.co_filename != MACHINERY:
        if not _is_ours(outer):
            frames.append(outer)
        elif outer.f_globals.get("__name__", "").startswith("topiarist.graph."):
            return None  # called by what watches the network
        outer = outer.f_back
    if outer is None or (own := written(frame.f_code)) is None:
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
    names = {**frames[0].f_globals, **frames[0].f_locals}
    return Here(tuple(reversed(steps)), innermost, names) if innermost is not None else None


_EDITED: set[CodeType] = set()
"""Code that was compiled from changed syntax; its positions are those of the source."""


def recompiles(code: CodeType) -> bool:
    """Returns whether a function's source gives the code that runs, or gave it before it was edited."""
    return code in _EDITED or _recompiles(code)


@lru_cache(maxsize=4096)
def _recompiles(code: CodeType) -> bool:
    function = written(code)
    if function is None:
        return False
    made = compiled(function, function.node, code, ())
    return made is not None and made.co_code == code.co_code


def compiled(function: Written, node: FunctionNode, code: CodeType, added: Sequence[str]) -> CodeType | None:
    """Compiles a function, perhaps changed, in the surroundings of its code.

    Args:
        function: as it is written.
        node: its syntax, which is not changed.
        code: what runs.
        added: names of further variables from around it.
    """
    free = [name for name in (*code.co_freevars, *added) if name != "__class__" or function.owner is None]
    names = {function.owner, code.co_name if isinstance(node, ast.stmt) else None} - {None, *free}
    outer = ast.parse(
        f"def around({', '.join(free)}):\n global {', '.join(map(str, names))}"
        if names
        else f"def around({', '.join(free)}): pass"
    )
    body = outer.body[0].body  # type: ignore[attr-defined]
    if function.owner is not None:
        body.extend(ast.parse(f"class {function.owner}: pass").body)
        body = body[-1].body
    if isinstance(node, ast.Lambda):
        body.append(ast.Expr(node))
    else:
        fields = {**dict(ast.iter_fields(node)), "decorator_list": [], "returns": None}
        body.append(ast.copy_location(type(node)(**fields), node))
    outer.body = [*function.imports, *outer.body]
    ast.fix_missing_locations(outer)
    flags = code.co_flags & _FUTURE
    try:
        made = compile(outer, function.filename, "exec", flags=flags, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):
        return None
    if (found := _inner(made, code.co_name)) is None:
        return None
    result = found.replace(co_qualname=code.co_qualname)
    if added:
        _EDITED.update(_all_code(result))
    return result


def _all_code(code: CodeType) -> Iterator[CodeType]:
    """Returns code and all that is in it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _all_code(const)


_FUTURE = 0x1000000
"""``from __future__ import annotations``."""


def _inner(code: CodeType, name: str) -> CodeType | None:
    """Returns the code of a name among what other code holds, outermost first."""
    held = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    for const in held:
        if const.co_name == name:
            return const
    return next((found for const in held if (found := _inner(const, name)) is not None), None)
