"""Golden rows: every method on a case small enough to work out by hand from its paper's formula.

A row is a function that returns what the method gives and what it must give, each a mapping from names to tensors. Its
key is the method's name: a method without a row fails the suite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import topiarist
from topiarist.allocation import Budget, choose
from topiarist.methods import make
from topiarist.stats import collect

Answers = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _conv_net() -> nn.Sequential:
    """Three filters of 1 x 2 weights with scales, and a head."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, (1, 2)), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -4.0], [-1.0, 1.0], [0.0, 6.0]]).view(3, 1, 1, 2))
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 0.0]))
    return model.eval()


def _random() -> Answers:
    """The seed and the group's name alone decide: crc32(b"7:0") = 3709191378."""
    model = _conv_net()
    graph = topiarist.trace(model, torch.randn(1, 1, 1, 4))
    scores = make("random", seed=7).score(graph, collect(model, graph))
    return scores, {"0": torch.rand(3, generator=torch.Generator().manual_seed(3709191378))}


def _l1() -> Answers:
    """|3| + |-4| = 7; sqrt(9 + 16) = 5; and so on."""
    model = _conv_net()
    graph = topiarist.trace(model, torch.randn(1, 1, 1, 4))
    stats = collect(model, graph)
    first, second = make("l1").score(graph, stats), make("l1", p=2).score(graph, stats)
    got = {"p=1": first["0"], "p=2": second["0"]}
    return got, {"p=1": _numbers(7, 2, 6), "p=2": _numbers(5, 2**0.5, 6)}


def _slimming() -> Answers:
    """Scores |gamma|; penalty 0.1 * (0.5 + 2 + 0), its gradient 0.1 * sign(gamma) with sign(0) = 0."""
    model = _conv_net()
    graph = topiarist.trace(model, torch.randn(1, 1, 1, 4))
    method = make("slimming", lam=0.1)
    penalty = method.penalty(model, graph)
    (gradient,) = torch.autograd.grad(penalty, [model[1].weight])
    score = method.score(graph, collect(model, graph))["0"]
    keep = choose(method, graph, collect(model, graph), Budget(ratio=0.67))["0"]
    got = {"score": score, "penalty": penalty.detach().double(), "gradient": gradient.double(), "keep": keep}
    expected = {
        "score": _numbers(0.5, 2, 0),
        "penalty": torch.tensor(0.25, dtype=torch.float64),
        "gradient": torch.tensor([0.1, -0.1, 0.0]).double(),
        "keep": torch.tensor([True, True, False]),
    }
    return got, expected


def _magnitude() -> Answers:
    """One threshold over both layers; and q times each layer's own spread."""
    model = nn.Sequential(nn.Conv1d(1, 2, 2, bias=False), nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([4.0, -3.0, 0.5, -0.5]).view(2, 1, 2))
        model[2].weight.copy_(torch.tensor([[2.0, -1.0], [0.25, 3.5]]))
    graph = topiarist.trace(model, torch.randn(1, 1, 2)).weights()
    stats = collect(model, graph)
    half = choose(make("magnitude"), graph, stats, Budget(ratio=0.5))
    convs = choose(make("magnitude", layers="conv"), graph, stats, Budget(ratio=0.25))
    # std of (4, -3, .5, -.5) is sqrt(6.3125) = 2.512, of (2, -1, .25, 3.5) sqrt(2.918) = 1.708
    own = choose(make("magnitude", quality={"*": 1.25, "2.*": 0.5}), graph, stats)
    got = {
        f"{what} {name}": kept
        for what, keep in (("half", half), ("conv", convs), ("q", own))
        for name, kept in keep.items()
    }
    rows = {
        "half 0.weight": (1, 1, 0, 0),
        "half 2.weight": (1, 0, 0, 1),
        "conv 0.weight": (1, 0, 0, 0),
        "conv 2.weight": (1, 1, 1, 1),
        "q 0.weight": (1, 0, 0, 0),
        "q 2.weight": (1, 1, 0, 1),
    }
    return got, {name: torch.tensor(row, dtype=torch.bool) for name, row in rows.items()}


GOLDEN: dict[str, Callable[[], Answers]] = {
    "l1": _l1,
    "magnitude": _magnitude,
    "random": _random,
    "slimming": _slimming,
}
