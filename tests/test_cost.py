"""Costs: the closed form against sums by hand, against torch's counter, and against the networks that a cut leaves."""

import pytest
import torch
from torch import nn

import topiarist
from networks import CASES, Net, conv, images, line, multiplications, random_keep, shaken, tokens
from topiarist import cut, trace
from topiarist.budget import Cost, cost
from topiarist.measure import latency


def test_a_chain_by_hand():
    graph = trace(CASES["chain"].model(), images(2))
    assert cost(graph) == Cost(
        macs=36 * 9 * (3 * 8 + 8 * 6) + 6 * 4,
        params=(27 * 8 + 8) + 2 * 8 + (72 * 6 + 6) + 2 * 6 + (6 * 4 + 4),
        memory=2 * 8 * 36 * 4,
    )
    keep = {"0": torch.arange(8) < 5, "3": torch.arange(6) > 3}
    assert cost(graph, keep) == Cost(
        macs=36 * 9 * (3 * 5 + 5 * 2) + 2 * 4,
        params=(27 * 5 + 5) + 2 * 5 + (45 * 2 + 2) + 2 * 2 + (2 * 4 + 4),
        memory=2 * 5 * 36 * 4,
    )


def test_grouped_and_transposed_convolutions_by_hand():
    model = shaken(line(conv(3, 12, 1), conv(12, 18, groups=3), nn.ConvTranspose2d(18, 6, 2, 2), conv(6, 4, 1))())
    graph = trace(model, images(1))
    assert cost(graph).macs == 36 * (3 * 12 + 9 * 18 * 4 + 4 * 18 * 6) + 144 * 6 * 4
    keep = {"0:rows": torch.tensor([True, True, False])}
    assert cost(graph, keep).macs == 36 * (3 * 8 + 9 * 12 * 4 + 4 * 12 * 6) + 144 * 6 * 4


def test_attention_by_hand():
    graph = trace(CASES["attention"].model(), tokens(2))
    assert cost(graph).macs == 5 * 12 * 36 + 3 * (5 * 5 * 4 + 5 * 5 * 4) + 5 * 12 * 12
    keep = {"qkv:rows": torch.arange(3) > 0, "qkv:columns": torch.arange(4) > 0}
    assert cost(graph, keep).macs == 5 * 12 * 18 + 2 * (5 * 5 * 3 + 5 * 5 * 3) + 5 * 6 * 12


@pytest.mark.parametrize("name", CASES)
def test_the_whole_network_is_counted_as_torch_does(name):
    case = CASES[name]
    model = case.model()
    graph = trace(model, case.inputs)
    assert cost(graph).params == sum(parameter.numel() for parameter in model.parameters())
    assert abs(cost(graph).macs - multiplications(model, case.inputs) / case.batch) <= 0.5
    assert cost(graph, graph.full()) == cost(graph)


@pytest.mark.parametrize("name", ["chain", "attention", "multi-head", "tied weights"])
def test_costs_are_those_of_one_example(name):
    case = CASES[name]
    graph = trace(case.model(), case.inputs)
    for batch in (1, 5):
        x = case.inputs[:1].repeat(batch, *[1] * (case.inputs.ndim - 1))
        assert cost(trace(case.model(), x)) == cost(graph)


def test_every_unit_costs_something():
    """Removing one more unit never makes a network dearer, and always saves parameters."""
    for name in ("grouped", "channel shuffle", "attention", "dense", "group norm"):
        case = CASES[name]
        graph = trace(case.model(), case.inputs)
        for group in graph.groups:
            before = cost(graph)
            for removed in range(1, group.units):
                after = cost(graph, {group.name: torch.arange(group.units) >= removed})
                assert after.params < before.params
                assert after.macs < before.macs
                before = after


def test_keeps_of_some_groups_only():
    graph = trace(CASES["dense"].model(), images(2))
    keep = {"first": torch.arange(5) < 2}
    assert cost(graph, keep) == cost(graph, {**graph.full(), **keep})


def test_single_weights_count_where_they_are_not_zero():
    model = CASES["chain"].model()
    whole = trace(model, images(2))
    graph = whole.weights()
    assert cost(graph) == cost(whole)
    keep = random_keep(graph, 0)
    sparse = cut(model, graph, keep)
    assert cost(graph, keep).params == sum(int(p.count_nonzero()) for p in sparse.parameters())
    nonzero = {name: int(weight.count_nonzero()) for name, weight in sparse.named_parameters()}
    assert cost(graph, keep).macs == 36 * (nonzero["0.weight"] + nonzero["3.weight"]) + nonzero["8.weight"]


def test_unused_parameters_count_and_unused_branches_cost_nothing():
    model = Net(lambda n, x: n.b(n.a(x)), a=nn.Linear(12, 8), b=nn.Linear(8, 4), spare=nn.Linear(100, 7))
    graph = trace(model, tokens(2))
    assert cost(graph).params == 12 * 8 + 8 + 8 * 4 + 4 + 707
    assert cost(graph).macs == 5 * (12 * 8 + 8 * 4)


def test_latency_is_measured_in_eval_mode_and_leaves_the_mode():
    modes = []
    model = Net(lambda n, x: (modes.append(n.training), n.a(x))[1], a=nn.Linear(12, 4)).train()
    assert latency(model, tokens(1), repeats=3, warmup=1) > 0
    assert modes == [False] * 4
    assert model.training


def test_public_names():
    assert (topiarist.cost, topiarist.latency) == (cost, latency)
