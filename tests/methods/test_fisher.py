"""What the paper on Fisher pruning promises, beside the golden row."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import topiarist
from networks import Net
from topiarist.errors import TopiaristError
from topiarist.measure import collect
from topiarist.methods import make

X = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(1)).double()
Y = torch.arange(8) % 3


def parts():
    torch.manual_seed(0)
    return {"conv": nn.Conv2d(2, 5, 3), "conv2": nn.Conv2d(5, 4, 2), "head": nn.Linear(16, 3)}


def network(rectify, **more):
    """Two convolutions and a flattened head."""
    model = Net(
        lambda net, x: net.head(rectify(net, net.conv2(rectify(net, net.conv(x)))).flatten(1)), **parts(), **more
    )
    return model.double().eval()


def function(net, x):
    return x.relu()


def module(net, x):
    return (net.act if x.shape[1] == 5 else net.act2)(x)


def scores(model, x=X, y=Y):
    graph = topiarist.trace(model, x[:1])
    return make("fisher").score(graph, collect(model, graph, [(x, y)], make("fisher").needs))


def masked(model, x, m):
    """The network's output with a factor on each channel of both convolutions."""
    first = model.conv(x).relu() * m[:5, None, None]
    return model.head((model.conv2(first).relu() * m[5:, None, None]).flatten(1))


def test_scores_are_slopes_by_a_factor_on_the_unit():
    model = network(function)
    m = torch.ones(9, dtype=torch.float64)
    slopes = [
        torch.autograd.functional.jacobian(lambda m, x=x, y=y: cross_entropy(masked(model, x, m), y), m)
        for x, y in zip(X.split(1), Y.split(1), strict=True)
    ]
    expected = torch.stack(slopes).square().mean(0) / 2
    got = scores(model)
    torch.testing.assert_close(torch.cat([got["conv"], got["conv2"]]), expected)


def test_scores_are_the_same_before_a_relu_and_after_it():
    before, after = scores(network(function)), scores(network(module, act=nn.ReLU(), act2=nn.ReLU(inplace=True)))
    assert set(before) == set(after) == {"conv", "conv2"}
    for name in before:
        torch.testing.assert_close(before[name], after[name])


def test_scores_are_the_second_order_term_where_the_model_is_true():
    # One input four times, with classes as often as the model says: (1/4, 1/4, 1/2). Slopes average to nothing, and
    # ReLUs make the outputs piecewise linear in each factor, so that the curvature is the Fisher information exactly.
    model = network(function)
    x, y = X[:1].repeat(4, 1, 1, 1), torch.tensor([0, 1, 2, 2])
    with torch.no_grad():
        model.head.bias += torch.tensor([1.0, 1.0, 2.0]).log() - model(X[:1])[0]
    m = torch.ones(9, dtype=torch.float64)

    def loss(m):
        return cross_entropy(masked(model, x, m), y)

    slopes = torch.autograd.functional.jacobian(loss, m)
    curvature = torch.autograd.functional.hessian(loss, m).diagonal()
    torch.testing.assert_close(slopes, torch.zeros(9).double())
    got = scores(model, x, y)
    torch.testing.assert_close(torch.cat([got["conv"], got["conv2"]]), curvature / 2)


def test_a_price_of_multiply_accumulates_is_taken_off():
    """By hand: a map of the first layer costs 9 x (2 x 9) for its filter and 4 x (4 x 4) where it is read."""
    model = network(function)
    graph = topiarist.trace(model, X[:1])
    stats = collect(model, graph, [(X, Y)], make("fisher").needs)
    plain, priced = (make("fisher", beta=beta).score(graph, stats) for beta in (0.0, 1e-3))
    for name, macs in (("conv", 9 * 18 + 4 * 16), ("conv2", 4 * 20 + 4 * 3)):
        torch.testing.assert_close(priced[name], plain[name] - 1e-3 * macs)
    with pytest.raises(TopiaristError, match="beta must be a number from 0 on"):
        make("fisher", beta=-1.0)


def test_units_that_nothing_hears_are_worth_nothing():
    model = network(function)
    with torch.no_grad():
        model.conv.bias[1] = -100  # never fires
        model.conv2.weight[:, 3] = 0  # never read
    got = scores(model)["conv"]
    assert got[[1, 3]].tolist() == [0, 0]
    assert (got[[0, 2, 4]] > 0).all()


def test_frozen_networks_are_scored_alike():
    model = network(function)
    before = scores(model)["conv"]
    torch.testing.assert_close(scores(model.requires_grad_(False))["conv"], before)


def test_data_without_targets_and_graphs_not_measured_are_refused():
    model = network(function)
    graph = topiarist.trace(model, X[:1])
    with pytest.raises(TopiaristError, match="gradients need targets"):
        collect(model, graph, [X], make("fisher").needs)
    with pytest.raises(TopiaristError, match="fisher has no gradients"):
        make("fisher").score(graph, collect(model, graph))
