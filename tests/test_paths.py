"""Random networks with branches: a cut is right on every path that an example showed, and never silently wrong."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
from collections import Counter
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import topiarist
from branches import Drawn, Way, drawn
from networks import NIGHT, TOLERANCE, call, distance, flat, random_keep, real
from topiarist import Architecture, TopiaristError
from topiarist.graph import Graph, Keep, map_tensors
from topiarist.graph.code import branches

MOST = st.sampled_from([1, 2, 99])
"""The most units that a group keeps."""
SHARE = 0.9
"""Of all paths, shown or not, on which a cut is right rather than refused."""


@st.composite
def networks(draw: Any) -> Drawn:
    return drawn(draw(st.randoms(use_true_random=False)))


def tensors(output: Any) -> list[Tensor]:
    """The numbers of an output, without the integers beside them."""
    entries = output if isinstance(output, tuple | list) else (output,)
    kept = [entry for entry in entries if not isinstance(entry, int)]
    return [tensor for tensor in flat(kept) if tensor.is_floating_point()]


def gap(left: Any, right: Any) -> float:
    return distance(tensors(left), tensors(right))


def traced(network: Drawn, seed: int, most: int) -> tuple[nn.Module, Graph, Keep]:
    model = network.model()
    graph = topiarist.trace(model, network.example, more_inputs=network.more)
    return model, graph, random_keep(graph, seed, most)


def restricted(graph: Graph, keep: Keep, other: Graph) -> Keep | None:
    """The same keep in another graph of the network; None where that one ties more, or pins some of it."""
    gone = {place: ~kept for place, kept in graph.kept(keep).items()}

    def is_gone(part: Any, unit: int) -> bool:
        place = (part.tensor, part.axis)
        return place in gone and bool(gone[place][part.positions[unit]].all())

    same = {
        group.name: torch.tensor([not all(is_gone(part, unit) for part in group.slices) for unit in range(group.units)])
        for group in other.groups
    }
    if not all(bool(kept.any()) for kept in same.values()):
        return None
    there = {place: ~kept for place, kept in other.kept(same).items()}
    removed = [{place: dead for place, dead in of.items() if dead.any()} for of in (gone, there)]
    alike = removed[0].keys() == removed[1].keys() and all(
        torch.equal(removed[1][p], dead) for p, dead in removed[0].items()
    )
    return same if alike else None


class References:
    """What the mask computes on each path, by graphs of the network to which that path was shown."""

    def __init__(self, network: Drawn, model: nn.Module, graph: Graph, keep: Keep) -> None:
        self.network, self.model, self.graph, self.keep = network, model, graph, keep
        hidden = [way.inputs for way in network.hidden if not way.training]
        self.all = self.masked(network.example, [*network.more, *hidden])

    def masked(self, inputs: Any, more: list[Any]) -> nn.Module | None:
        graph = topiarist.trace(self.model, inputs, more_inputs=more)
        same = restricted(self.graph, self.keep, graph)
        return None if same is None else topiarist.mask(self.model, graph, same)

    def on(self, way: Way) -> Any:
        """The answer on a path; None where no mask of a graph that knows it prunes the same."""
        masked = self.all
        if masked is None or way.training:
            masked = self.masked(shown_in_training(way), [self.network.example, *self.network.more])
        return None if masked is None else way.run(masked)


def outcomes(network: Drawn, seed: int, most: int) -> dict[Way, str]:
    """How the cut does on each path: right, wrong, refused, raised, or ran where there is no reference."""
    model, graph, keep = traced(network, seed, most)
    smaller, masked, result = topiarist.cut(model, graph, keep), topiarist.mask(model, graph, keep), {}
    references = References(network, model, graph, keep)
    for way in (*network.shown, *network.hidden):
        try:
            answer = way.run(smaller)
        except TopiaristError:
            result[way] = "refused"
        except (RuntimeError, ValueError, IndexError):
            result[way] = "raised"
        else:
            expected = references.on(way) if way in network.hidden else way.run(masked)
            near = expected is not None and gap(answer, expected) <= TOLERANCE
            result[way] = "right" if near else "ran" if expected is None else "wrong"
    return result


def shown_in_training(way: Way) -> dict[str, Any]:
    """What shows a path to a trace, which doubles the batch in training: half of it, where the batch decides."""
    if not way.training or "batch" not in way.options:
        return way.inputs
    batch = len(way.inputs["x"])
    return dict(map_tensors(way.inputs, lambda t: t[: batch // 2] if len(t) == batch else t))


@settings(max_examples=settings().max_examples if NIGHT else 10)
@given(networks(), st.integers(0, 2**16), MOST)
def test_a_cut_is_its_mask_on_every_path_that_an_example_shows(network: Drawn, seed: int, most: int) -> None:
    model, graph, keep = traced(network, seed, most)
    assert not graph.unknown
    smaller, masked = topiarist.cut(model, graph, keep), topiarist.mask(model, graph, keep)
    for way in network.shown:
        assert gap(way.run(smaller), way.run(masked)) <= TOLERANCE, way.name


@settings(max_examples=settings().max_examples if NIGHT else 4)
@given(networks(), st.integers(0, 2**16), MOST)
def test_on_any_other_path_a_cut_is_right_or_refused(network: Drawn, seed: int, most: int) -> None:
    found = outcomes(network, seed, most)
    assert [way.name for way, outcome in found.items() if outcome == "wrong"] == []


class Turned(nn.Module):
    """Its further argument takes a branch that states a width by an attribute of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.heads, self.half = 4, 6

    def forward(self, x: Tensor, turned: Tensor | None = None) -> Tensor:
        x = self.stem(x).tanh()
        b, n, c = x.shape
        x = x.view(b, n, self.heads, c // self.heads).flip(2).reshape(b, n, c)
        if self.training:
            first, second = x.chunk(2, -1)
            x = torch.cat([first, second * 2], -1)
        if turned is not None:
            x = x.reshape(b, n, -1, self.half).flip(2).flatten(2)
        return self.head(x)


@pytest.mark.parametrize("seed", range(60 if NIGHT else 12))
def test_lines_show_the_branches_that_instructions_show(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, shown = drawn(random.Random(seed)), []
    for together in (branches.straight_lines, lambda code: {}):
        monkeypatch.setattr(branches, "straight_lines", together)
        graph = topiarist.trace(network.model(), network.example, more_inputs=network.more)
        shown.append(graph.solution.record.branches)
    assert shown[0] == shown[1]


def test_an_attribute_that_only_an_untaken_branch_reads() -> None:
    model, x = Turned().double().eval(), torch.randn(2, 4, 5).double()
    graph, known = topiarist.trace(model, x), topiarist.trace(model, x, more_inputs=[(x, x)])
    keep = {"stem:rows": torch.tensor([False, True])}
    expected = topiarist.mask(model, known, keep)(x, x)
    try:
        answer = topiarist.cut(model, graph, keep)(x, x)
    except TopiaristError:
        return
    assert distance(answer, expected) <= TOLERANCE


class Scaled(nn.Module):
    """Hands its input on, unless a further argument asks for a branch that computes with its size."""

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        return x if gain is None else self._scaled(x, gain)

    def _scaled(self, x: Tensor, gain: Tensor) -> Tensor:
        return x * gain * x.shape[-1] ** -0.5


class Handed(nn.Module):
    """A layer, a module that runs no operator on the traced path, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scaled, self.head = nn.Linear(5, 8), Scaled(), nn.Linear(8, 3)

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        out: Tensor = self.head(self.scaled(self.stem(x), gain))
        return out


def test_a_module_that_runs_nothing_on_the_traced_path_is_guarded() -> None:
    model, x, gain = Handed().double().eval(), torch.randn(2, 4, 5).double(), torch.ones(1).double()
    smaller = topiarist.cut(model, topiarist.trace(model, x), {"stem": torch.arange(8) < 4})
    assert smaller(x).shape == (2, 4, 3)
    with pytest.raises(TopiaristError, match="no example took the branch"):
        smaller(x, gain)


@pytest.mark.nightly
def test_most_paths_are_right_rather_than_refused() -> None:
    counted: Counter[str] = Counter()
    for seed in range(300):
        counted.update(outcomes(drawn(random.Random(seed)), seed, 1 if seed % 2 else 99).values())
    assert counted["right"] >= SHARE * counted.total(), counted


# the cut network as a value: copies, files, exports


@lru_cache(maxsize=8)
def cut_of(seed: int) -> tuple[Drawn, nn.Module, nn.Module, Architecture]:
    """(network, model, cut model, its architecture) that a seed draws."""
    network = drawn(random.Random(seed))
    model, graph, keep = traced(network, seed, 1 if seed % 2 else 99)
    return network, model, topiarist.cut(model, graph, keep), Architecture.of(graph, keep)


def same_as(network: Drawn, smaller: nn.Module, again: nn.Module) -> bool:
    return all(gap(way.run(again), way.run(smaller)) <= TOLERANCE for way in network.shown)


@pytest.mark.parametrize("seed", range(60 if NIGHT else 4))
def test_copies_pickles_and_files_are_the_same_network(seed: int) -> None:
    network, model, smaller, architecture = cut_of(seed)
    assert same_as(network, smaller, copy.deepcopy(smaller))
    assert same_as(network, smaller, pickle.loads(pickle.dumps(smaller)))
    file = io.BytesIO()
    torch.save(smaller, file)
    file.seek(0)
    assert same_as(network, smaller, torch.load(file, weights_only=False))
    loaded = Architecture.from_json(json.loads(json.dumps(architecture.to_json()))).apply(network.model())
    loaded.load_state_dict(smaller.state_dict())
    assert same_as(network, smaller, loaded)
    assert same_as(network, smaller, copy.deepcopy(loaded))


def error_of_trace(model: nn.Module, inputs: dict[str, Any]) -> float:
    """How far `torch.jit.trace`, which computes with sizes in float32, is from what the network answers."""
    script = torch.jit.trace(model, example_kwarg_inputs=inputs, strict=False, check_trace=False)
    return gap(script(**inputs), call(model, inputs))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(60 if NIGHT else 4))
def test_torch_traces_a_cut_network_as_well_as_the_whole_one(seed: int) -> None:
    network, model, smaller, _ = cut_of(seed)
    whole = error_of_trace(model, network.example)
    assert whole <= 1e-6
    assert error_of_trace(smaller, network.example) <= (TOLERANCE if whole <= TOLERANCE else 1e-6)


def exported(model: nn.Module, inputs: dict[str, Any], *, dynamo: bool) -> list[Tensor] | None:
    """The answer of a network's ONNX file; None where torch cannot export the network."""
    runtime, file = pytest.importorskip("onnxruntime"), io.BytesIO()
    try:
        torch.onnx.export(model, (), file, kwargs=inputs, dynamo=dynamo, verbose=False)
        session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    except Exception:  # whatever exporters raise on operators that they do not know
        return None
    given = {entry.name: value.numpy() for entry, value in zip(session.get_inputs(), inputs.values(), strict=True)}
    return tensors([torch.from_numpy(answer) for answer in session.run(None, given)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "dynamo"])
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(2, 30))])
@pytest.mark.by_day(1)
def test_a_cut_network_exports_as_well_as_the_whole_one(seed: int, dynamo: bool) -> None:
    network, model, smaller, _ = cut_of(seed)
    inputs = real(network.example, torch.float32)
    model, smaller = copy.deepcopy(model).float(), copy.deepcopy(smaller).float()
    if exported(model, inputs, dynamo=dynamo) is None:
        pytest.skip("torch cannot export the whole network")
    answer = exported(smaller, inputs, dynamo=dynamo)
    assert answer is not None
    assert distance(answer, tensors(call(smaller, inputs))) <= 1e-4
