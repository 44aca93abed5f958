from __future__ import annotations

import torch
from torch import nn

import topiarist
from golden import Answers, numbers
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.pruning import choose


def row() -> Answers:
    """Four filters see (1, -2, 3, 0) in two examples: copied, negated, lowered by 2, and never positive."""
    model = nn.Sequential(nn.Conv1d(1, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0, 1.0, 0.0]).view(4, 1, 1))
        model[0].bias.copy_(torch.tensor([0.0, 0.0, -2.0, -1.0]))
    x = torch.tensor([[[1.0, -2.0]], [[3.0, 0.0]]])
    graph = topiarist.trace(model, x)
    stats = collect(model, graph, [x], make("apoz").needs)
    # positive: 1 and 3; 2 (of -2); 1 (of 3); none. APoZ .5 .75 .75 1: mean .75, deviation sqrt(.125 / 4) = .177
    got = {
        "fires": make("apoz").score(graph, stats)["0"],
        "rule": choose(make("apoz", deviations=1), graph, stats)["0"],
    }
    return got, {"fires": numbers(0.5, 0.25, 0.25, 0), "rule": torch.tensor([True, True, True, False])}
