from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

import topiarist
from golden import Answers, numbers
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.train import attach


def row() -> Answers:
    """A gate is closed where ``u`` is below ``1 / (1 + 11^(2/3) alpha)``: ``1 / (1 + k)``, as set here.

    So ``P(z > 0) = k / (1 + k)``: 1/4, 1/2, 3/4 for k = 1/3, 1, 3. A unit of 2-3-2 has 2 + 1 + 2 = 5 parameters, so
    that with lam = 8 and N = 20 the penalty is ``8 / 20 * 5 * 3/2 = 3``. The gate in evaluation is
    ``alpha / (1 + alpha)``, stretched by 1.2 and moved by -0.1.

    By brute force: the expected number of parameters behind open gates is the sum over all eight patterns of gates of
    their number times the pattern's probability. In 2-3-2-2 the weights between two gated layers count once, behind
    the gates of what they read: 3 + 2 parameters of each unit of the first layer, 1 + 2 of each of the second.
    """
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 5.0]]))
    graph = topiarist.trace(model, torch.zeros(1, 2, dtype=torch.float64))
    method = make("l0", lam=8.0, examples=20)
    alpha = torch.tensor([1 / 3, 1, 3], dtype=torch.float64) / 11 ** (2 / 3)
    chance = numbers(0.25, 0.5, 0.75)
    deep = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    deep_graph = topiarist.trace(deep, torch.zeros(1, 2, dtype=torch.float64))
    with attach(method, deep, torch.optim.SGD(deep.parameters(), lr=0.1), deep_graph), torch.no_grad():
        deep.l0_gates.log_alpha.copy_(alpha[[0, 1, 2, 2, 0]].log())
        deep_penalty = method.penalty(deep, deep_graph)
    with attach(method, model, torch.optim.SGD(model.parameters(), lr=0.1), graph), torch.no_grad():
        model.l0_gates.log_alpha.copy_(alpha.log())
        penalty = method.penalty(model, graph)
    gate = (1.2 * alpha / (1 + alpha) - 0.1).clamp(0, 1)
    got = {
        "penalty": penalty,
        "brute": penalty,
        "between two gated layers": deep_penalty,
        "score": method.score(graph, collect(model, graph))["0"],
        "weights": model[2].weight.detach(),
        "keep": method.select(graph, collect(model, graph), None)["0"].double(),
    }
    expected = {
        "penalty": torch.tensor(3.0),
        "brute": 8 / 20 * expected_number(chance, [5, 5, 5]),
        "between two gated layers": 8 / 20 * expected_number(chance[[0, 1, 2, 2, 0]], [5, 5, 5, 3, 3]),
        "score": torch.where(gate > 0, chance, torch.zeros(3, dtype=torch.float64)),
        "weights": torch.stack([numbers(1, 2, 4) * gate, numbers(3, 0, 5) * gate]),
        "keep": numbers(0, 1, 1),
    }
    return got, expected


def expected_number(chance: Tensor, parameters: list[int]) -> Tensor:
    """The number of parameters behind open gates, over all patterns of independent gates."""
    total = torch.tensor(0.0, dtype=torch.float64)
    for pattern in itertools.product((0, 1), repeat=len(parameters)):
        probability = torch.where(torch.tensor(pattern) == 1, chance, 1 - chance).prod()
        total += probability * sum(n for n, is_open in zip(parameters, pattern, strict=True) if is_open)
    return total
