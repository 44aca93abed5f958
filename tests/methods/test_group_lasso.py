"""What the papers on group lasso promise, beside the golden row."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import topiarist
from networks import Net
from topiarist.errors import TopiaristError
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.train import attach

GROUPED = ("filter", "channel", "unit", "column")


def network():
    """A residual stream (stem, b), a branch (a), a transposed convolution and a flattened head."""
    torch.manual_seed(1)
    return Net(
        lambda n, x: n.head(n.up((s := n.stem(x).relu()) + n.b(n.a(s).relu())).flatten(1)),
        stem=nn.Conv2d(2, 4, 1),
        a=nn.Conv2d(4, 3, (1, 2)),
        b=nn.Conv2d(3, 4, (1, 2), padding=(0, 1)),
        up=nn.ConvTranspose2d(4, 3, (1, 2), stride=(1, 2)),
        head=nn.Linear(24, 2),
    ).double()


def traced():
    model = network()
    return model, topiarist.trace(model, torch.randn(1, 2, 1, 4).double())


def groups_by_hand(n):
    """Kind → its groups of weights, from the layers' shapes alone."""
    with torch.no_grad():
        filters = [*n.stem.weight, *n.a.weight, *n.b.weight, *n.up.weight.unbind(1)]
        reads = [(layer, layer.weight.unbind(1)) for layer in (n.a, n.b)]
        reads += [(n.up, n.up.weight.unbind(0)), (n.head, n.head.weight.view(2, 3, 8).unbind(1))]
        channels = [channel for _, parts in reads for channel in parts]
        tied = [torch.cat([one.flatten(), two.flatten()]) for one, two in zip(n.stem.weight, n.b.weight, strict=True)]
        columns = [column for channel in channels for column in channel.reshape(len(channel), -1).unbind(1)]
        unit = [*tied, *n.a.weight, *n.up.weight.unbind(1)]
    return {
        "filter": filters,
        "channel": channels,
        "both": filters + channels,
        "unit": unit,
        "column": columns,
    }


@pytest.mark.parametrize("kind", [*GROUPED, "both"])
def test_the_penalty_is_the_sum_of_the_groups_norms(kind):
    model, graph = traced()
    expected = sum(group.square().sum().sqrt() for group in groups_by_hand(model)[kind])
    torch.testing.assert_close(make("group_lasso", lam=0.3, kind=kind).penalty(model, graph), 0.3 * expected)


@pytest.mark.parametrize("kind", GROUPED)
def test_the_proximal_step_minimises_distance_and_penalty(kind):
    """It solves ``min 1/2 ||v - theta||^2 + lr lam sum sqrt(P) ||theta||``: nothing near its answer is better."""
    model, graph = traced()
    start, method = network(), make("group_lasso", lam=0.5, kind=kind, solver="proximal")
    method.proximal(model, graph, lr=0.2)
    biased = kind in ("filter", "unit")
    generator = torch.Generator().manual_seed(0)

    def objective(n):
        near = sum((p - q).square().sum() for p, q in zip(n.parameters(), start.parameters(), strict=True)) / 2
        groups = groups_by_hand(n)[kind]
        if biased:
            layers = [n.stem, n.a, n.b, n.up] if kind == "filter" else [n.a, n.up]
            biases = [b.view(1) for layer in layers for b in layer.bias]
            if kind == "unit":
                biases = [*torch.stack([n.stem.bias, n.b.bias], 1), *biases]
            groups = [torch.cat([group.flatten(), b]) for group, b in zip(groups, biases, strict=True)]
        return near + 0.1 * sum(group.numel() ** 0.5 * group.norm() for group in groups)

    with torch.no_grad():
        best = objective(model)
        assert best < objective(start)
        answer = {name: p.clone() for name, p in model.named_parameters()}
        for size, _ in itertools.product((1e-1, 1e-3, 1e-5), range(10)):
            for name, p in model.named_parameters():
                p.copy_(answer[name] + size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
            assert objective(model) > best


@pytest.mark.parametrize("solver", ["gradient", "proximal"])
@pytest.mark.by_day(1)
def test_training_finds_the_known_solution(solver):
    """``1/2 ||W - A||^2 + lam ||w_j||`` is least at ``(1 - lam / ||a_j||)_+ a_j``; proximal steps get to 0 itself."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)).double()
    graph = topiarist.trace(model, torch.randn(1, 4).double())
    target = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 1.0, 0.0]]).double()
    optimizer = torch.optim.SGD([model[0].weight], lr=0.01)
    lam = 0.5 / 2 if solver == "proximal" else 0.5  # sqrt(P) = 2
    with attach(make("group_lasso", lam=lam, solver=solver), model, optimizer, graph):
        for _ in range(1500):
            optimizer.zero_grad()
            (0.5 * (model[0].weight - target).square().sum()).backward()
            optimizer.step()
    expected = target * torch.tensor([[0.9], [0.0], [0.5]])
    torch.testing.assert_close(model[0].weight.detach(), expected, atol=6e-3, rtol=0)
    assert bool((model[0].weight[1] == 0).all()) == (solver == "proximal")


@pytest.mark.parametrize("solver", ["gradient", "proximal"])
def test_a_share_of_the_groups_is_penalised_those_of_smallest_norm(solver):
    """Half of each layer's: the gradual scheme of Lebedev and Lempitsky."""
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)).double()
    graph = topiarist.trace(model, torch.randn(1, 2).double())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, 2.0], [5.0, 12.0]]))
    before = model[0].weight.detach().clone()
    method = make("group_lasso", lam=0.5, share=0.5, solver=solver)
    if solver == "gradient":
        penalty = method.penalty(model, graph)
        assert float(penalty.detach()) == pytest.approx(0.5 * (1 + 2))
        penalty.backward()
        expected = torch.tensor([[0.0, 0.0], [0.3, 0.4], [0.0, 0.5], [0.0, 0.0]]).double()
        torch.testing.assert_close(model[0].weight.grad, expected)
    else:
        method.proximal(model, graph, 1.0)
        left = torch.tensor([1.0, 1 - 0.5 * 2**0.5, 1 - 0.25 * 2**0.5, 1.0]).double()
        torch.testing.assert_close(model[0].weight.detach(), left[:, None] * before)


def test_small_weights_become_zero_after_a_step_where_it_is_asked_for():
    model, graph = traced()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    make("group_lasso", zero_below=0.3).proximal(model, graph, 1.0)
    for name, tensor in model.state_dict().items():
        penalised = name in ("stem.weight", "a.weight", "b.weight", "up.weight")
        small = (before[name].abs() < 0.3) & penalised
        assert bool(small.any()) == penalised
        assert torch.equal(tensor, before[name].masked_fill(small, 0))


def test_one_solver_acts_at_a_time():
    model, graph = traced()
    assert make("group_lasso", solver="proximal").penalty(model, graph) == 0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    make("group_lasso").proximal(model, graph, 1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", [*GROUPED, "both"])
def test_groups_at_zero_stay_there(kind):
    model, graph = traced()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    penalty = make("group_lasso", kind=kind).penalty(model, graph)
    gradients = torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True)
    assert all(not gradient.any() for gradient in gradients if gradient is not None)
    if kind != "both":
        make("group_lasso", kind=kind, lam=0.0, solver="proximal").proximal(model, graph, 0.1)
        assert not any(parameter.any() for parameter in model.parameters())


def test_units_are_scored_over_all_layers_that_the_kind_looks_at():
    model, graph = traced()
    stats = collect(model, graph)
    made = make("group_lasso").score(graph, stats)["stem"]
    torch.testing.assert_close(made, torch.stack([g.norm() for g in groups_by_hand(model)["unit"][:4]]))
    read = make("group_lasso", kind="column").score(graph, stats)["stem"]
    halves = torch.stack([model.a.weight.square().sum((0, 2, 3)), model.up.weight.square().sum((1, 2, 3))])
    torch.testing.assert_close(read, halves.sum(0).sqrt().detach())


def test_refusals():
    for fields, message in (
        ({"lam": -1}, "lam must be"),
        ({"lam": float("inf")}, "lam must be"),
        ({"kind": "depth"}, "kind must be one of filter"),
        ({"solver": "newton"}, "solver must be"),
        ({"share": 0.0}, "share must be"),
        ({"zero_below": -1.0}, "zero_below must be"),
        ({"kind": "both", "solver": "proximal"}, "overlap"),
    ):
        with pytest.raises(TopiaristError, match=message):
            make("group_lasso", **fields)
    model, graph = traced()
    for call in (
        lambda: make("group_lasso").penalty(model, graph.weights()),
        lambda: make("group_lasso", solver="proximal").proximal(model, graph.weights(), 0.1),
        lambda: make("group_lasso").score(graph.weights(), collect(model, graph)),
    ):
        with pytest.raises(TopiaristError, match="no weights of the kind 'filter'"):
            call()
