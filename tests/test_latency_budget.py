"""Latency budgets: the knapsack against brute force, all budgets at once, and what is refused; without a clock."""

from __future__ import annotations

import itertools
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from topiarist import Budget, Pruning, TopiaristError, allocate, cost, cut, load_model, prune, trace
from topiarist.budget import Axis, LatencyTable, LayerLatency, widths
from topiarist.deploy import Cache, latency_table, layers_of, make_target
from topiarist.deploy.prices import table as tables
from topiarist.graph import Graph, batch_of
from topiarist.pruning import Run, milliseconds


def network(*channels: int) -> nn.Sequential:
    """Convolutions one behind the other, and a linear layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for reads, makes in itertools.pairwise(channels):
        layers += [nn.Conv2d(reads, makes, 3, padding=1), nn.BatchNorm2d(makes), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10)).eval()


def stepped(reads: float, makes: float) -> float:
    """A runtime that computes outputs sixteen at a time: what it costs is known in closed form."""
    return reads * 16 * np.ceil(makes / 16) / 1000


def table_of(model: nn.Module, graph: Graph, x: Tensor, ms: Callable[[float, float], float] = stepped) -> LatencyTable:
    """The table that a runtime of this cost would show, at every width."""
    layers = []
    for layer in layers_of(model, graph, x):
        reads, makes = (np.arange(1.0, axis.size + 1) for axis in (layer.inputs, layer.outputs))
        values = np.array([[ms(i, o) for o in makes] for i in reads])
        axes = layer.inputs, layer.outputs
        layers.append(LayerLatency(layer.name, *axes, (reads, makes), values, layer.positions, layer.macs))
    whole = sum(float(layer.milliseconds[-1, -1]) for layer in layers)
    return LatencyTable("stepped 1.0", "nowhere", 1, 1, tuple(layers), whole)


@pytest.fixture
def traced() -> tuple[nn.Module, Graph, Tensor]:
    model, x = network(3, 32, 48, 64), torch.randn(2, 3, 8, 8)
    return model, trace(model, x), x


def scores_of(graph: Graph, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.units, generator=generator) for group in graph.groups}


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("fraction", [0.8, 0.5, 0.3])
def test_a_latency_budget_holds_and_widths_lie_on_the_steps(traced: Any, allocation: Any, fraction: float) -> None:
    model, graph, x = traced
    table = table_of(model, graph, x)
    keep = allocate(graph, scores_of(graph), Budget(latency=fraction, allocation=allocation).priced(table))
    assert table.of(keep) <= fraction
    counts = [int(kept.sum()) for kept in keep.values()]
    assert all(count in widths(group.units) for count, group in zip(counts, graph.groups, strict=True))
    for name, kept in keep.items():  # one rung more of any group would be over the budget
        wider = next((w for w in widths(len(kept)) if w > kept.sum()), None)
        if wider is not None:
            more = {n: float(k.float().mean()) for n, k in keep.items()} | {name: wider / len(kept)}
            assert table.fraction(more) > fraction


def test_the_units_of_highest_score_are_kept(traced: Any) -> None:
    model, graph, x = traced
    scores = scores_of(graph)
    keep = allocate(graph, scores, Budget(latency=0.5).priced(table_of(model, graph, x)))
    for name, kept in keep.items():
        assert kept.any()
        if not kept.all():
            assert scores[name][kept].min() >= scores[name][~kept].max()


def test_the_loss_is_close_to_the_least_that_brute_force_finds(traced: Any) -> None:
    model, graph, x = traced
    table, scores = table_of(model, graph, x), scores_of(graph)
    keep = allocate(graph, scores, Budget(latency=0.5, allocation="global").priced(table))
    ranked = {name: values.sort(descending=True).values for name, values in scores.items()}

    def kept_score(counts: dict[str, int]) -> float:
        return sum(float(ranked[name][:count].sum()) for name, count in counts.items())

    names, units = list(scores), {group.name: group.units for group in graph.groups}
    best = max(
        kept_score(counts)
        for each in itertools.product(*(widths(units[name]) for name in names))
        for counts in [dict(zip(names, each, strict=True))]
        if table.fraction({name: count / units[name] for name, count in counts.items()}) <= 0.5
    )
    ours = kept_score({name: int(kept.sum()) for name, kept in keep.items()})
    total = kept_score(units)
    assert total - ours <= 1.15 * (total - best)


def test_what_costs_most_time_gives_up_most(traced: Any) -> None:
    model, graph, x = traced
    even = {group.name: torch.ones(group.units) for group in graph.groups}
    slow = layers_of(model, graph, x)[1].name

    def table(factor: float) -> LatencyTable:
        priced = table_of(model, graph, x)
        for layer in priced.layers:
            if layer.layer == slow:
                layer.milliseconds[:] *= factor
        whole = sum(float(layer.milliseconds[-1, -1]) for layer in priced.layers)
        return LatencyTable("t", "m", 1, 1, priced.layers, whole)

    kept = [allocate(graph, even, Budget(latency=0.6).priced(table(factor))) for factor in (1.0, 6.0)]
    last = graph.groups[-1].name  # read by no slow layer
    assert kept[1][last].sum() > kept[0][last].sum()


def test_budgets_given_together_all_hold(traced: Any) -> None:
    model, graph, x = traced
    table, whole = table_of(model, graph, x), cost(graph)
    for budget in (
        Budget(latency=0.6, macs=0.3),
        Budget(latency=0.3, macs=0.9),
        Budget(latency=0.5, params=0.35, ratio=0.7),
        Budget(latency=0.6, memory=0.5),
        Budget(latency=0.5, multiple=16),
        Budget(latency=0.5, floor=0.5),
        Budget(latency=0.6, exclude="0"),
        Budget(latency=0.6, ratios={"0": 0.25}),
    ):
        keep = allocate(graph, scores_of(graph), budget.priced(table))
        after = cost(graph, keep)
        assert table.of(keep) <= budget.latency
        assert budget.macs is None or after.macs <= budget.macs * whole.macs
        assert budget.params is None or after.params <= budget.params * whole.params
        assert budget.memory is None or after.memory <= budget.memory * whole.memory
        for group in graph.groups:
            count = int(keep[group.name].sum())
            assert count % budget.multiple == 0
            assert budget.floor == 1 or count >= budget.floor * group.units
    assert int(keep["0"].sum()) == 8
    units = sum(int(kept.sum()) for kept in keep.values())
    assert units <= sum(group.units for group in graph.groups)


def test_the_least_that_can_be_reached_is_named(traced: Any) -> None:
    model, graph, x = traced
    table = table_of(model, graph, x)
    with pytest.raises(
        TopiaristError, match=r"keeps 0.001 of the latency on stepped 1.0, but .* at least (0\.\d+)"
    ) as e:
        allocate(graph, scores_of(graph), Budget(latency=0.001).priced(table))
    least = float(str(e.value).partition("at least ")[2].partition(":")[0])
    keep = allocate(graph, scores_of(graph), Budget(latency=least).priced(table))
    assert table.of(keep) <= least


def test_a_latency_budget_without_a_table_is_refused(traced: Any) -> None:
    _, graph, _ = traced
    with pytest.raises(TopiaristError, match="needs a table of latencies"):
        allocate(graph, scores_of(graph), Budget(latency=0.5))


@pytest.mark.parametrize(
    ("request_of", "sentence"),
    [
        (lambda: Pruning.of("magnitude", Budget(latency=0.5)), "takes as long with zeros"),
        (lambda: Pruning.of("l1", Budget(latency=0.5), steps=3), "met in one cut: leave steps out"),
        (lambda: Budget(latency=1.5), "latency must be the fraction kept"),
        (lambda: Budget(latency=50), "write 0.5 to keep 50 %"),
        (lambda: Budget(latency=0.5, threads=0), "threads must be a whole number of at least 1"),
        (lambda: Budget(latency=0.5, batch=0), "batch must be a whole number of at least 1"),
        (lambda: Budget(ratio=0.5, target="onnxruntime"), "say whose milliseconds count: give latency too"),
        (lambda: Budget(threads=2), "say whose milliseconds count: give latency too"),
        (lambda: make_target("torch", 10**6), "threads must be a whole number from 1 to"),
    ],
)
def test_impossible_requests_are_refused(request_of: Callable[[], object], sentence: str) -> None:
    with pytest.raises(TopiaristError, match=sentence):
        request_of()


def test_an_unknown_target_is_refused_with_a_near_one() -> None:
    model, x = network(3, 8, 8), torch.randn(1, 3, 8, 8)
    with pytest.raises(TopiaristError, match="no target 'onxruntime': did you mean onnxruntime"):
        prune(model, x, "l1", Budget(latency=0.5, target="onxruntime"))


def test_processes_do_not_measure_apart() -> None:
    model, x = network(3, 8, 8), torch.randn(1, 3, 8, 8)
    with pytest.raises(TopiaristError, match="measured by one process"):
        prune(model, x, "l1", Budget(latency=0.5), run=Run(distributed=True))


def test_json_of_budgets_without_latency_stays_as_it_was() -> None:
    assert not {"latency", "target", "threads", "batch"} & Budget(macs=0.5).to_json().keys()
    budget = Budget(latency=0.5, target="onnxruntime", threads=2, batch=16)
    request = Pruning.of("l1", budget)
    assert Pruning.from_json(json.loads(json.dumps(request.to_json()))) == request


# the table


def test_axes_count_what_a_keep_leaves() -> None:
    heads = Axis(((6, ("rows", "columns")), (2, ())))
    assert heads.width({"rows": 0.5, "columns": 1 / 3}) == pytest.approx(6 / 6 + 2)
    assert heads.groups == {"rows", "columns"}


def test_a_run_is_paid_once(traced: Any) -> None:
    """The whole network is what was measured, and what no keep can change is the call alone."""
    model, graph, x = traced
    layers = table_of(model, graph, x).layers
    for whole in (6.0, 60.0):
        table = LatencyTable.fitted(LatencyTable("t", "m", 1, 1, layers, whole, call=2.0))
        assert table.milliseconds({}) == pytest.approx(whole)
        assert table.milliseconds({group.name: 0.0 for group in graph.groups}) >= 2.0


def test_layers_have_the_shapes_of_the_network(traced: Any) -> None:
    model, graph, x = traced
    layers = layers_of(model, graph, batch_of(x, 4))
    assert [(layer.name, layer.inputs.size, layer.outputs.size) for layer in layers] == [
        ("0", 3, 32),
        ("3", 32, 48),
        ("6", 48, 64),
        ("11", 64, 10),
    ]
    for layer in layers:
        module, example = layer.shape.build(layer.inputs.size, layer.outputs.size)
        own = model.get_submodule(layer.name)
        assert [tuple(p.shape) for p in module.parameters()] == [tuple(p.shape) for p in own.parameters()]
        assert example.shape[0] == 4


@pytest.fixture
def clockless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """Replaces time by the size of a network's parameters: what is "measured" is known, whatever the machine."""
    seen: list[float] = []

    def of(session: Any) -> float:
        return sum(16 * np.ceil(p.shape[0] / 16) * p[0].numel() for p in session.model.parameters() if p.ndim > 1) / 1e6

    def fastest(session: Any, inputs: Any, seconds: float = 0) -> float:
        seen.append(of(session) + 1e-9)  # no run takes no time
        return seen[-1]

    monkeypatch.setattr(tables, "fastest", fastest)
    monkeypatch.setattr(milliseconds, "ratio_of", lambda session, other, inputs: of(session) / of(other))
    monkeypatch.setenv("TOPIARIST_CACHE", str(tmp_path / "cache"))
    return seen


@pytest.mark.usefixtures("clockless")
@pytest.mark.parametrize("fraction", [0.7, 0.4])
def test_prune_meets_the_measured_latency(fraction: float) -> None:
    model, x = network(3, 64, 96, 128), torch.randn(1, 3, 8, 8)
    done = prune(model, x, "l1", Budget(latency=fraction))
    assert done.latency is not None
    assert done.latency.measured <= 1.01 * fraction
    assert done.latency.measured == pytest.approx(fraction, abs=0.06)
    assert f"({done.latency.measured:.1%}), predicted" in str(done)
    assert done.proof.ok


@pytest.mark.usefixtures("clockless")
def test_the_least_that_was_measured_is_named_and_can_be_asked_for() -> None:
    model, x = network(3, 64, 64), torch.randn(1, 3, 8, 8)
    with pytest.raises(TopiaristError, match=r"keeps 1e-05 of the latency on torch") as caught:
        prune(model, x, "l1", Budget(latency=1e-5))
    least = float(str(caught.value).partition("at least ")[2].partition(":")[0])
    done = prune(model, x, "l1", Budget(latency=least))
    assert done.latency is not None
    assert done.latency.measured <= least


@pytest.mark.usefixtures("clockless")
def test_the_model_stays_as_it_is() -> None:
    model, x = network(3, 32, 32).train(), torch.randn(2, 3, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prune(model, x, "l1", Budget(latency=0.6))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class OneExample(nn.Module):
    """Takes one example at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network(3, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise RuntimeError("one or two examples only")
        out: Tensor = self.layers(x)
        return out


def test_a_batch_that_the_network_does_not_take_is_named() -> None:
    with pytest.raises(TopiaristError, match=r"fails on a batch of 4 \(one or two"):
        prune(OneExample(), torch.randn(1, 3, 8, 8), "l1", Budget(latency=0.6, batch=4))


def test_a_batch_that_no_memory_holds_is_refused() -> None:
    with pytest.raises(TopiaristError, match="no memory for a batch of"):
        batch_of(torch.randn(1, 3, 64, 64), 10**30)


class ByKeyword(nn.Module):
    """Calls its layers by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(input=self.first(input=x).relu())
        return out


def test_layers_called_by_keyword_are_seen() -> None:
    model, x = ByKeyword(), torch.randn(1, 3, 8, 8)
    assert [layer.name for layer in layers_of(model, trace(model, x), x)] == ["first", "second"]


@pytest.mark.usefixtures("clockless")
@pytest.mark.parametrize("method", ["thinet", "pfa"])
def test_methods_that_select_meet_it_too(method: str) -> None:
    from topiarist import load_data

    model, x = network(1, 32, 32), torch.randn(1, 1, 8, 8)
    done = prune(model, x, method, Budget(latency=0.6), data=load_data("digits"))
    assert done.latency is not None
    assert done.latency.measured <= 0.606


def test_what_was_measured_is_kept_and_not_measured_again(clockless: list[float], tmp_path: Path) -> None:
    model, x = network(3, 16, 16), torch.randn(1, 3, 8, 8)
    graph, target = trace(model, x), make_target("torch")
    done: list[int] = []

    def stop(what: str, step: int, total: int) -> None:
        if step == 20:
            raise KeyboardInterrupt
        done.append(step)

    with pytest.raises(KeyboardInterrupt):
        latency_table(model, graph, x, target, on_step=stop)
    measured = len(clockless)
    first = latency_table(model, graph, x, target, on_step=lambda *args: done.append(args[1]))
    whole = len(clockless)
    assert whole - measured < max(done[20:]) + 3  # the first twenty came from the file
    second = latency_table(model, graph, x, target)
    assert len(clockless) == whole + 1  # the whole network alone
    assert first.whole == second.whole
    for ours, theirs in zip(first.layers, second.layers, strict=True):
        assert (ours.milliseconds == theirs.milliseconds).all()


DAMAGED = [b"", b"{", b"[1, 2]", b'{"a": "b"}', b'{"a": -1}', b"\xff\xfe", b"[" * 5000, b'{"a": 1' + b"0" * 400 + b"}"]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_cache_is_measured_anew(tmp_path: Path, content: bytes) -> None:
    file = Cache.open(tmp_path, "here").file
    file.write_bytes(content)
    assert Cache.open(tmp_path, "here").values == {}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_a_cache_that_is_no_file_is_measured_anew(tmp_path: Path) -> None:
    os.mkfifo(Cache.open(tmp_path, "here").file)
    assert Cache.open(tmp_path, "here").values == {}
    Cache.open(tmp_path, "there").file.symlink_to("/dev/zero")
    assert Cache.open(tmp_path, "there").values == {}


def test_an_unwritable_cache_costs_a_warning_only(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    cache = Cache.open(tmp_path / "taken", "here")
    cache.put("a", 1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache.write()
    assert "measured anew next time" in str(caught[0].message)
    assert cache.get("a") == 1.0


# widths that runtimes punish


def test_widths_that_four_does_not_divide_are_named() -> None:
    model, x = network(3, 32, 32), torch.randn(1, 3, 8, 8)
    odd = prune(model, x, "l1", Budget(ratios={"0": 0.7, "3": 0.5}))
    assert odd.uneven == {"0": 22}
    assert "as of 1 here (0 22): give multiple=8, or a latency budget" in " ".join(str(odd).split())
    even = prune(model, x, "l1", Budget(ratio=0.7, multiple=8))
    assert even.uneven == {}
    assert "multiple=8" not in str(even)


@pytest.mark.parametrize("name", ["resnet20", "densenet40", "resnext29", "vgg11?width=0.25"])
@pytest.mark.by_day(2)
def test_layers_cost_the_macs_of_the_network_and_have_the_widths_of_the_cut(name: str) -> None:
    model, x = load_model(f"zoo:{name}").eval(), torch.randn(1, 3, 32, 32)
    graph = trace(model, x)
    layers = layers_of(model, graph, x)
    assert sum(layer.macs for layer in layers) == pytest.approx(cost(graph).macs)
    generator = torch.Generator().manual_seed(0)
    keep = {group.name: torch.rand(group.units, generator=generator) < 0.5 for group in graph.groups}
    for kept in keep.values():
        kept[0] = True
    shares = {name: float(kept.double().mean()) for name, kept in keep.items()}
    smaller = cut(model, graph, keep)
    for layer in layers:
        weight = smaller.get_submodule(layer.name).weight
        assert layer.outputs.width(shares) == pytest.approx(weight.shape[0])
