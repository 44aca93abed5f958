from __future__ import annotations

import torch
from torch import nn

import topiarist
from golden import Answers
from topiarist.budget import Budget
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.pruning import choose


def row() -> Answers:
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
