"""What the paper on geometric medians promises, beside the golden row."""

from __future__ import annotations

from math import dist
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import topiarist
from networks import Net
from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.graph import Group, Slice
from topiarist.measure import Stats, collect
from topiarist.methods import make
from topiarist.pruning import choose


def two_layers(filters, size=(1, 2)):
    """A network whose first layer has the given filters."""
    inputs = filters.shape[1] // (size[0] * size[1])
    model = nn.Sequential(
        nn.Conv2d(inputs, len(filters), size), nn.ReLU(), nn.Flatten(), nn.Linear(len(filters), 2)
    ).double()
    with torch.no_grad():
        model[0].weight.copy_(filters.view_as(model[0].weight))
    return model, topiarist.trace(model, torch.randn(1, inputs, *size).double())


def scores(filters, size=(1, 2)):
    model, graph = two_layers(filters, size)
    return make("fpgm").score(graph, collect(model, graph))["0"]


def by_loops(filters):
    rows = filters.tolist()
    return torch.tensor([sum(dist(one, other) for other in rows) for one in rows], dtype=torch.float64)


def test_the_geometric_median_goes_first_however_long_it_is():
    median = torch.tensor([10.0, 10.0])
    corners = torch.tensor([[-9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, -9.0]])
    model, graph = two_layers(torch.cat([median + corners, median[None]]).double())
    stats = collect(model, graph)
    keep, by_norm = (choose(make(name), graph, stats, Budget(ratio=0.8))["0"] for name in ("fpgm", "l1"))
    assert keep.tolist() == [True, True, True, True, False]
    assert by_norm[4]  # the norm would not have found it


def test_scores_depend_on_differences_of_filters_alone():
    filters = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(scores(filters + 1e3), scores(filters), rtol=1e-9, atol=0)
    torch.testing.assert_close(scores(-3 * filters), 3 * scores(filters), rtol=1e-12, atol=0)


def test_wide_layers_agree_with_loops():
    filters = torch.randn(40, 4200, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(scores(filters, (10, 20)), by_loops(filters), rtol=1e-12, atol=0)


def test_equal_filters_are_no_distance_apart():
    assert scores(torch.full((5, 2), 0.1).double()).tolist() == [0] * 5


def test_filters_of_a_residual_stream_are_joined():
    torch.manual_seed(2)
    model = Net(
        lambda net, x: net.head((net.stem(x) + net.up(net.down(net.stem(x)).relu())).relu()),
        stem=nn.Linear(3, 6), down=nn.Linear(6, 5), up=nn.Linear(5, 6), head=nn.Linear(6, 2),
    ).double()  # fmt: skip
    graph = topiarist.trace(model, torch.randn(1, 3).double())
    got = make("fpgm").score(graph, collect(model, graph))
    torch.testing.assert_close(got["stem"], by_loops(torch.cat([model.stem.weight, model.up.weight], 1).detach()))
    torch.testing.assert_close(got["down"], by_loops(model.down.weight.detach()))


def test_a_unit_of_several_places_has_one_filter():
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(3)).double()
    places = torch.tensor([[0, 5], [2, 1], [3, 4]])
    graph = SimpleNamespace(groups=(Group("g", 3, (Slice("w", 1, places, "output"),)),), shapes={"w": (3, 6)})
    joined = torch.cat([weight.T[places[:, 0]], weight.T[places[:, 1]]], 1)
    torch.testing.assert_close(make("fpgm").score(graph, Stats({"w": weight}))["g"], by_loops(joined))


def test_single_weights_have_no_filters():
    model, graph = two_layers(torch.eye(2).double())
    with pytest.raises(TopiaristError, match="fpgm found no filters"):
        make("fpgm").score(graph.weights(), collect(model, graph))
