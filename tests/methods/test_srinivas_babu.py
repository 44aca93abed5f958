"""What merging neurons without data promises, beside its golden row."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import topiarist
from networks import Net, shaken
from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.methods.srinivas_babu import mode
from topiarist.pruning import choose


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def linear(act, units=6, bias=True):
    torch.manual_seed(0)
    layers = [nn.Linear(4, units, bias=bias), act, nn.Linear(units, 3)]
    return nn.Sequential(*layers).double().eval(), draw(7, 4)


def conv(act):
    """Two convolutions with batch norms; the first is read by the second, that by a linear layer, four places each."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), act, nn.Conv2d(5, 4, 3, bias=False), nn.BatchNorm2d(4), act]
    return shaken(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3)).double()), draw(7, 2, 6, 6)


def copy_unit(model, layers, source, target, factor=1.0):
    """Makes one unit of some layers and norms the copy of another, times a factor."""
    with torch.no_grad():
        for layer in layers:
            for tensor in (*model[layer].parameters(), *model[layer].buffers()):
                if tensor.ndim:
                    tensor[target] = tensor[source]
        model[layers[-1]].weight[target] *= factor
        if model[layers[-1]].bias is not None:
            model[layers[-1]].bias[target] *= factor


def of(graph, group, kept):
    """A budget that touches one group."""
    return Budget(ratios={group: kept / graph[group].units})


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Tanh()])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_equal_neurons_merge_without_any_change_of_the_output(act, normalised, bias):
    model, x = linear(act, bias=bias)
    copy_unit(model, [0], 1, 4)
    copy_unit(model, [0], 1, 5)
    graph = topiarist.trace(model, x[:1])
    method = make("srinivas_babu", normalised=normalised)
    pruned = topiarist.prune(model, x[:1], method, of(graph, "0", 4))
    assert pruned.keep["0"][[0, 2, 3]].all()
    assert pruned.keep["0"][[1, 4, 5]].sum() == 1
    assert pruned.proof.max_rel_diff <= 1e-10
    assert pruned.model[0].out_features == 4
    torch.testing.assert_close(pruned.model(x), model(x), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Tanh()])
def test_equal_channels_with_their_norms_merge_without_any_change(act):
    model, x = conv(act)
    copy_unit(model, [0, 1], 0, 3)
    copy_unit(model, [3, 4], 2, 1)
    graph = topiarist.trace(model, x[:1])
    pruned = topiarist.prune(model, x[:1], "srinivas_babu", Budget(ratios={"0": 4 / 5, "3": 3 / 4}))
    assert [pruned.model[layer].out_channels for layer in (0, 3)] == [4, 3]
    assert pruned.keep[graph.groups[0].name][[0, 3]].sum() == 1
    torch.testing.assert_close(pruned.model(x), model(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("make_model", [linear, conv])
def test_neurons_that_differ_by_a_factor_are_alike_behind_a_relu(make_model):
    model, x = make_model(nn.ReLU())
    layers = [0] if make_model is linear else [0, 1]
    copy_unit(model, layers, 2, 4, factor=3.0)
    graph = topiarist.trace(model, x[:1])
    pruned = topiarist.prune(model, x[:1], "srinivas_babu", of(graph, "0", graph["0"].units - 1))
    assert pruned.keep["0"][[2, 4]].sum() == 1
    torch.testing.assert_close(pruned.model(x), model(x), rtol=1e-12, atol=1e-13)


def by_loops(model, left, normalised=True):
    """The paper's algorithm by its words: the whole matrix anew in every round.

    Returns:
        The units that stay, their outgoing weights, and the saliencies of all pairs in each round.
    """
    w, b, a = (t.detach().clone() for t in (model[0].weight, model[0].bias, model[2].weight.T))
    alpha = w.norm(dim=1) if normalised else torch.ones(len(w)).double()
    alive, rounds = list(range(len(w))), []
    while len(alive) > left:
        found = []
        for i in alive:
            for j in alive:
                wi, wj, bi, bj = w[i] / alpha[i], w[j] / alpha[j], b[i] / alpha[i], b[j] / alpha[j]
                plain = (wi - wj).square().sum() + (bi - bj) ** 2
                e = ((wi - wj).norm() / (wi + wj).norm() + (bi - bj).abs() / (bi + bj).abs()) ** 2
                if i != j:
                    found.append((float((alpha[j] * a[j]).square().mean() * (e if normalised else plain)), i, j))
        rounds.append([saliency for saliency, _, _ in found])
        _, i, j = min(found)
        a[i] += alpha[j] / alpha[i] * a[j]
        alive.remove(j)
    return alive, a[alive].T, rounds


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("left", [1, 3, 6, 8])
@pytest.mark.by_day(4)
def test_merges_agree_with_loops_over_the_whole_matrix(normalised, left):
    model, x = linear(nn.ReLU(), units=9)
    graph = topiarist.trace(model, x[:1])
    pruned = topiarist.prune(model, x[:1], make("srinivas_babu", normalised=normalised), of(graph, "0", left))
    alive, outgoing, _ = by_loops(model, left, normalised)
    assert pruned.keep["0"].nonzero()[:, 0].tolist() == alive
    torch.testing.assert_close(pruned.model[2].weight.detach(), outgoing)
    torch.testing.assert_close(pruned.model[0].weight, model[0].weight[alive])


def test_merging_in_steps_goes_on_where_it_stopped():
    model, x = linear(nn.ReLU(), units=9)
    once, steps = (
        topiarist.prune(model, x[:1], topiarist.Pruning.of("srinivas_babu", {"ratios": {"0": 1 / 3}}, steps=n))
        for n in (1, 3)
    )
    assert torch.equal(once.keep["0"], steps.keep["0"])
    torch.testing.assert_close(steps.model(x), once.model(x))


def test_merging_beats_plain_removal_of_the_same_units():
    torch.manual_seed(0)
    model, x = linear(nn.ReLU(), units=40)
    with torch.no_grad():  # ten directions, four neurons near each
        model[0].weight.copy_(model[0].weight[:10].repeat(4, 1) + 0.005 * draw(40, 4))
        model[0].bias.copy_(model[0].bias[:10].repeat(4))
    graph = topiarist.trace(model, x[:1])
    pruned = topiarist.prune(model, x[:1], "srinivas_babu", of(graph, "0", 10))
    removed = topiarist.cut(model, graph, pruned.keep)
    errors = [(net(x) - model(x)).norm() for net in (pruned.model, removed)]
    assert errors[0] < 0.1 * errors[1]


def test_without_a_budget_the_mode_of_the_saliencies_cuts_off():
    model, x = linear(nn.ReLU(), units=16)
    graph = topiarist.trace(model, x[:1])
    stats = collect(model, graph)
    kept = choose(make("srinivas_babu"), graph, stats)["0"]
    gone = int((~kept).sum())
    _, _, rounds = by_loops(model, 1)
    cutoff = mode(torch.tensor(rounds[0]))
    assert gone == next(done for done, pairs in enumerate(rounds) if min(pairs) >= cutoff)
    assert 1 <= gone < 15
    for share in (0.0, 0.25, 0.5):
        fewer = choose(make("srinivas_babu", predicted=share), graph, stats)["0"]
        assert (~fewer).sum() == int(share * gone)
        assert not (~fewer & kept).any()
    assert topiarist.prune(model, x[:1], "srinivas_babu").model[0].out_features == 16 - gone


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # width 2 * (3 - 1) / 8^(1/3) = 2: bins of 2, 5, 0 and 1 values
        ([0.0, 1.0, 2.0, 2.0, 2.5, 3.0, 3.5, 7.0], 3.0),
        ([4.0, 4.0, 4.0, 4.0, 9.0], 4.0),
    ],
)
def test_the_mode_is_the_middle_of_the_fullest_bin(values, expected):
    assert mode(torch.tensor(values).double()) == pytest.approx(expected)
    assert mode(torch.tensor(values[::-1]).double() * 5) == pytest.approx(5 * expected)


def test_what_does_not_fit_stays_whole():
    """A residual stream, which two layers produce, and neurons with a norm behind the activation."""
    torch.manual_seed(0)
    parts = {
        "stem": nn.Conv2d(2, 4, 1), "inner": nn.Conv2d(4, 5, 1), "back": nn.Conv2d(5, 4, 1),
        "late": nn.Conv2d(4, 6, 1), "act": nn.ReLU(), "norm": nn.BatchNorm2d(6), "head": nn.Conv2d(6, 3, 1),
    }  # fmt: skip

    def forward(net, x):
        x = net.stem(x)
        x = x + net.back(net.inner(x).relu())
        return net.head(net.norm(net.act(net.late(x))))

    model = shaken(Net(forward, **parts).double())
    x = draw(3, 2, 2, 2)
    graph = topiarist.trace(model, x[:1])
    keep = choose(make("srinivas_babu"), graph, collect(model, graph), Budget(ratio=0.4))
    assert {name: int(kept.sum()) for name, kept in keep.items()} == {"stem": 4, "inner": 2, "late": 6}


def test_neurons_without_weights_and_opposite_ones_do_no_harm():
    model, x = linear(nn.ReLU())
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:2] = 0
        model[0].weight[3], model[0].bias[3] = -model[0].weight[2], -model[0].bias[2]
    graph = topiarist.trace(model, x[:1])
    pruned = topiarist.prune(model, x[:1], "srinivas_babu", of(graph, "0", 5))
    assert pruned.keep["0"][:2].sum() == 1
    torch.testing.assert_close(pruned.model(x), model(x))
    assert topiarist.prune(model, x[:1], "srinivas_babu", of(graph, "0", 1)).model(x).isfinite().all()


def test_bad_fields_and_missing_layers_are_refused():
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(TopiaristError, match="predicted must be a fraction"):
            make("srinivas_babu", predicted=share)
    model, x = linear(nn.ReLU())
    graph = topiarist.trace(model, x[:1])
    stats = collect(model, graph)
    with pytest.raises(TopiaristError, match="leave out the budget, or predicted"):
        choose(make("srinivas_babu", predicted=0.5), graph, stats, Budget(ratio=0.5))
    residual = Net(
        lambda net, x: net.head(net.one(x) + net.two(x)), one=nn.Linear(4, 5), two=nn.Linear(4, 5), head=nn.Linear(5, 2)
    ).double()
    graph = topiarist.trace(residual, x[:1])
    with pytest.raises(TopiaristError, match="needs groups that one layer produces"):
        choose(make("srinivas_babu"), graph, collect(residual, graph), Budget(ratio=0.5))
