"""Random programs on one tensor: what no layer does but code may, such as views, slices and sums along any axis.

An operation is drawn by a function ``(random, shape) -> (function, parameters, attributes)`` or None where it does not
fit; ``function(holder, x)`` runs it, where the holder has the parameters as ``holder.w[...]`` and the integers as
attributes, so that they are found the way a network's are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Drawn = tuple[Callable[[Any, Tensor], Tensor], Sequence[Tensor], dict[str, Any]]
Draw = Callable[[random.Random, list[int]], Drawn | None]
OPERATIONS: list[tuple[str, Draw]] = []

POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "gelu": F.gelu, "neg": torch.neg, "elu": F.elu,
    "plus one": lambda x: x + 1, "doubled": lambda x: x * 2, "square": torch.square, "abs": torch.abs,
    "one minus": lambda x: 1 - x, "clamp": lambda x: x.clamp(-0.5, 0.5), "softplus": F.softplus, "exp": lambda x:
    (x * 0.1).exp(), "in place": lambda x: x.clone().mul_(0.5), "where": lambda x: torch.where(x > 0, x, x * 0.3),
    "lerp": lambda x: torch.lerp(x, x.sigmoid(), 0.3), "hardswish": F.hardswish,
}  # fmt: skip


def operation(weight: int = 1) -> Callable[[Draw], Draw]:
    def register(draw: Draw) -> Draw:
        OPERATIONS.extend([(draw.__name__, draw)] * weight)
        return draw

    return register


def axis_of(chance: random.Random, shape: list[int]) -> int:
    return chance.randrange(1, len(shape))


def plain(function: Callable[[Tensor], Tensor]) -> Drawn:
    return lambda holder, x: function(x), (), {}


def along(axis: int, *index: Any) -> tuple[Any, ...]:
    return (*[slice(None)] * axis, *index)


@operation(4)
def split(chance, shape):
    axis = axis_of(chance, shape)
    factors = [d for d in range(2, shape[axis]) if shape[axis] % d == 0]
    if not factors or len(shape) > 5:
        return None
    n = chance.choice(factors)
    m = shape[axis] // n
    sizes = {
        "literal": lambda h, s: (n, m), "rows": lambda h, s: (n, -1), "columns": lambda h, s: (-1, m),
        "attributes": lambda h, s: (h.n, h.m), "quotient": lambda h, s: (h.n, s[axis] // h.n),
        "columns by quotient": lambda h, s: (s[axis] // m, m),
    }[chance.choice(["literal", "rows", "columns", "attributes", "quotient", "columns by quotient"])]  # fmt: skip
    if chance.random() < 0.2:
        return lambda h, x: x.unflatten(axis, sizes(h, x.shape)), (), {"n": n, "m": m}
    return lambda h, x: x.reshape(*x.shape[:axis], *sizes(h, x.shape), *x.shape[axis + 1 :]), (), {"n": n, "m": m}


@operation(3)
def merge(chance, shape):
    if len(shape) < 3:
        return None
    axis = chance.randrange(1, len(shape) - 1)
    if chance.random() < 0.4:
        return plain(lambda x: x.flatten(axis, axis + 1))
    given = chance.choice([lambda s: -1, lambda s: s[axis] * s[axis + 1]])
    return plain(lambda x: x.reshape(*x.shape[:axis], given(x.shape), *x.shape[axis + 2 :]))


@operation(2)
def permute(chance, shape):
    order = list(range(1, len(shape)))
    chance.shuffle(order)
    return plain(lambda x: x.permute(0, *order))


@operation(3)
def pointwise(chance, shape):
    return plain(POINTWISE[chance.choice(list(POINTWISE))])


@operation()
def residual(chance, shape):
    function = POINTWISE[chance.choice(list(POINTWISE))]
    return plain(lambda x: x + function(x))


@operation(2)
def slices(chance, shape):
    axis = axis_of(chance, shape)
    if shape[axis] < 3:
        return None
    begin = chance.randrange(0, shape[axis] - 1)
    end, step = chance.randrange(begin + 1, shape[axis] + 1), chance.choice([1, 1, 2])
    if chance.random() < 0.5:
        return lambda h, x: x[along(axis, slice(h.begin, h.end, step))], (), {"begin": begin, "end": end}
    return plain(lambda x: x[along(axis, slice(begin, end, step))])


@operation(2)
def rejoined(chance, shape):
    axis = axis_of(chance, shape)
    if shape[axis] < 3:
        return None
    cuts = sorted(chance.sample(range(1, shape[axis]), 2))
    sizes = (cuts[0], cuts[1] - cuts[0], shape[axis] - cuts[1])
    function = POINTWISE[chance.choice(list(POINTWISE))]

    def run(holder, x):
        a, b, c = x.split(holder.sizes, axis)
        return torch.cat([c, function(b), a], axis)

    return run, (), {"sizes": sizes}


@operation(2)
def doubled(chance, shape):
    axis, function = axis_of(chance, shape), POINTWISE[chance.choice(list(POINTWISE))]
    join = chance.choice([torch.cat, torch.stack])
    return plain(lambda x: join([x, function(x)], axis))


@operation(2)
def halves(chance, shape):
    axis = axis_of(chance, shape)
    if shape[axis] % 2:
        return None
    how = chance.choice([
        torch.mul, torch.maximum, lambda a, b: a + b.sigmoid(), lambda a, b: torch.cat([b, a.tanh()], axis),
    ])  # fmt: skip
    return plain(lambda x: how(*x.chunk(2, axis)))


@operation(3)
def moved(chance, shape):
    axis = axis_of(chance, shape)
    return plain(chance.choice([
        lambda x: x.flip(axis), lambda x: x * x.flip(axis), lambda x: x.roll(1, axis),
        lambda x: torch.stack([part * (k + 1) for k, part in enumerate(x.unbind(axis))], axis),
        lambda x: x.softmax(axis),
    ]))  # fmt: skip


REDUCTIONS = [torch.sum, torch.mean, torch.amax, torch.linalg.vector_norm]


@operation()
def reduced(chance, shape):
    if len(shape) < 3:
        return None
    axis, function, keep = axis_of(chance, shape), chance.choice(REDUCTIONS), chance.random() < 0.3
    return plain(lambda x: function(x, dim=axis, keepdim=keep))


@operation(2)
def gated(chance, shape):
    axis, function = axis_of(chance, shape), chance.choice(REDUCTIONS)
    return plain(lambda x: x * function(x, dim=axis, keepdim=True).tanh())


@operation(2)
def parameter(chance, shape):
    weight = torch.randn([n if chance.random() < 0.6 else 1 for n in shape[1:]])
    if chance.random() < 0.5:
        return lambda h, x: x * h.w[0], (weight,), {}
    return lambda h, x: x + h.w[0], (weight,), {}


@operation(3)
def linear(chance, shape):
    axis, out, bias = axis_of(chance, shape), chance.choice([1, 3, 4, 6, 8]), chance.random() < 0.5
    weights = [torch.randn(out, shape[axis]), *([torch.randn(out)] if bias else [])]
    return lambda h, x: F.linear(x.movedim(axis, -1), *h.w).movedim(-1, axis), weights, {}


@operation()
def product(chance, shape):
    axis = axis_of(chance, shape)
    weight = torch.randn(shape[axis], chance.choice([3, 4, 6]))
    return lambda h, x: (x.movedim(axis, -1) @ h.w[0]).movedim(-1, axis), (weight,), {}


@operation()
def perceptron(chance, shape):
    axis, inner = axis_of(chance, shape), chance.choice([3, 4, 6])
    n = shape[axis]

    def run(h, x):
        y = F.linear(x.movedim(axis, -1), h.w[0], h.w[1]).relu()
        return x + F.linear(y, h.w[2]).movedim(-1, axis)

    return run, (torch.randn(inner, n), torch.randn(inner), torch.randn(n, inner)), {}


@operation()
def gram(chance, shape):
    return plain(lambda x: x @ x.transpose(-1, -2) * 0.1) if len(shape) > 2 else None


@operation()
def attended(chance, shape):
    if len(shape) < 3:
        return None
    turn = chance.choice([lambda x: x, lambda x: x.transpose(-1, -2)])
    return plain(lambda x: F.scaled_dot_product_attention(turn(x), turn(x) * 0.5, turn(x).tanh(), scale=0.3))


@operation(2)
def layer_norm(chance, shape):
    count, affine = chance.randrange(1, len(shape)), chance.random() < 0.5
    weights = [torch.randn(shape[-count:]) for _ in range(2 if affine else 0)]
    return lambda h, x: F.layer_norm(x, x.shape[-count:], *h.w), weights, {}


@operation()
def group_norm(chance, shape):
    if len(shape) < 3:
        return None
    groups = chance.choice([d for d in range(1, shape[1] + 1) if shape[1] % d == 0])
    weights = [torch.randn(shape[1]) for _ in range(chance.choice([0, 2]))]
    return lambda h, x: F.group_norm(x, h.groups, *h.w), weights, {"groups": groups}


@operation(2)
def repeated(chance, shape):
    axis, times = axis_of(chance, shape), chance.choice([2, 3])
    if len(shape) > 4:
        return None
    times_at = [times if k == axis else 1 for k in range(len(shape) + 1)]
    return plain(chance.choice([
        lambda x: x.unsqueeze(axis).expand([t if t > 1 else -1 for t in times_at]),
        lambda x: x.unsqueeze(axis).repeat(times_at), lambda x: x.repeat(times_at[:-1]),
        lambda x: x.repeat_interleave(times, axis),
    ]))  # fmt: skip


@operation(2)
def widened(chance, shape):
    """An axis of one position becomes one of many."""
    ones = [axis for axis in range(1, len(shape)) if shape[axis] == 1]
    if not ones:
        return None
    axis, n = chance.choice(ones), chance.choice([2, 4, 6])
    times = [n if k == axis else 1 for k in range(len(shape))]
    sizes = [n if k == axis else -1 for k in range(len(shape))]
    weight = torch.randn(times[1:])
    return chance.choice([
        (lambda h, x: x * h.w[0], (weight,), {}), (lambda h, x: x.repeat(times), (), {}),
        (lambda h, x: x.expand(sizes), (), {}), (lambda h, x: x.expand([h.n if k == axis else -1 for k in
        range(len(shape))]), (), {"n": n}), (lambda h, x: torch.cat([x] * n, axis), (), {}),
    ])  # fmt: skip


@operation()
def padded(chance, shape):
    axis, before, after, value = (
        axis_of(chance, shape),
        chance.randrange(2),
        chance.randrange(1, 3),
        chance.choice([0, 1.5]),
    )
    return plain(lambda x: F.pad(x, [0, 0] * (len(shape) - 1 - axis) + [before, after], value=value))


@operation()
def selected(chance, shape):
    axis = axis_of(chance, shape)
    place = chance.randrange(shape[axis])
    return plain(lambda x: x.select(axis, place)) if len(shape) > 2 else None


@operation(2)
def convolved(chance, shape):
    if len(shape) != 3:
        return None
    groups = chance.choice([d for d in range(1, shape[1] + 1) if shape[1] % d == 0])
    out = groups * chance.choice([1, 2]) if groups > 1 else chance.choice([3, 4, 6])
    weights = (torch.randn(out, shape[1] // groups, 1), torch.randn(out))
    return lambda h, x: F.conv1d(x, *h.w, groups=h.groups), weights, {"groups": groups}


@operation()
def folded(chance, shape):
    """An axis is folded into the batch and taken out again."""
    axis, function = axis_of(chance, shape), POINTWISE[chance.choice(list(POINTWISE))]

    def run(x):
        front = x.movedim(axis, 1)
        return function(front.reshape(x.shape[0] * x.shape[axis], -1)).reshape(front.shape)

    return plain(run)


class Holder(nn.Module):
    def __init__(self, name: str, drawn: Drawn) -> None:
        super().__init__()
        self.name, self.function = name, drawn[0]
        self.w = nn.ParameterList(weight * 0.5 for weight in drawn[1])
        for attribute, value in drawn[2].items():
            setattr(self, attribute, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Program(nn.Module):
    """Channels of a convolution go through random operations into a linear layer."""

    def __init__(self, seed: int, most: int = 8) -> None:
        super().__init__()
        chance = random.Random(seed)
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, chance.choice([1, 4, 6, 8, 12]), 1)
        self.inline = chance.random() < 0.5  # all in one forward, as far as anyone can see
        self.steps = nn.ModuleList()
        x = self.stem(torch.randn(2, 3, 2, 2)).flatten(2).detach()
        for _ in range(chance.randint(2, most)):
            name, draw = chance.choice(OPERATIONS)
            if (drawn := draw(chance, list(x.shape))) is None:
                continue
            step = Holder(name, drawn)
            y = step(x).detach()
            if y.numel() <= 900 and 2 <= y.ndim <= 6 and bool(torch.isfinite(y).all()):
                self.steps.append(step)
                x = y
        self.head = nn.Linear(prod(x.shape[1:]), 3)

    @property
    def names(self) -> list[str]:
        return [step.name for step in self.steps]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        for step in self.steps:
            x = step.forward(x) if self.inline else step(x)
        return self.head(x.flatten(1))
