"""Operators that mix positions mix the kept ones only: means, variances and norms that a network computes by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from networks import Net, conv, distance, images, random_keep, shaken
from topiarist import cut, mask, trace

X, OTHER = images(2), images(3)


def standardised(layer, x, *, correction):
    """Weight standardisation as its paper writes it."""
    w = layer.weight - layer.weight.mean((1, 2, 3), keepdim=True)
    w = w / (w.std((1, 2, 3), keepdim=True, correction=correction) + 1e-5)
    return F.conv2d(x, w, layer.bias, padding=layer.padding)


def attended(net, x):
    """Attention over places from the mean and the largest of all channels."""
    y = net.a(x)
    return net.b(y * (y.mean(1, keepdim=True) + y.amax(1, keepdim=True)).sigmoid())


def convs(**parts):
    return {"a": conv(3, 8), "b": conv(8, 5), "last": conv(5, 4), **parts}


def bare(*sizes):
    return parametrizations.weight_norm(conv(*sizes))


def old(*sizes):
    return torch.nn.utils.weight_norm(conv(*sizes))


V = "parametrizations.weight.original1"
CASES = {
    "root mean square": (
        lambda n, x: n.last(n.b((y := n.a(x)) * torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-6))),
        convs, {"a": 8, "b": 5}),
    "layer norm by hand": (
        lambda n, x: n.last(n.b(
            ((y := n.a(x)) - y.mean(1, True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt())),
        convs, {"a": 8, "b": 5}),
    "division by what is pruned": (
        lambda n, x: n.last(n.b((n.a(x) / n.scale).tanh())),
        lambda: convs(scale=nn.Parameter(torch.rand(8, 1, 1) + 1)), {"a": 8, "b": 5}),
    "division by a negative power": (
        lambda n, x: n.last(n.b((n.a(x) * n.scale.pow(-2)).tanh())),
        lambda: convs(scale=nn.Parameter(torch.rand(8, 1, 1) + 1)), {"a": 8, "b": 5}),
    "mean of a logarithm": (
        lambda n, x: n.last(n.b(n.a(x) * (n.scale.log() * n.a(x)).sum(1, keepdim=True))),
        lambda: convs(scale=nn.Parameter(torch.rand(8, 1, 1) + 1)), {"a": 8, "b": 5}),
    "attention over places": (lambda n, x: n.last(attended(n, x)), convs, {"a": 8, "b": 5}),
    "sum of what is not zero": (
        lambda n, x: n.last(n.b(n.a(x) * n.a(x).exp().sum(1, keepdim=True).log())), convs, {"a": 8, "b": 5}),
    "log of a sum": (lambda n, x: n.last(n.b(n.a(x) - n.a(x).logsumexp(1, keepdim=True))), convs, {"a": 8, "b": 5}),
    "product of what is not zero": (
        lambda n, x: n.last(n.b((n.a(x).exp().flatten(2) @ n.a(x).exp().flatten(2).mT).sum((1, 2)).view(-1, 1, 1, 1)
                                * n.a(x))), convs, {"a": 8, "b": 5}),
    "weight standardisation": (
        lambda n, x: n.last(standardised(n.b, standardised(n.a, x, correction=1).relu(), correction=1).relu()),
        convs, {"a": 8, "b": 5}),
    "weight norm": (
        lambda n, x: n.last(n.b(n.a(x).relu()).relu()), lambda: convs(a=bare(3, 8), b=bare(8, 5)),
        {f"a.{V}": 8, f"b.{V}": 5}),
    "weight norm of old": (
        lambda n, x: n.last(n.b(n.a(x).relu()).relu()), lambda: convs(a=old(3, 8), b=old(8, 5)),
        {"a.weight_v": 8, "b.weight_v": 5}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_cut_is_mask_where_positions_are_mixed_by_hand(name):
    program, parts, groups = CASES[name]
    model = shaken(Net(program, **parts())).double()
    graph = trace(model, X.double())
    assert {group.name: group.units for group in graph.groups} == groups
    for seed in range(6):
        for most in (1, 99):
            keep = random_keep(graph, seed, most)
            masked, smaller = mask(model, graph, keep), cut(model, graph, keep)
            for given in (X.double(), OTHER.double()):
                assert distance(smaller(given), masked(given)) <= 1e-10, (seed, most)


def test_a_mask_takes_the_mean_of_kept_channels():
    """Three channels with the values 1, 2 and 6: without the last the mean is 1.5, and 1.5 · (1 + 2) goes out."""
    first, last = nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [2.0], [6.0]]))
        last.weight.fill_(1)
    model = Net(lambda n, x: n.last((y := n.first(x)) * y.mean(-1, keepdim=True)), first=first, last=last)
    x = torch.ones(1, 1)
    graph = trace(model, x)
    keep = {"first": torch.tensor([True, True, False])}
    for smaller in (mask(model, graph, keep), cut(model, graph, keep)):
        assert smaller(x).item() == 4.5


def test_a_variance_of_a_single_value_is_never_asked_for():
    """An unbiased one over channels alone would be 0 / 0 with one channel, so they are kept; a biased one is 0."""
    for unbiased, groups in ((True, {"b": 5}), (False, {"a": 8, "b": 5})):
        model = Net(lambda n, x, u=unbiased: n.last(n.b(n.a(x) * n.a(x).var(1, u, keepdim=True))), **convs())
        graph = trace(shaken(model), X)
        assert {group.name: group.units for group in graph.groups} == groups


def grouped_sums(net, x, turned=None):
    """Twice the same code, in which a further argument swaps the groups of channels that it adds to."""
    x = net.a(x)
    for _ in range(2):
        y = x.unflatten(1, (2, 4))
        y = y + y.mean(1, keepdim=True)
        x = (y if turned is None else y.flip(1)).flatten(1, 2)
    return net.b(x)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 1, 0, 2), (2, 1, 0, 0)])
def test_an_operator_keeps_what_it_keeps_in_the_run_that_a_call_is_like(order):
    """In whatever order the paths are taken."""
    model = shaken(Net(grouped_sums, **convs())).double()
    x, other = X.double(), OTHER.double()
    graph = trace(model, x, more_inputs=[(x, torch.ones(1))])
    paths = [lambda net: net(x), lambda net: net(other, torch.ones(1)), lambda net: net.train()(other)]
    for seed in range(4):
        keep = random_keep(graph, seed)
        masked, smaller = mask(model, graph, keep), cut(model, graph, keep)
        for k in order:
            assert distance(paths[k](smaller), paths[k](masked)) <= 1e-10
            for net in (masked, smaller):
                net.eval()
