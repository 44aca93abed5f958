"""Rules of a user's own operators: `rule` declares one, and it sees each call as an `Operation`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from topiarist.errors import TopiaristError
from topiarist.files import shortened, shown
from topiarist.graph.calls import MIXING
from topiarist.graph.labels import Vector
from topiarist.graph.rules.registry import RULES, Call, Rule, key_of, rule_for, rule_of
from topiarist.graph.tracer import Tracer

OWN: set[str] = set()
"""Names of the operators whose rules a user declared."""


class Operation:
    """One call of an operator, as its rule sees it.

    An *axis* stands for the positions on one axis of a tensor, which may be pruned; ``None`` for those that stay.
    Arguments are named as in the operator's schema.

    Attributes:
        out: what the operator returned.
    """

    def __init__(self, tracer: Tracer, call: Call) -> None:
        self._tracer, self._call = tracer, call
        self.out: Any = call.out

    def __getitem__(self, name: str) -> Any:
        """Returns an argument, as the operator was given it."""
        return self._call[name]

    def axes(self, tensor: str | Tensor) -> list[Vector]:
        """Returns the axes of an argument, or of a tensor."""
        return list(self._tracer.vectors_of(self._tensor(tensor)))

    def zero(self, tensor: str | Tensor) -> bool:
        """Returns whether pruned positions of a tensor hold zeros before they are cut, as those of a weight do."""
        return self._tracer.of(self._tensor(tensor)).zero

    def unify(self, first: Vector, *others: Vector) -> Vector:
        """Unites axes of one length: they lose the same positions. Where one of them stays, all do."""
        for other in others:
            first = self._tracer.algebra.unify(first, other)
        return first

    def pin(self, axis: Vector, reason: str) -> None:
        """Says that no position of an axis may be pruned, and why."""
        self._tracer.algebra.pin(axis, reason)

    def split(self, axis: Vector, sizes: Sequence[int]) -> list[Vector]:
        """Returns an axis as rows and columns, of these numbers."""
        return self._tracer.algebra.split(axis, sizes)

    def merge(self, axes: Sequence[Vector], sizes: Sequence[int]) -> Vector:
        """Returns rows and columns, of these numbers, as one axis."""
        return self._tracer.algebra.merge(axes, sizes)

    def put(self, tensor: Tensor, axes: Sequence[Vector], *, zero: bool = False) -> None:
        """Says what a tensor that comes out, or that was changed in place, carries on its axes.

        Args:
            tensor: the output, or one of them.
            axes: one for each of its axes.
            zero: whether pruned positions of it hold zeros.
        """
        self._tracer.put(tensor, axes, zero)
        if not zero and any(tensor is given for given in self._call.tensors):
            self._tracer.note_nonzero(tensor)

    def layer(self, weight: str, *, output: int, input: int, bias: str | None = None) -> None:
        """Says that an argument is the weight of a layer, so that methods score its units and budgets count it.

        Args:
            weight: name of the argument.
            output: the weight's axis of outputs.
            input: the weight's axis of inputs.
            bias: name of the argument that is added to the outputs.
        """
        tensor, axes = self[weight], self.axes(weight)
        times = self._call.outputs[0].numel() // tensor.shape[output]
        stage = str(max(1, times // self._tracer.record.batch))
        self._tracer.mark(axes[input], "input")
        self._tracer.mark(axes[output], "output", stage)
        if bias is not None and isinstance(self[bias], Tensor):
            self._tracer.mark(self.axes(bias)[0], "bias")
        factors = zip(tensor.shape, axes, strict=True)
        self._tracer.note_product(times, *factors, weight=self._tracer.of(tensor).source, stage=stage)

    def _tensor(self, tensor: str | Tensor) -> Tensor:
        given = self[tensor] if isinstance(tensor, str) else tensor
        if not isinstance(given, Tensor):
            raise TypeError(f"{tensor} is {type(given).__name__}, not a tensor")
        return given


OwnRule = Callable[[Operation], None]


def rule(operator: Any, *, like: Any = None, override: bool = False) -> Callable[[OwnRule], OwnRule]:
    """Declares what an operator does with the positions of its tensors, so that layers before and behind it are pruned.

    A decorator of a function that takes one `Operation`. All overloads of an operator share a rule; of two rules the
    later one holds. A wrong rule gives no wrong network, since the proof refuses its cuts; `check_rule` proves a rule.

    Args:
        operator: what `torch.library.custom_op` returns, an operator of `torch.ops`, or its name, ``namespace::name``.
        like: another operator, whose rule it shares; then there is nothing to decorate.
        override: whether to replace the rule of an operator that has one already.

    Raises:
        TopiaristError: the operator is unknown, or has a rule of Topiarist's already; or `like` has none to share.
    """
    name = _name(operator)
    known = name in RULES or any(rule_of(overload) is not None for overload in _overloads(name))
    if known and name not in OWN and not override:
        raise TopiaristError(f"{name} has a rule already; replace it on purpose with override=True")

    def register(function: OwnRule) -> OwnRule:
        _declare(name, _guarded(name, lambda t, c: function(Operation(t, c))))
        return function

    if like is not None:
        _declare(name, _guarded(name, _shared(_name(like))))
    return register


def is_own(func: OpOverload) -> bool:
    """Returns whether a user declared the rule of an operator."""
    return key_of(func) in OWN


def _declare(name: str, function: Rule) -> None:
    rule_for(name)(function)
    OWN.add(name)


def _guarded(name: str, function: Rule) -> Rule:
    """Returns a rule whose failure is an error, in place of a pin without a reason."""

    def guarded(t: Tracer, c: Call) -> None:
        try:
            function(t, c)
        except TopiaristError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise TopiaristError(
                f"the rule of {name} fails ({what}); correct it, and prove it with check_rule"
            ) from error

    return guarded


def _shared(name: str) -> Rule:
    """Returns the rule of another operator, which takes a call for one of that operator."""
    found = next((known for overload in _overloads(name) if (known := rule_of(overload))), None)
    if found is None:
        raise TopiaristError(
            f"{name} has no rule to share; write a function, as in 'Rules of your own' in the documentation"
        )
    if name in MIXING or "batch_norm" in name or "scaled_dot_product" in name:
        raise TopiaristError(
            f"{name} mixes positions, which a mask does for torch's own operator alone; write a function"
        )

    def shared(t: Tracer, c: Call) -> None:
        c.name = name
        found(t, c)

    return shared


def _name(operator: Any) -> str:
    """Returns the name by which an operator's rule is known."""
    if isinstance(operator, OpOverload):
        return key_of(operator)
    if isinstance(operator, OpOverloadPacket):
        name = operator._qualified_op_name
    else:
        name = getattr(operator, "_qualname", operator)  # what custom_op returns
    if not isinstance(name, str):
        raise TopiaristError(
            f"{shown(name)} is no operator of torch; give a custom_op, torch.ops.mine.name or 'mine::name'"
        )
    if "::" not in name and not hasattr(torch.ops.aten, name):
        raise TopiaristError(
            f"torch has no operator {shown(name)}; write the name of one of yours as 'namespace::{shortened(name)}'"
        )
    return name.removeprefix("aten::")


def _overloads(name: str) -> list[OpOverload]:
    """Returns the overloads of an operator; none where it is not loaded."""
    namespace, _, short = name.rpartition("::")
    packet = getattr(getattr(torch.ops, namespace or "aten"), short, None)
    return [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
