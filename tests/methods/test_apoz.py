"""What the paper on network trimming promises, beside the golden row."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import topiarist
from networks import Net
from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.pruning import choose

X = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(1)).double()


def network(act=None):
    """Two convolutions and a flattened head, with ReLU functions or activation modules."""
    torch.manual_seed(0)
    parts = {} if act is None else {"act": act, "act2": act.__class__()}

    def run(net, x):
        first = net.conv(x).relu() if act is None else net.act(net.conv(x))
        second = net.norm(net.conv2(first))
        second = second.relu() if act is None else net.act2(second)
        return net.head(second.flatten(1))

    model = Net(
        run, conv=nn.Conv2d(2, 5, 3), conv2=nn.Conv2d(5, 4, 2), norm=nn.BatchNorm2d(4), head=nn.Linear(16, 3), **parts
    )  # fmt: skip
    return model.double().eval()


def measured(model):
    graph = topiarist.trace(model, X[:1])
    return graph, collect(model, graph, [X], make("apoz").needs)


def test_zeros_are_counted_after_the_relu_whether_it_is_a_module_or_a_function():
    scores = [make("apoz").score(*measured(network(act))) for act in (None, nn.ReLU(), nn.ReLU(inplace=True))]
    model = network()
    first = model.conv(X).relu()
    second = model.norm(model.conv2(first)).relu()
    for found in scores:
        for name, response in {"conv": first, "conv2": second}.items():
            torch.testing.assert_close(found[name], (response != 0).double().mean((0, 2, 3)))


def test_a_network_loses_nothing_with_units_that_never_fire():
    model = network()
    with torch.no_grad():
        model.conv.bias[[1, 3]] = -100
        model.norm.weight[2], model.norm.bias[2] = 0, -1
    graph, stats = measured(model)
    keep = choose(make("apoz"), graph, stats, Budget(ratios={"conv": 0.6, "conv2": 0.75}))
    assert keep["conv"].tolist() == [True, False, True, False, True]
    assert keep["conv2"].tolist() == [True, True, False, True]
    torch.testing.assert_close(topiarist.cut(model, graph, keep)(X), model(X))


def test_units_alike_all_stay_by_the_rule():
    model = network()
    with torch.no_grad():
        model.conv.weight[:] = model.conv.weight[0].clone()
        model.conv.bias[:] = model.conv.bias[0].clone()
    keep = choose(make("apoz", deviations=0), *measured(model))
    assert keep["conv"].all()


def test_groups_behind_activations_without_zeros_stay_whole():
    model = network(nn.LeakyReLU())
    with pytest.raises(TopiaristError, match="apoz found no ReLU"):
        make("apoz").score(*measured(model))
    model.act2 = nn.ReLU6()
    assert set(make("apoz").score(*measured(model))) == {"conv2"}
    assert choose(make("apoz", deviations=1), *measured(model))["conv"].all()


def test_what_does_not_fit_is_refused():
    graph, stats = measured(network())
    with pytest.raises(TopiaristError, match="leave the budget out"):
        choose(make("apoz", deviations=1), graph, stats, Budget(ratio=0.5))
    with pytest.raises(TopiaristError, match="needs a budget"):
        choose(make("apoz"), graph, stats)
    with pytest.raises(TopiaristError, match="collect its statistic"):
        make("apoz").score(graph, collect(network(), graph))
    with pytest.raises(TopiaristError, match="deviations must be"):
        make("apoz", deviations=-1)
