from __future__ import annotations

import torch

import topiarist
from golden import Answers, conv_net, numbers
from topiarist.budget import Budget
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.pruning import choose


def row() -> Answers:
    """Scores |gamma|; penalty 0.1 * (0.5 + 2 + 0), its gradient 0.1 * sign(gamma) with sign(0) = 0."""
    model = conv_net()
    graph = topiarist.trace(model, torch.randn(1, 1, 1, 4))
    method = make("slimming", lam=0.1)
    penalty = method.penalty(model, graph)
    (gradient,) = torch.autograd.grad(penalty, [model[1].weight])
    score = method.score(graph, collect(model, graph))["0"]
    keep = choose(method, graph, collect(model, graph), Budget(ratio=0.67))["0"]
    got = {"score": score, "penalty": penalty.detach().double(), "gradient": gradient.double(), "keep": keep}
    expected = {
        "score": numbers(0.5, 2, 0),
        "penalty": torch.tensor(0.25, dtype=torch.float64),
        "gradient": torch.tensor([0.1, -0.1, 0.0]).double(),
        "keep": torch.tensor([True, True, False]),
    }
    return got, expected
