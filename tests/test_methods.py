"""The registry, the laws that hold for every method in it, and what each paper adds."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import golden
import topiarist
from topiarist import methods
from topiarist.budget import Budget, cost
from topiarist.cli import main
from topiarist.errors import TopiaristError
from topiarist.graph import Group, Slice
from topiarist.measure import STATISTICS, collect
from topiarist.methods import (
    FAMILIES,
    Criterion,
    Gate,
    Method,
    Penalty,
    Rule,
    Selector,
    describe,
    get,
    make,
    names,
    sum_by_unit,
)
from topiarist.models import load_model
from topiarist.models.zoo.resnet import resnet56, resnet110
from topiarist.models.zoo.vgg import vgg16
from topiarist.pruning import choose

GOLDEN = golden.rows()
every_method = pytest.mark.parametrize("name", names())


class Block(nn.Module):
    """A residual block whose shortcut ties two convolutions, then a flattened head."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv1, self.bn1 = nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.hidden, self.head = nn.Linear(96, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.bn(self.stem(x)).relu()
        x = (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()
        return self.head(self.hidden(x.flatten(1)).relu())


def block(seed=0):
    torch.manual_seed(seed)
    model = Block()
    for name, parameter in model.named_parameters():
        if "bn" in name:
            nn.init.uniform_(parameter, 0.2, 1.5)
    return model.double().eval()


X = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(3)).double()
Y = torch.arange(8) % 4


HALF = Budget(ratio=0.5)

FIELDS = {"sss": {"structure": "channel"}}
"""What the laws set, so that a method works on the units that this network has several of."""


def lawful(name):
    return make(name, **FIELDS.get(name, {}))


def answer(method, graph, stats):
    """The scores of a criterion, or what a selector keeps of a half."""
    rooms = method.units(graph)
    if isinstance(method, Criterion):
        return method.score(rooms, stats)
    return {group: kept.double() for group, kept in choose(method, rooms, stats, HALF).items()}


def scored(method, model, graph, batches):
    return answer(method, graph, collect(model, graph, batches, method.needs))


def test_the_folder_is_the_registry():
    assert {"random", "l1", "slimming", "magnitude"} <= set(names())
    assert names() == sorted(names())
    assert set(names()) == set(GOLDEN), "each method has a row in the folder tests/golden"


def test_the_families_are_in_the_order_of_the_taxonomy(capsys):
    assert tuple(methods.families()) == FAMILIES
    assert sorted(name for found in methods.families().values() for name in found) == names()
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in printed if line.strip() in FAMILIES] == list(FAMILIES)


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("vardrop", "variational dropout"),
        ("lasso", "feature reconstruction"),
        ("thinet", "feature reconstruction"),
        ("nisp", "final response layer"),
        ("pfa", "intrinsic correlation"),
    ],
)
def test_a_term_of_the_taxonomy_finds_its_method(name, term):
    assert term in describe(name)["summary"].lower()


@every_method
def test_golden_row(name):
    got, expected = GOLDEN[name]()
    assert got.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(
            got[key], expected[key], check_dtype=False, msg=lambda text, key=key: f"{key}: {text}"
        )


@every_method
def test_every_method_says_what_it_is(name):
    method = get(name)
    assert method.name == name
    assert method.family in FAMILIES
    assert method.granularity in ("structure", "weight")
    assert method.target in ("predefined", "automatic")
    assert method.allocation in ("uniform", "global")
    for need in method.needs:
        assert not isinstance(need, str) or need in {*STATISTICS, "weights", "training", "evaluations"}
    assert any(isinstance(make(name), role) for role in (Criterion, Selector))
    description = describe(name)
    json.dumps(description)
    assert description["summary"].endswith(".")
    assert description["paper"]
    assert description["roles"]
    doc = description["doc"]
    assert "Formula:" in doc
    assert "Paper:" in doc
    for field in description["fields"]:
        assert field["help"], f"the field {field['name']} has no line under Attributes:"
        assert field["name"] != "name"
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(name).name = "other"


@every_method
@pytest.mark.by_day(12)
def test_scores_have_the_shape_of_the_groups_and_repeat(name):
    model = block()
    graph = topiarist.trace(model, X[:1])
    first, again = (scored(lawful(name), model, graph, [(X, Y)]) for _ in range(2))
    units = {group.name: group.units for group in (*graph.groups, *graph.weights().groups)}
    assert first
    for group, values in first.items():
        assert values.shape == (units[group],)
        assert torch.equal(values, again[group])


def permuted(model, graph, orders):
    """The same network with its units in another order."""
    tensors = dict(model.state_dict())
    for group in graph.groups:
        for part in group.slices:
            old, new = part.positions[orders[group.name]].flatten(), part.positions.flatten()
            tensor = tensors[part.tensor]
            tensors[part.tensor] = tensor.index_copy(part.axis, new, tensor.index_select(part.axis, old))
    other = block()
    other.load_state_dict(tensors)
    return other.eval()


@every_method
@pytest.mark.by_day(12)
def test_scores_move_with_the_units(name):
    method = lawful(name)
    if not method.needs:
        return  # it looks at nothing, so that only chance could agree
    model = block()
    graph = topiarist.trace(model, X[:1])
    random = torch.Generator().manual_seed(5)
    orders = {group.name: torch.randperm(group.units, generator=random) for group in graph.groups}
    other = permuted(model, graph, orders)
    torch.testing.assert_close(other(X), model(X))
    before, after = (scored(method, m, graph, [(X, Y)]) for m in (model, other))
    if method.granularity == "structure":
        moved = {group: values[orders[group]] for group, values in before.items()}
    else:
        shaped = {weight: values.view(graph.shapes[weight]) for weight, values in before.items()}
        for group in graph.groups:
            for part in group.slices:
                if part.tensor in shaped:
                    old, new = part.positions[orders[group.name]].flatten(), part.positions.flatten()
                    values = shaped[part.tensor]
                    shaped[part.tensor] = values.index_copy(part.axis, new, values.index_select(part.axis, old))
        moved = {weight: values.flatten() for weight, values in shaped.items()}
    for group, values in moved.items():
        torch.testing.assert_close(after[group], values, rtol=1e-9, atol=1e-12)


@every_method
@pytest.mark.by_day(12)
def test_scores_do_not_depend_on_how_the_data_comes(name):
    model, method = block(), lawful(name)
    graph = topiarist.trace(model, X[:1])
    halves = [(X[:3], Y[:3]), (X[3:], Y[3:])]
    whole, split = (collect(model, graph, batches, method.needs) for batches in ([(X, Y)], halves))
    ranks = [collect(model, graph, [half], method.needs) for half in halves]
    for stats in (split, ranks[0].merge(ranks[1])):
        scores = answer(method, graph, stats)
        for group, values in answer(method, graph, whole).items():
            torch.testing.assert_close(scores[group], values, rtol=1e-9, atol=1e-12)


@every_method
@pytest.mark.by_day(12)
def test_every_method_meets_a_budget(name):
    model, method = block(), lawful(name)
    graph = topiarist.trace(model, X[:1])
    rooms = method.units(graph)
    with method.gates(model, rooms) if isinstance(method, Gate) else nullcontext():
        pass  # what has gates ranks by those of a training, however short
    keep = choose(method, rooms, collect(model, graph, [(X, Y)], method.needs), Budget(macs=0.5))
    assert 0.25 < cost(rooms, keep).macs / cost(rooms).macs <= 0.5


DUMMY = '''
"""A method that a user adds."""
from dataclasses import dataclass

import torch
from topiarist.methods.base import Method

@dataclass(frozen=True)
class Dummy(Method):
    """Scores by place.

    Formula: ``s_j = step j``, which needs
    two lines.

    Attributes:
        step: how far apart,
            in two lines too.
    """

    paper = "none"
    step: float = 1.0

    def score(self, graph, stats):
        return {group.name: self.step * torch.arange(group.units) for group in graph.groups}
'''


def test_one_new_file_is_a_method(tmp_path, monkeypatch):
    (tmp_path / "dummy.py").write_text(DUMMY)
    (tmp_path / "_shared.py").write_text("")
    (tmp_path / "empty.py").write_text("")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert set(names()) == {*GOLDEN, "dummy", "empty"}
    description = describe("dummy")
    assert description["fields"] == [
        {"name": "step", "type": "float", "default": 1.0, "help": "how far apart, in two lines too."}
    ]
    assert description["roles"] == ["criterion"]
    graph = topiarist.trace(block(), X[:1])
    assert make("dummy", step=2).score(graph, None)["conv1"].tolist() == [0, 2, 4, 6, 8]
    with pytest.raises(TopiaristError, match="exactly one"):
        get("empty")
    for name in ("dummy", "empty"):
        monkeypatch.delitem(sys.modules, f"topiarist.methods.{name}")


def test_all_that_lists_methods_finds_a_new_file(tmp_path, monkeypatch, capsys):
    """The command line, the documentation and the tests, which say what is missing: its golden row."""
    (tmp_path / "dummy.py").write_text(DUMMY)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert main(["methods", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["dummy"] == json.loads(json.dumps(describe("dummy")))
    assert listed.keys() == {*GOLDEN, "dummy"}
    assert main(["methods"]) == 0
    assert "\ndummy " in capsys.readouterr().out
    assert main(["prune", "--method", "dummy", "--help"]) == 0
    assert "--method.step" in capsys.readouterr().out
    generate = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "generate.py"))
    assert "- `dummy` (structured, predefined; needs weights): Scores by place. *none.*" in generate["index"]()
    page = generate["page"]("dummy")
    assert page.startswith("# dummy\n")
    assert "::: topiarist.methods.dummy.Dummy" in page
    with pytest.raises(AssertionError, match=r"golden(.|\n)*dummy"):
        test_the_folder_is_the_registry()
    for law in (test_scores_have_the_shape_of_the_groups_and_repeat, test_every_method_meets_a_budget):
        law("dummy")
    monkeypatch.delitem(sys.modules, "topiarist.methods.dummy")


def test_make_takes_names_classes_and_methods():
    method = make("l1", p=2)
    assert method == get("l1")(p=2)
    assert make(method) == method
    assert make(method, preset="vgg16-A") == get("l1")(p=2, preset="vgg16-A")
    assert make(get("random"), seed=3).seed == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("slimmin"), "no method 'slimmin': did you mean slimming"),
        (lambda: make("base"), "no method 'base'"),
        (lambda: make("l1", q=2), "'l1' has no field 'q': its fields are p, preset"),
        (lambda: make("slimming", name="x"), "no field 'name'"),
        (lambda: make(3), "a method is a name"),
        (lambda: make(Method), "a method is a name"),
        (lambda: make("l1", p=0), "p must be a positive number"),
        (lambda: make("l1", p="one"), "p"),
        (lambda: make("l1", preset="resnet56"), "no preset 'resnet56': did you mean resnet56-"),
        (lambda: make("slimming", lam=-1), "lam must not be negative"),
        (lambda: make("magnitude", layers="fc"), "'all' or 'conv'"),
        (lambda: make("magnitude", quality=-1), "quality must not be negative"),
        (lambda: make("magnitude", quality={"*": -1}), "quality must not be negative"),
    ],
)
def test_bad_names_and_fields_are_refused(call, message):
    with pytest.raises(TopiaristError, match=message):
        call()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_values_are_summed_by_unit(axis):
    values = torch.arange(6 * 6 * 6.0).view(6, 6, 6)
    places = torch.tensor([[0, 5], [2, 1], [3, 4]])
    expected = values.movedim(axis, 0)[places].sum((1, 2, 3)).double()
    assert torch.equal(sum_by_unit(Slice("w", axis, places), values), expected)
    assert torch.equal(sum_by_unit(Slice("w", None, places), values), values.flatten()[places].sum(1).double())


@pytest.mark.parametrize(
    ("make_model", "preset", "params", "macs"),
    [
        (vgg16, "vgg16-A", 64.0, 34.2),
        (resnet56, "resnet56-A", 9.4, 10.4),
        (resnet56, "resnet56-B", 13.7, 27.6),
        (resnet110, "resnet110-A", 2.3, 15.9),
        (resnet110, "resnet110-B", 32.4, 38.6),
    ],
)
@pytest.mark.by_day(2)
def test_presets_cut_what_the_paper_says(make_model, preset, params, macs):
    model = make_model()
    graph = topiarist.trace(model, torch.randn(1, 3, 32, 32))
    keep = choose(make("l1", preset=preset), graph, collect(model, graph))
    full, left = cost(graph), cost(graph, keep)
    assert 100 * (1 - left.params / full.params) == pytest.approx(params, abs=0.1)
    assert 100 * (1 - left.macs / full.macs) == pytest.approx(macs, abs=0.1)


@pytest.mark.filterwarnings("ignore:torchvision was built for another torch")
@pytest.mark.parametrize(("preset", "params", "macs"), [("resnet34-A", 7.6, 15.5), ("resnet34-B", 10.8, 24.2)])
@pytest.mark.by_day(1)
def test_presets_of_imagenet_cut_what_the_paper_says(preset, params, macs):
    """To a fifth of a point: the paper's network has 21.6 million parameters, this one 21.8."""
    model = load_model("torchvision:resnet34")
    graph = topiarist.trace(model, torch.randn(1, 3, 224, 224))
    keep = choose(make("l1", preset=preset), graph, collect(model, graph))
    full, left = cost(graph), cost(graph, keep)
    assert 100 * (1 - left.params / full.params) == pytest.approx(params, abs=0.2)
    assert 100 * (1 - left.macs / full.macs) == pytest.approx(macs, abs=0.2)


def test_presets_keep_to_their_network_and_budget():
    model = block()
    graph = topiarist.trace(model, X[:1])
    stats = collect(model, graph)
    for preset in ("resnet56-A", "vgg16-A"):
        with pytest.raises(TopiaristError, match="use it with zoo:"):
            choose(make("l1", preset=preset), graph, stats)
    with pytest.raises(TopiaristError, match="use it with torchvision:resnet34"):
        choose(make("l1", preset="resnet34-B"), graph, stats)
    wide = topiarist.trace(vgg16(width=0.1), torch.randn(1, 3, 32, 32))
    with pytest.raises(TopiaristError, match="leave out one of the two"):
        choose(make("l1", preset="vgg16-A"), wide, stats, Budget(macs=0.5))
    assert make("l1").budget(graph) is None
    assert isinstance(make("l1"), Rule)


def test_l1_sums_over_all_filters_of_a_residual_stream():
    model = block()
    graph = topiarist.trace(model, X[:1])
    scores = make("l1", p=2).score(graph, collect(model, graph))
    stream = torch.cat([model.stem.weight.flatten(1), model.conv2.weight.flatten(1)], 1).norm(dim=1)
    torch.testing.assert_close(scores["stem"], stream.detach())
    torch.testing.assert_close(scores["hidden"], model.hidden.weight.norm(dim=1).detach())


def test_slimming_reads_batch_norms_only():
    model = block()
    graph = topiarist.trace(model, X[:1])
    method = make("slimming", lam=0.01)
    assert isinstance(method, Penalty)
    scores = method.score(graph, collect(model, graph))
    assert set(scores) == {"stem", "conv1"}
    torch.testing.assert_close(scores["stem"], ((model.bn.weight + model.bn2.weight) / 2).detach())
    penalty = method.penalty(model, graph)
    total = sum(norm.weight.abs().sum() for norm in (model.bn, model.bn1, model.bn2))
    torch.testing.assert_close(penalty, 0.01 * total)
    plain = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2))
    graph = topiarist.trace(plain, torch.randn(1, 4))
    for call in (lambda: method.penalty(plain, graph), lambda: method.score(graph, collect(plain, graph))):
        with pytest.raises(TopiaristError, match="no batch norm"):
            call()


def test_slimming_counts_each_scale_once_where_groups_share_it():
    model = nn.BatchNorm1d(4)
    model.weight.data = torch.tensor([1.0, -2.0, 3.0, 5.0])
    parts = [
        Slice("weight", 0, torch.tensor([[0], [1]]), "scale"),
        Slice("weight", 0, torch.tensor([[1], [2]]), "scale"),
    ]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    groups = tuple(Group(f"g{i}", 2, (part,)) for i, part in enumerate(parts))
    graph = SimpleNamespace(groups=groups, shapes=shapes, scales=lambda group: group.by_role("scale"))
    assert make("slimming", lam=1.0).penalty(model, graph) == 6


def test_quality_keeps_one_weight_of_every_layer():
    model = block()
    graph = topiarist.trace(model, X[:1]).weights()
    stats = collect(model, graph)
    keep = make("magnitude", quality=100.0).select(graph, stats, None)
    assert {int(kept.sum()) for kept in keep.values()} == {1}
    convs = make("magnitude", quality=100.0, layers="conv").select(graph, stats, None)
    assert {name for name, kept in convs.items() if kept.all()} == {"hidden.weight", "head.weight"}
    with pytest.raises(TopiaristError, match="matches no"):
        make("magnitude", quality={"fc*": 1.0}).select(graph, stats, None)


def test_magnitude_needs_convolutions_for_its_conv_variant():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = topiarist.trace(model, torch.randn(1, 4)).weights()
    with pytest.raises(TopiaristError, match="no weights to prune"):
        make("magnitude", layers="conv").score(graph, collect(model, graph))


def test_methods_of_weights_refuse_a_graph_of_structure():
    model = block()
    graph = topiarist.trace(model, X[:1])
    with pytest.raises(TopiaristError, match=r"graph\.weights\(\)"):
        choose(make("magnitude"), graph, collect(model, graph), Budget(ratio=0.5))
    with pytest.raises(TopiaristError, match="no group has a score"):
        choose(make("l1"), graph.weights(), collect(model, graph), Budget(ratio=0.5))


def test_random_scores_depend_on_seed_and_group_alone():
    model = block()
    graph = topiarist.trace(model, X[:1])
    one, two = (make("random", seed=seed).score(graph, None) for seed in (0, 1))
    assert not torch.equal(one["conv1"], two["conv1"])
    assert not torch.equal(one["conv1"][:5], one["stem"][:5])


def test_magnitude_prunes_blocks_of_outputs_together():
    """Of each block all weights at one input and place are kept, or none; which, says their mean."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(), nn.Linear(8, 6, bias=False))
    graph = topiarist.trace(model, torch.randn(2, 3, 3, 3)).weights()
    keep = choose(make("magnitude", block=4), graph, collect(model, graph), Budget(ratio=0.5, allocation="uniform"))
    for name, outputs in (("0.weight", 8), ("2.weight", 6)):
        w, kept = dict(model.named_parameters())[name].detach(), keep[name].reshape(outputs, -1)
        for first in range(0, outputs, 4):
            its = kept[first : first + 4]
            assert torch.equal(its, its[:1].expand_as(its))
        if name == "0.weight":
            means = w.abs().reshape(2, 4, -1).mean(1)
            assert float(means[kept[::4]].min()) > float(means[~kept[::4]].max())
    with pytest.raises(TopiaristError, match="block must be"):
        make("magnitude", block=0)
    with pytest.raises(TopiaristError, match="leave out the block"):
        make("magnitude", block=4, quality=1.0)
