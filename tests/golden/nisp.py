from __future__ import annotations

import torch
from torch import nn

import topiarist
from golden import Answers, numbers
from topiarist.measure import collect
from topiarist.methods import make


def row() -> Answers:
    """Hidden responses (2, 3, 0) and (0, 2, 4) have variances s = (1, 1/4, 4); pooled places get |W|^T s.

    That is (9, 1/4) for the first channel and (1/4, 5) for the second. Inf-FS: deviations (1/2, 1/4, 1) of the largest,
    all correlations +-1, so A_ij = max / 2; its paths are added up one length after the other.
    """
    model = nn.Sequential(
        nn.Conv1d(1, 2, 1), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)
    ).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1))
        model[4].weight.copy_(torch.tensor([[1.0, 0, 0, -1], [0, 1, 1, 0], [-2, 0, 0, 1]]))
    x = torch.tensor([[[1.0, 2, 3, 0]], [[-1, -1, 0, -2]]]).double()
    graph = topiarist.trace(model, x)
    stats = collect(model, graph, [x])
    got = {
        f"{how} {name}": s
        for how in ("variance", "inf-fs")
        for name, s in make("nisp", ranking=how).score(graph, stats).items()
    }

    energy = numbers(0.25, 0.25, 0.5, 0.25, 0.125, 0.5, 0.5, 0.5, 0.5).view(3, 3)
    step = 0.9 * energy / max(abs(value.real) for value in torch.linalg.eigvals(energy).tolist())
    paths, longer = torch.zeros(3, 3).double(), torch.eye(3).double()
    for _ in range(1000):
        longer = longer @ step
        paths = paths + longer
    a, b, c = paths.sum(1).tolist()
    expected = {
        "variance 0": numbers(9.25, 5.25),
        "variance 4": numbers(1, 0.25, 4),
        "inf-fs 0": numbers((a + 2 * c) + b, b + (a + c)),
        "inf-fs 4": numbers(a, b, c),
    }
    return got, expected
