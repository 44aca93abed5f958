from __future__ import annotations

import torch

import topiarist
from golden import Answers, conv_net, numbers
from topiarist.measure import collect
from topiarist.methods import make


def row() -> Answers:
    """Filters (3, -4), (-1, 1), (0, 6) lie sqrt(16 + 25), sqrt(9 + 100) and sqrt(1 + 25) apart."""
    model = conv_net()
    graph = topiarist.trace(model, torch.randn(1, 1, 1, 4))
    scores = make("fpgm").score(graph, collect(model, graph))
    first, second, third = 41**0.5, 109**0.5, 26**0.5  # of 0 and 1, 0 and 2, 1 and 2
    return scores, {"0": numbers(first + second, first + third, second + third)}
