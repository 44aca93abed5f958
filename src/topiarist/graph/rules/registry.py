"""Which rule belongs to which operator; operators come in families, and a family is one file.

`movement.py`: data moves and labels move with it. `indexing.py`: positions are read or written by number.
`pointwise.py`: pointwise, reductions, normalisation. `ordered.py`: softmax, sorts, Fourier transforms, distances.
`contract.py`: convolutions, products and attention. `recurrent.py`, `vision.py`: fused layers. `own.py`: what a user
declares. An operator in none of them is unknown and pins what it touches: that can cost compression, never correctness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from topiarist.graph.inputs import Arguments, Keywords, tensors_in
from topiarist.graph.labels import Vector
from topiarist.graph.tracer import Tracer


class Call:
    """One operator call.

    Attributes:
        name: of the operator, without its overload; of one that is not torch's, ``namespace::name``.
        given: its arguments, by the names of its schema.
        tensors: those among the arguments, in order.
        x: the first of them, which most operators work on; of an operator that takes none, its output.
        traced: what travels with `x`.
        out: its output.
    """

    def __init__(
        self, tracer: Tracer, func: OpOverload, args: Arguments, kwargs: Keywords, out: Any, tensors: Sequence[Tensor]
    ) -> None:
        self.name = key_of(func)
        self.func = func
        self.out = out
        self.tensors = tensors
        self.given = dict(_defaults(func))
        self.given.update(zip(self.given, args, strict=False))
        self.given.update(kwargs)
        self.x = (tensors or tensors_in(out))[0]
        self.traced = tracer.of(self.x)

    def __getitem__(self, name: str) -> Any:
        return self.given[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Returns an argument that not every overload has."""
        return self.given.get(name, default)

    @property
    def outputs(self) -> list[Tensor]:
        """Returns the tensors among the outputs, in order."""
        return tensors_in(self.out)

    @property
    def vectors(self) -> list[Vector]:
        """Returns the labels of the axes of `x`, as a list of its own."""
        return list(self.traced.vectors)

    @property
    def depends(self) -> str:
        """Returns why an axis is pinned over which the operator mixes positions."""
        return f"{self.name.strip('_')} over the axis depends on every position"

    def dims(self, name: str = "dim") -> list[int]:
        """Returns the axes that an argument names, counted from the front; all of them where it is None or empty."""
        given = self.given.get(name)
        ndim = max(self.x.ndim, 1)
        chosen = [given] if isinstance(given, int) else list(given or range(ndim))
        return [d % ndim for d in chosen]


Rule = Callable[[Tracer, Call], None]
RULES: dict[str, Rule] = {}


def rule_for(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for torch's operators of these names, or for others, written ``namespace::name``."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        rule_of.cache_clear()
        return function

    return register


def key_of(func: OpOverload) -> str:
    """Returns the name by which an operator's rule is known: plain for torch's own, else ``namespace::name``."""
    return func._schema.name.removeprefix("aten::")


def apply_rule(
    tracer: Tracer, func: OpOverload, args: Arguments, kwargs: Keywords, out: Any, tensors: Sequence[Tensor]
) -> bool:
    """Applies the rule of an operator; False where there is none."""
    applied = rule_of(func)
    if applied is not None:
        applied(tracer, Call(tracer, func, args, kwargs, out, tensors))
    return applied is not None


@cache
def rule_of(func: OpOverload) -> Rule | None:
    """Returns the rule of an operator: by its name, by its tag, or by its family."""
    name = key_of(func)
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in func.tags or _inplace_pointwise(name):
        return RULES["pointwise"]
    family = _family(name)
    return None if family is None else RULES[family]


@cache
def _defaults(func: OpOverload) -> dict[str, Any]:
    return {argument.name: argument.default_value for argument in func._schema.arguments}


def _inplace_pointwise(name: str) -> bool:
    """Returns whether it is ``relu_`` or its like, which lack the tag that ``relu`` carries."""
    if not name.endswith("_") or name.startswith("_"):
        return False
    twin = getattr(torch.ops.aten, name[:-1], None)
    if twin is None:
        return False
    return any(torch.Tag.pointwise in getattr(twin, overload).tags for overload in twin.overloads())


def _family(name: str) -> str | None:
    """Returns the family that a part of the name shows; a name says nothing of an operator that is not torch's."""
    if "::" in name:
        return None
    for part, family in (("batch_norm", "batch_norm"), ("scaled_dot_product", "attention"), ("pool", "spatial")):
        if part in name:
            return family
    if name.startswith(("upsample", "_upsample", "reflection_pad", "replication_pad")):
        return "spatial"
    return None
