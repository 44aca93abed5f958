from __future__ import annotations

import torch
from torch import nn

import topiarist
from golden import Answers, numbers
from topiarist.measure import collect
from topiarist.methods import make


def row() -> Answers:
    """Three classes with the same weights (3, 1), so that p = 1/3; x = (1, 2), (3, 0), hence mean x^2 = (5, 2).

    Gauss-Newton: h = p (1 - p) mean x^2 = 2/9 (5, 2), and s = h w^2 / 2 = (5, 2/9) for each class.
    Fisher: the slopes are (p - [c = y]) x, squared 4/9 x^2 for the class of the example and 1/9 x^2 for others.
    With y = 0, 1: mean over both (4 + 9, 16) / 18, (1 + 36, 4) / 18, (1 + 9, 4) / 18, times (9, 1) / 2.
    """
    model = nn.Linear(2, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 1.0]]).repeat(3, 1))
    x, y = torch.tensor([[1.0, 2.0], [3.0, 0.0]]).double(), torch.tensor([0, 1])
    graph = topiarist.trace(model, x).weights()
    got = {}
    for curvature in ("gauss_newton", "fisher"):
        method = make("obd", curvature=curvature)
        got[curvature] = method.score(graph, collect(model, graph, [(x, y)], method.needs))["weight"]
    return got, {
        "gauss_newton": numbers(5, 2 / 9).repeat(3),
        "fisher": numbers(13 / 4, 4 / 9, 37 / 4, 1 / 9, 5 / 2, 1 / 9),
    }
