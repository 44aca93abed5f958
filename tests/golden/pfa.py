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
    """Four units 5 + (2a, b, a + b, 0) for the four signs of a and b.

    Variances 4, 1, 2, 0; |r| is 1 / sqrt(2) between the third and the first two, else 0. So the constant unit goes
    first, then the third (its sum is the largest), then the second, of smaller variance than the first.
    The eigenvalues solve l^2 - 7 l + 9 = 0: p is 0.7575, 0.2425, 0, 0. KL = 0.8323, of log 4 = 1.3863 the
    fraction 0.6004: ceil(4 * 0.3996) = 2 units. A single direction holds 0.7 of the energy, two hold 0.8.
    """
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]))
        model[0].bias.fill_(5.0)
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    graph = topiarist.trace(model, x)
    stats = collect(model, graph, [x], make("pfa").needs)
    got = {
        "KL": choose(make("pfa"), graph, stats),
        "En(0.7)": choose(make("pfa", tau=0.7), graph, stats),
        "En(0.8)": choose(make("pfa", tau=0.8), graph, stats),
        "three": choose(make("pfa"), graph, stats, Budget(ratio=0.75)),
        "two": choose(make("pfa"), graph, stats, Budget(ratio=0.5)),
        "one": choose(make("pfa"), graph, stats, Budget(ratio=0.25)),
    }
    expected = {
        "KL": (1, 1, 0, 0),
        "En(0.7)": (1, 0, 0, 0),
        "En(0.8)": (1, 1, 0, 0),
        "three": (1, 1, 1, 0),
        "two": (1, 1, 0, 0),
        "one": (1, 0, 0, 0),
    }
    return {name: keep["0"] for name, keep in got.items()}, {
        name: torch.tensor(row, dtype=torch.bool) for name, row in expected.items()
    }
