"""Random networks: whatever hypothesis draws, cut ≡ mask for any keep, and costs are as counted.

A plan is a list of (step, numbers); `Drawn` builds it.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import example, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import steps_indexing  # noqa: F401  (its steps are drawn too)
import steps_tokens  # noqa: F401
import topiarist
from networks import NIGHT, TOLERANCE, call, distance, multiplications, random_keep, shaken, zeroed
from programs import Program
from steps import Recall, Step, width
from topiarist.budget import cost

STEPS = {kind.__name__: kind for kind in Step.__subclasses__() if kind is not Recall}
Plan = list[tuple[Any, ...]]


class Drawn(nn.Module):
    """A network of a plan: a stem, the steps, a head."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        (_, stem), *steps, (self.end, _) = plan
        self.stem = nn.Conv2d(3, stem, 1)
        self.steps = nn.ModuleList()
        channels, size = stem, 4
        for name, numbers in steps:
            step = (Recall if name == "Recall" else STEPS[name])(channels, size, *numbers)
            self.steps.append(step)
            channels, size = step.out, step.size
        self.head = nn.Conv2d(channels, 3, 1) if self.end == "map" else nn.Linear(channels, 3)
        if self.end == "flatten":
            self.head = nn.Linear(channels * size * size, 3)

    @property
    def norms(self) -> bool:
        return any(step.norms for step in self.steps)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        seen = [x]
        for step in self.steps:
            x = step(x, seen[step.index]) if isinstance(step, Recall) else step(x)
            seen.append(x)
        if self.end == "flatten":
            return self.head(x.flatten(1))
        return self.head(x) if self.end == "map" else {"logits": self.head(x.mean((2, 3))), "none": None}


@st.composite
def plans(draw: Any, most: int = 8) -> Plan:
    channels, size = width(draw), 4
    plan: Plan = [("stem", channels)]
    shapes = [(channels, size)]
    for _ in range(draw(st.integers(2, most))):
        name = draw(st.sampled_from([*STEPS, "Recall", "Recall"]))
        if name == "Recall":
            index = draw(st.integers(0, len(shapes) - 1))
            join = channels + shapes[index][0] <= 16 and draw(st.booleans())
            numbers: Any = (index, *shapes[index], join)
            step: Step = Recall(channels, size, *numbers)
        else:
            numbers = STEPS[name].draw(draw, channels, size)
            if numbers is None:
                continue
            step = STEPS[name](channels, size, *numbers)
        plan.append((name, numbers))
        channels, size = step.out, step.size
        shapes.append((channels, size))
    plan.append((draw(st.sampled_from(["pool", "flatten", "map"])), ()))
    return plan


def check(model: nn.Module, x: Tensor, other: Tensor, seed: int, most: int) -> None:
    """What holds for any keep of any network."""
    graph = topiarist.trace(model, x)
    assert not graph.unknown
    keep = random_keep(graph, seed, most)
    masked, smaller = topiarist.mask(model, graph, keep), topiarist.cut(model, graph, keep)
    with torch.no_grad():
        expected = call(masked, x)
        assert distance(call(smaller, x), expected) <= TOLERANCE
        assert distance(call(smaller, other), call(masked, other)) <= TOLERANCE
        if not graph.solution.record.statistics:  # nothing mixes positions: zeroed parameters say it all
            assert distance(expected, call(zeroed(model, graph, keep), x)) <= TOLERANCE
    closed = cost(graph, keep)
    assert closed.params == sum(p.numel() for p in smaller.parameters())
    assert abs(closed.macs - multiplications(smaller, x) / 2) <= 0.5
    assert list(smaller.state_dict()) == list(model.state_dict())


MOST = st.sampled_from([1, 2, 99])
"""The most units that a group keeps: one of each is the hardest keep, any number the usual one."""


@given(plans(), st.integers(0, 2**16), MOST)
@example(
    [
        ("stem", 4),
        ("Resize", ("max",)),
        ("ChannelsLast", (4, False)),
        ("Bottleneck", (4, 4)),
        ("Pixels", (4,)),
        ("pool", ()),
    ],
    0,
    1,
)  # units are places of a feature map, which a pixel shuffle mixes
def test_cut_is_mask_for_any_keep_of_any_network(plan: Plan, seed: int, most: int) -> None:
    note(f"{plan}")
    torch.manual_seed(0)
    model = shaken(Drawn(plan), seed).double()
    check(model, torch.randn(2, 3, 4, 4).double(), torch.randn(3, 3, 4, 4).double(), seed, most)


@settings(max_examples=(4 if NIGHT else 2) * settings().max_examples)
@given(st.integers(0, 2**32), MOST)
@example(24653011, 1)  # a product over an axis that was expanded, and meets its units only behind it
@example(4985, 1)  # two splits written at one place, of channels and of what no unit sits on
def test_cut_is_mask_for_any_keep_of_any_program(seed: int, most: int) -> None:
    model = Program(seed)
    note(f"{model.names}")
    shaken(model, seed).double()
    check(model, torch.randn(2, 3, 2, 2).double(), torch.randn(3, 3, 2, 2).double(), seed, most)
