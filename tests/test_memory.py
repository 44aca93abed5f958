"""Peak activation memory: by hand, against what a cut network holds as it runs, and as a budget."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import topiarist
from networks import CASES, Net, call, conv, flat, images, line, random_keep, shaken, tokens
from test_random_networks import Drawn, plans
from topiarist import Budget, Pruning, allocate, cost, cut, trace
from topiarist.errors import TopiaristError
from topiarist.graph import Graph
from topiarist.methods import make
from topiarist.models import zoo


class Account(TorchDispatchMode):
    """Adds up the storages that operators return, as long as they live: no tracer, no labels."""

    def __init__(self, *outside: Tensor) -> None:
        super().__init__()
        self.outside = {tensor.untyped_storage().data_ptr() for tensor in outside}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        out = func(*args, **(kwargs or {}))
        for tensor in flat(out) if isinstance(out, Tensor | tuple | list) else []:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.outside:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


def measured(model: nn.Module, inputs: Any) -> int:
    """The most bytes that a forward pass holds beyond its inputs and the network's own tensors."""
    account = Account(*model.parameters(), *model.buffers(), *flat(inputs))
    with torch.no_grad(), account:
        call(model, inputs)
    return account.peak


def profiled(model: nn.Module, inputs: Any) -> int:
    """The same as torch's allocator tells the profiler, with what kernels need while they run."""
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        call(model, inputs)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def some_of(graph: Graph) -> dict[str, Tensor]:
    """Half of every group's units, and at least two."""
    return {group.name: torch.arange(group.units) < max(2, group.units // 2) for group in graph.groups}


def small(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build(name, width=0.25, input_size=16, **options).eval()


class Encoder(nn.Module):
    """A small vision transformer: patches, a class token, two layers of attention and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 24, 4, 4), nn.Parameter(torch.randn(1, 1, 24))
        self.places = nn.Parameter(torch.randn(1, 17, 24))
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(4))
        self.qkv = nn.ModuleList(nn.Linear(24, 72) for _ in range(2))
        self.proj = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(24, 96), nn.GELU(), nn.Linear(96, 24)) for _ in range(2))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        for k in range(2):
            n, length, _ = x.shape
            q, k_, v = self.qkv[k](self.norms[2 * k](x)).reshape(n, length, 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
            y = nn.functional.scaled_dot_product_attention(q, k_, v)
            x = x + self.proj[k](y.transpose(1, 2).reshape(n, length, -1))
            x = x + self.mlp[k](self.norms[2 * k + 1](x))
        return self.head(x[:, 0])


NETWORKS = {
    "resnet": lambda: small("resnet20"),
    "densenet": lambda: small("densenet40"),
    "vgg": lambda: small("vgg11"),
    "transformer": lambda: shaken(Encoder()),
}


def layers(*, inplace: bool) -> nn.Module:
    return line(conv(3, 8), nn.ReLU(inplace), conv(8, 4), nn.ReLU(inplace), nn.Flatten(), nn.Linear(144, 10))()


@pytest.mark.parametrize("inplace", [False, True])
def test_three_layers_by_hand(inplace):
    """The peak of maps of 36 positions, 4 bytes each: what an operator reads and what it makes."""
    graph = trace(layers(inplace=inplace), images(2))
    first, second = 8 * 36 * 4, 4 * 36 * 4
    assert cost(graph).memory == (first + second if inplace else first + first)
    keep = {"0": torch.arange(8) < 2}
    assert cost(graph, keep).memory == (second + 2 * 36 * 4 if inplace else second + second)  # at the second layer
    assert cost(graph, {**keep, "2": torch.arange(4) < 1}).memory == (3 if inplace else 4) * 36 * 4


def test_a_shortcut_is_held_beside_its_branch():
    model = Net(
        lambda n, x: n.head(x + n.b(n.a(x)).relu_()), a=nn.Linear(12, 40), b=nn.Linear(40, 12), head=nn.Linear(12, 3)
    )
    stem = Net(lambda n, x: n.rest(n.stem(x)), stem=nn.Linear(12, 12), rest=model)
    graph = trace(stem, tokens(2))
    assert cost(graph).memory == 5 * 4 * (12 + 40 + 12)
    assert cost(graph, {"rest.a": torch.arange(40) < 3}).memory == 5 * 4 * (12 + 12 + 12)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_closed_form_is_what_a_cut_network_holds(name):
    model, inputs = NETWORKS[name](), images(2, size=16)
    graph = trace(model, inputs)
    for keep in (graph.full(), some_of(graph), random_keep(graph, 3)):
        assert cost(graph, keep).memory * 2 == measured(cut(model, graph, keep), inputs)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("multi-head", "encoder"))])
def test_the_closed_form_holds_for_every_operator(name):
    case = CASES[name]
    model, batch = case.model(), case.batch
    graph = trace(model, case.inputs)
    for keep in (graph.full(), some_of(graph)):
        assert abs(cost(graph, keep).memory - measured(cut(model, graph, keep), case.inputs) / batch) <= 0.5


def test_multi_head_attention_counts_as_it_is_pruned():
    case = CASES["multi-head"]
    model = case.model()
    graph = trace(model, case.inputs)
    assert cost(graph, some_of(graph)).memory * 2 == measured(cut(model, graph, some_of(graph)), case.inputs)


@settings(max_examples=20)
@given(plans().filter(lambda plan: all(name != "Places" for name, _ in plan)))  # which makes an index of its own
@pytest.mark.nightly
def test_random_networks_hold_what_the_closed_form_says(plan):
    torch.manual_seed(0)
    model, inputs = shaken(Drawn(plan)), images(2, size=4)
    graph = trace(model, inputs)
    for keep in (graph.full(), some_of(graph)):
        assert abs(cost(graph, keep).memory - measured(cut(model, graph, keep), inputs) / 2) <= 0.5


def test_the_allocator_of_torch_tells_the_same():
    model, inputs = NETWORKS["transformer"](), images(8, size=16)
    graph = trace(model, inputs)
    for keep in (graph.full(), some_of(graph)):
        assert cost(graph, keep).memory * 8 == pytest.approx(profiled(cut(model, graph, keep), inputs), rel=0.05)


def test_memory_grows_with_the_batch():
    model = NETWORKS["resnet"]()
    whole = cost(trace(model, images(1, size=16))).memory
    assert cost(trace(model, images(6, size=16))).memory == whole
    assert measured(model, images(6, size=16)) == 6 * whole


def test_only_the_first_example_in_eval_mode_counts():
    model = NETWORKS["vgg"]()
    graph = trace(model, images(1, size=16))
    more = trace(model.train(), images(1, size=16), more_inputs=[images(4, size=16)])
    assert cost(more) == cost(graph)


@pytest.mark.parametrize("name", ["resnet", "densenet", "transformer"])
def test_a_longer_prefix_of_removals_never_holds_more(name):
    graph = trace(NETWORKS[name](), images(1, size=16))
    keep = graph.full()
    random = torch.Generator().manual_seed(0)
    before = cost(graph).memory
    while any(kept.sum() > 1 for kept in keep.values()):
        for kept in keep.values():
            if kept.sum() > 1:
                kept[torch.nonzero(kept)[int(torch.randint(int(kept.sum()), (1,), generator=random))]] = False
        after = cost(graph, keep).memory
        assert after <= before
        before = after


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("name", ["resnet", "densenet", "transformer"])
def test_a_budget_is_never_exceeded_and_met_within_a_step(name, allocation):
    model, inputs = NETWORKS[name](), images(1, size=16)
    graph = trace(model, inputs)
    random = torch.Generator().manual_seed(0)
    scores = {group.name: torch.rand(group.units, generator=random) for group in graph.groups}
    for fraction in (0.9, 0.7):
        allowed = fraction * cost(graph).memory
        keep = allocate(graph, scores, Budget(memory=fraction), allocation)
        assert measured(cut(model, graph, keep), inputs) <= allowed
        grown = []
        for group, kept in keep.items():
            if not kept.all():
                more = kept.clone()
                more[torch.where(kept, -1.0, scores[group]).argmax()] = True
                grown.append(cost(graph, {**keep, group: more}).memory)
        assert max(grown) > allowed


@given(st.floats(0.5, 1), st.floats(0.5, 1), st.floats(0.5, 1))
@settings(max_examples=10)
def test_all_amounts_hold_together(macs, params, memory):
    graph = trace(CASES["residual"].model(), images(2))
    scores = {group.name: torch.arange(float(group.units)) for group in graph.groups}
    spent, full = cost(graph, allocate(graph, scores, Budget(macs=macs, params=params, memory=memory))), cost(graph)
    for name, fraction in {"macs": macs, "params": params, "memory": memory}.items():
        assert getattr(spent, name) <= fraction * getattr(full, name) * (1 + 1e-9)


def test_an_error_names_the_least_that_can_be_had():
    graph = trace(NETWORKS["resnet"](), images(1, size=16))
    scores = {group.name: torch.arange(float(group.units)) for group in graph.groups}
    with pytest.raises(TopiaristError, match=r"of the peak activation memory, but .* at least") as refused:
        allocate(graph, scores, Budget(memory=0.01))
    least = float(re.search(r"at least ([\d.]+)", str(refused.value))[1])
    allocate(graph, scores, Budget(memory=least))


def test_unstructured_pruning_is_refused():
    graph = trace(CASES["chain"].model(), images(2)).weights()
    assert cost(graph, random_keep(graph, 0)).memory == cost(graph).memory
    scores = {group.name: torch.rand(group.units) for group in graph.groups}
    with pytest.raises(TopiaristError, match="tensors keep their size: leave memory out"):
        allocate(graph, scores, Budget(memory=0.5))
    with pytest.raises(TopiaristError, match="tensors keep their size: leave memory out"):
        Pruning.of("magnitude", {"ratio": 0.5, "memory": 0.5})


def test_blocks_are_replaced_by_zeros_of_the_same_size():
    graph = trace(NETWORKS["resnet"](), images(1, size=16)).blocks()
    keep = {group.name: torch.arange(group.units) < 1 for group in graph.groups}
    assert cost(graph, keep).memory == cost(graph).memory


def test_the_budget_checks_and_writes_itself():
    assert Budget(memory=0.5).asks
    assert Budget(memory=0.5).to_json()["memory"] == 0.5
    assert "memory" not in Budget(macs=0.5).to_json()
    with pytest.raises(TopiaristError, match=r"memory must be the fraction kept.*write 0\.5 to keep 50 %"):
        Budget(memory=50)
    with pytest.raises(TopiaristError, match="n_of_m says by itself"):
        Budget(memory=0.5, n_of_m="2:4")


@pytest.mark.nightly
def test_a_pruning_in_steps_ends_within_the_budget():
    model, inputs = NETWORKS["resnet"](), images(1, size=16)
    done = topiarist.prune(model, inputs, Pruning.of("l1", Budget(memory=0.6), steps=2))
    assert done.after.memory <= 0.6 * done.before.memory
    assert done.after.memory == measured(done.model, inputs)
    old, new = done.before.memory, done.after.memory
    assert f"peak activation memory in bytes: {old:,} → {new:,} ({new / old:.1%})" in str(done)
    assert make("l1") == done.method
