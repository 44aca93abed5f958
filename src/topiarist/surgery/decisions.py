"""Decisions: steps that turn numbers into something else, such as a comparison, an argmax, a sort, or an NMS.

What cut and mask compute differs by rounding, and where two numbers tie, rounding decides: one network keeps a box, or
names a class, that the other does not. So a network can be run beside another one: where both are about to decide on
the same numbers, to within the tolerance, it decides as the other one did.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from topiarist.graph import Arguments, Inputs, Keywords, ModuleStack, call_model, map_tensors, tensors_in


class Precision(NamedTuple):
    """The floating-point numbers in which cut and mask are compared.

    Attributes:
        dtype: of weights and inputs.
        tolerance: the largest relative difference between cut and mask that rounding explains.
        change: a mask that changes the outputs by less shows nothing.
    """

    dtype: torch.dtype
    tolerance: float
    change: float

    def __str__(self) -> str:
        """Returns its name, as ``float64``."""
        return str(self.dtype).removeprefix("torch.")


DOUBLE = Precision(torch.float64, 1e-10, 1e-8)
SINGLE = Precision(torch.float32, 1e-4, 1e-3)
"""Where an operator of the network does not take float64. A swap of two alike channels may go unnoticed."""
TOLERANCE = DOUBLE.tolerance
SMALLEST_SCALE = 1e-4
"""What enters a decision is compared as if its largest value were this at least: rounding of 1 − 1 is no difference."""
STEPS = {"round", "floor", "ceil", "trunc", "frac", "sign", "heaviside", "fmod", "remainder", "floor_divide"}
STEPS |= {"eq", "ne", "gt", "ge", "lt", "le"}
"""Operators that decide even where they return floating-point numbers: steps, and comparisons in place."""


def is_floating(tensor: Tensor) -> bool:
    """Returns whether a tensor holds real or complex floating-point numbers."""
    return tensor.is_floating_point() or tensor.is_complex()


def difference(left: object, right: object, least: float = 1e-300) -> float:
    """Returns max |left − right| / max |right| over the tensors of two outputs.

    Infinite where their number, shapes, integers or truth values differ, or NaN or infinity is in one of them only.

    Args:
        left: one output.
        right: the other one.
        least: the denominator is at least this.
    """
    a, b = tensors_in(left), tensors_in(right)
    if len(a) != len(b):
        return math.inf
    largest = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return math.inf
        if not is_floating(x) or not is_floating(y):
            largest = max(largest, 0.0 if bool((x == y).all()) else math.inf)
        elif x.numel():
            same = (x == y) | (x.isnan() & y.isnan())  # equal infinities too
            gap, size = (x - y).abs().masked_fill(same, 0), y.abs().nan_to_num(0, 0, 0)
            relative = float(gap.max() / size.max().clamp_min(least))
            largest = max(largest, relative if math.isfinite(relative) else math.inf)
    return largest


@dataclass(frozen=True, eq=False)
class Decision:
    """One step that decided.

    Attributes:
        given: the tensors that it decided on.
        options: its other arguments, in words.
        made: what it returned.
    """

    given: list[Tensor]
    options: str
    made: Any


@dataclass(eq=False)
class Answer:
    """What a network returned, and what it decided on the way.

    Attributes:
        outputs: as its forward returned them.
        decisions: (module, operator, how many of it before in the module) → the decision.
        followed: whether rounding decided, and another network was followed.
    """

    outputs: Any = None
    decisions: dict[tuple[str, str, int], Decision] = field(default_factory=dict)
    followed: bool = False

    @property
    def coarse(self) -> bool:
        """Returns whether an output is whole numbers, truth values, or nothing at all: it may hide a difference."""
        tensors = [_real(tensor) for tensor in tensors_in(self.outputs)]
        return not tensors or any(not is_floating(t) or bool((t == t.round()).all()) for t in tensors)

    def shared(self, other: Answer) -> list[tuple[Decision, Decision]]:
        """Returns the decisions of both networks that can be compared: of the same step, on tensors of one shape."""
        pairs = ((mine, other.decisions.get(place)) for place, mine in self.decisions.items())
        return [(mine, its) for mine, its in pairs if its is not None and _shapes(mine) == _shapes(its)]


def answer(model: nn.Module, inputs: Inputs, beside: Answer | None = None, tolerance: float = TOLERANCE) -> Answer:
    """Runs a network, and remembers its decisions.

    Args:
        model: the network.
        inputs: as for `trace`.
        beside: what another network answered; its decisions are followed where both decide on the same numbers.
        tolerance: up to which numbers are the same.
    """
    found = Answer()
    with ModuleStack(model) as stack, _Deciding(found, stack, beside, tolerance):
        found.outputs = call_model(model, inputs)
    return found


def difference_before_decisions(left: Answer, right: Answer) -> float:
    """Returns the largest `difference` of what enters the steps that decide in both networks."""
    return max((difference(mine.given, its.given, SMALLEST_SCALE) for mine, its in left.shared(right)), default=0.0)


class _Deciding(TorchDispatchMode):
    """Remembers the decisions of a network while it runs, or follows those of another one."""

    def __init__(self, found: Answer, stack: ModuleStack, beside: Answer | None, tolerance: float) -> None:
        super().__init__()
        self.tolerance = tolerance
        self.found, self.stack, self.seen = found, stack, Counter[tuple[str, str]]()
        self.others = {} if beside is None else beside.decisions

    def __torch_dispatch__(self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None) -> Any:
        kwargs = kwargs or {}
        given = tensors_in([args, kwargs])
        if not any(map(is_floating, given)) or not _may_decide(func):
            return func(*args, **kwargs)
        in_place = _in_place(func, given)
        given = _cloned(given) if in_place else given
        out = func(*args, **kwargs)
        if not in_place and not any(_decided(value) for value in _parts(out)) and _name(func) not in STEPS:
            return out
        step = (self.stack.top, str(func))
        place, self.seen[step] = (*step, self.seen[step]), self.seen[step] + 1
        options = repr([value for value in [*args, *kwargs.items()] if not tensors_in(value)])
        its = self.others.get(place)
        if (
            its is not None
            and its.options == options
            and difference(given, its.given, SMALLEST_SCALE) <= self.tolerance
        ):
            same = difference(_tensors(out), _tensors(its.made)) <= self.tolerance
            self.found.followed |= not same
            if in_place:
                out.copy_(its.made)
            elif not same or not isinstance(out, Tensor | tuple | list):
                out = _cloned(its.made)
        self.found.decisions[place] = Decision(_cloned(given), options, _cloned(out))
        return out


def _name(func: Any) -> str:
    return str(func.overloadpacket.__name__).rstrip("_")


def _may_decide(func: Any) -> bool:
    """Returns whether a result may be decided by values: not drawn, not left open, no place of a maximum pooled."""
    name = _name(func)
    return torch.Tag.nondeterministic_seeded not in func.tags and "empty" not in name and "pool" not in name


def _in_place(func: Any, given: list[Tensor]) -> bool:
    """Returns whether an operator decides in place of its first tensor, which is then what it was given no more."""
    return func.overloadpacket.__name__.endswith("_") and (_name(func) in STEPS or not is_floating(given[0]))


def _parts(out: object) -> list[Any]:
    return list(out) if isinstance(out, tuple | list) else [out]


def _decided(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and not is_floating(value))


def _tensors(out: object) -> list[Tensor]:
    """Returns what an operator returned as tensors, numbers too."""
    return [torch.as_tensor(value) for value in _parts(out) if value is not None]


def _cloned(out: Any) -> Any:
    return map_tensors(out, torch.clone)


def _shapes(decision: Decision) -> list[torch.Size]:
    return [tensor.shape for tensor in decision.given]


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
