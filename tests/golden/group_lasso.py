from __future__ import annotations

import torch

import topiarist
from golden import Answers, conv_net, numbers
from topiarist.measure import collect
from topiarist.methods import make


def row() -> Answers:
    """Filters (3, -4), (-1, 1), (0, 6) of norms 5, sqrt 2, 6; the head reads the three units by (3, 4), (0, 0), (0, 2).

    The proximal step has lr * lam = 2. Its groups are the filters with their biases (0, 0), (0, 1), (8, 0): P = 3,
    norms 5, sqrt 3, 10. The step shortens each by 2 sqrt 3, which is more than sqrt 3.
    """
    model = conv_net()
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.0, 1.0, 8.0]))
        model[5].weight.copy_(torch.tensor([[3.0, 0.0, 0.0], [4.0, 0.0, 2.0]]))
    graph = topiarist.trace(model, torch.randn(1, 1, 1, 4))
    got, expected = {}, {}
    sums = {"filter": 11 + 2**0.5, "channel": 7, "both": 18 + 2**0.5, "unit": 11 + 2**0.5, "column": 7}
    for kind, total in sums.items():
        got[kind] = make("group_lasso", lam=0.1, kind=kind).penalty(model, graph).detach()
        expected[kind] = numbers(0.1 * total)[0]
    (gradient,) = torch.autograd.grad(make("group_lasso", lam=0.1).penalty(model, graph), [model[0].weight])
    (reading,) = torch.autograd.grad(
        make("group_lasso", lam=0.1, kind="channel").penalty(model, graph), [model[5].weight]
    )
    got |= {"gradient": gradient.flatten(1).double(), "gradient of channels": reading.double()}
    half = 0.1 / 2**0.5
    expected["gradient"] = torch.tensor([[0.06, -0.08], [-half, half], [0.0, 0.1]]).double()
    expected["gradient of channels"] = torch.tensor([[0.06, 0.0, 0.0], [0.08, 0.0, 0.1]]).double()
    stats = collect(model, graph)
    got["score"] = make("group_lasso").score(graph, stats)["0"]
    got["score of channels"] = make("group_lasso", kind="channel").score(graph, stats)["0"]
    expected |= {"score": numbers(5, 2**0.5, 6), "score of channels": numbers(5, 0, 2)}
    make("group_lasso", lam=4.0, solver="proximal").proximal(model, graph, 0.5)
    got |= {"proximal": model[0].weight.detach().flatten(1).double(), "biases": model[0].bias.detach().double()}
    one, two = 1 - 2 * 3**0.5 / 5, 1 - 2 * 3**0.5 / 10
    expected["proximal"] = torch.tensor([[3 * one, -4 * one], [0.0, 0.0], [0.0, 6 * two]]).double()
    expected["biases"] = numbers(0, 0, 8 * two)
    return got, expected
