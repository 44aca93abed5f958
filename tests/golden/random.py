from __future__ import annotations

import torch

import topiarist
from golden import Answers, conv_net
from topiarist.measure import collect
from topiarist.methods import make


def row() -> Answers:
    """The seed and the group's name alone decide: crc32(b"7:0") = 3709191378."""
    model = conv_net()
    graph = topiarist.trace(model, torch.randn(1, 1, 1, 4))
    scores = make("random", seed=7).score(graph, collect(model, graph))
    return scores, {"0": torch.rand(3, generator=torch.Generator().manual_seed(3709191378))}
