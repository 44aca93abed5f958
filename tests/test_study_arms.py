"""The arms: what they start from, what stays zero, how long they train; studies that are extended and merged."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from door import one_sentence
from door import run as command
from topiarist import Pruning, Run, Steps, methods
from topiarist.architecture import SHAPE_FILE, Architecture, load
from topiarist.budget import Budget
from topiarist.data import load_data
from topiarist.errors import TopiaristError
from topiarist.models import fitting_options, make_model
from topiarist.pruning import prune
from topiarist.studies import ARMS, DEMO, Study, merge, run, run_cells
from topiarist.studies.arms import SCRATCH_SEED
from topiarist.studies.cells import folder, result, unfold
from topiarist.studies.work import work
from topiarist.train import Recipe, fit

pytestmark = pytest.mark.usefixtures("blank_figures")

NETWORK, DATA = "zoo:digitsnet?width=0.25", "digits?train=100"
SETTINGS: dict[str, Any] = {
    "network": NETWORK,
    "data": DATA,
    "prunings": [{"method": "l1", "budget": {"macs": 0.5}}],
    "seeds": [3],
    "recipe": {"epochs": 1, "lr": 0.05},
    "finetune": {"epochs": 1, "lr": 0.01, "schedule": "constant"},
    "arms": ["finetune"],
}


def make() -> nn.Module:
    return make_model(NETWORK, **fitting_options(NETWORK, (1, 8, 8), 10))()


def initial(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def computed(study: Study, out: Path) -> dict[tuple[str, str], Path]:
    """(method, arm) → folder, of a study with one seed."""
    outcome = run_cells(study.cells(), out, work)
    assert outcome.ok, outcome.failed
    return {(cell.method, cell.arm): folder(out, cell) for cell in unfold(study.cells())}


def same(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


# ---------------------------------------------------------------- the registry


def test_arms_are_told_apart_and_compared_with_arms_that_there_are() -> None:
    for name in ("order", "label", "phrase", "mark", "colours"):
        assert len({getattr(arm, name) for arm in ARMS.values()}) == len(ARMS)
    assert [arm.name for arm in ARMS.values()] == list(ARMS)
    assert all(set(arm.compared_with) <= ARMS.keys() - {arm.name} for arm in ARMS.values())
    assert all(arm.how for arm in ARMS.values() if arm.name not in ("unpruned", "pruned"))


# ---------------------------------------------------------------- lottery tickets


@pytest.mark.parametrize(
    "pruning", [{"method": "l1", "budget": {"macs": 0.5}}, {"method": "magnitude", "budget": {"ratio": 0.2}}]
)
@pytest.mark.nightly
def test_a_ticket_starts_from_the_initial_weights_and_its_companion_from_others(
    tmp_path: Path, pruning: dict[str, Any]
) -> None:
    # Without an epoch of training for the tickets, what they hold is what they start from.
    study = Study.of({**SETTINGS, "prunings": [pruning], "arms": ["lottery", "lottery_random"]})
    cells = computed(study, tmp_path)
    method = pruning["method"]
    architecture = Architecture.load(cells[method, "pruned"] / SHAPE_FILE)
    lottery, redrawn = (cell for cell in study.cells() if cell.arm in ("lottery", "lottery_random"))
    for cell, seed in ((lottery, 3), (redrawn, 3 + SCRATCH_SEED)):
        untrained = replace(cell, settings={**cell.settings, "recipe": {**SETTINGS["recipe"], "epochs": 0}})
        assert run_cells([untrained], tmp_path, work).ok
        assert same(load(make, folder(tmp_path, untrained)), architecture.apply(initial(seed)))
    # All else is the same: only the start tells the two apart, and the training's seed is that of the trained network.
    assert {**redrawn.settings, "start": 3} == lottery.settings
    assert lottery.settings["seed"] == study.cells()[0].settings["seed"]


def test_the_ticket_of_a_whole_network_is_the_trained_network(tmp_path: Path) -> None:
    study = Study.of({**SETTINGS, "prunings": [{"method": "l1", "budget": {"ratio": 1.0}}], "arms": ["lottery"]})
    cells = computed(study, tmp_path)
    assert same(load(make, cells["l1", "lottery"]), load(make, cells["none", "unpruned"]))


def test_a_rewound_pruning_is_that_of_prune(tmp_path: Path) -> None:
    pruning = {"method": "magnitude", "budget": {"ratio": 0.25}, "steps": {"count": 2, "training": {}}, "rewind": True}
    study = Study.of({**SETTINGS, "prunings": [pruning], "arms": ["lottery"]})
    cells = computed(study, tmp_path)
    data, recipe = load_data(DATA), Recipe(**SETTINGS["recipe"])
    model = initial(3)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(model, data, recipe, seed=3)
    done = prune(
        model,
        data.example(),
        Pruning.of("magnitude", Budget(ratio=0.25), steps=Steps(2, training=recipe), rewind=True),
        data=data,
        initial=start,
        run=Run(seed=3),
    )
    assert same(load(make, cells["magnitude", "pruned"]), done.model)
    assert same(done.model, done.architecture.apply(initial(3)))


# ---------------------------------------------------------------- sparse masks

SPARSE = [name for name in methods.names() if methods.get(name).granularity == "weight"]
BUDGETS: dict[str, dict[str, Any]] = {"wanda": {"n_of_m": "2:4"}}
FIELDS: dict[str, dict[str, Any]] = {"l0": {"granularity": "weight"}}


@pytest.mark.nightly
def test_what_sparse_methods_remove_stays_zero_in_every_arm(tmp_path: Path) -> None:
    entries = [
        {"method": {"name": name, **FIELDS.get(name, {})}, "budget": BUDGETS.get(name, {"ratio": 0.2})}
        for name in [*SPARSE, "l0"]
    ]
    arms = ("finetune", "scratch_e", "scratch_b", "lottery", "lottery_random")
    study = Study.of({**SETTINGS, "prunings": entries, "arms": list(arms), "cap": 3})
    out = tmp_path / "out"
    cells = computed(study, out)
    whole = result(out, study.cells()[0])
    for pruning in study.prunings:
        pruned = cells[pruning.method, "pruned"]
        keep = Architecture.load(pruned / SHAPE_FILE).keep
        said = json.loads((pruned / "result.json").read_text())
        tensors = dict(load(make, pruned).named_parameters())
        assert all(not bool(tensors[name].flatten()[~kept].any()) for name, kept in keep.items()), pruning
        assert said["macs"] < 0.75 * whole["macs"], pruning
        for arm in arms:
            trained = dict(load(make, cells[pruning.method, arm]).named_parameters())
            for name, kept in keep.items():
                weight = trained[name].detach().flatten()
                assert not bool(weight[~kept].any()), (pruning.method, arm, name)
                assert bool(weight[kept].any()), (pruning.method, arm, name)
        # Scratch-B: the MACs of the large network's training, counted in nonzero weights, up to the cap.
        epochs = json.loads((cells[pruning.method, "scratch_b"] / "result.json").read_text())["epochs"]
        assert epochs == int(min(3, whole["macs"] / said["macs"]) + 1e-9), pruning


def test_macs_of_a_sparse_network_count_its_nonzero_weights(tmp_path: Path) -> None:
    study = Study.of({**SETTINGS, "prunings": [{"method": "magnitude", "budget": {"ratio": 0.2}}]})
    cells = computed(study, tmp_path)
    model = load(make, cells["magnitude", "pruned"])
    macs = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal macs
        macs += int(module.weight.count_nonzero()) * output[0, 0].numel()  # each weight once a place of the output

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model.eval()(load_data(DATA).example())
    said = json.loads((cells["magnitude", "finetune"] / "result.json").read_text())
    assert said["macs"] == macs


# ---------------------------------------------------------------- repairs


@pytest.mark.nightly
def test_a_repair_gives_the_same_shape_other_values(tmp_path: Path) -> None:
    entries = [
        {"method": "l1", "budget": {"macs": 0.5}},
        {"method": "l1", "budget": {"macs": 0.5}, "repair": "lasso"},
    ]
    study = Study.of({**SETTINGS, "prunings": entries})
    assert [study.label(pruning) for pruning in study.prunings] == ["l1", "l1 (repair lasso)"]
    assert Study.of(json.loads(json.dumps(study.as_json()))) == study
    assert run_cells(study.cells(), tmp_path, work).ok
    plain, repaired = (folder(tmp_path, cell) for cell in study.cells() if cell.arm == "pruned")
    one, other = (Architecture.load(place / SHAPE_FILE) for place in (plain, repaired))
    assert all(torch.equal(kept, other.keep[name]) for name, kept in one.keep.items())
    trained = load(make, folder(tmp_path, study.cells()[0]))
    data = load_data(DATA)
    done = prune(
        trained, data.example(), Pruning.of("l1", Budget(macs=0.5), repair="lasso"), data=data, run=Run(seed=3)
    )
    assert same(load(make, repaired), done.model)
    assert not same(load(make, plain), done.model)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"repair": "l1"}, "l1 does not repair"),
        ({"repair": "obs"}, "obs repairs unstructured pruning only"),
        ({"repair": "nobody"}, "nobody"),
        ({"rewind": "yes"}, "True or False"),
        ({"rewound": True}, "'rewind'"),
    ],
)
def test_options_that_cannot_be(change: dict[str, Any], told: str) -> None:
    with pytest.raises(TopiaristError, match=told):
        Study.of({**SETTINGS, "prunings": [{"method": "l1", "budget": {"macs": 0.5}, **change}]})


# ---------------------------------------------------------------- extending, retrying, merging


def accuracies(cell: Any, here: Path, needs: tuple[Path, ...]) -> dict[str, Any]:
    """Something that only the cell decides."""
    (here / "value").write_text(cell.key)
    return {"accuracy": 50.0 + int(cell.key[-4:], 16) / 65536, "macs": 10, "params": 20, "latency_ms": 1.0}


def told(results: dict[str, Any]) -> dict[str, Any]:
    """Results but for timings."""
    return {**results, "rows": [{**row, "seconds": None} for row in results["rows"]]}


def test_an_extended_study_computes_only_what_is_new(tmp_path: Path) -> None:
    done: list[str] = []

    def counted(cell: Any, here: Path, needs: tuple[Path, ...]) -> dict[str, Any]:
        done.append(cell.key)
        return accuracies(cell, here, needs)

    small = replace(DEMO, seeds=(0, 1), prunings=DEMO.prunings[:2], arms=("finetune",))
    large = replace(DEMO, seeds=(0, 1, 2), arms=("finetune", "lottery"))
    run(small, tmp_path, work=counted, quiet=True)
    before = set(done)
    extended = run(large, tmp_path, work=counted, quiet=True)
    assert len(done) == len(set(done))
    assert before < set(done)
    assert {cell.key for cell in unfold(large.cells())} <= set(done)
    assert told(extended) == told(run(large, tmp_path / "anew", work=accuracies, quiet=True))


def test_failed_cells_alone_are_tried_again(tmp_path: Path) -> None:
    study = replace(DEMO, seeds=(0, 1))
    tried: list[str] = []

    def unlucky(cell: Any, here: Path, needs: tuple[Path, ...]) -> dict[str, Any]:
        tried.append(cell.key)
        if (cell.arm, cell.seed, cell.method) == ("pruned", 1, "l1"):
            raise TopiaristError("no luck: try again.")
        return accuracies(cell, here, needs)

    failed = run(study, tmp_path, work=unlucky, quiet=True)["failed"]
    above = [cell.key for cell in unfold(study.cells()) if any(need.method == "l1" for need in cell.needs)]
    above = [key for key in above if "-s1-" in key]
    assert [key for key, why in failed.items() if why == "no luck: try again."] == [
        key for key in failed if "-pruned-" in key
    ]
    assert len(failed) == 1 + len(above)
    tried.clear()
    again = run(study, tmp_path, work=lambda *each: (tried.append(each[0].key), accuracies(*each))[1], quiet=True)
    assert again["failed"] == {}
    assert set(failed) == {key for key in tried if "-latency-" not in key}


@pytest.mark.nightly
def test_merged_studies_are_the_study_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = replace(DEMO, arms=("finetune", "scratch_e"))
    parts = {
        "a": replace(base, seeds=(0, 2)),
        "b": replace(base, seeds=(1,)),
        "c": replace(base, seeds=(0, 1, 2), arms=("scratch_b", "finetune")),
    }
    for name, study in parts.items():
        run(study, tmp_path / name, work=accuracies, quiet=True)
    whole = replace(DEMO, seeds=(0, 1, 2), arms=("finetune", "scratch_e", "scratch_b"))
    alone = run(whole, tmp_path / "alone", work=accuracies, quiet=True)

    merged = merge([tmp_path / name for name in parts], tmp_path / "merged")
    assert told(merged) == told(alone)
    assert {path.name for path in tmp_path.glob("merged/cells/*")} == {
        path.name for path in tmp_path.glob("alone/cells/*")
    }
    assert not list(tmp_path.glob("merged/drafts/*"))
    assert run_cells(whole.cells(), tmp_path / "merged", accuracies).finished == ()

    # On the command line, into a folder that is there already; what no folder has is reported, not invented.
    assert command("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "a", "--json") == 0
    assert json.loads(capsys.readouterr().out)["study"]["seeds"] == [0, 1, 2]
    assert command("merge", tmp_path / "a", tmp_path / "c", "--out", tmp_path / "d", "--json") == 0
    other = replace(base, seeds=(7,), prunings=DEMO.prunings[:1])
    run(other, tmp_path / "e", work=accuracies, quiet=True)
    half = merge([tmp_path / "b", tmp_path / "e"], tmp_path / "half")
    assert half["failed"]
    assert all("-s7-" in key for key in half["failed"])


def test_studies_that_do_not_fit_are_not_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, study in (("a", DEMO), ("b", replace(DEMO, cap=None)), ("c", replace(DEMO, recipe={"epochs": 9}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.json").write_text(json.dumps(study.as_json()))
    for other, word in (("b", "cap"), ("c", "recipe")):
        with pytest.raises(TopiaristError, match=f"differ in their {word}"):
            merge([tmp_path / "a", tmp_path / other], tmp_path / "out")
    with pytest.raises(TopiaristError, match="nothing to merge"):
        merge([], tmp_path / "out")
    assert "study.json" in one_sentence(
        command("merge", tmp_path / "a", tmp_path / "none", "--out", tmp_path / "out"), capsys
    )


def test_merged_studies_show_what_was_published_about_each(tmp_path: Path) -> None:
    names = ("zoo:digitsnet", "zoo:lenet300")
    entries = [
        {
            "network": name,
            "data": "digits",
            "method": "l1",
            "budget": {"macs": 0.5},
            "source": name,
            "arms": {"pruned": 9},
        }
        for name in names
    ]
    for name, entry in zip(names, entries, strict=True):
        parts = {"network": name, "data": "digits", "seeds": 1, "arms": [], "published": [entry]}
        settings = {**parts, "prunings": [{"method": "l1", "budget": {"macs": 0.5}}]}
        run(Study.of(settings), tmp_path / name, work=accuracies, quiet=True)
    found = merge([tmp_path / name for name in names], tmp_path / "both")
    assert [row["published"]["source"] for row in found["rows"] if row["published"]] == list(names)


def test_a_merge_without_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = replace(DEMO, prunings=DEMO.prunings[:1], seeds=(0,), arms=("finetune",))
    run(study, tmp_path / "a", work=accuracies, quiet=True)

    def full(*_: Any) -> None:
        raise shutil.Error([("from", "to", "No space left on device")])

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(TopiaristError, match="make room there and merge again"):
        merge([tmp_path / "a"], tmp_path / "b")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "[" * 100_000,
        "{}",
        '{"accuracy": "x"}',
        '{"accuracy": NaN}',
        '{"accuracy": 5, "macs": Infinity}',
        '{"accuracy": 5, "params": "x"}',
        '{"accuracy": 5, "widths": [1]}',
        '{"accuracy": 5, "widths": {"a": [1]}}',
        '{"accuracy": 5, "scores": [1]}',
        '{"accuracy": 5, "kernels": {"a": 5}}',
    ],
)
def test_a_damaged_result_says_which_folder_to_delete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    study = replace(DEMO, prunings=DEMO.prunings[:1], seeds=(0,), arms=("finetune",))
    run(study, tmp_path / "a", work=accuracies, quiet=True)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    cell = next(cell for cell in study.cells() if cell.arm == "finetune")
    there = folder(tmp_path / "a", cell)
    (there / "result.json").write_text(text)
    told = f"delete the folder {there} and run the study again"
    assert told in one_sentence(command("report", tmp_path / "a"), capsys)
    with pytest.raises(TopiaristError, match="delete the folder"):
        run(study, tmp_path / "a", work=accuracies, quiet=True)
    assert "delete the folder" in one_sentence(
        command("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c"), capsys
    )
    shutil.rmtree(there)
    tried: list[str] = []
    run(study, tmp_path / "a", work=lambda *each: (tried.append(each[0].key), accuracies(*each))[1], quiet=True)
    assert tried == [cell.key]


def test_a_written_study_is_read_again(tmp_path: Path) -> None:
    study = replace(DEMO, recipe={"epochs": 1, "weight_decay": 1e-5})  # JSON's 1e-05 is a word in YAML
    (tmp_path / "study.json").write_text(json.dumps(study.as_json()))
    assert Study.load(tmp_path / "study.json") == study
