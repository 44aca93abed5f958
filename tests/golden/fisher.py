from __future__ import annotations

import torch
from torch import nn

import topiarist
from golden import Answers, numbers
from topiarist.measure import collect
from topiarist.methods import make


def row() -> Answers:
    """A filter copies, one negates: z = ReLU(x), ReLU(-x) at two places, a head that adds w z, loss (out - y)^2 / 2.

    x = (1, 2): z = (1, 2), (0, 0); out = 2 * 1 + 1 * 2 = 4; y = 3, slope of the output 1; dL/dm = 1 * 4, 0.
    x = (3, -1): z = (3, 0), (0, 1); out = 2 * 3 - 3 * 1 = 3; y = 1, slope 2; dL/dm = 2 * 6, 2 * -3.
    Scores (16 + 144) / 4 and (0 + 36) / 4. A unit costs 2 products of its filter and 2 of the head: at a price of 2
    for each, both are worth 8 less.
    """
    model = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1))
        model[3].weight.copy_(torch.tensor([[2.0, 1.0, 5.0, -3.0]]))
    x, y = torch.tensor([[[1.0, 2.0]], [[3.0, -1.0]]]), torch.tensor([[3.0], [1.0]])
    graph = topiarist.trace(model, x)
    stats = collect(model, graph, [(x, y)], make("fisher").needs, loss=lambda out, y: ((out - y) ** 2 / 2).mean())
    priced = make("fisher", beta=2.0).score(graph, stats)["0"]
    return {**make("fisher").score(graph, stats), "priced": priced}, {"0": numbers(40, 9), "priced": numbers(32, 1)}
