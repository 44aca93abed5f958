"""What principal filter analysis promises beside its golden row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import topiarist
from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.pruning import choose


def conv(seed=0, units=6):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, units, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * units, 2)]
    return nn.Sequential(*layers).double().eval()


def images(examples=40):
    return torch.randn(examples, 2, 3, 3, generator=torch.Generator().manual_seed(2)).double()


def keeps(model, x, budget=None, **fields):
    graph = topiarist.trace(model, x[:1])
    method = make("pfa", **fields)
    return choose(method, graph, collect(model, graph, [x], method.needs), budget)["0"].tolist()


def identity(units):
    """A layer that passes positive inputs on, so that the inputs are the responses."""
    model = nn.Sequential(nn.Linear(units, units), nn.ReLU(), nn.Linear(units, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(units))
        model[0].bias.fill_(10.0)
    return model


def signs(units):
    """Independent signs of unit variance: one column for each unit."""
    rows = torch.arange(2**units)
    return torch.stack([1 - 2.0 * ((rows >> bit) & 1) for bit in range(units)], 1).double()


def by_loops(pooled, width):
    """L1-Max by its words, with the correlations computed anew in every round."""
    left = list(range(pooled.shape[1]))
    while len(left) > width:
        r = np.abs(np.corrcoef(pooled[:, left].T))
        totals = [sum(r[i, j] for i in range(len(left)) if i != j) for j in range(len(left))]
        top = [j for j in range(len(left)) if totals[j] > max(totals) - 1e-9]
        left.remove(left[min(top, key=lambda j: pooled[:, left[j]].var())])
    return [unit in left for unit in range(pooled.shape[1])]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_widths_and_units_agree_with_loops_over_pooled_responses(seed):
    model, x = conv(seed), images()
    pooled = model[:2](x).amax((2, 3)).detach().numpy()
    spectrum = np.linalg.eigvalsh(np.cov(pooled.T))[::-1]
    p = spectrum / spectrum.sum()
    kl = sum(share * np.log(share * 6) for share in p)
    assert keeps(model, x) == by_loops(pooled, int(np.ceil(6 * (1 - kl / np.log(6)))))
    for tau in (0.3, 0.6, 0.9, 0.99):
        width = next(k for k in range(1, 7) if p[:k].sum() >= tau)
        assert keeps(model, x, tau=tau) == by_loops(pooled, width)
    for width in range(1, 6):
        assert keeps(model, x, Budget(ratio=width / 6)) == by_loops(pooled, width)


def test_independent_units_all_stay_and_of_copies_one():
    x = signs(4)
    assert keeps(identity(4), x) == [True] * 4
    assert keeps(identity(4), x, tau=1.0) == [True] * 4
    assert keeps(identity(4), x, tau=0.5) == [False, False, True, True]  # alike in all respects: the first go
    copies = x[:, :1] * torch.tensor([1.0, 2.0, -3.0, 0.5]).double()
    for fields in ({}, {"tau": 1.0}):
        assert keeps(identity(4), copies, **fields) == [False, False, True, False]


def test_a_layer_that_never_varies_keeps_one_unit():
    random = torch.Generator().manual_seed(0)
    for examples in (8, 11, 13):  # rounding must not look like a direction
        still = torch.rand(5, generator=random).double().expand(examples, 5)
        assert sum(keeps(identity(5), still)) == 1
        assert sum(keeps(identity(5), still, tau=0.9)) == 1


@pytest.mark.parametrize("fields", [{}, {"tau": 0.8}])
def test_own_widths_move_with_the_units_and_do_not_depend_on_batches(fields):
    random = torch.Generator().manual_seed(4)
    x = (torch.randn(30, 7, generator=random) @ torch.randn(7, 7, generator=random)).double().clamp(-9, 9)
    order = torch.randperm(7, generator=random)
    model, method = identity(7), make("pfa", **fields)
    graph = topiarist.trace(model, x[:1])
    kept = torch.tensor(keeps(model, x, **fields))
    assert 1 < int(kept.sum()) < 7
    assert keeps(model, x[:, order], **fields) == kept[order].tolist()
    split = collect(model, graph, x.split(11), method.needs)
    merged = collect(model, graph, [x[:4]], method.needs).merge(collect(model, graph, [x[4:]], method.needs))
    for stats in (split, merged):
        assert choose(method, graph, stats)["0"].tolist() == kept.tolist()


def test_inactive_units_go_before_those_that_correlate():
    x = signs(3)
    x = torch.stack([x[:, 0], 6e-5 * x[:, 1], x[:, 0] + 0.1 * x[:, 2], 3e-5 * x[:, 1]], 1)
    model = identity(4)
    assert keeps(model, x, Budget(ratio=0.75)) == [True, True, True, False]
    assert keeps(model, x, Budget(ratio=0.5)) == [True, False, True, False]
    assert keeps(model, x, Budget(ratio=0.25)) == [False, False, True, False]


def test_bad_fields_and_missing_data_are_refused():
    for tau in (0, -0.5, 1.01, float("nan")):
        with pytest.raises(TopiaristError, match="tau must be a fraction of the energy"):
            make("pfa", tau=tau)
    model = conv()
    with pytest.raises(TopiaristError, match="needs 6 examples or more for the group '0', but saw 5"):
        keeps(model, images(5))
    assert sum(keeps(model, images(5), Budget(ratio=0.5))) == 3
    with pytest.raises(TopiaristError, match="needs 2 examples or more"):
        keeps(model, images(1), Budget(ratio=0.5))
    with pytest.raises(TopiaristError, match="leave out the budget, or tau"):
        keeps(model, images(), Budget(ratio=0.5), tau=0.9)
    graph = topiarist.trace(model, images(1))
    with pytest.raises(TopiaristError, match="the group '0' hold NaN or infinity"):
        choose(make("pfa"), graph, collect(model, graph, [images() * float("nan")], make("pfa").needs))
    with pytest.raises(TopiaristError, match="collect 'covariance-max' on data"):
        choose(make("pfa"), graph, collect(model, graph))
