from __future__ import annotations

import torch
from torch import nn

import topiarist
from golden import Answers, numbers
from networks import Net
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.train import attach


def row() -> Answers:
    """``x + lambda F(x)`` with ``F(x) = x`` at ``x = 1``: the loss ``(1 + lambda - 0.75)^2 / 2`` has its least at -1/4.

    So ``g = lambda + 1/4``. With rate 1/2, gamma 1/2 and momentum 1/2, ``S`` takes off 1/4:

    | lambda | g | lambda - g / 2 | z | v | z + v / 2 |
    |---|---|---|---|---|---|
    | 1 | 5/4 | 3/8 | 1/8 | -7/8 | -5/16, clamped to 0 |
    | 0 | 1/4 | -1/8 | 0 | -7/16 | -7/32, clamped to 0 |

    From 1 with the target 2.25, ``g = lambda - 5/4``: z = 1 + 1/8 - 1/4 = 7/8, v = -1/8, lambda = 13/16; then
    g = -7/16, z = 13/16 + 7/32 - 1/4 = 25/32, v = 25/32 - 13/16 - 1/16 = -3/32, lambda = 47/64.
    """
    got, expected = {}, {}
    for target, hand in ((0.75, ((0, -7 / 8), (0, -7 / 16))), (2.25, ((13 / 16, -1 / 8), (47 / 64, -3 / 32)))):
        model = Net(lambda n, x: x + n.f(x), f=nn.Linear(1, 1, bias=False)).double()
        nn.init.ones_(model.f.weight)
        x = torch.ones(1, 1, dtype=torch.float64)
        method = make("sss", gamma=0.5, momentum=0.5)
        graph = method.units(topiarist.trace(model, x))
        still = [{"params": [torch.nn.Parameter(torch.ones(1))]}, {"params": [model.f.weight], "lr": 0.0}]
        optimizer = torch.optim.SGD(still, lr=0.5, momentum=0.9)
        with attach(method, model, optimizer, graph):
            for step, (scale, velocity) in enumerate(hand):
                optimizer.zero_grad()
                (0.5 * (model(x) - target).square().sum()).backward()
                optimizer.step()
                key = f"target {target}, step {step}"
                got[key] = torch.stack([model.sss.scales[0].detach(), model.sss.velocity[0]])
                expected[key] = numbers(scale, velocity)
        got[f"score, target {target}"] = method.score(graph, collect(model, graph))["blocks"]
        expected[f"score, target {target}"] = numbers(hand[-1][0])
    return got, expected
