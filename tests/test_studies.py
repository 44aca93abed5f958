"""Studies: the keys of cells, what a study file may say, results, and a small study as a whole."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from topiarist import Pruning
from topiarist.architecture import load
from topiarist.errors import TopiaristError
from topiarist.models import fitting_options, make_model
from topiarist.report import write_report
from topiarist.studies import DEMO, Cell, Study, StudyPruning, gather, run, run_cells
from topiarist.studies.arms import SCRATCH_SEED
from topiarist.studies.cells import result, unfold

# ---------------------------------------------------------------- cells and studies


def cell(name, *needs, **settings):
    return Cell(name, "net", "data", 0, settings=settings, needs=needs)


def test_a_key_follows_every_setting_and_every_need():
    base = cell("base", epochs=1)
    keys = {
        base.key,
        cell("base", epochs=2).key,
        replace(base, seed=1).key,
        replace(base, method="l1").key,
        replace(base, budget={"macs": 0.5}).key,
        cell("next", base).key,
        cell("next", cell("base", epochs=2)).key,
    }
    assert len(keys) == 7
    assert cell("next", cell("base", epochs=1)).key == cell("next", base).key
    assert cell("base", a=1, b=2).key == cell("base", b=2, a=1).key


def test_a_key_is_a_readable_folder_name():
    key = Cell("scratch_b", "zoo:vgg11?width=0.25", "npz:/data/a b.npz", 3, "l1", {"macs": 0.5}).key
    assert key.startswith("vgg11_width_0.25-npz_data_a_b.npz-l1_macs0.5-scratch_b-s3-")
    assert Path(key).name == key


def test_needs_come_first_and_once():
    a = cell("a")
    b, c = cell("b", a), cell("c", a)
    d = cell("d", b, c)
    assert [each.arm for each in unfold([d, c])] == ["a", "b", "c", "d"]


def test_a_field_may_say_what_is_pruned():
    units, weights = (
        StudyPruning(Pruning.of({"name": "l0", **fields}, {"ratio": 0.5})) for fields in ({}, {"granularity": "weight"})
    )
    assert (units.granularity, weights.granularity) == ("structure", "weight")
    assert (units.goal, weights.goal) == ("50 % of units", "50 % of weights")


def test_the_demo_shares_what_can_be_shared():
    cells = unfold(DEMO.cells())
    arms = [each.arm for each in cells if each.seed == 0]
    # networks with and without penalty; four prunings of three arms; one uniform network for half the MACs, one for
    # the MACs that magnitude leaves
    counts = {"unpruned": 2, "pruned": 4, "finetune": 4, "scratch_e": 4, "scratch_b": 4, "uniform": 2}
    assert {arm: arms.count(arm) for arm in arms} == counts
    assert len(cells) == len(DEMO.seeds) * len(arms)
    rows = list(DEMO.rows())
    assert len(rows) == 1 + 4 * 5 + 1
    slimming = next(row for row in rows if row.pruning and row.pruning.method == "slimming" and row.arm == "pruned")
    assert slimming.cells[0].needs[0].method == "slimming"


def test_scratch_never_starts_from_the_seed_of_the_trained_network():
    for each in unfold(DEMO.cells()):
        own = each.settings["seed"]
        assert own == each.seed + (SCRATCH_SEED if each.arm in ("scratch_e", "scratch_b", "uniform") else 0)


def test_a_study_is_the_same_after_writing_and_reading():
    again = Study.of(json.loads(json.dumps(DEMO.as_json())))
    assert [each.key for each in again.cells()] == [each.key for each in DEMO.cells()]


SETTINGS = {"network": "zoo:digitsnet", "data": "digits", "prunings": [{"method": "l1", "budget": {"macs": 0.5}}]}


def test_fields_are_named_where_they_tell_prunings_apart():
    l1 = {"method": {"name": "l1", "p": 2}, "budget": [{"macs": 0.7}, {"macs": 0.5}]}
    one = Study.of({**SETTINGS, "prunings": [l1]})
    assert {one.label(pruning) for pruning in one.prunings} == {"l1"}
    two = Study.of({**SETTINGS, "prunings": [l1, {"method": "l1", "budget": {"macs": 0.5}}]})
    assert [two.label(pruning) for pruning in two.prunings] == ["l1 (p 2)", "l1 (p 2)", "l1"]


def test_lists_mean_each_of_them(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "network: [zoo:lenet5, 'zoo:vgg11?width=0.25']\ndata: [npz:a.npz, npz:b.npz]\nseeds: 2\narms: [finetune]\n"
        "prunings:\n  - {method: [random, l1], budget: [{macs: 0.7}, {macs: 0.5}]}\n"
    )
    study = Study.load(path)
    assert len(study.prunings) == 4
    assert study.seeds == (0, 1)
    assert len(list(study.rows())) == 2 * 2 * (1 + 4 * 2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"netwrok": 1}, "no key 'netwrok'"),
        ({"network": []}, "no network"),
        ({"arms": ["finetoon"]}, "no arm 'finetoon'"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": ["a"]}, "seeds"),
        ({"cap": 0.5}, "cap"),
        ({"cap": "two"}, "cap"),
        ({"recipe": {"epoch": 3}}, "no 'epoch'"),
        ({"recipe": {"lr": "1e-3"}}, "1.0e-3"),
        ({"recipe": 3}, "recipe"),
        ({"finetune": {"lr": -1}}, "lr"),
        ({"prunings": [{"method": "l7", "budget": {"macs": 0.5}}]}, "l7"),
        ({"prunings": [{"method": "l1", "budget": {"macs": 50}}]}, "macs"),
        ({"prunings": [{"method": "l1", "budget": {"mac": 0.5}}]}, "no 'mac'"),
        ({"prunings": [{"method": "l1", "budget": "half"}]}, "mapping"),
        ({"prunings": ["l1"]}, "key 'method'"),
    ],
)
def test_a_study_that_cannot_be(change, told):
    with pytest.raises(TopiaristError, match=told):
        Study.of({**SETTINGS, **change})


@pytest.mark.parametrize("text", [None, "- a\n", "a: [\n", "network: zoo:digitsnet\n"])
def test_a_file_that_is_no_study(tmp_path, text):
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TopiaristError):
        Study.load(path)


# ---------------------------------------------------------------- results

ACCURACY = {"unpruned": 97.0, "pruned": 40.0, "finetune": 96.5, "scratch_e": 95.9, "scratch_b": 96.5, "uniform": 95.0}


def invented(each, here, needs):
    """Accuracies whose differences are known: seeds shift all arms alike, and Scratch-B alone wavers besides."""
    if each.arm == "latency":
        return {"latency_ms": 0.25}
    wavers = (-0.4, 0.5, -0.1)[each.seed % 3] if each.arm == "scratch_b" else 0.01 * (each.seed % 3)
    macs = {"unpruned": 1000, "uniform": 500}.get(each.arm, 160 if each.method == "magnitude" else 499)
    return {
        "accuracy": ACCURACY[each.arm] + 0.3 * each.seed + (wavers if each.arm != "unpruned" else 0.0),
        "macs": macs,
        "params": 2 * macs,
        "bytes": 8 * macs,
        "epochs": 10,
        "widths": {"conv1": [8, 16], "conv2": [10, 32]},
    }


@pytest.mark.usefixtures("blank_figures")
def test_results_say_what_the_cells_show(tmp_path):
    study = replace(DEMO, seeds=(0, 1, 2))
    results = run(study, tmp_path, work=invented, quiet=True)
    assert results["failed"] == {}
    rows = {(row["method"], row["arm"]): row for row in results["rows"]}
    assert rows["l1", "finetune"]["accuracy"]["mean"] == pytest.approx(96.5 + 0.3 + 0.01)
    assert rows["l1", "finetune"]["macs_ratio"] == pytest.approx(0.499)
    assert rows["l1", "finetune"]["goal"] == "50 % of MACs"
    assert rows["magnitude", "pruned"]["goal"] == "10 % of weights"
    assert rows["slimming", "unpruned"]["label"] == "before pruning"
    assert rows["l1", "pruned"]["latency_ms"] == 0.25
    assert rows["l1", "pruned"]["widths"] == {"conv1": [8, 16], "conv2": [10, 32]}
    found = {(entry["method"], entry["a"], entry["b"]): entry for entry in reversed(results["comparisons"])}
    assert not found["l1", "finetune", "scratch_b"]["significant"]
    assert not found["l1", "finetune", "scratch_e"]["significant"]  # the same at every seed
    assert found["l1", "finetune", "unpruned"]["verdict"].startswith(
        "the unpruned network outperforms fine-tuning by 0.49"
    )
    assert found["l1", "l1", "random"]["verdict"].startswith("before any retraining, no significant difference")
    assert results["conclusion"] == [
        "Whether fine-tuning was worth more than training the pruned shape from scratch is open: no significant "
        "difference between fine-tuning and Scratch-B (95 % CI −1.12 to +1.14 points, n = 3 seeds), on average over 4 "
        "prunings.",
        "For no more epochs than the unpruned network, no significant difference between fine-tuning and Scratch-E: "
        "all 3 seeds differ by +0.60 points, which gives no interval, on average over 4 prunings.",
        "No significant difference between fine-tuning and Scratch-B for random, l1 and slimming at 50 % of MACs, and "
        "magnitude at 10 % of weights.",
        "The unpruned network outperforms fine-tuning by 0.49 points (95 % CI 0.47 to 0.51, n = 3 seeds), on average "
        "over 4 prunings.",
    ]
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert write_report(tmp_path, results).is_file()


@pytest.mark.usefixtures("blank_figures")
def test_missing_cells_are_told_and_left_out_of_the_means(tmp_path):
    def work(each, here, needs):
        if each.seed == 2:
            raise TopiaristError("the third seed is unlucky: take another.")
        return invented(each, here, needs)

    results = run(replace(DEMO, seeds=(0, 1, 2)), tmp_path, work=work, quiet=True)
    assert len(results["failed"]) == 20  # latency is not missing where there is no network
    assert "the third seed is unlucky: take another." in results["failed"].values()
    assert all(row["accuracy"]["n"] == 2 for row in results["rows"])
    assert "20 cells are missing" in results["conclusion"][-1]


def test_a_study_with_nothing_done_can_still_be_told(tmp_path):
    results = gather(DEMO, tmp_path)
    assert results["rows"][0]["accuracy"]["mean"] is None
    assert results["conclusion"][0].startswith("Nothing can be compared yet") or "missing" in results["conclusion"][0]


# ---------------------------------------------------------------- the arms


def test_a_small_study_from_end_to_end(tmp_path):
    study = Study.of(
        {
            "network": "zoo:digitsnet?width=0.25",
            "data": "digits?train=200",
            "prunings": [
                {"method": ["random", "slimming"], "budget": {"macs": 0.5}},
                {"method": "magnitude", "budget": {"ratio": 0.1}},
            ],
            "seeds": [3],
            "recipe": {"epochs": 1, "lr": 0.05},
            "finetune": {"epochs": 1, "lr": 0.01, "schedule": "constant"},
            "cap": 2,
        }
    )
    results = run(study, tmp_path, quiet=True)
    assert results["failed"] == {}
    rows = {(row["method"], row["arm"]): row for row in results["rows"]}
    whole = rows["none", "unpruned"]
    for method in ("random", "slimming"):
        assert rows[method, "pruned"]["macs"] <= 0.5 * whole["macs"]
        assert rows[method, "pruned"]["bytes"] < whole["bytes"]
        assert rows[method, "scratch_b"]["macs"] == rows[method, "pruned"]["macs"]
        assert rows[method, "scratch_b"]["widths"] == rows[method, "pruned"]["widths"]
    assert rows["random", "uniform"]["cells"] == rows["slimming", "uniform"]["cells"]
    assert rows["random", "uniform"]["macs"] <= 0.5 * whole["macs"]
    assert rows["magnitude", "uniform"]["macs"] <= rows["magnitude", "pruned"]["macs"] < 0.5 * whole["macs"]
    epochs = {arm: rows["magnitude", arm]["epochs"] for arm in ("finetune", "scratch_e", "scratch_b", "uniform")}
    assert epochs == {"finetune": 1, "scratch_e": 1, "scratch_b": 2, "uniform": 2}
    assert all(row["proof"] <= 1e-10 for row in results["rows"] if row["arm"] == "pruned")
    assert all(row["latency_ms"] > 0 for row in results["rows"])
    assert not list(tmp_path.glob("cells/*/checkpoint.pt"))

    models = {key: _load(tmp_path / "cells" / row["cells"]["3"], study.networks[0]) for key, row in rows.items()}
    inherited = _zeros(models["magnitude", "pruned"])
    assert 0.85 < sum(int(zeros.sum()) for zeros in inherited.values()) / whole["params"] < 0.95
    for arm in ("finetune", "scratch_e", "scratch_b"):
        zeros = _zeros(models["magnitude", arm])
        assert all(bool((zeros[name] | ~inherited[name]).all()) for name in inherited)  # what was pruned stays zero
        assert not any(
            torch.equal(a, b)
            for a, b in zip(
                models["magnitude", arm].parameters(), models["magnitude", "pruned"].parameters(), strict=True
            )
            if a.ndim > 1
        )


def _load(path, network):
    return load(make_model(network, **fitting_options(network, (1, 8, 8), 10)), path)


def _zeros(model):
    return {name: parameter == 0 for name, parameter in model.named_parameters() if parameter.ndim > 1}


def test_wrong_names_are_met_before_the_first_cell(tmp_path):
    for change in ({"network": "zoo:nonet"}, {"data": "nodata"}):
        with pytest.raises(TopiaristError):
            run(Study.of({**SETTINGS, **change}), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_cell_of_other_work_may_say_what_it_likes(tmp_path):
    """Benchmarks fill cells of their own, in which an accuracy may be of two kinds, or none."""
    cell = Cell("mine", "net", "data", 0)
    assert run_cells([cell], tmp_path, lambda *_: {"accuracy": {"held": 1.0}}).ok
    assert result(tmp_path, cell)["accuracy"] == {"held": 1.0}
