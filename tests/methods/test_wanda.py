"""What Wanda promises, beside its golden row."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import topiarist
from networks import Net
from topiarist.budget import Budget, allocate
from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.methods.wanda import keep_in_rows
from topiarist.pruning import choose


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def measured(model, *batches):
    graph = topiarist.trace(model, batches[0][:1]).weights()
    return graph, collect(model, graph, batches, make("wanda").needs)


def scores(model, *batches):
    return make("wanda").score(*measured(model, *batches))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1, "stride": 2},
        {"dilation": 2, "bias": False},
        {"groups": 2, "padding": 1},
        {"groups": 4},
        {"padding": (2, 0), "padding_mode": "reflect"},
    ],
)
def test_scores_of_a_convolution_agree_with_its_unfolded_input(options):
    torch.manual_seed(0)
    model = nn.Conv2d(4, 8, 3, **options).double()
    x = draw(5, 4, 7, 6)
    mode = options.get("padding_mode", "constant")
    padding = options.get("padding", 0)
    tall, wide = padding if isinstance(padding, tuple) else (padding, padding)
    padded = F.pad(x, (wide, wide, tall, tall), mode=mode)
    patches = F.unfold(padded, 3, dilation=options.get("dilation", 1), stride=options.get("stride", 1))
    norms = patches.square().sum((0, 2)).sqrt().view(model.groups, 1, -1)
    w = model.weight.detach().abs().reshape(model.groups, 8 // model.groups, -1)
    torch.testing.assert_close(scores(model, x)["weight"], (w * norms).flatten())


def test_scores_of_tokens_count_every_place_and_a_tied_weight_all_its_layers():
    torch.manual_seed(0)
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second).double()
    x = draw(4, 5, 3)
    squares = x.square().sum((0, 1)) + model[:2](x).square().sum((0, 1))
    (got,) = scores(model, x[:1], x[1:]).values()
    torch.testing.assert_close(got, (first.weight.abs() * squares.sqrt()).flatten().detach())


def test_every_row_keeps_equally_many_of_its_highest():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 7)).double()
    graph, stats = measured(model, draw(9, 2, 5, 5))
    got = make("wanda").score(graph, stats)
    for ratio in (0.5, 0.31, 0.07):
        keep = choose(make("wanda"), graph, stats, Budget(ratio=ratio))
        for name, kept in keep.items():
            rows, values = (each.view(graph.shapes[name][0], -1) for each in (kept, got[name]))
            assert kept.sum() == int(ratio * len(kept))
            counts = rows.sum(1)
            assert counts.max() - counts.min() <= 1
            for row, value in zip(rows, values, strict=True):
                assert not row.any() or row.all() or value[row].min() > value[~row].max()


def test_a_global_budget_says_how_much_each_layer_keeps():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    graph, stats = measured(model, draw(20, 5))
    budget = Budget(ratio=0.4, allocation="global", exclude=())
    keep = choose(make("wanda"), graph, stats, budget)
    ranked = allocate(graph, make("wanda").score(graph, stats), budget)
    assert {name: int(kept.sum()) for name, kept in keep.items()} == {n: int(k.sum()) for n, k in ranked.items()}
    whole = choose(make("wanda"), graph, stats, Budget(ratio=0.4, exclude=("0.*",)))
    assert whole["0.weight"].all()


def test_steps_that_score_what_is_left_keep_equally_many_in_every_row():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 7)).double()
    x, y = draw(20, 2, 5, 5).float(), torch.arange(20) % 7
    data = Data("drawn", x, y, x, y, 7, (0.0, 0.0), (1.0, 1.0))
    pruned = topiarist.prune(model.float(), x[:1], topiarist.Pruning.of("wanda", 0.3, steps=3), data=data)
    for name, kept in pruned.keep.items():
        rows = kept.view(pruned.graph.shapes[name][0], -1).sum(1)
        assert kept.sum() == int(0.3 * len(kept))
        assert rows.max() - rows.min() <= 1


@pytest.mark.parametrize("count", [1, 3, 4, 7, 11, 12])
def test_what_is_left_over_goes_to_the_rows_with_the_best_next(count):
    values = draw(4, 3, seed=count)
    keep = keep_in_rows(values, count)
    assert keep.sum() == count
    each, more = divmod(count, 4)
    following = values.sort(1, descending=True).values[:, each : each + 1].flatten()
    best = set(following.argsort(descending=True)[:more].tolist()) if more else set()
    assert keep.sum(1).tolist() == [each + (row in best) for row in range(4)]


def test_layers_that_are_not_seen_stay_whole_and_nothing_seen_is_refused():
    torch.manual_seed(0)
    model = Net(
        lambda net, x: F.linear(net.one(x).relu(), net.two.weight), one=nn.Linear(4, 5), two=nn.Linear(5, 2)
    ).double()
    graph, stats = measured(model, draw(6, 4))
    assert set(make("wanda").score(graph, stats)) == {"one.weight"}
    assert choose(make("wanda"), graph, stats, Budget(ratio=0.5))["two.weight"].all()
    with pytest.raises(TopiaristError, match="wanda saw no input"):
        choose(make("wanda"), graph, collect(model, graph), Budget(ratio=0.5))
    with pytest.raises(TopiaristError, match="wanda needs a budget"):
        choose(make("wanda"), graph, stats)
    structure = topiarist.trace(model, draw(1, 4))
    with pytest.raises(TopiaristError, match=r"graph\.weights\(\)"):
        choose(
            make("wanda"), structure, collect(model, structure, [draw(6, 4)], make("wanda").needs), Budget(ratio=0.5)
        )
