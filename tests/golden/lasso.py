from __future__ import annotations

import torch
from torch import nn

import topiarist
from golden import Answers, numbers
from topiarist.budget import Budget
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.methods.lasso import Path
from topiarist.pruning import choose
from topiarist.surgery import mask


def row() -> Answers:
    """Three units that read (2, 0), (0, 3) and (1, 1) in two examples, with weights 2, 1 and 1: y = (5, 4).

    Z^T Z = ((16, 0, 4), (0, 9, 3), (4, 3, 2)) and Z^T y = (20, 12, 9), both over m = 2. At lam = 3 the third is out:
    beta_1 = (20 - 2 * 3) / 16 = 7/8 and beta_2 = (12 - 2 * 3) / 9 = 2/3, and what is left pulls it by (9 - 4 * 7/8 -
    3 * 2/3) / 2 = 7/4 < 3. So the first two stay, and least squares finds y = 5/2 * (2, 0) + 4/3 * (0, 3).
    """
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]))
        model[1].weight.copy_(torch.tensor([[2.0, 1.0, 1.0]]))
    x = torch.eye(2).double()
    graph = topiarist.trace(model, x)
    method = make("lasso", ridge=1e-12)
    stats = collect(model, graph, [x], method.needs)
    keep = choose(method, graph, stats, Budget(ratio=2 / 3))
    masked = mask(model, graph, keep)
    method.repair(masked, graph, keep, stats)
    z = torch.tensor([[4.0, 0.0, 1.0], [0.0, 3.0, 1.0]]).double()
    path = Path(z.T @ z / 2, z.T @ numbers(5, 4) / 2)
    got = {
        "beta": torch.from_numpy(path.at(3.0)),
        "keep": keep["0"],
        "weight": masked.get_parameter("1.weight").detach(),
    }
    return got, {
        "beta": numbers(7 / 8, 2 / 3, 0),
        "keep": torch.tensor([True, True, False]),
        "weight": numbers(5 / 2, 4 / 3, 0)[None],
    }
