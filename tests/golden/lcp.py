from __future__ import annotations

from itertools import product

import torch
from torch import nn

import topiarist
from golden import Answers
from topiarist.budget import Budget
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.pruning import choose
from topiarist.surgery import mask


def tiny(seed: int = 8) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """Three layers of four units whose norms cannot be compared, and examples with the answers of the whole network."""
    chance = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(4, 4) for _ in range(3)] + [nn.Linear(4, 3)]
    model = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1]).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=chance))
        for layer, scale in zip(layers[:3], (1.0, 2.0, 0.5), strict=True):
            layer.weight *= scale
    x = torch.randn(40, 4, generator=chance).double()
    return model, x, model(x).argmax(1)


def best(graph: topiarist.Graph, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """By brute force: shifts decide how many units each layer keeps, norms which; of all ways to keep six, the best."""
    ways = []
    for widths in product(range(1, 5), repeat=3):
        if sum(widths) == 6:
            keep = {}
            for group, width in zip(graph.groups, widths, strict=True):
                norms = model.get_parameter(f"{group.name}.weight").detach().norm(dim=1)
                keep[group.name] = norms >= norms.sort(descending=True).values[width - 1]
            output = mask(model, graph, keep)(x)
            ways.append(((output.argmax(1) == y).sum(), -nn.functional.cross_entropy(output, y), keep))
    return max(ways, key=lambda way: way[:2])[2]


def row() -> Answers:
    """The best of the ten ways to keep six of twelve units, one in each layer at least."""
    model, x, y = tiny()
    graph = topiarist.trace(model, x[:1])
    method = make("lcp")
    keep = choose(method, graph, collect(model, graph, [(x, y)], method.needs), Budget(ratio=0.5))
    return keep, best(graph, model, x, y)
