"""What Optimal Brain Surgeon promises, beside the golden row: each step is the exact constrained minimum."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import topiarist
from topiarist.budget import Budget
from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.pruning import choose
from topiarist.surgery import mask

Y = torch.arange(12) % 3


def rand(*shape, seed=4):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def tiny(seed=0):
    """Ten weights in two layers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3, bias=False)).double().eval()


def weights_of(model):
    return torch.cat([w.detach().flatten() for name, w in model.named_parameters() if name.endswith("weight")])


def hessian_of(model, x, damping):
    """``J^T H J`` by autograd, one example at a time, damped."""
    names = [name for name, _ in model.named_parameters() if name.endswith("weight")]
    sizes = [model.get_parameter(name).shape for name in names]

    def outputs(w, x):
        parts = w.split([size.numel() for size in sizes])
        own = {name: part.view(size) for name, part, size in zip(names, parts, sizes, strict=True)}
        return functional_call(model, own, x)[0]

    w, total = weights_of(model), 0
    for x_n in x.split(1):
        J = torch.autograd.functional.jacobian(lambda w, x=x_n: outputs(w, x), w)
        z = outputs(w, x_n)
        total = total + J.T @ torch.autograd.functional.hessian(lambda z: F.cross_entropy(z, torch.tensor(0)), z) @ J
    H = total / len(x)
    return H + damping * H.diagonal().mean() * torch.eye(len(H)).double()


def minimum(H, w, gone):
    """``argmin dw^T H dw`` with ``dw_q = -w_q`` for those that go, by the Lagrangian's equations."""
    n, k = len(w), len(gone)
    E = torch.eye(n).double()[:, gone]
    A = torch.cat([torch.cat([H, E], 1), torch.cat([E.T, torch.zeros(k, k).double()], 1)])
    return torch.linalg.solve(A, torch.cat([torch.zeros(n).double(), -w[gone]]))[:n]


def rise(H, w, gone):
    dw = minimum(H, w, gone)
    return float(dw @ H @ dw) / 2


def surgeon(model, x, budget, **fields):
    """What is kept, and the weights afterwards."""
    graph = topiarist.trace(model, x[:1]).weights()
    method = make("obs", **fields)
    stats = collect(model, graph, [(x, Y[: len(x)])], method.needs)
    keep = choose(method, graph, stats, budget)
    masked = mask(model, graph, keep)
    method.repair(masked, graph, keep, stats)
    return torch.cat(list(keep.values())), masked


@pytest.mark.parametrize("seed", range(3))
def test_each_removal_is_the_cheapest_and_all_updates_are_the_exact_minimum(seed):
    model, x = tiny(seed), rand(12, 2)
    H, w = hessian_of(model, x, 0.01), weights_of(model)
    gone = []
    for left in range(len(w) - 1, 2, -1):
        gone.append(min(set(range(len(w))) - set(gone), key=lambda q: rise(H, w, [*gone, q])))
        keep, after = surgeon(model, x, Budget(ratio=left / len(w)), hessian="full")
        assert (~keep).nonzero().flatten().tolist() == sorted(gone)
        torch.testing.assert_close(weights_of(after), w + minimum(H, w, gone))
        torch.testing.assert_close(after[0].bias, model[0].bias)


def subsets(model, x, count):
    """What is removed, and the rise of the loss for it and for every subset of so many weights."""
    H, w = hessian_of(model, x, 0.01), weights_of(model)
    keep, _ = surgeon(model, x, Budget(ratio=1 - count / len(w)), hessian="full")
    found = tuple((~keep).nonzero().flatten().tolist())
    return found, {gone: rise(H, w, list(gone)) for gone in combinations(range(len(w)), count)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 2])
def test_the_subset_is_the_best_of_all(seed, count):
    found, rises = subsets(tiny(seed), rand(12, 2), count)
    assert found == min(rises, key=rises.get)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [3, 4, 5])
def test_larger_subsets_are_among_the_best_though_each_step_looks_one_weight_ahead(seed, count):
    found, rises = subsets(tiny(seed), rand(12, 2), count)
    better = sum(value < rises[found] for value in rises.values())
    assert better <= 0.03 * len(rises)


def test_a_layer_is_refitted_by_least_squares():
    torch.manual_seed(0)
    model, x = nn.Linear(5, 4).double(), rand(12, 5)
    keep, after = surgeon(model, x, Budget(ratio=0.5), damping=0.0)
    for row, kept, got in zip(model.weight.detach(), keep.view(4, 5), after.weight.detach(), strict=True):
        expected = torch.zeros(5).double()
        if kept.any():
            expected[kept] = torch.linalg.lstsq(x[:, kept], x @ row[:, None]).solution[:, 0]
        torch.testing.assert_close(got, expected)


def test_a_row_loses_the_best_subset_of_its_weights():
    torch.manual_seed(0)
    model, x = nn.Linear(6, 1, bias=False).double(), rand(12, 6)
    w = model.weight.detach()[0]
    for count in (1, 2, 3):
        best = min(combinations(range(6), count), key=lambda gone: rise(x.T @ x, w, list(gone)))
        keep, _ = surgeon(model, x, Budget(ratio=1 - count / 6), damping=0.0)
        assert tuple((~keep).nonzero().flatten().tolist()) == best


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_are_refitted_at_all_places(groups):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, (1, 2), groups=groups, stride=2, padding=1).double()
    model, x = nn.Sequential(layer, nn.Flatten()), rand(12, 4, 4, 4)
    keep, after = surgeon(model, x, Budget(ratio=0.5), damping=0.0)
    columns = F.unfold(x, (1, 2), stride=2, padding=1)  # (N, channels * entries, places)
    columns = columns.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    for o, (kept, got) in enumerate(zip(keep.view(6, -1), after[0].weight.detach().flatten(1), strict=True)):
        read = columns[o * groups // 6]
        expected = torch.zeros(len(kept)).double()
        if kept.any():
            y = read @ layer.weight.detach()[o].flatten()[:, None]
            expected[kept] = torch.linalg.lstsq(read[:, kept], y).solution[:, 0]
        torch.testing.assert_close(got, expected)


def test_uncorrelated_inputs_make_it_brain_damage_and_equal_ones_magnitude():
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    w = model.weight.detach()
    for scales in (torch.tensor([3.0, 0.5, 1.0, 2.0]).double(), torch.ones(4).double()):
        keep, after = surgeon(model, torch.diag(scales), Budget(ratio=0.5))
        s = (w.square() * scales.square()).flatten()
        assert torch.equal(keep, s >= s.sort().values[6])
        torch.testing.assert_close(after.weight.detach(), w * keep.view(3, 4))


def test_one_threshold_serves_layers_of_any_scale():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)).double(), rand(12, 4)
    before, _ = surgeon(model, x, Budget(ratio=0.4))
    with torch.no_grad():
        model[0].weight *= 1000  # the second layer reads a thousand times as much
    after, _ = surgeon(model, x, Budget(ratio=0.4))
    assert torch.equal(before, after)


def test_layers_that_are_excluded_stay_whole_and_others_go_by_the_whole_hessian():
    model, x = tiny(), rand(12, 2)
    H, w = hessian_of(model, x, 0.01), weights_of(model)
    keep, after = surgeon(model, x, Budget(ratio=0.5, exclude=("0.*",)), hessian="full")
    gone = []
    for _ in range(3):
        gone.append(min(set(range(4, 10)) - set(gone), key=lambda q: rise(H, w, [*gone, q])))
    assert (~keep).nonzero().flatten().tolist() == sorted(gone)
    torch.testing.assert_close(weights_of(after), w + minimum(H, w, gone))


def test_layers_that_nothing_reaches_go_by_magnitude():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100)
    keep, after = surgeon(model, rand(12, 2), Budget(ratios={"2.*": 0.5}))
    size = model[2].weight.detach().abs().flatten()
    assert torch.equal(keep[4:], size >= size.sort().values[3])
    torch.testing.assert_close(after[2].weight, model[2].weight * keep[4:].view(3, 2))


@pytest.mark.parametrize("hessian", ["full", "layer"])
def test_weights_that_went_in_one_step_stay_away_in_the_next(hessian):
    x = rand(12, 1, 1, 2).float()
    data = Data.of("points", x, Y, x, Y)
    model = nn.Sequential(nn.Flatten(), *tiny().float())
    once, twice = (
        topiarist.prune(
            model, data.example(), topiarist.Pruning.of(make("obs", hessian=hessian), 0.4, steps=n), data=data
        )
        for n in (1, 2)
    )
    for pruned in (once, twice):
        assert sum(int(keep.sum()) for keep in pruned.keep.values()) == 4
        for name, keep in pruned.keep.items():
            assert torch.equal(pruned.model.get_parameter(name).detach().flatten() != 0, keep)


def test_a_dry_run_refuses_what_the_method_does_and_computes_no_inverse():
    model, x = tiny(), rand(3, 2)
    graph = topiarist.trace(model, x[:1]).weights()
    method = make("obs", damping=0.0, hessian="full")  # three examples of three classes: rank 6 at most
    stats = collect(model, graph, [(x, Y[:3])], method.needs)
    with pytest.raises(TopiaristError, match="no inverse"):
        choose(method, graph, stats, Budget(ratio=0.5))
    keep = choose(method.dry_run(), graph, stats, Budget(ratio=0.5))
    assert sum(int(kept.sum()) for kept in keep.values()) == 5
    with pytest.raises(TopiaristError, match="matches no group"):
        choose(method.dry_run(), graph, stats, Budget(ratio=0.5, exclude=("head*",)))
    assert method.dry_run() == method


def test_what_cannot_be_done_is_refused():
    model, x = nn.Linear(80, 70), torch.randn(4, 80)
    graph = topiarist.trace(model, x[:1]).weights()
    stats = collect(model, graph, [x], make("obs").needs)
    broken = collect(model, graph, [x.fill_diagonal_(torch.inf)], make("obs").needs)
    half = Budget(ratio=0.5)
    for call, message in (
        (lambda: make("obs", hessian="diagonal"), "hessian must be 'full' or 'layer'"),
        (lambda: make("obs", damping=-1), "damping must be"),
        (lambda: make("obs", damping=float("nan")), "damping must be"),
        (lambda: collect(model, graph, [(x, Y[:4])], make("obs", hessian="full").needs), "5,600: use hessian 'layer'"),
        (lambda: choose(make("obs", damping=0.0), graph, stats, half), "no inverse: raise the damping"),
        (lambda: choose(make("obs"), graph, broken, half), "all of it finite"),
        (lambda: choose(make("obs"), graph, stats), "needs a budget"),
        (lambda: choose(make("obs"), graph, collect(model, graph), half), "no Hessian of any weight"),
        (lambda: choose(make("obs", hessian="full"), graph, stats, half), "no Hessian of any weight"),
        (lambda: choose(make("obs"), topiarist.trace(tiny(), rand(1, 2)), stats, half), r"graph\.weights\(\)"),
    ):
        with pytest.raises(TopiaristError, match=message):
            call()
