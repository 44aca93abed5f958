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
    """Contributions (1, 1), (2, 1) and (-1, -2) in two examples, their squares 2, 5 and 5.

    The first goes first; with it the second would take (3, 2) away, squared 13, and the third (0, -1), squared 1: so
    the third goes, too. What stays, (2, 1), comes nearest to the sum (2, 0) times 4 / 5: the weight 2 becomes 1.6.
    """
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 1)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[1].weight.copy_(torch.tensor([[1.0, 2.0, -1.0]]))
    x = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.5, 2.0]]).double()
    graph = topiarist.trace(model, x)
    method = make("thinet")
    stats = collect(model, graph, [x], method.needs)
    keep = choose(method, graph, stats, Budget(ratio=1 / 3))
    masked = mask(model, graph, keep)
    method.repair(masked, graph, keep, stats)
    got = {"keep": keep["0"], "weight": masked.get_parameter("1.weight").detach()}
    return got, {"keep": torch.tensor([False, True, False]), "weight": numbers(0, 1.6, 0)[None]}
