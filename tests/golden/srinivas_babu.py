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
    """Three neurons: W = (3, 4), (0, 2), (4, 3), no bias, read by a = 2, 4, -1.

    Normalised: (.6, .8), (0, 1), (.8, .6), with alpha 5, 2, 5, so a = 10, 8, -5.
    e^2: 1 and 2 (.36 + .04) / (.36 + 3.24) = 1/9; 1 and 3 .08 / 3.92 = 1/49; 2 and 3 .8 / 3.2 = 1/4.
    The third costs least: 25 / 49 into the first, whose a is 10 - 5 = 5. Then the first costs 25 / 9 and the second
    64 / 9: the first goes into the second, a = 8 + 5 = 13. In the network's numbers: 2 - 1 = 1, and 13 / 2 = 6.5.

    As they are: |W_i - W_j|^2 is 13, 2 and 17; the third goes into the first for 1 * 2, which makes it 2 - 1 = 1; then
    the first costs 1 * 13 and the second 16 * 13: 4 + 1 = 5.
    """
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 2.0], [4.0, 3.0]]))
        model[2].weight.copy_(torch.tensor([[2.0, 4.0, -1.0]]))
    graph = topiarist.trace(model, torch.ones(1, 2).double())
    stats = collect(model, graph)
    got, expected = {}, {}
    for normalised, left, values in (
        (True, 2, (1, 4, 0)),
        (True, 1, (0, 6.5, 0)),
        (False, 2, (1, 4, 0)),
        (False, 1, (0, 5, 0)),
    ):
        method = make("srinivas_babu", normalised=normalised)
        keep = choose(method, graph, stats, Budget(ratio=left / 3))
        masked = mask(model, graph, keep)
        method.repair(masked, graph, keep, stats)
        key = f"{left} normalised {normalised}"
        got[key], expected[key] = masked.get_parameter("2.weight").detach()[0], numbers(*values)
        got[f"keep {key}"], expected[f"keep {key}"] = keep["0"], numbers(*values) != 0
    return got, expected
