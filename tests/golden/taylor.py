from __future__ import annotations

import torch
from torch import nn

import topiarist
from golden import Answers, numbers
from topiarist.measure import collect
from topiarist.methods import make


def row() -> Answers:
    """Two channels on two places under a loss linear in them, so that dL/dz is the head's weight.

    Channel 0: z is (1, 2) and (3, 0), dL/dz is (1, -1): |1 - 2| / 2 = 0.5 and 3 / 2 = 1.5, on average 1.
    Channel 1: z is (0, 0) and (0, 2), dL/dz is (5, 3): 0 and 6 / 2 = 3, on average 1.5. The norm is sqrt(3.25).
    """
    model = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1))
        model[3].weight.copy_(torch.tensor([[1.0, -1.0, 5.0, 3.0]]))
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]]).view(2, 1, 2)
    graph = topiarist.trace(model, x)
    needs = make("taylor").needs
    stats = collect(model, graph, [(x, x)], needs, loss=lambda output, target: output.mean())
    got = {f"lam={lam}": make("taylor", lam=lam).score(graph, stats)["0"] for lam in (0.0, 0.25)}
    theta = numbers(1, 1.5) / 3.25**0.5
    return got, {"lam=0.0": theta, "lam=0.25": theta - 0.25}  # one group alone: Theta_flops is 1
