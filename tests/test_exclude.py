"""Names in a budget: what is excluded keeps its shape and trains as if there were no method, whatever it is called."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import door
import topiarist
from networks import CASES, Net, conv
from preactivated import small as preactivated
from topiarist import Budget, Data, Pruning, Recipe, TopiaristError, fit, prune
from topiarist.budget import allocate
from topiarist.methods import make
from topiarist.pruning import choose
from topiarist.studies import Study
from topiarist.studies.cells import unfold
from topiarist.train import attach

RESNET = topiarist.load_model("zoo:resnet20?width=0.5").eval()
X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
GRAPH = topiarist.trace(RESNET, X)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def ways(model: nn.Module, layer: str) -> Iterator[tuple[str | nn.Module, str]]:
    """Five ways to name a layer or what is around it, each with how the names of the tensors begin that it means."""
    outer, module = layer.partition(".")[0], model.get_submodule(layer)
    parameter = next(f"{layer}.{name}" for name, _ in module.named_parameters())
    yield layer, f"{layer}."
    yield outer, f"{outer}."
    yield f"{layer[:-1]}[{layer[-1]}].*", f"{layer}."
    yield parameter, parameter
    yield module, f"{layer}."


# ---- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [
    "chain", "residual", "dense", "chunk", "split", "grouped", "grouped transposed", "channel shuffle", "group norm",
    "embedding", "attention", "multi-head", "encoder layer",
])  # fmt: skip
@pytest.mark.by_day(4)
def test_what_is_named_keeps_its_shape_on_every_axis(case):
    model, x = CASES[case].model(), CASES[case].inputs
    graph, before = topiarist.trace(model, x), tensors(model)
    for layer, module in model.named_modules():
        if not layer or not dict(module.named_parameters()):
            continue
        for name, beginning in ways(model, layer):
            small = prune(model, x, "random", Budget(ratios={"*": 0.5}, exclude=(name,)), graph=graph)
            named = [tensor for tensor in before if tensor.startswith(beginning)]
            assert named
            assert all(tensors(small.model)[tensor].shape == before[tensor].shape for tensor in named), name
            lie_there = {g.name for g in graph.groups if any(part.tensor in named for part in g.slices)}
            whole = {name for name, kept in small.keep.items() if kept.all()}
            assert whole == lie_there | {g.name for g in graph.groups if g.units == 1}  # and nothing else
            json.dumps(small.request.to_json())  # with names in place of modules


@pytest.mark.parametrize("how", ["random", "l1", "thinet", "slimming", "magnitude", "lcp"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.by_day(2)
def test_every_kind_of_method_keeps_it(how, steps, digits):
    model = topiarist.load_model(door.NET)
    weights = make(how).granularity == "weight"
    budget = Budget(ratio=0.6, exclude=("layer2.0.conv1",))
    request = Pruning.of(how, budget, steps=steps)
    small = prune(model, digits.example(), request, data=digits)
    assert small.model.layer2[0].conv1.weight.shape == model.layer2[0].conv1.weight.shape
    assert small.after.params < small.before.params
    if weights:
        assert torch.equal(small.model.layer2[0].conv1.weight, model.layer2[0].conv1.weight)


@pytest.fixture(scope="module")
def digits() -> Data:
    return topiarist.load_data(door.FEW)


def test_tied_tensors_are_known_by_each_of_their_names():
    model = Net(
        lambda net, ids: net.head(net.mix(net.words(ids))),
        words=nn.Embedding(11, 12), mix=nn.Linear(12, 12), head=nn.Linear(12, 11, bias=False),
    )  # fmt: skip
    model.head.weight = model.words.weight
    ids = torch.arange(6)[None]
    for name in ("head", "head.weight", model.head, "h*", "words"):
        small = prune(model, ids, "random", Budget(ratios={"*": 0.5}, exclude=(name,)))
        assert small.model.head.weight.shape == (11, 12), name
        assert small.model.words.weight is small.model.head.weight


def test_blocks_that_hold_what_is_named_stay():
    blocks = GRAPH.blocks()
    names = [block.name for block in blocks["blocks"].blocks]
    scores = {"blocks": -torch.arange(float(len(names)))}  # the last ones go first
    last = {name for name in names if name.startswith("layer3.")}
    for name, stay in (
        ("layer3", last), ("layer3.*", last), ("layer3.2.conv1", {"layer3.2"}), ("layer3.2.bn2.weight", {"layer3.2"}),
        ("fc", set()),
    ):  # fmt: skip
        keep = allocate(blocks, scores, Budget(ratios={"blocks": 0.5}, exclude=(name,)))["blocks"].tolist()
        kept = {name for name, stays in zip(names, keep, strict=True) if stays}
        others = [name for name in names if name not in stay]
        assert kept == stay | set(others[: len(names) // 2 - len(stay)])
    with pytest.raises(TopiaristError, match="leave at least"):
        allocate(blocks, scores, Budget(macs=0.2, exclude=("layer1", "layer2")))
    with pytest.raises(TopiaristError, match=r"cannot keep 0\.1 of its"):
        allocate(blocks, scores, Budget(ratios={"blocks": 0.1}, exclude=("layer1",)))
    assert allocate(blocks, scores, Budget(ratios={"blocks": 0.1}, exclude=("blocks",)))["blocks"].all()


@pytest.mark.nightly
def test_a_rule_of_the_method_is_followed_beside_what_is_excluded():
    rule, limited = (
        prune(RESNET, X, make("magnitude", quality=1.0), budget, graph=GRAPH)
        for budget in (None, Budget(exclude=(RESNET.layer1,)))
    )
    for name, kept in limited.keep.items():
        assert kept.all() if name.startswith("layer1.") else torch.equal(kept, rule.keep[name])
    vgg, x = topiarist.load_model("zoo:vgg16").eval(), torch.randn(1, 3, 32, 32)
    preset, limited = (
        prune(vgg, x, make("l1", preset="vgg16-A"), budget) for budget in (None, Budget(exclude=("features.0",)))
    )
    assert int(preset.keep["features.0"].sum()) == 32
    assert limited.keep["features.0"].all()
    assert all(torch.equal(kept, preset.keep[name]) for name, kept in limited.keep.items() if name != "features.0")


# ---- ratios ---------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_ratios_go_to_what_is_produced_there():
    stream = {"conv1"}  # layer1 adds to what conv1 produces
    inner = {f"layer1.{n}.conv1" for n in range(3)}
    for name, groups in (
        ("layer1", stream | inner), (RESNET.layer1, stream | inner), ("layer1.*", stream | inner),
        ("layer1.0.conv1", {"layer1.0.conv1"}), ("layer1.0.bn1.weight", {"layer1.0.conv1"}), ("conv1", stream),
        ("layer1.0.conv2", stream), ("layer1.?.conv1", inner), (RESNET.layer1[0].conv1, {"layer1.0.conv1"}),
    ):  # fmt: skip
        small = prune(RESNET, X, "random", Budget(ratios={name: 0.5}), graph=GRAPH)
        assert {name for name, kept in small.keep.items() if not kept.all()} == groups, name
        assert all(int(small.keep[each].sum()) == small.graph[each].units // 2 for each in groups)


# ---- what a result says ---------------------------------------------------------------------------------------------


def test_a_result_says_what_was_excluded():
    small = prune(RESNET, X, "l1", Budget(macs=0.6, exclude=(RESNET.layer1, "fc")), graph=GRAPH)
    assert small.request.budget.exclude == ("layer1", "fc")
    groups = ("conv1", "layer1.0.conv1", "layer1.1.conv1", "layer1.2.conv1")
    assert small.excluded["layer1"].groups == groups
    assert len(small.excluded["layer1"].layers) == 7
    assert "excluded as asked: layer1 (4 groups, 7 layers), fc (3 groups, " in str(small)
    assert small.left_alone["layer1.0.conv1"] == "excluded as asked"
    blocks = prune(RESNET, X, make("sss"), Budget(exclude=("layer1",)), graph=GRAPH)
    assert "excluded as asked: layer1 (3 blocks)" in str(blocks)
    assert "excluded" not in str(prune(RESNET, X, "l1", 0.5, graph=GRAPH))


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("layer4", r"'layer4' matches no group, module or parameter: did you mean layer3 or layer2 or layer1"),
        ("layer1.0.bn3.weight", r"did you mean .*layer1\.0\.bn1\.weight"),
        ("nothing*", "name some such as "),
        (nn.Linear(2, 2), r"\(Linear\) is not part of this model: take it from the model"),
    ],
)
def test_what_means_nothing_is_refused(name, told):
    for budget in (Budget(macs=0.5, exclude=(name,)), Budget(ratios={name: 0.5})):
        with pytest.raises(TopiaristError, match=told):
            prune(RESNET, X, "l1", budget, graph=GRAPH)
    with pytest.raises(TopiaristError, match=told):
        prune(RESNET, X, "sss", Budget(macs=0.9, exclude=(name,)), graph=GRAPH)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(TopiaristError, match="nothing that 'fc' produces can be pruned"):
        prune(RESNET, X, "l1", Budget(ratios={"fc": 0.5}), graph=GRAPH)
    with pytest.raises(TopiaristError, match="names modules without parameters"):
        prune(CASES["chain"].model(), CASES["chain"].inputs, "l1", Budget(macs=0.5, exclude=("2",)))
    with pytest.raises(TopiaristError, match=r"a module \(Sequential\) is named where its network is not known"):
        allocate(GRAPH, {"conv1": torch.ones(8)}, Budget(macs=0.9, exclude=RESNET.layer1))
    with pytest.raises(TopiaristError, match="give its name"):
        Pruning.of("l1", {"macs": 0.5, "exclude": RESNET.layer1}).to_json()
    with pytest.raises(TopiaristError, match="needs a budget"):
        Pruning.of("random", {"exclude": "conv1"})
    with pytest.raises(TopiaristError, match="must hold names"):
        Budget(macs=0.5, exclude={"conv1": 1})
    with pytest.raises(TopiaristError, match="needs the model's graph"):
        fit(branches(), noise(), RECIPE, method="slimming", exclude="a")


# ---- training -------------------------------------------------------------------------------------------------------

RECIPE = Recipe(epochs=2, lr=0.05, batch_size=16, augment=False)
METHODS = {
    "sfp": {"rate": 0.5},
    "slimming": {"lam": 0.01},
    "group_lasso": {"lam": 0.01},
    "group_lasso proximal": {"lam": 0.01, "solver": "proximal"},
    "group_lasso channel": {"lam": 0.01, "kind": "channel"},
    "group_lasso column": {"lam": 0.01, "kind": "column"},
    "l0": {"lam": 1.0},
    "l0 weight": {"lam": 1.0, "granularity": "weight"},
    "sss": {"structure": "channel"},
    "vardrop": {"warmup": (0.0, 0.0)},
}


def branch() -> nn.Sequential:
    first, second = (conv(3, 8), nn.BatchNorm2d(8), nn.ReLU()), (conv(8, 6), nn.BatchNorm2d(6), nn.ReLU())
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def branches() -> nn.Module:
    """Two branches, of which the second changes nothing of what the first one learns."""
    torch.manual_seed(0)
    return Net(lambda net, x: net.a(x) + 0.0 * net.b(x), a=branch(), b=branch())


def noise() -> Data:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 3, 6, 6, generator=generator), torch.arange(64) % 3
    return Data.of("noise", x, y, x[:8], y[:8])


def trained(method=None, exclude=(), **options) -> nn.Module:
    model = branches()
    graph = topiarist.trace(model, noise().example())
    fit(model, noise(), RECIPE, method=method, graph=graph, exclude=exclude, **options)
    return model


PLAIN = trained()


def unlike(model: nn.Module, plain: nn.Module, part: str) -> list[str]:
    before = plain.state_dict()
    return [t for t, v in model.state_dict().items() if t.startswith(f"{part}.") and not torch.equal(v, before[t])]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.by_day(1)
def test_what_is_excluded_trains_as_without_the_method(name):
    method = make(name.partition(" ")[0], **METHODS[name])
    for exclude in ("a", "a.*", ("a.0", "a.3", "a.8")):
        model = trained(method, exclude)
        assert unlike(model, PLAIN, "a") == []
        assert unlike(model, PLAIN, "b"), "the method acts on the rest"
    assert unlike(trained(method), PLAIN, "a"), "and would act on what is excluded"


def test_a_module_is_excluded_from_a_training():
    model = branches()
    fit(model, noise(), RECIPE, method="slimming", graph=topiarist.trace(model, noise().example()), exclude=model.a)
    assert unlike(model, PLAIN, "a") == []


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", ["sfp", "slimming", "group_lasso", "l0", "sss"])
@pytest.mark.by_day(2)
def test_a_budget_excludes_from_the_training_before_the_cuts_too(name, steps):
    method, model = make(name, **METHODS[name]), branches()
    plain = branches()
    for seed in range(steps):
        fit(plain, noise(), RECIPE, seed=seed)
    budget = Budget(ratios={"b": 0.7}, exclude=(model.a,))
    if name in ("l0", "sss"):
        budget = Budget(exclude=(model.a,))  # they find by themselves how much is kept
    request = Pruning.of(method, budget, steps=steps, sparse_training=RECIPE, allow_blind=True)  # b adds zeros
    small = prune(model, noise().example(), request, data=noise())
    assert unlike(small.model, plain, "a") == []
    assert all(kept.all() for group, kept in small.keep.items() if group.startswith("a."))


def test_a_loop_of_ones_own_sees_what_a_method_acts_on():
    model = branches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    graph = topiarist.trace(model, noise().example())
    with attach("sfp", model, optimizer, graph, exclude=(model.a[0], "a.3")) as attached:
        assert attached.units is not None
        assert [group.name for group in attached.units.groups] == ["b.0", "b.3"]
    with attach("sfp", model, optimizer, graph) as attached:
        assert attached.units is graph


def test_a_norm_behind_which_a_selector_picks_is_left_alone_too():
    model = topiarist.add_selectors(preactivated(), "auto", torch.randn(1, 1, 8, 8))
    graph = topiarist.trace(model, torch.randn(1, 1, 8, 8))
    (norm, *_) = graph.selectors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for exclude in ((), norm, f"{norm}.weight", model.get_submodule(norm)):
        with attach("slimming", model, optimizer, graph, exclude=exclude):
            optimizer.zero_grad()
            scale = model.get_parameter(f"{norm}.weight")
            scale.grad = torch.zeros_like(scale)
            before = scale.detach().clone()
            optimizer.step()
        assert torch.equal(before, scale) == (exclude != ())


def test_a_network_of_a_study_leaves_alone_what_its_prunings_exclude():
    budgets = [{"params": 0.8, "exclude": ["layer1"]}, {"params": 0.7, "exclude": "layer1"}, {"params": 0.6}]
    study = Study.of({
        "network": door.NET, "data": door.FEW, "seeds": [3], "recipe": {"epochs": 1}, "finetune": {"epochs": 1},
        "prunings": [{"method": "slimming", "budget": budgets}], "arms": ["finetune"],
    })  # fmt: skip
    told = [cell.settings.get("exclude") for cell in unfold(study.cells()) if cell.arm == "unpruned"]
    assert sorted(told, key=str) == [None, None, ["layer1"]]  # of no method, and of slimming


def test_a_checkpoint_of_another_exclusion_is_not_continued(tmp_path):
    file = tmp_path / "train.ckpt"
    trained("slimming", "a", checkpoint=file)
    trained("slimming", "a", checkpoint=file)
    with pytest.raises(TopiaristError, match="exclude"):
        trained("slimming", "a.0", checkpoint=file)


def test_scores_of_a_network_that_was_trained_in_part_leave_the_rest_alone():
    model = trained(make("l0", **METHODS["l0"]), "a")
    graph = topiarist.trace(model, noise().example())
    keep = choose(make("l0"), graph, topiarist.collect(model, graph, []), None)
    assert all(keep[name].all() for name in keep if name.startswith("a."))


# ---- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_the_command_line_excludes(tmp_path, capsys):
    words = ["train", door.NET, "--data", door.FEW, "--epochs", 1, "--method", "slimming", "--method.lam", 0.1]
    for folder, more in (("a", []), ("b", ["--exclude", "conv1,bn1"])):
        assert door.run(*words, *more, "--out", tmp_path / folder, "--json") == 0
    capsys.readouterr()
    status = door.run(*words, "--exclude", "conv7", "--out", tmp_path / "c", "--json")
    assert "did you mean conv" in door.one_sentence(status, capsys)
    status = door.run(*words[:6], "--exclude", "conv1", "--out", tmp_path / "d", "--json")
    assert "give --method" in door.one_sentence(status, capsys)
    weights = tmp_path / "a" / "model.safetensors"
    words = ["prune", door.NET, "--weights", weights, "--input", door.SHAPE, "--method", "l1"]
    config = tmp_path / "budget.yaml"
    config.write_text("budget: {macs: 0.7, exclude: [layer2], ratios: {conv1: 1.0}}")
    for n, more in enumerate((["--budget.macs", 0.7, "--budget.exclude", "layer2"], ["--config", config])):
        assert door.run(*words, *more, "--out", tmp_path / str(n), "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert told["pruning"]["budget"]["exclude"] == ["layer2"]
        assert "layer2.0.conv2" in told["excluded"]["layer2"]["groups"]
