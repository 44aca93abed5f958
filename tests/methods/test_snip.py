"""What SNIP promises, beside its golden row."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import topiarist
from topiarist.budget import Budget
from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.pruning import choose

X = torch.randn(12, 2, 5, 5, generator=torch.Generator().manual_seed(1)).double()
Y = torch.arange(12) % 3


def network(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)]
    return nn.Sequential(*layers).double().eval()


def scores(model, batches=((X, Y),)):
    graph = topiarist.trace(model, X[:1]).weights()
    return make("snip").score(graph, collect(model, graph, batches, make("snip").needs))


def test_scores_are_slopes_by_a_switch_on_each_weight():
    model = network()
    weights = {name: model.get_parameter(name).detach() for name in ("0.weight", "4.weight")}

    def loss(*switches):
        values = {name: w * c for (name, w), c in zip(weights.items(), switches, strict=True)}
        return cross_entropy(torch.func.functional_call(model, values, X), Y)

    slopes = torch.autograd.functional.jacobian(loss, tuple(torch.ones_like(w) for w in weights.values()))
    total = sum(slope.abs().sum() for slope in slopes)
    got = scores(model)
    assert set(got) == set(weights)
    for name, slope in zip(weights, slopes, strict=True):
        torch.testing.assert_close(got[name], slope.abs().flatten() / total)
    assert sum(values.sum() for values in got.values()) == pytest.approx(1)


def test_one_threshold_holds_for_the_whole_network():
    model = network()
    graph = topiarist.trace(model, X[:1]).weights()
    stats = collect(model, graph, [(X, Y)], make("snip").needs)
    keep = choose(make("snip"), graph, stats, Budget(ratio=0.3))
    got = make("snip").score(graph, stats)
    kept, gone = (torch.cat([got[name][k if stays else ~k] for name, k in keep.items()]) for stays in (True, False))
    assert kept.min() > gone.max()
    assert len(kept) == int(0.3 * (len(kept) + len(gone)))


def test_frozen_weights_are_scored_and_frozen_again():
    model = network()
    expected = scores(model)
    model.requires_grad_(False)
    model[4].bias.requires_grad_(True)
    for name, values in scores(model).items():
        torch.testing.assert_close(values, expected[name])
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["4.bias"]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_pruned_weight_is_the_first_to_go():
    model = network()
    with torch.no_grad():
        model[4].weight[:, ::2] = 0
    assert (scores(model)["4.weight"].view(3, 36)[:, ::2] == 0).all()


def test_steps_score_what_is_left_anew():
    model = network()
    data = Data("drawn", X.float(), Y, X.float(), Y, 3, (0.0, 0.0), (1.0, 1.0))
    pruned = topiarist.prune(model.float(), data.train_x[:1], topiarist.Pruning.of("snip", 0.25, steps=2), data=data)
    first = topiarist.prune(model, data.train_x[:1], "snip", 0.625, data)
    weights = [model.get_parameter(name) for name in pruned.keep]
    stats = collect(first.model, first.graph, [(data.normalise(X.float()), Y)], make("snip").needs)
    again = make("snip").score(first.graph, stats)
    total = sum(weight.numel() for weight in weights)
    floor = torch.cat(list(again.values())).sort(descending=True).values[int(0.25 * total) - 1]
    for name, kept in pruned.keep.items():
        assert torch.equal(kept, again[name] >= floor)
        assert not (kept & ~first.keep[name]).any()


def test_missing_and_vanishing_gradients_are_refused():
    model = network()
    graph = topiarist.trace(model, X[:1])
    with pytest.raises(TopiaristError, match="collect what the method needs, on pairs"):
        make("snip").score(graph.weights(), collect(model, graph))
    with pytest.raises(TopiaristError, match=r"graph\.weights\(\)"):
        make("snip").score(graph, collect(model, graph, [(X, Y)], make("snip").needs))
    with pytest.raises(TopiaristError, match="gradients need targets"):
        scores(model, [X])
    with torch.no_grad():
        model[0].weight.zero_()
        model[4].weight.zero_()
    with pytest.raises(TopiaristError, match="all scores are zero on this data"):
        scores(model)
