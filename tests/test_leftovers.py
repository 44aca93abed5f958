"""What gates leave is kept beside the weights: a network that was read back is pruned as the one that was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from door import NET, SHAPE, one_sentence
from door import run as command
from topiarist import Budget, Recipe, load, make_model, prune, save
from topiarist.architecture import WEIGHTS_FILE, Architecture
from topiarist.data import load_data
from topiarist.errors import TopiaristError
from topiarist.graph import trace
from topiarist.methods import make
from topiarist.studies import Study, run
from topiarist.train import fit

GATED: list[tuple[str, dict[str, Any], Budget]] = [
    ("l0", {}, Budget(macs=0.5)),
    ("l0", {"granularity": "weight"}, Budget(ratio=0.3)),
    ("sss", {"structure": "channel"}, Budget(macs=0.5)),
    ("vardrop", {}, Budget(ratio=0.3)),
]
NETWORK, OPTIONS, DATA = "zoo:digitsnet", {"width": 0.25}, "digits?train=100"


def network() -> nn.Module:
    return make_model(NETWORK, **OPTIONS)()


def trained(name: str, fields: dict[str, Any], folder: Path) -> tuple[nn.Module, nn.Module]:
    """A network that was trained with gates, and the same one from its file."""
    data = load_data(DATA)
    torch.manual_seed(0)
    model = network()
    graph = trace(model, data.example())
    fit(model, data, Recipe(epochs=1), method=make(name, **fields), graph=graph)
    save(model, Architecture.of(graph, graph.full()), folder)
    return model, load(network, folder)


@pytest.mark.parametrize(("name", "fields", "budget"), GATED)
@pytest.mark.by_day(1)
def test_a_network_from_its_file_is_pruned_as_the_trained_one(
    name: str, fields: dict[str, Any], budget: Budget, tmp_path: Path
) -> None:
    model, again = trained(name, fields, tmp_path)
    assert again.state_dict().keys() == network().state_dict().keys()
    example = load_data(DATA).example()
    one, other = (prune(each, example, make(name, **fields), budget) for each in (model, again))
    assert all(torch.equal(mask, other.keep[group]) for group, mask in one.keep.items())
    assert any(not bool(mask.all()) for mask in one.keep.values())


def test_other_weights_take_the_gates_away(tmp_path: Path) -> None:
    trained("sss", {"structure": "channel"}, tmp_path)
    gates = tmp_path / "model.gates.safetensors"
    assert gates.exists()
    graph = trace(network(), load_data(DATA).example())
    save(network(), Architecture.of(graph, graph.full()), tmp_path)
    assert not gates.exists()


def test_gates_that_are_damaged_or_of_another_model_are_refused(tmp_path: Path) -> None:
    trained("sss", {"structure": "channel"}, tmp_path)
    gates = tmp_path / "model.gates.safetensors"
    whole = gates.read_bytes()
    gates.write_bytes(whole[:-5])
    with pytest.raises(TopiaristError, match="delete it to do without"):
        load(network, tmp_path)
    graph = trace(other := nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4))
    save(other, Architecture.of(graph, graph.full()), tmp_path / "other")
    (tmp_path / "other" / gates.name).write_bytes(whole)
    with pytest.raises(TopiaristError, match="does not belong to this model"):
        load(lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), tmp_path / "other")


@pytest.mark.parametrize("name", ["fc.weight", "fc.weight__left_by_.sss", "nothing.weight__left_by_sss"])
def test_gates_are_named_after_a_parameter_and_a_method(name: str, tmp_path: Path) -> None:
    trained("sss", {"structure": "channel"}, tmp_path)
    save_file({name: torch.ones(2)}, tmp_path / "model.gates.safetensors")
    with pytest.raises(TopiaristError, match="does not belong to this model"):
        load(network, tmp_path)


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize(("name", "fields", "budget"), GATED[:1] + GATED[2:3])
@pytest.mark.by_day(1)
def test_a_study_prunes_what_its_gates_say(name: str, fields: dict[str, Any], budget: Budget, tmp_path: Path) -> None:
    recipe = {"epochs": 1, "lr": 0.05}
    settings = {
        "network": f"{NETWORK}?width={OPTIONS['width']}",
        "data": DATA,
        "prunings": [{"method": {"name": name, **fields}, "budget": {"macs": budget.macs}}],
        "seeds": [0],
        "recipe": recipe,
        "arms": [],
    }
    results = run(Study.of(settings), tmp_path, quiet=True)
    assert not results["failed"]
    found = next(tmp_path.glob(f"cells/*-{name}_*-pruned-*"))
    data = load_data(DATA)
    torch.manual_seed(0)
    model = network()
    fit(model, data, Recipe(**recipe), method=make(name, **fields), graph=trace(model, data.example()), seed=0)
    here = prune(model, data.example(), make(name, **fields), budget, data=data)
    there = Architecture.load(found / "architecture.json")
    assert all(torch.equal(mask, there.keep[group]) for group, mask in here.keep.items())


def test_the_command_prunes_what_it_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = ["--method", "sss", "--method.structure", "channel"]
    weights = tmp_path / "whole" / WEIGHTS_FILE
    assert command("train", NET, "--data", DATA, *method, "--epochs", 1, "--out", weights.parent) == 0
    prune_it = ["prune", NET, "--input", SHAPE, *method, "--weights", weights, "--budget.macs", 0.5, "--out"]
    assert command(*prune_it, tmp_path / "half") == 0
    weights.with_suffix(".gates.safetensors").unlink()
    capsys.readouterr()
    assert "has not trained" in one_sentence(command(*prune_it, tmp_path / "none"), capsys)
