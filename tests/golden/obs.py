from __future__ import annotations

import torch
from torch import nn

import topiarist
from golden import Answers, numbers
from topiarist.budget import Budget
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.pruning import choose
from topiarist.surgery import mask


def row() -> Answers:
    """Rows x = (2, 0, 0), (2, 2, 0), (0, 0, 2), (0, 0, 0): H = mean x x^T = [[2, 1, 0], [1, 1, 0], [0, 0, 1]].

    H^-1 = [[1, -1, 0], [-1, 2, 0], [0, 0, 1]], and the weights (2, 2, 1.5) cost 4/2, 4/4, 2.25/2: the second goes,
    which is not the smallest, and -2/2 (-1, 2, 0) makes the first 3. Without row and column two
    H^-1 = [[1/2, 0], [0, 1]], and costs are 9/1 and 2.25/2: the third goes, too, and changes nothing.
    """
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 2.0, 1.5]]))
    x = torch.tensor([[2.0, 0.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]).double()
    graph = topiarist.trace(model, x).weights()
    method = make("obs", damping=0.0)
    stats = collect(model, graph, [x], method.needs)
    got = {}
    for name, ratio in (("two stay", 2 / 3), ("one stays", 1 / 3)):
        keep = choose(method, graph, stats, Budget(ratio=ratio))
        masked = mask(model, graph, keep)
        method.repair(masked, graph, keep, stats)
        got[name] = masked.weight.detach()[0]
    return got, {"two stay": numbers(3, 0, 1.5), "one stays": numbers(3, 0, 0)}
