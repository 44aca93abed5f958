from __future__ import annotations

import itertools
import math

import torch
from torch import nn

import topiarist
from golden import Answers, numbers
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.train import attach


def row() -> Answers:
    """``KL = k1 / (1 + exp(k2) alpha^k3) + log(1 + 1 / alpha) / 2``, whose last part is ``log 2`` times 1/2, 1, 2, 3.

    That is for alpha = 1, 1/3, 1/15, 1/63; with N = 10 and half of the warm-up done the penalty is ``KL / 20``.

    By brute force: a sum of independent weights has the same mean and variance whatever their distribution, so that of
    the sixteen networks with ``theta + sigma`` or ``theta - sigma`` for each weight. What the method draws is
    ``m + s e``, and two draws with known ``e`` tell ``m`` and ``s``, whose square has 1e-8 added.
    """
    model = nn.Sequential(nn.Linear(2, 2)).double()
    theta = torch.tensor([[1.0, -2.0], [0.5, 4.0]], dtype=torch.float64)
    alpha = torch.tensor([[1.0, 1 / 3], [1 / 15, 1 / 63]], dtype=torch.float64)
    x = numbers(3, -1).unsqueeze(0)
    with torch.no_grad():
        model[0].weight.copy_(theta)
    graph = topiarist.trace(model, x)
    # From the start on a quarter of the eight steps, and after six all of it: a half after four.
    method = make("vardrop", examples=10, steps=8, warmup=(0.25, 0.75), threshold=-1.0)
    with attach(method, model, torch.optim.SGD(model.parameters(), lr=0.1), graph), torch.no_grad():
        noise = model.vardrop_noise
        noise.log_sigma2[0].copy_(alpha.log() + (theta.square() + 1e-8).log())
        noise.done.fill_(4)
        penalty = method.penalty(model, graph)
        draws, known = [], []
        for seed in (0, 1):
            torch.manual_seed(seed)
            draws.append(model.train()(x)[0])
            torch.manual_seed(seed)
            known.append(torch.randn(1, 2, dtype=torch.float64)[0])
        spread = (draws[0] - draws[1]) / (known[0] - known[1])
        seen = model.eval()(x)[0]
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=4)), dtype=torch.float64).view(-1, 2, 2)
    outputs = (theta + signs * alpha.sqrt() * theta) @ x[0] + model[0].bias.detach()
    divergence = sum(
        0.63576 / (1 + math.exp(1.87320) * a**1.48695) + n * math.log(2)
        for a, n in ((1, 0.5), (1 / 3, 1), (1 / 15, 2), (1 / 63, 3))
    )
    stats = collect(model, graph.weights())
    got = {
        "penalty": penalty,
        "mean": draws[0] - spread * known[0],
        "variance": spread.square() - 1e-8,
        "score": method.score(graph, stats)["0.weight"][1:],
        "weights": model[0].weight.detach(),
        "evaluated": seen,
        "keep": method.select(graph, stats, None)["0.weight"].double(),
    }
    kept = theta * (alpha < math.exp(-1))  # all but the first
    expected = {
        "penalty": numbers(divergence / 20)[0],
        "mean": outputs.mean(0),
        "variance": outputs.var(0, correction=0),
        "score": numbers(math.log(3), math.log(15), math.log(63)),
        "weights": kept,
        "evaluated": kept @ x[0] + model[0].bias.detach(),
        "keep": numbers(0, 1, 1, 1),
    }
    return got, expected
