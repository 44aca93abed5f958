"""Dangers: what a cut may make wrong in code that never ran, as far as the code itself shows it."""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from torch import nn

from topiarist.graph.calls import SIZED
from topiarist.graph.code.source import FunctionNode, assigned_to, written

RESIZING = SIZED | {"repeat", "tile", "narrow", "unfold", "new_zeros", "new_ones", "new_full", "new_empty", "zeros"}
RESIZING |= {"ones", "full", "empty", "rand", "randn", "arange", "linspace", "eye"}
"""Calls that are given sizes."""
ORDERED = {"flip", "roll", "sort", "argsort", "topk", "glu", "cumsum", "cumprod", "diff", "group_norm", "avg_pool1d"}
ORDERED |= {"local_response_norm", "fft", "rfft", "fftn", "rfftn", "rot90"}
"""Calls whose result depends on the order of positions, or on how many there are."""
PARTING = {"chunk", "tensor_split", "hsplit", "vsplit", "dsplit"}
"""Calls that part an axis into equal parts, which a cut may leave unequal."""
ROOTS = {"sqrt", "rsqrt", "float", "pow", "log", "log2", "exp", "tensor", "as_tensor", "new_tensor"}
"""Calls that make a number of a size."""
ARITHMETIC = {"add", "add_", "sub", "sub_", "mul", "mul_", "multiply", "div", "div_", "divide", "true_divide"}
"""Calls that compute with a tensor, and perhaps a size."""
UNSAFE, DIVIDES, IMPOSSIBLE, OWN = "*", "//", "", "@"
"""What is found beside the sizes that code gives; the last one before the name of an attribute."""
ROUNDING = {"int", "ceil", "floor", "round"}
"""Calls that make a size of a quotient."""
DEPTH = 4
"""Functions that call each other are looked into this deep."""


_INTERNAL = frozenset(vars(nn.Module()))


def likeness(module: nn.Module | None, name: str, ran: set[str]) -> object:
    """Returns what a look depends on of a module: looks at the same block are the same where this is equal."""
    if module is None:
        return None
    held = vars(module).items()
    return (
        type(module),
        tuple((k, type(v) if isinstance(v, _PLAIN) else id(v)) for k, v in held if k not in _INTERNAL),
        tuple(k for k, v in (*module._parameters.items(), *module._buffers.items()) if v is not None),
        tuple(
            (k, (inner := f"{name}.{k}".lstrip(".")) in ran, likeness(v, inner, ran))
            for k, v in module._modules.items()
        ),
    )


_PLAIN = (int, float, str, tuple, list, type(None))


@dataclass(eq=False)
class Look:
    """Looks at a block for what a cut may make wrong.

    Attributes:
        module: whose forward it is in.
        globals: the names that the function knows.
        ran: names of the modules that ran.
        name: of the module.
        given: parameters of the function that are sizes.
        known: by function, the names that it gives to sizes.
    """

    module: nn.Module | None
    globals: Mapping[str, Any]
    ran: set[str]
    name: str
    given: frozenset[str] = frozenset()
    known: dict[ast.AST, set[str]] = field(default_factory=dict)

    def at(self, block: Sequence[ast.AST], function: ast.AST, depth: int = 0) -> set[str]:
        """Returns the sizes that it gives, as they are written, and `UNSAFE` or `DIVIDES`, where it is or does so."""
        if all(isinstance(part, ast.Raise | ast.Pass) for part in block):
            return set()
        if function not in self.known:
            self.known[function] = self._names_of_sizes(function)
        sizes = self.known[function]
        nodes = [node for part in block for node in ast.walk(part)]
        sized = {
            id(inner)
            for n in nodes
            if isinstance(n, ast.Call) and _name(n) in ROUNDING | RESIZING
            for argument in (*n.args, *n.keywords)
            for inner in ast.walk(argument)
        }
        always = [part for part in block if not isinstance(part, ast.If | ast.For | ast.While | ast.Try | ast.With)]
        unconditional = {id(node) for part in always for node in ast.walk(part)}
        dangers: set[str] = set()
        for node in nodes:
            if isinstance(node, ast.Call):
                found = self._of_call(node, sizes, function, depth)
                if IMPOSSIBLE in found and id(node) in unconditional:
                    return set()
                dangers |= found - {IMPOSSIBLE}
            elif id(node) not in sized and (self._makes_a_number(node, sizes) or _picks_positions(node)):
                dangers.add(UNSAFE)
        return dangers

    def _of_call(self, node: ast.Call, sizes: set[str], function: ast.AST, depth: int) -> set[str]:
        name, given = _name(node), [*node.args, *(keyword.value for keyword in node.keywords)]
        if name in RESIZING:
            return self._of_sizes(name, given) | {f"{OWN}{each}" for each in self._attributes(given, function)}
        if name in PARTING or name in ORDERED:
            return {UNSAFE}
        if name == "scaled_dot_product_attention":
            return set() if any(keyword.arg == "scale" for keyword in node.keywords) else {UNSAFE}
        if name in ROOTS | ARITHMETIC and any(self._is_size(argument, sizes) for argument in given):
            return {UNSAFE}
        called, path = self._called(node.func), _path(node.func)
        if isinstance(called, nn.Module):
            ran = f"{self.name}.{path}".lstrip(".") in self.ran
            return set() if ran or not called.state_dict() else {UNSAFE}
        if path and called is None and hasattr(self.module, path.partition(".")[0]):
            return {IMPOSSIBLE}  # it would call None
        if called is None and not isinstance(node.func, ast.Attribute) and not hasattr(builtins, name or "?"):
            return {UNSAFE}  # nobody knows what it calls
        return self._of_function(called, [self._is_size(argument, sizes) for argument in node.args], depth)

    def _of_function(self, called: Any, sized: Sequence[bool], depth: int) -> set[str]:
        """Returns what is found in a function that is called, some of whose arguments are sizes."""
        while isinstance(called, partial):
            called = called.func
        with suppress(ValueError):  # a wrapper that holds itself
            called = inspect.unwrap(called) if callable(called) else called
        inner = written(called.__code__) if isinstance(called, FunctionType) and depth < DEPTH else None
        if inner is None or called.__module__.partition(".")[0] == "torch":
            return set()
        look = Look(self.module, called.__globals__, self.ran, self.name)
        names = [argument.arg for argument in inner.node.args.args]
        names = names[len(names) > 0 and names[0] == "self" :]
        look.given = frozenset(name for name, size in zip(names, sized, strict=False) if size)
        return look.at(body_of(inner.node), inner.node, depth + 1)

    def _of_sizes(self, name: str, given: Sequence[ast.expr]) -> set[str]:
        """Returns what is found in the sizes that a call is given."""
        if name != "pad" and any(map(_states_a_width, given)):
            return {UNSAFE}
        entries = [e for g in given for e in (g.elts if isinstance(g, ast.Tuple | ast.List) else [g])]
        parts = [n.right for e in entries for n in ast.walk(e) if isinstance(n, ast.BinOp)]
        divides = any(isinstance(p, ast.Attribute) or _states_a_width(p) for p in parts)
        return {ast.unparse(e) for e in entries if not isinstance(e, ast.Constant)} | ({DIVIDES} if divides else set())

    def _attributes(self, given: Sequence[ast.AST], function: ast.AST) -> set[str]:
        """Returns the integers of the module that sizes are computed from, also by local names."""
        names = {node.id for each in given for node in ast.walk(each) if isinstance(node, ast.Name)}
        return {
            _path(node)
            for each in (*given, *assigned_to(names, function))
            for node in ast.walk(each)
            if isinstance(node, ast.Attribute) and "." not in _path(node) and type(self._called(node)) is int
        }

    def _called(self, func: ast.expr) -> Any:
        """Returns what a name or an attribute of the module stands for."""
        if isinstance(func, ast.Name):
            return self.globals.get(func.id)
        root = func
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and isinstance(of_module := self.globals.get(root.id), ModuleType):
            held: Any = of_module
            for key in ast.unparse(func).split(".")[1:]:
                held = getattr(held, key, None)
            return held
        path = _path(func)
        found: Any = self.module if path else None
        for key in path.split("."):
            found = getattr(found, key, None)
        return getattr(found, "__func__", found)

    def _names_of_sizes(self, function: ast.AST) -> set[str]:
        """Returns the local names that a function gives to sizes, and to what it computes from them."""
        names = set(self.given)
        for _ in range(3):
            for given in _givings(function):
                known = given.changed is None or self._is_size(given.changed, names)
                if known and self._is_size(given.value, names):
                    names |= given.names
        return names

    def _is_size(self, node: ast.AST, names: set[str]) -> bool:
        """Returns whether an expression is computed from sizes alone."""
        if isinstance(node, ast.Attribute):
            return node.attr == "shape" or (type(self._called(node)) is int)
        if isinstance(node, ast.Name):
            return node.id in names
        if isinstance(node, ast.Call):
            name = _name(node)
            inner = any(self._is_size(argument, names) for argument in node.args)
            return name in {"size", "numel", "len"} or (name in {"int", "max", "min", "sum", *ROOTS} and inner)
        if isinstance(node, ast.BinOp):
            sides = [s for s in (node.left, node.right) if not isinstance(s, ast.Constant | ast.UnaryOp)]
            return bool(sides) and all(self._is_size(side, names) for side in sides)
        if isinstance(node, ast.Subscript | ast.Starred):
            return self._is_size(node.value, names)
        return isinstance(node, ast.Tuple) and any(self._is_size(part, names) for part in node.elts)

    def _makes_a_number(self, node: ast.AST, sizes: set[str]) -> bool:
        """Returns whether this is arithmetic that makes a number of a size: a power, a quotient, a mixed product."""
        if isinstance(node, ast.AugAssign):
            return self._is_size(node.value, sizes) and not self._is_size(node.target, sizes)
        if not isinstance(node, ast.BinOp):
            return False
        left, right = self._is_size(node.left, sizes), self._is_size(node.right, sizes)
        if isinstance(node.op, ast.Pow | ast.Div):
            return left or right
        other = node.right if left else node.left
        return isinstance(node.op, ast.Mult) and left != right and not isinstance(other, ast.Constant)


class _Giving(NamedTuple):
    """Where a function gives a value to names; `changed` is what it changes thereby, as ``n += 1`` does."""

    names: frozenset[str]
    value: ast.AST
    changed: ast.AST | None


@lru_cache(maxsize=4096)
def _givings(function: ast.AST) -> tuple[_Giving, ...]:
    """Returns where a function gives values to names."""
    givings = []
    for node in ast.walk(function):
        value = node.iter if isinstance(node, ast.For | ast.comprehension) else getattr(node, "value", None)
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if value is not None and targets[0] is not None:
            names = frozenset(n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))
            givings.append(_Giving(names, value, node.target if isinstance(node, ast.AugAssign) else None))
    return tuple(givings)


def _name(call: ast.Call) -> str:
    func = call.func
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _path(func: ast.expr) -> str:
    """Returns the attribute path behind ``self``, as ``"block.conv"``; empty where it is none."""
    parts: list[str] = []
    while isinstance(func, ast.Attribute):
        parts.append(func.attr)
        func = func.value
    return ".".join(reversed(parts)) if parts and isinstance(func, ast.Name) and func.id == "self" else ""


def _states_a_width(node: ast.AST) -> bool:
    """Returns whether an argument holds a literal number that may be a width; an entry's number is none."""
    if isinstance(node, ast.Subscript):
        return _states_a_width(node.value)
    if isinstance(node, ast.Constant):
        return type(node.value) is int and node.value > 1
    return any(map(_states_a_width, ast.iter_child_nodes(node)))


def _picks_positions(node: ast.AST) -> bool:
    """Returns whether this is an index of several axes that picks positions by literal numbers above 1."""
    entries = node.slice.elts if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) else []
    return any(_states_a_width(entry) for entry in entries)


def body_of(function: FunctionNode) -> Sequence[ast.stmt] | Sequence[ast.expr]:
    """Returns the statements of a function, or a lambda's expression."""
    return [function.body] if isinstance(function, ast.Lambda) else function.body
