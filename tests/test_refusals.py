"""How Python callers are told no: before anything long begins, in one sentence, and never by a wrong network."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

import topiarist
from networks import images, shaken
from topiarist import Data, Recipe, TopiaristError, add_selectors, prune
from topiarist.methods import make
from topiarist.models.zoo.preresnet import PreBasic, PreResNet

RECIPE = Recipe(epochs=2, lr=0.02, schedule="constant")


@pytest.fixture(scope="module")
def digits():
    return topiarist.load_data("digits").subset(128)


def net():
    torch.manual_seed(0)
    return topiarist.load_model("zoo:digitsnet", width=0.5)


def untrained(*_):
    raise AssertionError("it trained before it refused")


@pytest.mark.parametrize("budget", [
    {"ratios": {"zz": 0.5}}, {"macs": 0.5, "exclude": "zz"}, {"macs": 1e-9}, {"macs": 0.5, "floor": 80},
])  # fmt: skip
@pytest.mark.parametrize("method", ["slimming", "sfp", "group_lasso"])
def test_a_budget_that_cannot_be_is_refused_before_the_training(method, budget, digits):
    with pytest.raises(TopiaristError):
        prune(
            net(),
            digits.example(),
            topiarist.Pruning.of(method, budget, sparse_training=RECIPE),
            data=digits,
            run=topiarist.Run(progress=untrained),
        )


def test_the_least_that_can_stay_is_told_of_the_network_that_was_given(digits):
    told = []
    for steps in (1, 4):
        with pytest.raises(TopiaristError, match=r"budget keeps 0.001 of") as error:
            prune(
                net(),
                digits.example(),
                topiarist.Pruning.of("l1", 0.001, steps=topiarist.Steps(steps, training=RECIPE)),
                data=digits,
                run=topiarist.Run(progress=untrained),
            )
        told.append(str(error.value))
    assert told[0] == told[1]


def test_a_floor_of_each_step_may_go_below_the_floor_of_one(digits):
    found = prune(net(), digits.example(), topiarist.Pruning.of("l1", {"params": 0.3, "floor": 0.7}, steps=4))
    assert found.proof.ok
    with pytest.raises(TopiaristError, match=r"floor|at least|least"):
        prune(net(), digits.example(), "l1", {"params": 0.3, "floor": 0.7})


@pytest.mark.parametrize("steps", [1, 2])
def test_values_to_rewind_to_must_be_finite(steps, digits):
    start = {
        name: torch.full_like(v, torch.nan) if v.is_floating_point() else v for name, v in net().state_dict().items()
    }
    with pytest.raises(TopiaristError, match="rewind to are not finite"):
        prune(
            net(),
            digits.example(),
            topiarist.Pruning.of("l1", 0.5, steps=topiarist.Steps(steps, training=RECIPE), rewind=True),
            data=digits,
            initial=start,
            run=topiarist.Run(progress=untrained),
        )


@pytest.mark.parametrize("method", ["taylor", "fisher", "apoz", "lasso", "thinet", "lcp", "nisp", "pfa"])
def test_data_that_does_not_fit_the_model_is_refused_at_once(method, digits):
    wide = Data.of("wide", torch.rand(40, 3, 8, 8), torch.arange(40) % 10, torch.rand(10, 3, 8, 8), torch.arange(10))
    many = Data.of("many", torch.rand(40, 1, 8, 8), torch.arange(40) % 20, torch.rand(10, 1, 8, 8), torch.arange(10))
    with pytest.raises(TopiaristError, match="fails on examples of 'wide'"):
        prune(net(), digits.example(), method, 0.5, wide)
    with pytest.raises(TopiaristError, match="10 classes and 'many' has 20"):
        prune(net(), digits.example(), method, 0.5, many)
    with pytest.raises(TopiaristError, match=r"topiarist.Data"):
        prune(net(), digits.example(), method, 0.5, "digits")
    with pytest.raises(TopiaristError, match=r"'digits'|digits"):
        prune(net().double(), digits.example().double(), method, 0.5, digits)


@pytest.mark.parametrize("field", [{"mean": (torch.nan,)}, {"std": (torch.nan,)}, {"std": (torch.inf,)}])
def test_normalisation_must_be_finite(field, digits):
    with pytest.raises(TopiaristError, match="finite"):
        dataclasses.replace(digits, **field)


@pytest.mark.parametrize("recipe", [{"epochs": 1}, "x", 3])
def test_a_recipe_is_a_recipe(recipe):
    with pytest.raises(TopiaristError, match=r"topiarist\.Recipe"):
        topiarist.Steps(2, training=recipe)
    with pytest.raises(TopiaristError, match=r"topiarist\.Recipe"):
        topiarist.Pruning(make("slimming"), topiarist.Budget(macs=0.5), sparse_training=recipe)


def test_lasso_needs_something_that_varies(digits):
    with pytest.raises(TopiaristError, match="more samples"):
        prune(net(), digits.example(), make("lasso", samples=1, examples=1), 0.5, digits)


@pytest.mark.parametrize(
    "field", [{"steps": 1.5}, {"population": torch.inf}, {"seed": 2**64}, {"seed": "x"}, {"lr": torch.inf}]
)
def test_fields_of_layer_compensation(field):
    with pytest.raises(TopiaristError, match=next(iter(field))):
        make("lcp", **field)


def fresh():
    torch.manual_seed(0)
    return PreResNet(3, 4, [4, 6, 8], 1, PreBasic, 5)


@pytest.fixture(scope="module")
def found():
    x = images(2, size=8)
    return prune(add_selectors(shaken(fresh()), "auto", x), x, "slimming", 0.5)


@pytest.fixture
def selected(found, tmp_path):
    topiarist.save(found.model, found.architecture, tmp_path)
    return fresh, tmp_path / "model.safetensors"


@pytest.mark.parametrize("damage", [lambda i: i.flip(0), torch.zeros_like, lambda i: i + 1000])
def test_indices_of_selectors_must_be_those_of_the_architecture(damage, selected):
    fresh, file = selected
    tensors = load_file(file)
    picked = [name for name in tensors if name.endswith("indices") and len(tensors[name]) > 1]
    assert picked
    topiarist.load(fresh, file)
    save_file({**tensors, picked[0]: damage(tensors[picked[0]])}, file)
    with pytest.raises(TopiaristError, match="not what the architecture says"):
        topiarist.load(fresh, file)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_weights_in_a_file_are_floating_point(kind, selected):
    fresh, file = selected
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("weight"))
    save_file({**tensors, name: tensors[name].to(kind)}, file)
    with pytest.raises(TopiaristError, match="no floating-point type"):
        topiarist.load(fresh, file)


@pytest.mark.parametrize(("method", "field", "value", "told"), [
    ("lasso", "samples", 1.5, "samples of lasso must be a whole number"),
    ("lasso", "ridge", torch.inf, "ridge of lasso must be a finite number"),
    ("slimming", "lam", torch.nan, "lam"),
    ("random", "seed", object(), "seed of random must be a whole number"),
    ("random", "seed", True, "seed of random must be a whole number"),
    ("thinet", "examples", "4", "thinet"),
    ("vardrop", "warmup", 3, "vardrop"),
    ("group_lasso", "kind", "filters", "filter"),
])  # fmt: skip
def test_fields_of_a_wrong_type_are_told(method, field, value, told):
    with pytest.raises(TopiaristError, match=told):
        make(method, **{field: value})
    with pytest.raises(TopiaristError, match=told):
        make(make(method), **{field: value})


def test_arguments_of_a_wrong_type_are_told(digits):
    with pytest.raises(TopiaristError, match="graph must be"):
        prune(net(), digits.example(), "l1", 0.5, digits, graph=5)
    for name, value in (("batch_size", "4"), ("batch_size", 0), ("seed", 1.5)):
        with pytest.raises(TopiaristError, match=f"{name} of the run must be"):
            topiarist.Run(**{name: value})
    with pytest.raises(TopiaristError, match="glob patterns"):
        topiarist.Budget(macs=0.5, exclude=[5])


def test_selectors_for_nothing_are_refused():
    with pytest.raises(TopiaristError, match="must be a torch"):
        add_selectors(None, "*")
    with pytest.raises(TopiaristError, match="no norm is named"):
        add_selectors(net(), [])


def test_a_scan_without_scores_is_refused(digits):
    graph = topiarist.trace(net(), digits.example())
    with pytest.raises(TopiaristError, match="scores none of these units"):
        topiarist.sensitivity(net(), graph.weights(), digits, "l1", ratios=(0.5,))


def test_what_removes_nothing_says_so(digits):
    model = topiarist.load_model("zoo:digitsnet", width=0.5)
    found = prune(model, digits.example(), "sss")
    assert all(kept.all() for kept in found.keep.values())
    assert "No units were pruned: train the network with it for longer" in str(found)


def test_a_folder_in_a_file_s_place_is_told(tmp_path, digits):
    found = prune(net(), digits.example(), "l1", 0.5)
    topiarist.save(found.model, found.architecture, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(TopiaristError, match="is a folder and no file"):
        topiarist.load(topiarist.make_model("zoo:digitsnet", width=0.5), tmp_path)


@pytest.mark.parametrize("field", [
    {"lr": "x"}, {"lr": None}, {"lr": True}, {"momentum": None}, {"gamma": None}, {"weight_decay": "a"},
    {"milestones": 0.5}, {"milestones": ("a",)}, {"milestones": "abc"}, {"schedule": []}, {"epochs": True},
    {"batch_size": True}, {"augment": "no"},
], ids=str)  # fmt: skip
def test_recipes_of_a_wrong_type_are_told(field):
    with pytest.raises(TopiaristError, match=next(iter(field))):
        Recipe(**field)


def test_a_keep_of_another_network_is_told(digits):
    narrow = prune(net(), digits.example(), "magnitude", 0.3)
    wide = topiarist.load_model("zoo:digitsnet")
    with pytest.raises(TopiaristError, match="not the network that was traced"):
        topiarist.fit(wide, digits, RECIPE, graph=narrow.graph, keep=narrow.keep)
    for keep, told in (([1], "must map groups"), ({name: [1] for name in narrow.keep}, "give")):
        with pytest.raises(TopiaristError, match=told):
            topiarist.fit(net(), digits, RECIPE, graph=narrow.graph, keep=keep)
    with pytest.raises(TopiaristError, match="a method is a name"):
        topiarist.fit(net(), digits, RECIPE, method=5)


def test_a_repair_and_a_rewinding_are_not_asked_for_at_once(digits):
    start = net().state_dict()
    with pytest.raises(TopiaristError, match="leave out repair or rewind"):
        prune(
            net(),
            digits.example(),
            topiarist.Pruning.of("l1", 0.5, repair="lasso", rewind=True),
            data=digits,
            initial=start,
        )
    found = prune(net(), digits.example(), topiarist.Pruning.of("thinet", 0.5, rewind=True), data=digits, initial=start)
    assert found.repair is None
    assert "repaired" not in str(found)


def test_fixed_matrices_are_no_weights():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)
            self.register_buffer("table", torch.randn(8, 8))

        def forward(self, x):
            return self.two(torch.relu(self.one(x)) @ self.table)

    model, x = Net(), torch.randn(2, 6)
    found = prune(model, x, "magnitude", 0.5)
    assert sorted(found.keep) == ["one.weight", "two.weight"]
    assert torch.equal(found.model.table, model.table)


@pytest.mark.parametrize("method", ["magnitude", "snip", "obd", "wanda", "obs"])
@pytest.mark.by_day(6)
def test_the_layout_in_memory_makes_no_difference(method, digits):
    plain = prune(net(), digits.example(), method, 0.5, digits)
    other = prune(net().to(memory_format=torch.channels_last), digits.example(), method, 0.5, digits)
    for name, kept in plain.keep.items():
        assert (kept != other.keep[name]).float().mean() < 0.01  # convolutions may round otherwise
        weight = other.model.get_parameter(name)
        assert not weight.detach().flatten()[~other.keep[name]].any()
