from __future__ import annotations

import torch
from torch import nn

import topiarist
from golden import Answers, numbers
from topiarist.measure import collect
from topiarist.methods import make


def row() -> Answers:
    """h = W x, out = v h, loss (out - y)^2 / 2: the slope of W_ij is (out - y) v_i x_j, that of v_i (out - y) h_i.

    x = (1, 2): h = (1 * 1 - 1 * 2, 2 * 2) = (-1, 4), out = -3 + 4 = 1, y = 2, slope of the output -1.
    x = (3, 0): h = (3, 0), out = 9, y = 6, slope 3.
    dW summed: first row 3 (-1 * (1, 2) + 3 * (3, 0)) = (24, -6), second row (8, -2).
    dv summed: -1 * (-1, 4) + 3 * (3, 0) = (10, -4).
    |g w|: (24 * 1, 6 * 1), (8 * 0, 2 * 2), (10 * 3, 4 * 1); their sum is 68.
    """
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 2.0]]))
        model[1].weight.copy_(torch.tensor([[3.0, 1.0]]))
        model[1].bias.zero_()
    x, y = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[2.0], [6.0]])
    graph = topiarist.trace(model, x).weights()
    stats = collect(model, graph, [(x, y)], make("snip").needs, loss=lambda out, y: ((out - y) ** 2 / 2).mean())
    return make("snip").score(graph, stats), {"0.weight": numbers(24, 6, 0, 4) / 68, "1.weight": numbers(30, 4) / 68}
