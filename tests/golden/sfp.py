from __future__ import annotations

import torch

import topiarist
from golden import Answers, conv_net, numbers
from topiarist.measure import collect
from topiarist.methods import make


def row() -> Answers:
    """Norms 5, sqrt 2, 6: of three filters int(3 * 0.4) = 1 becomes zero, int(3 * 0.7) = 2, and never all."""
    model = conv_net()
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    graph = topiarist.trace(model, torch.randn(1, 1, 1, 4))
    got, expected = {"score": make("sfp").score(graph, collect(model, graph))["0"]}, {"score": numbers(5, 2**0.5, 6)}
    left = {0.7: [], 0.6: [1], 0.3: [0, 1], 0.01: [0, 1]}
    for rate, zeroed in left.items():
        make("sfp", rate=rate).soften(model, graph, 0, 1)
        got[f"filters at {rate}"] = model[0].weight.detach().flatten(1).double()
        got[f"biases at {rate}"] = model[0].bias.detach().double()
        filters, biases = torch.tensor([[3.0, -4.0], [-1.0, 1.0], [0.0, 6.0]]), torch.tensor([1.0, 2.0, 3.0])
        filters[zeroed], biases[zeroed] = 0, 0
        expected |= {f"filters at {rate}": filters.double(), f"biases at {rate}": biases.double()}
    got["scales"], expected["scales"] = model[1].weight.detach().double(), numbers(0.5, -2, 0)
    return got, expected
