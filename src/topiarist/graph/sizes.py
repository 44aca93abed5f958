"""Sizes: code computes shapes from integers; which integers must change with a cut?

While a network is traced, the integers of its modules and the entries of ``x.shape`` are `Size`: ints that remember how
they were computed. Every size that the program hands to a view, a split or a normalisation is an equation
*expression = what this axis keeps*, its unknowns the modules' attributes. Solving them needs no table of class names.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph.code.places import Site
from topiarist.graph.inputs import modules_of


class Attribute(NamedTuple):
    """An integer of a module; `entry` tells which one where the attribute is a tuple or list."""

    module: str
    name: str
    entry: int | None


class Length(NamedTuple):
    """The length of a labelled axis, by the index of its vector in the trace."""

    vector: int


class Plain(NamedTuple):
    """The length of an axis that no unit sits on, such as the batch; another input may have another one."""

    value: int


class Term(NamedTuple):
    """``left (operation) right``."""

    operation: str
    left: Expression
    right: Expression


Expression = int | Plain | Attribute | Length | Term
OPERATIONS: dict[str, Callable[[Any, Any], int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": operator.pow,
}


@dataclass(frozen=True, eq=False)
class Equation:
    """The program asks for `expression` where the network has `wanted` (a vector's index, or a number that must stay).

    Attributes:
        wanted: index of the vector whose kept length it must equal, or None: it must keep its traced `value`.
        site: where a correction could put the right number instead.
        number: it was used as a number (a scale), not as a size.
        constant: what was computed from it, where that is what a correction states.
    """

    expression: Expression
    value: int
    wanted: int | None
    site: Site | None
    number: bool
    module: str
    line: str
    constant: float | None = None


class Size(int):
    """An int that remembers the expression it came from."""

    expression: Expression
    on_number: Callable[[Size, int | None], None] | None = None
    """Called whenever a size becomes a plain number, with its side of the operation; None where a call takes it."""
    on_equal: Callable[[Size, Size], None] | None = None
    """Called whenever two sizes are compared and equal."""

    def __new__(cls, value: int, expression: Expression) -> Size:
        """Makes an int with its expression."""
        size = super().__new__(cls, value)
        size.expression = expression
        return size

    def __eq__(self, other: object) -> bool:
        """Compares as integers do."""
        self._note_equal(other)
        return int(self) == other

    def __ne__(self, other: object) -> bool:
        """Compares as integers do."""
        self._note_equal(other)
        return int(self) != other

    def _note_equal(self, other: object) -> None:
        if isinstance(other, Size) and Size.on_equal is not None and int(self) == int(other):
            Size.on_equal(self, other)

    __hash__ = int.__hash__

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        """Copies and pickles as a plain int."""
        return int, (int(self),)


def _arithmetic(name: str, reflected: bool) -> Callable[[Size, Any], Any]:
    """Returns arithmetic of integers, whose result is a size again; with any other operand it is a number."""
    method = f"__{'r' if reflected else ''}{name}__"

    def computed(self: Size, other: Any, *modulus: int) -> Any:
        whole = isinstance(other, int) and not isinstance(other, bool) and not modulus
        if whole and name in OPERATIONS and not (name == "pow" and (self if reflected else other) < 0):
            left, right = (other, self) if reflected else (self, other)
            value = OPERATIONS[name](int(left), int(right))
            return Size(value, Term(name, expression_of(left), expression_of(right)))
        if not isinstance(other, (int, float)) or isinstance(other, bool):
            return getattr(int, method)(int(self), other, *modulus)
        _note(self, int(reflected))
        if isinstance(other, Size):
            _note(other, int(not reflected))
        plain = float(other) if isinstance(other, float) else int(other)
        kind = float if isinstance(other, float) else int
        return getattr(kind, method)(kind(int(self)), plain)

    return computed


def _note(size: Size, side: int | None) -> None:
    if Size.on_number is not None:
        Size.on_number(size, side)


def _as_float(self: Size) -> float:
    """Reports ``float(size)`` and ``math.sqrt(size)``, whose results forget where they came from."""
    _note(self, None)
    return float(int(self))


for _name in (*OPERATIONS, "truediv"):
    setattr(Size, f"__{_name}__", _arithmetic(_name, reflected=False))
    setattr(Size, f"__r{_name}__", _arithmetic(_name, reflected=True))
Size.__neg__ = lambda self: 0 - self  # type: ignore[method-assign]
Size.__float__ = _as_float  # type: ignore[assignment, method-assign]


def expression_of(value: int) -> Expression:
    """Returns how a value was computed; a plain integer is a constant."""
    return value.expression if isinstance(value, Size) else int(value)


def leaves(expression: Expression) -> Iterator[Attribute | Length]:
    """Returns the unknowns of an expression."""
    if isinstance(expression, Term):
        yield from leaves(expression.left)
        yield from leaves(expression.right)
    elif isinstance(expression, Attribute | Length):
        yield expression


def holds_plain_length(expression: Expression) -> bool:
    """Returns whether an expression holds a length that changes with the input."""
    if isinstance(expression, Term):
        return holds_plain_length(expression.left) or holds_plain_length(expression.right)
    return isinstance(expression, Plain)


def adds_plain_length(expression: Expression) -> bool:
    """Returns whether a length that changes with the input is added to something, so that no ratio holds."""
    if not isinstance(expression, Term):
        return False
    here = expression.operation in ("add", "sub") and holds_plain_length(expression)
    return here or adds_plain_length(expression.left) or adds_plain_length(expression.right)


def evaluate(expression: Expression, attributes: Mapping[Attribute, int], lengths: Sequence[int]) -> int | None:
    """Returns the value of an expression after a cut; ``None`` where it divides by zero."""
    if isinstance(expression, Attribute):
        return attributes[expression]
    if isinstance(expression, Length):
        return lengths[expression.vector]
    if isinstance(expression, Term):
        left = evaluate(expression.left, attributes, lengths)
        right = evaluate(expression.right, attributes, lengths)
        if left is None or right is None or (right == 0 and expression.operation in ("floordiv", "mod")):
            return None
        return OPERATIONS[expression.operation](left, right)
    return expression.value if isinstance(expression, Plain) else expression


def solve(
    firm: Sequence[Equation],
    soft: Sequence[Equation],
    lengths: Sequence[int],
    traced: Mapping[Attribute, int],
) -> tuple[dict[Attribute, int], list[Equation]]:
    """Finds the attributes that make equations true.

    Args:
        firm: what must hold.
        soft: what a correction can see to, where no attribute does; they decide what the firm ones leave open.
        lengths: kept length of every vector.
        traced: the attributes' values in the traced network.

    Returns:
        The attributes' new values, and the firm equations that no value satisfies.
    """
    solved: dict[Attribute, None] = {}  # in the order in which they are solved, which files keep
    values = dict(traced)

    def target(equation: Equation) -> int:
        return equation.value if equation.wanted is None else lengths[equation.wanted]

    for equations in (firm, soft):
        for equation in equations:
            if isinstance(equation.expression, Attribute) and equation.expression not in solved:
                solved[equation.expression] = None
                values[equation.expression] = target(equation)
    for equation in (*firm, *soft):  # one unknown left: invert by search
        for unknown in leaves(equation.expression):
            if not isinstance(unknown, Attribute) or unknown in solved:
                continue
            # the smallest one divides without a rest where several do
            for candidate in (traced[unknown], *range(1, traced[unknown])):
                values[unknown] = candidate
                if evaluate(equation.expression, values, lengths) == target(equation):
                    solved[unknown] = None
                    break
            if unknown in solved:
                break
            values[unknown] = traced[unknown]
    violated = [e for e in firm if evaluate(e.expression, values, lengths) != target(e)]
    return {a: values[a] for a in solved if values[a] != traced[a]}, violated


class remembering:  # noqa: N801  (reads as a verb in `with remembering(model):`)
    """Context in which the integers of a model's modules are `Size`; restores them, also after an error."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.traced: dict[Attribute, int] = {}
        self.sizes: dict[tuple[str, int], list[Size]] = defaultdict(list)
        self.floats: dict[str, set[float]] = defaultdict(set)
        self._before: list[tuple[nn.Module, str, Any]] = []

    def __enter__(self) -> remembering:
        for name, module in modules_of(self.model).items():
            for key, value in list(module.__dict__.items()):
                if type(value) is float:
                    self.floats[name].add(value)
                wrapped = self._wrap(value, name, key) if type(value) in (int, tuple, list) else value
                if wrapped is not value:
                    self._before.append((module, key, value))
                    module.__dict__[key] = wrapped
        return self

    def _wrap(self, value: Any, module: str, key: str) -> Any:
        if type(value) is int:
            return self._size(value, Attribute(module, key, None))
        if type(value) in (tuple, list) and value and all(type(entry) is int for entry in value):
            return type(value)(self._size(v, Attribute(module, key, i)) for i, v in enumerate(value))
        return value

    def _size(self, value: int, attribute: Attribute) -> Size:
        self.traced[attribute] = value
        self.sizes[attribute.module, value].append(Size(value, attribute))
        return self.sizes[attribute.module, value][-1]

    def __exit__(self, *error: object) -> None:
        for module, key, value in self._before:
            module.__dict__[key] = value
        for module in modules_of(self.model).values():  # what the forward pass stored
            for key, value in module.__dict__.items():
                if isinstance(value, Size | tuple | list):
                    module.__dict__[key] = _forgotten(value)


def _forgotten(value: Any) -> Any:
    """Returns a value without memory; other values as they are."""
    if isinstance(value, Size):
        return int(value)
    if type(value) in (tuple, list, torch.Size) and any(isinstance(entry, Size) for entry in value):
        return type(value)([_forgotten(entry) for entry in value])
    return value


def assign_attributes(model: nn.Module, values: Mapping[Attribute, int]) -> None:
    """Writes solved attributes into a model."""
    modules = modules_of(model)
    for (owner, name, entry), value in values.items():
        held = modules[owner].__dict__.get(name) if owner in modules else None
        entries = [held] if entry is None else list(held) if isinstance(held, (tuple, list)) else []
        place = entry or 0
        if place >= len(entries) or type(entries[place]) is not int:
            raise TopiaristError(
                f"the model has no integer {shown(name)} in {owner or 'itself'}; it is not the model that was pruned"
            )
        entries[place] = value
        modules[owner].__dict__[name] = (
            value if entry is None else tuple(entries) if isinstance(held, tuple) else entries
        )


def kept_length(dead: np.ndarray, classes: np.ndarray) -> int:
    """Returns how many positions of an axis are kept, given which label classes are dead."""
    return int(len(classes) - dead[classes].sum())
