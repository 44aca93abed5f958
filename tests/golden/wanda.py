from __future__ import annotations

import torch
from torch import nn

import topiarist
from golden import Answers, numbers
from topiarist.budget import Budget
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.pruning import choose


def row() -> Answers:
    """Two examples, (3, 0, 1) and (4, 2, 0), whose columns have the norms 5, 2 and 1.

    W = ((1, -2, 4), (-1, 0.5, 7)) scores 1 * 5, 2 * 2, 4 * 1 and 1 * 5, 0.5 * 2, 7 * 1.
    V = ((1, -3, 2), (9, 8, 7)) scores 5, 6, 2 and 45, 16, 7: two in each row, though 5 is less than 7.
    Of V's three weights one is for each row, and the third for the row whose next scores more: 16 against 5.
    """
    x = torch.tensor([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]])
    got, expected = {}, {}
    for name, rows, scores in (
        ("W", [[1.0, -2.0, 4.0], [-1.0, 0.5, 7.0]], (5, 4, 4, 5, 1, 7)),
        ("V", [[1.0, -3.0, 2.0], [9.0, 8.0, 7.0]], (5, 6, 2, 45, 16, 7)),
    ):
        model = nn.Linear(3, 2)
        with torch.no_grad():
            model.weight.copy_(torch.tensor(rows))
        graph = topiarist.trace(model, x).weights()
        stats = collect(model, graph, [x], make("wanda").needs)
        got[name] = make("wanda").score(graph, stats)["weight"]
        expected[name] = numbers(*scores)
    for count, kept in ((4, (1, 1, 0, 1, 1, 0)), (3, (0, 1, 0, 1, 1, 0))):
        got[f"{count} of V"] = choose(make("wanda"), graph, stats, Budget(ratio=count / 6))["weight"]
        expected[f"{count} of V"] = torch.tensor(kept, dtype=torch.bool)
    return got, expected
