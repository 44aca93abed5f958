"""What the Taylor criterion promises beside its golden row."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import topiarist
from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.measure import collect
from topiarist.methods import Schedule, make
from topiarist.pruning import choose

X = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(1)).double()
Y = torch.tensor([0.5, -1.0, 2.0, 1.0, -0.3, 0.7]).double()


def convs(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(45, 1)).double().eval()


def weighted(output, target):
    """A loss linear in the output, and so in the last layer's responses."""
    return (output[:, 0] * target).mean()


def scores(model, x=X, loss=weighted, **fields):
    graph = topiarist.trace(model, x[:1])
    method = make("taylor", **fields)
    return method.score(graph, collect(model, graph, [(x, Y[: len(x)])], method.needs, loss=loss))


def test_the_first_order_is_exact_where_the_loss_is_linear():
    """There the score is proportional to what removing the channel does to each example's loss."""
    model = convs()
    got = scores(model)["2"]
    response = model[:4](X)
    changes = torch.zeros(5).double()
    for channel in range(5):
        without = response.clone()
        without[:, channel] = 0
        changes[channel] = ((model[4:](response) - model[4:](without))[:, 0] * Y).abs().mean()
    torch.testing.assert_close(got, (changes / changes.norm()).detach())


def test_every_group_has_norm_one_and_the_scale_of_the_loss_does_not_matter():
    model = convs()
    one, large = scores(model), scores(model, loss=lambda output, target: 1e3 * weighted(output, target))
    assert set(one) == {"0", "2"}
    for name, values in one.items():
        torch.testing.assert_close(values.norm(), torch.tensor(1.0).double())
        torch.testing.assert_close(large[name], values)


def test_units_that_cost_more_macs_are_favoured_for_removal():
    """Of 2-3-4-1 units one of the first layer saves 2 + 4 MACs, one of the second 3 + 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = X.flatten(1)[:, :2]
    plain, priced = scores(model, x), scores(model, x, lam=0.5)
    for name, macs in {"0": 6, "2": 4}.items():
        torch.testing.assert_close(plain[name] - priced[name], torch.full_like(plain[name], 0.5 * macs / 52**0.5))


def test_units_without_effect_score_zero_and_go_first():
    torch.manual_seed(0)
    model = nn.Sequential(convs()[:3], nn.ReLU(), nn.Flatten(), nn.Linear(45, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    nn.init.constant_(model[0][2].bias, -1e3)  # its ReLU is never open
    nn.init.ones_(model[3].bias)
    graph = topiarist.trace(model, X[:1])
    method = make("taylor")
    found = method.score(graph, collect(model, graph, [(X, Y)], method.needs, loss=weighted))
    assert found["0.2"].tolist() == [0] * 5
    assert found["3"].all()
    nn.init.zeros_(model[5].weight)
    with pytest.raises(TopiaristError, match="all scores are zero on this data"):
        method.score(graph, collect(model, graph, [(X, Y)], method.needs, loss=weighted))
    model = convs()
    graph = topiarist.trace(model, X[:1])
    nn.init.zeros_(model[5].weight[:, 9:18])  # nothing reads the second of its channels
    stats = collect(model, graph, [(X, Y)], method.needs, loss=weighted)
    assert choose(method, graph, stats, Budget(ratio=8 / 9))["2"].tolist() == [True, False, True, True, True]


def test_the_schedule_removes_equally_many_units_each_step():
    method = make("taylor")
    assert isinstance(method, Schedule)
    kept = [1.0, *(method.kept(step, 7, 0.3) for step in range(1, 8))]
    assert kept[-1] == 0.3
    assert [before - after for before, after in pairwise(kept)] == pytest.approx([0.1] * 7)
    for step in (0, 8):
        with pytest.raises(TopiaristError, match="from 1 to the number of steps, 7"):
            method.kept(step, 7, 0.3)


def test_bad_fields_and_missing_gradients_are_refused():
    for lam in (-1e-3, float("inf"), float("nan")):
        with pytest.raises(TopiaristError, match="lam must be 0 or a positive number"):
            make("taylor", lam=lam)
    model = convs()
    graph = topiarist.trace(model, X[:1])
    with pytest.raises(TopiaristError, match=r"collect 'gradients' on pairs \(inputs, target\)"):
        make("taylor").score(graph, collect(model, graph))
    nans = collect(model, graph, [(X * float("nan"), Y)], make("taylor").needs, loss=weighted)
    with pytest.raises(TopiaristError, match="hold NaN"):
        choose(make("taylor"), graph, nans, Budget(ratio=0.5))
