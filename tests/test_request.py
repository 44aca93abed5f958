"""A pruning is described once: Python, YAML, flags and JSON say the same under the same names."""

import json

import pytest
import yaml

from topiarist import Budget, Pruning, Recipe, Run, Steps, TopiaristError
from topiarist.cli import commands
from topiarist.cli.arguments import parse
from topiarist.methods import make, names
from topiarist.studies import Study

YAML = """
method: {name: slimming, lam: 0.003}
budget: {macs: 0.5, exclude: [conv1, "layer1.*"], ratios: {"layer2.*": 0.25}, floor: 4}
repair: {name: lasso, samples: 5}
steps: {count: 3, schedule: cubic, training: {epochs: 2, lr: 0.02}}
sparse_training: {epochs: 4, milestones: [0.25, 0.5]}
"""

FULL = Pruning(
    make("slimming", lam=0.003),
    Budget(macs=0.5, exclude=("conv1", "layer1.*"), ratios={"layer2.*": 0.25}, floor=4),
    repair=make("lasso", samples=5),
    steps=Steps(3, "cubic", Recipe(epochs=2, lr=0.02, schedule="constant")),
    sparse_training=Recipe(epochs=4, milestones=(0.25, 0.5)),
)


def typed(request: Pruning) -> Pruning:
    """The request that a command line gives whose words are its flags."""
    return parse("prune", commands.prune, ["zoo:digitsnet", *request.flags()])["pruning"]


def test_yaml_to_value_to_flags_to_json_to_value() -> None:
    request = Pruning.from_json(yaml.safe_load(YAML))
    assert request == FULL
    assert typed(request) == FULL
    assert Pruning.from_json(json.loads(json.dumps(typed(request).to_json()))) == FULL


@pytest.mark.parametrize("name", names())
@pytest.mark.by_day(12)
def test_every_method_makes_the_way(name: str) -> None:
    request = Pruning.of(name, Budget(ratio=0.5))
    assert typed(request) == request
    assert Pruning.from_json(json.loads(json.dumps(request.to_json()))) == request


@pytest.mark.parametrize("request_", [
    Pruning.of("magnitude", 0.2, steps=Steps(4, training=Recipe.finetune()), rewind=True),
    Pruning.of("slimming", sparse_training=Recipe.paper(), budget=Budget(ratio=0.5, allocation="global")),
    Pruning.of("l1", {"macs": 0.3, "multiple": 8}, steps=2),
    Pruning.of({"name": "l1", "p": 1}, 0.5, repair="thinet"),
    Pruning.of("pfa"),
    Pruning.of("l1", 0.5, allow_blind=True),
])  # fmt: skip
def test_defaults_are_left_out_and_come_back(request_: Pruning) -> None:
    assert typed(request_) == request_
    assert Pruning.from_json(request_.to_json()) == request_


def test_short_spellings_mean_the_same() -> None:
    assert Pruning.of("l1", 0.5) == Pruning(make("l1"), Budget(macs=0.5))
    assert Pruning.of("magnitude", 0.5) == Pruning(make("magnitude"), Budget(ratio=0.5))
    assert Pruning.of("l1", {"macs": 0.5}, steps=3) == Pruning(make("l1"), Budget(macs=0.5), steps=Steps(3))
    words = ["zoo:digitsnet", "--method", "l1", "--budget.macs", "0.5", "--steps", "3", "--repair", "lasso"]
    assert parse("prune", commands.prune, words)["pruning"] == Pruning.of("l1", 0.5, repair="lasso", steps=3)


def test_recipes_that_are_given_in_part_start_from_their_own_defaults() -> None:
    request = Pruning.of("slimming", 0.5, steps={"count": 2, "training": {"epochs": 1}}, sparse_training={"epochs": 1})
    assert request.steps.training == Recipe(epochs=1, lr=0.001, schedule="constant")
    assert request.sparse_training == Recipe(epochs=1)


@pytest.mark.parametrize(("plain", "named"), [
    ({"method": "l1", "budgets": {}}, "did you mean budget"), ({"budget": {"macs": 0.5}}, "names no method"),
    ({"method": "l3", "budget": 0.5}, "there is no method 'l3'"), ({"method": {"p": 1}}, "without a name"),
    ({"method": "taylor"}, "taylor needs a budget"), ({"method": "l1", "budget": {"mac": 0.5}}, "did you mean macs"),
    ({"method": "l1", "budget": "0.5"}, "budget"), ({"method": "l1", "budget": 0.5, "rewind": 1}, "True or False"),
    ({"method": "l1", "budget": 0.5, "allow_blind": "yes"}, "allow_blind must be True or False"),
    ({"method": "l1", "budget": 0.5, "repair": "obs"}, "obs repairs unstructured pruning only"),
    ({"method": "magnitude", "budget": 0.5, "repair": "lasso"}, "lasso repairs structured pruning only"),
    ({"method": "l1", "budget": 0.5, "repair": "taylor"}, "taylor does not repair"),
    ({"method": "l1", "budget": 0.5, "sparse_training": {}}, "takes no part in training"),
    ({"method": "thinet", "budget": 0.5, "repair": "lasso", "rewind": True}, "leave out repair or rewind"),
    ({"method": "l1", "budget": 0.5, "steps": {"count": 2, "training": {"epoch": 1}}}, "did you mean epochs"),
    ({"method": "l1", "budget": 0.5, "steps": "two"}, "count of steps must be a whole number"),
    (["l1"], "must map names to values"),
    ({"method": "slimming", "budget": 0.5, "sparse_training": {"lr": "fast"}}, "lr"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(plain: object, named: str) -> None:
    with pytest.raises(TopiaristError, match=named) as error:
        Pruning.from_json(plain)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", [{"seed": -1}, {"seed": True}, {"batch_size": 0}, {"batch_size": 1.5}])
def test_a_run_has_whole_numbers(values: dict[str, object]) -> None:
    with pytest.raises(TopiaristError, match=r"of the run must be (a whole number|at least)"):
        Run(**values)


@pytest.mark.parametrize(("build", "message"), [
    (lambda: make({"name": "l1", "method": "x"}), "has no field 'method'"),
    (lambda: Pruning("l1", Budget(macs=0.5)), "write Pruning.of"),
    (lambda: Pruning(type(make("l1")), Budget(macs=0.5)), "must be a Method"),
    (lambda: Pruning(make("l1"), Budget(macs=0.5), repair="lasso"), "repair must be a Method"),
    (lambda: Pruning(make("l1"), Budget(macs=0.5), steps=3), r"write Steps\(count\)"),
    (lambda: Pruning.of("l1", 0.5, steps={"count": 2, "training": 3}), "fields of Recipe or nothing"),
    (lambda: Run(progress=3), "progress of the run must be a function or nothing"),
    (lambda: Run(distributed="x"), "distributed of the run must be true or false"),
    (lambda: Study.of(None), "mapping of keys to values"),
    (lambda: Study.of({"network": "zoo:digitsnet", "data": "digits", "prunings": [{"method": None}]}), "no method"),
])  # fmt: skip
def test_a_value_of_a_wrong_type_is_refused_where_it_is_given(build, message):
    with pytest.raises(TopiaristError, match=message) as refused:
        build()
    assert "\n" not in str(refused.value)
