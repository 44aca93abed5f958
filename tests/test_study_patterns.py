"""Shapes that a study builds to a budget: uniform ones, and those of patterns that its prunings gave."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from topiarist import guided
from topiarist.architecture import SHAPE_FILE, Architecture, load
from topiarist.budget import Budget, cost
from topiarist.data import load_data
from topiarist.errors import TopiaristError
from topiarist.graph import trace
from topiarist.models import fitting_options, make_model
from topiarist.studies import Cell, Study, gather, merge, run, run_cells
from topiarist.studies.cells import folder, result, unfold
from topiarist.studies.data_paths import placed
from topiarist.studies.work import ArmWork, work

pytestmark = pytest.mark.usefixtures("blank_figures")

NETWORK, DEEPER, DATA = "zoo:digitsnet?width=0.25", "zoo:resnet20?width=0.25", "digits?train=100"
SETTINGS: dict[str, Any] = {
    "network": NETWORK,
    "data": DATA,
    "prunings": [{"method": {"name": "slimming", "lam": 0.01}, "budget": {"params": 0.4}}],
    "seeds": [3, 5],
    "recipe": {"epochs": 1, "lr": 0.05},
    "arms": ["guided"],
    "cap": 1,
}
WEIGHTS = [{"method": {"name": "magnitude", "layers": "conv"}, "budget": {"ratio": 0.2}}]


def make(network: str = NETWORK) -> nn.Module:
    return make_model(network, **fitting_options(network, (1, 8, 8), 10))()


def graph_of(network: str = NETWORK) -> Any:
    return trace(make(network), load_data(DATA).example())


def computed(study: Study, out: Path) -> dict[tuple[str, str, int], Path]:
    """(network, arm, seed) → folder, of a study with one pruning."""
    outcome = run_cells(study.cells(), out, work)
    assert outcome.ok, outcome.failed
    return {(cell.network, cell.arm, cell.seed): folder(out, cell) for cell in unfold(study.cells())}


def shape(path: Path) -> Architecture:
    return Architecture.load(path / SHAPE_FILE)


def kept(keep: Any) -> dict[str, int]:
    return {name: int(each.sum()) for name, each in keep.items()}


# ---------------------------------------------------------------- guided pruning


@pytest.mark.nightly
def test_a_guided_network_has_the_pattern_of_all_seeds_at_the_budget(tmp_path: Path) -> None:
    study = Study.of(SETTINGS)
    cells = computed(study, tmp_path)
    found = guided.WidthPattern.of(*(shape(cells[NETWORK, "pruned", seed]) for seed in (3, 5)))
    path = cells[NETWORK, "pattern", 0]
    assert guided.load(path / "pattern.json") == found
    assert json.loads((path / "result.json").read_text())["pattern"] == found.to_json()
    graph = graph_of()
    wanted = found.keep(graph, Budget(params=0.4))
    for seed in (3, 5):
        assert kept(shape(cells[NETWORK, "guided", seed]).keep) == kept(wanted)
        said = json.loads((cells[NETWORK, "guided", seed] / "result.json").read_text())
        assert (said["params"], said["equal"]) == (cost(graph, wanted).params, "params")
        assert said["params"] <= 0.4 * cost(graph).params
    other = load(lambda: make(), cells[NETWORK, "guided", 5])
    assert not torch.equal(other.conv1.weight, load(lambda: make(), cells[NETWORK, "guided", 3]).conv1.weight)  # type: ignore[union-attr]


def test_more_seeds_make_another_pattern_but_no_other_prunings() -> None:
    few, many = Study.of(SETTINGS), Study.of({**SETTINGS, "seeds": [3, 5, 7]})
    one, other = ({cell.key for cell in unfold(study.cells())} for study in (few, many))
    changed = [cell for cell in unfold(few.cells()) if cell.key not in other]
    assert {cell.arm for cell in changed} == {"pattern", "guided"}
    assert len(changed) == 1 + 2
    assert {key for key in one if "-pruned-" in key} < other


def test_merged_seeds_ask_for_the_pattern_of_all(tmp_path: Path) -> None:
    def invented(cell: Cell, here: Path, needs: tuple[Path, ...]) -> dict[str, Any]:
        return {"accuracy": 50.0, "macs": 10, "params": 20, "latency_ms": 1.0}

    for name, seed in (("a", 3), ("b", 5)):
        run(Study.of({**SETTINGS, "seeds": [seed]}), tmp_path / name, work=invented, quiet=True)
    failed = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both")["failed"]
    assert len(failed) == 3
    assert all("-pattern-" in key or "-guided-" in key for key in failed)


@pytest.mark.parametrize(
    ("method", "budget", "equal"),
    [
        ("l1", {"macs": 0.5}, "macs"),
        ("l1", {"params": 0.5}, "params"),
        ("l1", {"macs": 0.5, "params": 0.9}, "macs"),
        ("l1", {"ratio": 0.5}, "macs"),
        ("magnitude", {"ratio": 0.5}, "params"),
        ("magnitude", {"macs": 0.5}, "params"),
    ],
)
def test_what_is_equal_follows_from_the_budget(method: str, budget: dict[str, float], equal: str) -> None:
    study = Study.of({**SETTINGS, "prunings": [{"method": method, "budget": budget}], "arms": ["uniform", "guided"]})
    assert [pruning.equal for pruning in study.prunings] == [equal]
    for cell in study.cells():
        if cell.arm in ("uniform", "guided"):
            assert cell.settings.get("equal", "macs") == equal
            measured = any(need.arm == "pruned" for need in cell.needs)
            assert measured == (method == "magnitude" or "ratio" in budget)


def test_a_budget_of_units_is_matched_by_what_the_pruning_left(tmp_path: Path) -> None:
    pruning = {"method": {"name": "slimming", "lam": 0.01}, "budget": {"ratio": 0.5}}
    study = Study.of({**SETTINGS, "prunings": [pruning], "seeds": [3], "arms": ["uniform", "guided"]})
    cells = computed(study, tmp_path)
    said = {arm: json.loads((cells[NETWORK, arm, 3] / "result.json").read_text()) for arm in ("pruned", *study.arms)}
    graph, least = graph_of(), 0.5  # widths of 4 to 16 units come in coarse steps
    for arm in study.arms:
        assert least * said["pruned"]["macs"] < said[arm]["macs"] <= said["pruned"]["macs"]
        assert said[arm]["equal"] == "macs"
    fractions = [count / graph[name].units for name, count in kept(shape(cells[NETWORK, "uniform", 3]).keep).items()]
    assert max(fractions) - min(fractions) <= 1 / min(group.units for group in graph.groups) + 1e-9


# ---------------------------------------------------------------- guided sparsification


@pytest.mark.nightly
def test_built_masks_have_the_weights_that_pruning_left(tmp_path: Path) -> None:
    study = Study.of({**SETTINGS, "prunings": WEIGHTS, "arms": ["scratch_b", "uniform", "guided"]})
    cells = computed(study, tmp_path)
    graph = graph_of().weights()
    assert isinstance(guided.load(cells[NETWORK, "pattern", 0] / "pattern.json"), guided.KernelPattern)
    for seed in (3, 5):
        pruned = shape(cells[NETWORK, "pruned", seed]).keep
        size = json.loads((cells[NETWORK, "pruned", seed] / "result.json").read_text())["params"]
        for arm in ("uniform", "guided"):
            path = cells[NETWORK, arm, seed]
            keep = shape(path).keep
            assert bool(keep["fc.weight"].all()), "what the method leaves alone is left alone"
            assert sum(kept(keep).values()) == sum(kept(pruned).values())
            assert json.loads((path / "result.json").read_text())["params"] == size
            trained = dict(load(make, path).named_parameters())
            for name, stays in keep.items():
                assert torch.equal(trained[name].detach().flatten() != 0, stays)
        thinned = kept(shape(cells[NETWORK, "uniform", seed]).keep)
        fractions = [thinned[group.name] / group.units for group in graph.groups if group.name != "fc.weight"]
        assert max(fractions) - min(fractions) < 9 / min(group.units for group in graph.groups)
    masks = [
        shape(cells[NETWORK, arm, seed]).keep["layer3.0.conv2.weight"] for arm in study.arms[1:] for seed in (3, 5)
    ]
    assert not any(torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


# ---------------------------------------------------------------- transfer


@pytest.mark.parametrize("pruning", [SETTINGS["prunings"][0], WEIGHTS[0]])
@pytest.mark.nightly
def test_a_transferred_pattern_is_that_of_the_source(tmp_path: Path, pruning: dict[str, Any]) -> None:
    budget = {"params": 0.3} if pruning["method"]["name"] == "slimming" else {"ratio": 0.1}
    source = {"network": DEEPER, "budget": budget}
    study = Study.of({**SETTINGS, "prunings": [pruning], "source": source, "arms": ["guided", "transferred"]})
    outcome = run_cells(study.cells(), tmp_path, work)
    assert outcome.ok, outcome.failed
    cells = unfold(study.cells())
    (theirs,) = (cell for cell in cells if cell.arm == "pattern" and cell.network == DEEPER)
    (ours,) = (cell for cell in cells if cell.arm == "pattern" and cell.network == NETWORK)
    assert [need.budget for need in theirs.needs] == [budget] * 2
    assert [need.seed for need in theirs.needs] == [3, 5]
    found = guided.of(*(shape(folder(tmp_path, need)) for need in theirs.needs))
    assert guided.load(folder(tmp_path, theirs) / "pattern.json") == found
    for arm, own in (("guided", ours), ("transferred", theirs)):
        assert {cell.needs[0].key for cell in cells if cell.arm == arm} == {own.key}
        assert {cell.network for cell in cells if cell.arm == arm} == {NETWORK}
    if isinstance(found, guided.WidthPattern):
        (path,) = (folder(tmp_path, cell) for cell in cells if (cell.arm, cell.seed) == ("transferred", 3))
        graph = graph_of()
        assert kept(shape(path).keep) == kept(found.on(graph).keep(graph, Budget(params=0.4)))
    rows = {row["arm"]: row for row in gather(study, tmp_path)["rows"]}
    assert rows["transferred"]["design"]["cell"] == theirs.key
    assert rows["guided"]["design"]["cell"] == ours.key
    assert rows["guided"]["design"]["stages"] == result(tmp_path, ours)["pattern"]["stages"]
    assert rows["guided"]["equal"] == "params"
    assert rows["pruned"]["equal"] is None


@pytest.mark.nightly
def test_a_pattern_goes_to_other_depths_maps_and_classes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name, side, classes in (("one", 16, 3), ("two", 20, 4)):
        labels = np.arange(48) % classes
        images = generator.integers(0, 255, (48, side, side), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", train_x=images, train_y=labels, test_x=images[:12], test_y=labels[:12])
    settings = {
        **SETTINGS,
        "network": "zoo:vgg16?width=0.0625",
        "data": "npz:two.npz",
        "source": {"network": "zoo:vgg11?width=0.0625", "data": "npz:one.npz", "budget": {"params": 0.3}},
        "prunings": [
            {"method": "slimming", "budget": {"params": 0.3, "exclude": ["classifier*.bias"]}},
            {"method": "magnitude", "budget": {"params": 0.2}},
        ],
        "arms": ["transferred", "uniform"],
        "seeds": [3],
    }
    results = run(Study.of(settings), tmp_path / "out", quiet=True, data_folder=tmp_path)
    assert results["failed"] == {}
    whole = results["rows"][0]["params"]
    for row in results["rows"]:
        if row["arm"] in ("transferred", "uniform"):
            share = 0.3 if row["method"] == "slimming" else 0.2
            assert 0.9 * share * whole < row["params"] <= share * whole + 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arms": ["transferred"]}, "add the key 'source'"),
        ({"arms": ["transferred"], "source": {"budget": {"macs": 0.5}}}, "add the key 'source'"),
        ({"source": {"netwrok": NETWORK}}, "the source has no 'netwrok': did you mean network"),
        ({"source": "zoo:vgg11"}, "source of the study must be a mapping"),
        ({"source": {"network": DEEPER, "budget": {"mac": 0.5}}}, "no 'mac'"),
        ({"selectors": ["zoo:vgg19"]}, "no network of the study"),
        ({"speed": {"channels_first": True}}, "no 'channels_first'"),
        ({"speed": {"channels_last": "yes"}}, "channels_last of the speed"),
        ({"speed": {"precision": "16-true"}}, "no precision '16-true': did you mean"),
        ({"speed": {"precision": "seventeen"}}, "no precision 'seventeen': choose from"),
        ({"source": {"network": [NETWORK]}}, "network of the source must be text"),
        ({"source": {"data": None}}, "data of the source must be text"),
        ({"arms": [["guided"]]}, "entry 1 of arms of the study must be text"),
        ({"arms": {}}, "entry 1 of arms of the study must be text"),
        ({"cap": float("inf")}, "cap of the study must be a finite number"),
        ({"cap": True}, "cap of the study must be a finite number"),
        ({"title": float("nan")}, "title of the study must be text"),
        ({"note": 2026}, "note of the study must be text, but got 2026: put it in quotes"),
        ({"prunings": [{"method": ["l1", ["p"]]}]}, "a method is a name"),
        ({"prunings": [{"method": {"name": "l1", 1: 2}}]}, "has no field '1'"),
        ({"prunings": [{"method": "l1", "budget": {"macs": 0.5}, "network": "zoo:vgg19"}]}, "which the study lacks"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], told: str) -> None:
    with pytest.raises(TopiaristError, match=told):
        Study.of({**SETTINGS, **change})


def test_a_seed_that_fails_takes_nothing_with_it_but_what_needs_it(tmp_path: Path) -> None:
    def fails_once(cell: Cell, here: Path, needs: tuple[Path, ...]) -> dict[str, Any]:
        if (cell.arm, cell.method, cell.seed) == ("unpruned", "slimming", 3):
            raise ValueError("broken")
        return {"accuracy": 50.0}

    study = Study.of({**SETTINGS, "arms": ["finetune", "guided"]})
    outcome = run_cells(study.cells(), tmp_path, fails_once)
    cells = {cell.key: (cell.arm, cell.seed) for cell in unfold(study.cells())}
    wanted = {("unpruned", 3), ("pruned", 3), ("finetune", 3), ("pattern", 0), ("guided", 3), ("guided", 5)}
    assert {cells[key] for key in outcome.failed} == wanted
    assert {("pruned", 5), ("finetune", 5)} <= {cells[key] for key in outcome.finished}


def test_a_cell_that_cannot_note_why_it_failed_fails_alone(tmp_path: Path) -> None:
    def blocks_its_note(cell: Cell, here: Path, needs: tuple[Path, ...]) -> dict[str, Any]:
        if cell.seed == 3:
            (here / "error.txt").mkdir()
            raise ValueError("broken")
        return {"accuracy": 50.0}

    cells = tuple(Cell("unpruned", NETWORK, "digits", seed) for seed in (3, 5))
    outcome = run_cells(cells, tmp_path, blocks_its_note)
    assert (list(outcome.failed), outcome.finished) == ([cells[0].key], (cells[1].key,))
    assert outcome.failed[cells[0].key] == "ValueError: broken"
    assert run_cells(cells, tmp_path, blocks_its_note).reused == (cells[1].key,)


def test_a_budget_without_a_number_is_none() -> None:
    found = Study.of({**SETTINGS, "prunings": [{"method": "slimming", "budget": {"params": 0.4, "macs": None}}]})
    assert found.prunings[0].budget == {"params": 0.4}
    assert found.prunings[0].goal == "40 % of parameters"


@pytest.mark.nightly
def test_a_damaged_pattern_says_how_to_go_on(tmp_path: Path) -> None:
    study = Study.of({**SETTINGS, "seeds": [3]})
    cells = computed(study, tmp_path)
    there = cells[NETWORK, "pattern", 0]
    shutil.rmtree(cells[NETWORK, "guided", 3])
    for text in ("{", "[]", '{"format": "topiarist.pattern", "version": 1, "kind": "widths"}'):
        (there / "pattern.json").write_text(text)
        failed = run_cells(study.cells(), tmp_path, work).failed
        assert [told for told in failed.values() if f"delete the folder {there} and run the study again" in told], text
    shutil.rmtree(there)
    again = run_cells(study.cells(), tmp_path, work)
    assert again.ok
    assert len(again.finished) == 2  # the pattern and the network, nothing else


@pytest.mark.nightly
def test_blocks_give_no_pattern(tmp_path: Path) -> None:
    pruning = {"method": "sss", "budget": {"ratio": 0.7}}
    study = Study.of({**SETTINGS, "network": DEEPER, "prunings": [pruning], "seeds": [3]})
    failed = run_cells(study.cells(), tmp_path, work).failed
    (told,) = {why for key, why in failed.items() if "-pattern-" in key}
    assert "are not channels, neurons or heads" in told


# ---------------------------------------------------------------- where, and on which networks


def test_a_pruning_may_be_of_some_networks_or_data_only() -> None:
    entries = [
        {"method": "l1", "budget": {"macs": 0.5}, "network": NETWORK},
        {"method": "random", "budget": {"macs": 0.5}, "data": "digits:16"},
    ]
    study = Study.of({**SETTINGS, "network": [NETWORK, DEEPER], "data": ["digits", "digits:16"], "prunings": entries})
    places = {(row.network, row.data, row.pruning.method) for row in study.rows() if row.pruning}
    assert places == {
        (NETWORK, "digits", "l1"),
        (NETWORK, "digits:16", "l1"),
        (NETWORK, "digits:16", "random"),
        (DEEPER, "digits:16", "random"),
    }
    assert Study.of(json.loads(json.dumps(study.as_json()))) == study


@pytest.mark.parametrize(
    ("spec", "there"),
    [
        ("digits", "digits"),
        ("npz:a.npz?train=10", "npz:/data/a.npz?train=10"),
        ("npz:/else/a.npz", "npz:/else/a.npz"),
        ("folder:pets", "folder:/data/pets"),
        ("torchvision:MNIST", "torchvision:MNIST?root=/data"),
        ("torchvision:MNIST?download=true", "torchvision:MNIST?download=true&root=/data"),
        ("torchvision:MNIST?root=here", "torchvision:MNIST?root=here"),
    ],
)
def test_where_data_lies(spec: str, there: str) -> None:
    assert placed(spec, Path("/data")) == there
    assert placed(spec, None) == spec


@pytest.mark.nightly
def test_selectors_free_the_inputs_of_pre_activation_networks(tmp_path: Path) -> None:
    network = "preactivated:small"
    settings = {**SETTINGS, "network": network, "seeds": [3], "arms": ["scratch_b", "guided"]}
    counts = {}
    for name, selectors in (("plain", []), ("selected", [network])):
        study = Study.of({**settings, "selectors": selectors})
        outcome = run_cells(study.cells(), tmp_path / name, work)
        assert outcome.ok, outcome.failed
        (cell,) = (cell for cell in study.cells() if cell.arm == "pruned")
        counts[name] = len(result(tmp_path / name, cell)["widths"])
        for built in study.cells():
            if built.arm in ("scratch_b", "guided"):
                assert (
                    result(tmp_path / name, built)["params"]
                    <= 0.4 * result(tmp_path / name, study.cells()[0])["params"]
                )
    assert counts["selected"] > counts["plain"]


def test_speed_is_for_cells_that_train() -> None:
    plain = Study.of({**SETTINGS, "arms": ["finetune", "uniform"]})
    fast = replace(plain, speed={"channels_last": True})
    for one, other in zip(plain.cells(), fast.cells(), strict=True):
        assert one.key != other.key
        assert ("speed" in other.settings) == (other.arm != "pruned")


@pytest.mark.nightly
def test_channels_last_gives_the_same_study_but_for_rounding(tmp_path: Path) -> None:
    plain = Study.of({**SETTINGS, "seeds": [3], "arms": ["finetune"], "finetune": {"epochs": 1, "lr": 0.01}})
    fast = replace(plain, speed={"channels_last": True})
    models = []
    for study, name in ((plain, "plain"), (fast, "fast")):
        assert run_cells(study.cells(), tmp_path / name, ArmWork()).ok
        models.append(load(make, folder(tmp_path / name, study.cells()[0])))
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)
