"""Source: functions as they are written, found by the code that runs, and compiled again where they are changed."""

from __future__ import annotations

import ast
import dis
import hashlib
import inspect
import linecache
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import NamedTuple

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
NESTED = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}
"""Code that Python makes of a part of a function."""


class Span(NamedTuple):
    """An expression: lines from the first one of its function, columns in bytes."""

    line: int
    column: int
    end_line: int
    end_column: int


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
        for node in _calls(self.node).get((span.end_line + self.first, span.end_column), ()):
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

    def subscript(self, span: Span) -> ast.Subscript | None:
        """Returns the indexing at a position."""
        for node in _inside(self.node):
            if isinstance(node, ast.Subscript) and self.span(node) == span:
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


@lru_cache(maxsize=4096)
def _calls(node: FunctionNode) -> dict[tuple[int, int], list[ast.Call]]:
    """Returns the calls in a function, by where they end."""
    calls: dict[tuple[int, int], list[ast.Call]] = {}
    for inner in _inside(node):
        if isinstance(inner, ast.Call):
            calls.setdefault((inner.end_lineno or 0, inner.end_col_offset or 0), []).append(inner)
    return calls


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
        try:
            tree = ast.parse(text, filename)
        except SystemError:  # of Python 3.11, where the garbage that it collects meanwhile parses, too
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


@lru_cache(maxsize=4096)
def is_straight(code: CodeType) -> bool:
    """Returns whether code has no jumps, no handlers of exceptions and nowhere to resume: all of it runs."""
    return not any(each.opcode in _JUMPS for each in dis.get_instructions(code)) and not (
        code.co_exceptiontable or code.co_flags & _RESUMED
    )


_JUMPS = {*dis.hasjrel, *dis.hasjabs}
_RESUMED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_LEAVING = {dis.opmap[name] for name in ("RETURN_VALUE", "RAISE_VARARGS", "RERAISE") if name in dis.opmap}
_ALWAYS = {code for name, code in dis.opmap.items() if name.startswith("JUMP") and "IF" not in name}


@lru_cache(maxsize=4096)
def straight_lines(code: CodeType) -> dict[int, range]:
    """Returns runs of instructions without a jump, by the offset of the first: each as a range of their numbers.

    Behind such a run Python reports a new line, so that one event of a line stands for all of it. Runs that code of the
    same line may follow are left out. An exception may end a run early. Empty for generators, which resume anywhere,
    and from Python 3.12 on, where tracing cannot switch between lines and instructions.
    """
    if sys.version_info >= (3, 12) or code.co_flags & _RESUMED:
        return {}
    made = list(dis.get_instructions(code))
    lines = [None if each.positions is None else each.positions.lineno for each in made]
    at = {each.offset: k for k, each in enumerate(made)}
    runs = {}
    for begin, first in enumerate(made):
        end = begin
        while made[end].opcode not in _JUMPS | _LEAVING and end + 1 < len(made) and lines[end + 1] == lines[begin]:
            end += 1
        last = made[end]
        following = [end + 1] if last.opcode not in _ALWAYS | _LEAVING and end + 1 < len(made) else []
        following += [at[last.argval]] if last.opcode in _JUMPS and at[last.argval] > end else []
        if all(lines[k] not in (None, lines[begin]) for k in following):
            runs[first.offset] = range(first.offset // 2, last.offset // 2 + 1)
    return runs


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


def assigned_to(names: set[str], function: ast.AST) -> list[ast.expr]:
    """Returns what a function assigns to names."""
    return [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and names.intersection(n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name))
    ]


def name_of(code: CodeType, module: str) -> str:
    """Returns a function's name as steps have it."""
    return f"{module}:{code.co_qualname}"


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
    held = [const for const in code.co_consts if isinstance(const, CodeType)]
    for const in held:
        if const.co_name == name:
            return const
    return next((found for const in held if (found := _inner(const, name)) is not None), None)
