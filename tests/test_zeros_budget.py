"""Latency budgets for weights: the price of a zero against brute force, all budgets at once; without a clock."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from topiarist import Budget, Pruning, TopiaristError, allocate, cost, load_model, methods, prune, trace
from topiarist.budget import LayerZeros, ZerosTable
from topiarist.budget.zeros import levels
from topiarist.deploy.prices import zeros as prices
from topiarist.graph import Graph
from topiarist.pruning import milliseconds
from topiarist.sparse import SparseModule

SLOW, FAST = 8.0, 1.0
"""Milliseconds of the two layers, of equally many weights."""


def traced() -> tuple[nn.Module, Graph, Tensor]:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1)).eval(), torch.randn(1, 3, 4, 4)
    return model, methods.make("magnitude").units(trace(model, x)), x


def table_of(graph: Graph, rest: float = 0.5) -> ZerosTable:
    """A runtime whose layers cost what their nonzeros do, and a tenth of it at least."""
    grid = np.array([0.01, 0.1, 0.5, 1.0])
    ms = [np.maximum(0.1, grid) * each for each in (SLOW, FAST)]
    layers = [LayerZeros(group.name, group.units, grid, m) for group, m in zip(graph.groups, ms, strict=True)]
    return ZerosTable("counting 1.0", "nowhere", 1, 1, layers, rest, rest + SLOW + FAST)


def scores_of(graph: Graph) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {group.name: torch.rand(group.units, generator=generator) for group in graph.groups}


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("fraction", [0.8, 0.5, 0.2])
def test_a_budget_holds_and_is_used(allocation: Any, fraction: float) -> None:
    _, graph, _ = traced()
    table, scores = table_of(graph), scores_of(graph)
    keep = allocate(graph, scores, Budget(latency=fraction, allocation=allocation).priced(table))
    assert 0.9 * fraction <= table.of(keep) <= fraction
    for group in graph.groups:  # the weights of highest score are kept
        kept, scored = keep[group.name], scores[group.name]
        assert scored[kept].min() >= scored[~kept].max()


@pytest.mark.parametrize("fraction", [0.7, 0.4, 0.2])
def test_no_other_densities_lose_less(fraction: float) -> None:
    """Under global allocation a loss is the sum of the scores of the zeros: all pairs of densities are tried."""
    _, graph, _ = traced()
    table, scores = table_of(graph), scores_of(graph)
    keep = allocate(graph, scores, Budget(latency=fraction, allocation="global").priced(table))

    def lost(group: str, count: int) -> float:
        return float(scores[group].sort(descending=True).values[count:].sum())

    ours = sum(lost(name, int(kept.sum())) for name, kept in keep.items())
    steps = {group.name: [max(1, int(d * group.units)) for d in levels(group.units)] for group in graph.groups}
    spent = table.of(keep)
    for counts in itertools.product(*steps.values()):
        densities = {g.name: n / g.units for g, n in zip(graph.groups, counts, strict=True)}
        if table.fraction(densities) <= spent:
            assert sum(lost(g, n) for g, n in zip(steps, counts, strict=True)) >= ours - 1e-9


def test_uniform_layers_keep_one_share_where_time_falls_as_weights_do() -> None:
    _, graph, _ = traced()
    grid = np.array([1e-3, 1.0])
    layers = [LayerZeros(g.name, g.units, grid, grid * ms) for g, ms in zip(graph.groups, (SLOW, FAST), strict=True)]
    table = ZerosTable("counting 1.0", "nowhere", 1, 1, layers, 0.0, SLOW + FAST)
    same = {group.name: torch.linspace(0.1, 1, group.units) for group in graph.groups}
    keep = allocate(graph, same, Budget(latency=0.4, allocation="uniform").priced(table))
    first, second = (float(kept.double().mean()) for kept in keep.values())
    assert first == pytest.approx(second, rel=0.15)


def test_a_layer_never_costs_more_than_dense() -> None:
    layer = LayerZeros("a", 100, np.array([0.1, 0.5, 1.0]), np.array([1.0, 9.0, 4.0]))
    assert layer.at(0.5) == 4.0
    assert layer.at(0.1) == 1.0


def test_other_amounts_hold_too_and_what_is_excluded_stays() -> None:
    _, graph, _ = traced()
    budget = Budget(latency=0.6, exclude=("1",))
    keep = allocate(graph, scores_of(graph), budget.priced(table_of(graph)))
    assert keep["1.weight"].all()
    assert table_of(graph).of(keep) <= 0.6
    with pytest.raises(TopiaristError, match="leave at least"):
        allocate(graph, scores_of(graph), Budget(latency=0.05).priced(table_of(graph)))
    with pytest.raises(TopiaristError, match="of the parameters"):
        allocate(graph, scores_of(graph), Budget(latency=0.9, params=0.01).priced(table_of(graph)))
    both = Budget(latency=0.6, params=0.7)
    keep = allocate(graph, scores_of(graph), both.priced(table_of(graph)))
    assert cost(graph, keep).params <= 0.7 * cost(graph).params


def test_only_a_runtime_that_reads_zeros_has_such_a_budget() -> None:
    with pytest.raises(TopiaristError, match="takes as long with zeros: give target='sparse'"):
        Pruning.of("magnitude", Budget(latency=0.5, target="onnxruntime"))
    with pytest.raises(TopiaristError, match="takes as long with zeros"):
        Pruning.of("magnitude", Budget(latency=0.5))
    assert Pruning.of("magnitude", Budget(latency=0.5, target="sparse")).budget is not None


@pytest.mark.nightly
def test_a_network_is_priced_pruned_and_measured(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a clock would show is given, so that no test depends on one."""
    monkeypatch.setenv("TOPIARIST_CACHE", str(tmp_path))
    model, x = load_model("zoo:digitsnet").eval(), torch.randn(1, 1, 8, 8)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    monkeypatch.setattr(prices, "fastest", lambda *given, **options: 1.0)
    monkeypatch.setattr(milliseconds, "ratio_of", lambda *given, **options: 0.9)

    def seconds(compiled: SparseModule, *given: Tensor) -> dict[str, float]:
        layers = {name: compiled.model.get_submodule(name).weight for name in names}
        return {"": 0.1, **{name: float((w != 0).double().mean()) * 0.9 / len(names) for name, w in layers.items()}}

    monkeypatch.setattr(SparseModule, "seconds", seconds)
    done = prune(model, x, "magnitude", Budget(latency=0.9, target="sparse"))
    assert done.latency is not None
    table = done.latency.table
    assert isinstance(table, ZerosTable)
    assert {layer.group for layer in table.layers} == set(done.keep)
    assert done.latency.predicted <= 0.9 + 1e-9
    assert done.latency.measured == 0.9
    assert done.after.params < done.before.params
    assert "latency on sparse" in str(done)
