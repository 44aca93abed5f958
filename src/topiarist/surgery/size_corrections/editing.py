"""Copies of functions with corrected expressions."""

from __future__ import annotations

import ast
import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

from topiarist.errors import TopiaristError
from topiarist.graph import (
    GUARD,
    SIZE_KEYWORDS,
    Correction,
    Ratio,
    Span,
    Step,
    Written,
    block_span,
    blocks_of,
    compiled,
    name_of,
    slice_of,
    written,
)
from topiarist.surgery.size_corrections.values import Guard, Number, Sizes


class Callee:
    """Stands for what a call calls: where that is the function to correct, its corrected copy.

    Copies are made once, those of functions that their names lead to already here, so that `torch.compile` and
    `torch.export` see no compiler at work.
    """

    def __init__(self, corrections: Sequence[Correction]) -> None:
        self.corrections = tuple(corrections)
        self.made: dict[FunctionType, FunctionType] = {}
        named = _function_named(self.corrections[0].place[0].function)
        if named is not None:
            self(named)

    def __call__(self, callee: Any) -> Any:
        """Returns the corrected copy of a function, a method or a callable object; others as they are."""
        if isinstance(callee, MethodType):
            made = self(callee.__func__)  # bound by partial, since torch.compile knows no other way
            return callee if made is callee.__func__ else partial(made, callee.__self__)
        if isinstance(callee, FunctionType):
            return self.made[callee] if callee in self.made else self._copy(callee)
        own = type(callee).__dict__.get("__call__")
        return partial(self(own), callee) if isinstance(own, FunctionType) else callee

    def _copy(self, callee: FunctionType) -> FunctionType:
        """Makes the corrected copy of a function, also within a decorator of torch, which no place tells of."""
        inner = callee.__dict__.get("__wrapped__")
        if _is_at(callee, self.corrections[0].place[0]):
            made = _edited(callee, self.corrections)
        elif isinstance(inner, FunctionType) and (right := self(inner)) is not inner:
            made = _decorated(callee, inner, right)
        else:
            return callee
        if len(self.made) >= COPIES:
            self.made.clear()
        self.made[callee] = made
        return made


COPIES = 64
"""Functions whose copies are remembered: code may make new ones each time it runs."""


def _function_named(name: str) -> FunctionType | None:
    """Returns the function that a step names, where its module holds it."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None  # runs no code, such as a lazy import
    return found if isinstance(found, FunctionType) else None


def _decorated(wrapper: FunctionType, inner: FunctionType, right: FunctionType) -> FunctionType:
    """Returns a copy of a decorated function that calls another one inside, as `torch.no_grad` and `torch.fx.wrap`."""
    closure = tuple(CellType(right) if cell.cell_contents is inner else cell for cell in wrapper.__closure__ or ())
    return _as(wrapper, FunctionType(wrapper.__code__, wrapper.__globals__, closure=closure))


def _as(function: FunctionType, made: FunctionType) -> FunctionType:
    """Gives a copy of a function what else it has."""
    made.__name__, made.__defaults__, made.__kwdefaults__ = (
        function.__name__,
        function.__defaults__,
        function.__kwdefaults__,
    )
    made.__qualname__, made.__module__ = function.__qualname__, function.__module__
    made.__doc__, made.__annotations__ = function.__doc__, function.__annotations__
    made.__dict__.update(function.__dict__)
    return made


def _name(function: FunctionType) -> str:
    return name_of(function.__code__, function.__globals__.get("__name__", ""))


def _is_at(function: FunctionType, step: Step) -> bool:
    """Returns whether a function is the one of a step.

    Raises:
        TopiaristError: it is, but its source is not the one that was traced.
    """
    source = written(function.__code__)
    if _name(function) != step.function:
        return False
    if source is not None and source.source == step.source:
        return True
    if function.__name__ == "<lambda>":
        return False  # several have one name
    raise TopiaristError(
        f"the source of {step.function} is not the one that was traced, so the sizes in it cannot be corrected; prune "
        "the network again with this version of its code"
    )


class _Editor(ast.NodeTransformer):
    """Edits expressions, each known by its node, with the values that helpers of the edited code hold."""

    def __init__(self) -> None:
        self.edits: dict[ast.AST, list[Callable[[Any], ast.expr | None]]] = {}
        self.held: dict[str, object] = {}

    def calling(self, helper: object, argument: ast.expr) -> ast.Call:
        """Returns the call of a helper that the edited code holds."""
        name = f"_topiarist_{len(self.held)}"
        self.held[name] = helper
        return ast.Call(ast.Name(name, ast.Load()), [argument], [])

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Edits what is inside a node, then the node."""
        edits = self.edits.get(node, [])
        super().generic_visit(node)
        for edit in edits:
            node = edit(node) or node
        return node

    def guard(self, part: ast.stmt | ast.expr, holder: list[ast.stmt] | None, step: Step) -> None:
        """Makes the statements of a list from one on, or an expression, raise."""
        raising = ast.Call(self.calling(Guard(step), ast.Constant(None)).func, [], [])
        if holder is None:
            self.edits[part] = [lambda node: ast.copy_location(raising, node)]
        else:
            at = next(k for k, statement in enumerate(holder) if statement is part)
            holder.insert(at, ast.copy_location(ast.Expr(raising), part))


_EDITIONS: dict[Any, tuple[CodeType, Mapping[str, object]]] = {}
"""Corrected code and what it holds, by the code as it was and its corrections: layers alike are edited once."""


def _edited(function: FunctionType, corrections: Sequence[Correction]) -> FunctionType:
    """Returns a copy of a function with corrected expressions."""
    code = function.__code__
    key = code, tuple((c.place, c.kind, c.at, *c.values.items()) for c in corrections)
    if key not in _EDITIONS:
        if len(_EDITIONS) >= COPIES:
            _EDITIONS.clear()
        _EDITIONS[key] = _edition(function, corrections)
    made, held = _EDITIONS[key]
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    cells |= {name: CellType(value) for name, value in held.items()}
    closure = tuple(cells[free] for free in made.co_freevars)
    return _as(function, FunctionType(made, function.__globals__, closure=closure))


def _edition(function: FunctionType, corrections: Sequence[Correction]) -> tuple[CodeType, Mapping[str, object]]:
    """Returns the corrected code of a function, and the helpers that it calls by name."""
    source = written(function.__code__)
    assert source is not None
    guards = [c.place[0] for c in corrections if len(c.place) == 1 and c.kind == GUARD]
    corrections = [c for c in corrections if len(c.place) > 1 or c.kind != GUARD]
    node, places, blocks = _copied(source, corrections, guards)
    editor = _Editor()
    inner: dict[Span, list[Correction]] = {}
    for correction in corrections:
        if len(correction.place) > 1:
            deeper = correction._replace(place=correction.place[1:])
            inner.setdefault(correction.place[0].span, []).append(deeper)
        else:
            target = places[correction.place[0].span]
            editor.edits.setdefault(target, []).append(_edit(editor, correction))
    for span, deeper_ones in inner.items():
        for group in _by_function(deeper_ones):
            editor.edits.setdefault(places[span], []).append(_callee_edit(editor, group))
    for step, (part, holder) in zip(guards, blocks, strict=True):
        editor.guard(part, holder, step)
    made = compiled(source, editor.visit(node), function.__code__, tuple(editor.held))
    if made is None:
        raise TopiaristError(f"the sizes that {_name(function)} computes cannot be corrected; exclude its layers")
    return made, editor.held


def _by_function(corrections: Sequence[Correction]) -> list[tuple[Correction, ...]]:
    groups: dict[tuple[str, str], list[Correction]] = {}
    for correction in corrections:
        groups.setdefault(correction.place[0][:2], []).append(correction)
    return [tuple(group) for group in groups.values()]


def _copied(
    source: Written, corrections: Sequence[Correction], guards: Sequence[Step]
) -> tuple[Any, dict[Span, ast.AST], list[tuple[Any, Any]]]:
    """Returns a copy of a function's syntax, its node at each place, and the first part and the list of what to guard.

    Raises:
        TopiaristError: there is no such expression.
    """
    memo: dict[int, Any] = {}
    node = copy.deepcopy(source.node, memo)
    places: dict[Span, ast.AST] = {}
    for correction in corrections:
        step = correction.place[0]
        at = source.call(step.span) or source.operation(step.span) or source.subscript(step.span)
        if at is None or not _fits(correction, at):
            raise TopiaristError(
                f"there is no such call or arithmetic at line {step.span.line + 1} of {step.function}; the "
                "architecture is damaged: write it again with prune()"
            )
        places[step.span] = memo[id(at)]
    blocks = {block_span(source, block): block for n in ast.walk(source.node) for block in blocks_of(n)}
    if missing := [step for step in guards if step.span not in blocks]:
        raise TopiaristError(
            f"there is no branch at line {missing[0].span.line + 1} of {missing[0].function}; the architecture is "
            "damaged: write it again with prune()"
        )
    guarded = [blocks[step.span] for step in guards]
    return node, places, [(memo[id(b.parts[0])], None if b.holder is None else memo[id(b.holder)]) for b in guarded]


def _fits(correction: Correction, at: ast.AST) -> bool:
    """Returns whether an expression is one that a correction can change."""
    slots = set(correction.values)
    if len(correction.place) == 1 and correction.kind == "border":
        return isinstance(at, ast.Subscript) and all(slice_of(at, slot // 2) is not None for slot in slots)
    if len(correction.place) > 1 or correction.kind != "number":
        return isinstance(at, ast.Call)
    if not isinstance(at, ast.Call | ast.BinOp | ast.AugAssign):
        return False
    if isinstance(at, ast.Call):
        return all(slot < len(at.args) and not isinstance(at.args[slot], ast.Starred) for slot in slots)
    return slots <= ({1} if isinstance(at, ast.AugAssign) else {0, 1})


def _edit(editor: _Editor, correction: Correction) -> Callable[[Any], None]:
    """Returns what a correction does to the expression at its place."""
    kind, values = correction.kind, correction.values

    def sizes(node: ast.Call) -> None:
        helper = Sizes(values, correction.at)
        for keyword in node.keywords:
            if keyword.arg in SIZE_KEYWORDS:
                keyword.value = editor.calling(helper, keyword.value)
                return
        node.args = [ast.Starred(editor.calling(helper.arguments, ast.Tuple(node.args, ast.Load())), ast.Load())]

    def number(node: ast.Call | ast.BinOp | ast.AugAssign) -> None:
        for slot, right in values.items():
            helper = Number(right)
            if isinstance(node, ast.Call):
                node.args[slot] = editor.calling(helper, node.args[slot])
            elif isinstance(node, ast.AugAssign):
                node.value = editor.calling(helper, node.value)
            elif slot == 0:
                node.left = editor.calling(helper, node.left)
            else:
                node.right = editor.calling(helper, node.right)

    def border(node: ast.Subscript) -> None:
        for slot, right in values.items():
            part = slice_of(node, slot // 2)
            side = ("lower", "upper")[slot % 2]
            if part is not None and (given := getattr(part, side)) is not None:
                setattr(part, side, editor.calling(Number(right), given))

    def scale(node: ast.Call) -> None:
        for value in values.values():
            constant = ast.keyword("scale", ast.parse(repr(value), mode="eval").body)
            node.keywords = [*(keyword for keyword in node.keywords if keyword.arg != "scale"), constant]

    def squeeze(node: ast.Call) -> None:
        axes = tuple(axis for axis in values.values() if not isinstance(axis, Ratio))
        node.args.append(ast.parse(repr(axes), mode="eval").body)

    edits: dict[str, Callable[[Any], None]] = {
        "sizes": sizes, "number": number, "border": border, "scale": scale, "squeeze": squeeze
    }  # fmt: skip
    return edits[kind]


def _callee_edit(editor: _Editor, corrections: tuple[Correction, ...]) -> Callable[[Any], None]:
    def edit(node: ast.Call) -> None:
        node.func = editor.calling(Callee(corrections), node.func)

    return edit
