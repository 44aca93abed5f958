"""What a study refuses before it costs anything, and what it says of results that are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from topiarist.errors import TopiaristError
from topiarist.files import locked
from topiarist.studies import Study, merge, run
from topiarist.studies.cells import folder

pytestmark = pytest.mark.usefixtures("blank_figures")

SETTINGS: dict[str, Any] = {
    "network": "zoo:digitsnet?width=0.25",
    "data": "digits",
    "seeds": 2,
    "arms": ["finetune"],
    "recipe": {"epochs": 1},
    "finetune": {"epochs": 1},
    "prunings": [{"method": "l1", "budget": {"macs": 0.5}}],
}


def invented(each: Any, here: Path, needs: Any) -> dict[str, Any]:
    """A result without any work."""
    if each.arm == "latency":
        return {"latency_ms": 0.25}
    return {"accuracy": 90.0, "macs": 10, "params": 20, "widths": {"conv1": [8, 16]}}


def pruning(**entry: Any) -> dict[str, Any]:
    return {**SETTINGS, "prunings": [{"method": "l1", **entry}]}


@pytest.mark.parametrize(("settings", "told"), [
    (pruning(method="taylor"), "taylor needs a budget"),
    (pruning(method="taylor", budget={}), "taylor needs a budget"),
    (pruning(budget=False), "the budget must be a mapping of names to values, but got False"),
    (pruning(budget=""), "the budget must be a mapping of names to values, but got ''"),
    (pruning(budget=[]), "empty list"),
    (pruning(budget={"macs": 0.5}, method=[]), "empty list"),
    (pruning(budget={"n_of_m": "2:4"}), "N:M sparsity is unstructured, and l1 prunes structures"),
    (pruning(budget={"macs": 0.5}, method={"p": 1}), "without a name"),
    (pruning(budget={"macs": 0.5}, method=5), "a method is a name"),
    (pruning(budget={"macs": 0.5, "exclude": {"conv1": 0.5}}), "exclude of the budget must be a list"),
    (pruning(budget={"macs": 0.5}, network=0), "entry 1 of networks of the pruning by l1 must be text, but got 0"),
    ({**SETTINGS, "network": None}, "entry 1 of networks of the study must be text, but got None"),
    ({**SETTINGS, "network": {}}, "entry 1 of networks of the study must be text"),
    ({**SETTINGS, "data": [3]}, "entry 1 of data of the study must be text, but got 3: put it in quotes"),
    ({**SETTINGS, "seeds": -3}, "from 1 on.* got -3"),
    ({**SETTINGS, "recipe": {"lr": 10**400}}, "lr of the recipe must be a finite number"),
])  # fmt: skip
def test_a_study_that_cannot_be_is_told_at_once(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(TopiaristError, match=told):
        Study.of(settings)


@pytest.mark.parametrize(("settings", "told"), [
    (pruning(), r"pruned of zoo:digitsnet\?width=0.25 on digits by l1: l1 needs a budget"),
    (pruning(budget={"macs": 1e-4}), "leave at least"),
    (pruning(budget=0), "leave at least"),
    (pruning(budget={"ratios": {"conv9": 0.5}}), "conv9"),
    (pruning(method={"name": "l0", "lam": 0.1}, budget={"macs": 1e-4}, steps=2), "leave at least"),
    ({**pruning(method="sss"), "arms": ["guided"]}, "not channels, neurons or heads"),
    ({**pruning(budget={"macs": 0.5}), "arms": ["transferred"], "source": {"network": "zoo:lenet300"}}, "stages"),
])  # fmt: skip
@pytest.mark.by_day(3)
def test_what_fails_only_after_training_fails_in_a_dry_run(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(TopiaristError, match=told) as refused:
        run(Study.of(settings), tmp_path / "out", quiet=True)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "told"), [
    ("network: a\ndata: b\nprunings: []\nprunings: []\n", "line 4.*'prunings' occurs twice"),
    ("network: a\nrecipe: {lr: 0.1, epochs: 1, lr: 0.2}\n", "line 2.*'lr' occurs twice"),
    ("network: a\nnote: 2020-01-01\n", "put it in quotes"),
    ("network: a\narms: !!set {finetune}\n", "put it in quotes"),
])  # fmt: skip
def test_yaml_that_says_two_things_or_none(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(TopiaristError, match=told):
        Study.load(tmp_path / "study.yaml")


def test_merged_keys_of_yaml_give_way(tmp_path: Path) -> None:
    """An anchor may be merged, and what is written beside it wins, also where one merge builds on another."""
    (tmp_path / "study.yaml").write_text(
        "network: zoo:digitsnet\ndata: digits\nrecipe: &a {lr: 0.1, epochs: 1}\n"
        "source: {budget: &b {macs: 0.5}}\nfinetune: {<<: *a, lr: 0.2}\n"
        "prunings: [{method: l1, budget: {<<: *b, macs: 0.25}}]\n"
    )
    study = Study.load(tmp_path / "study.yaml")
    assert study.finetune == {"lr": 0.2, "epochs": 1}
    assert study.prunings[0].budget == {"macs": 0.25}


def test_a_refused_run_leaves_the_study_of_the_other(tmp_path: Path) -> None:
    run(Study.of(SETTINGS), tmp_path, work=invented, quiet=True)
    before = (tmp_path / "study.json").read_text()
    with locked(tmp_path), pytest.raises(TopiaristError, match="another run is using"):
        run(Study.of({**SETTINGS, "seeds": 5}), tmp_path, work=invented, quiet=True)
    assert (tmp_path / "study.json").read_text() == before


def test_a_merge_does_not_take_the_folder_of_another_study(tmp_path: Path) -> None:
    a, b = Study.of(SETTINGS), Study.of({**SETTINGS, "data": "digits:16"})
    run(a, tmp_path / "a", work=invented, quiet=True)
    run(b, tmp_path / "b", work=invented, quiet=True)
    before = (tmp_path / "b" / "study.json").read_text()
    with pytest.raises(TopiaristError, match="not to be merged; name it as well"):
        merge([tmp_path / "a"], tmp_path / "b")
    assert (tmp_path / "b" / "study.json").read_text() == before
    assert len(merge([tmp_path / "a", tmp_path / "b"], tmp_path / "b")["rows"]) == 2 * 3
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "b")  # and once more


@pytest.mark.parametrize("change", [
    {"accuracy": -5}, {"accuracy": 101}, {"accuracy": 10**400}, {"macs": 10**400}, {"seconds": 1e300},
    {"widths": {"conv1": [8, 16], "zzz": [1, 2]}}, {"widths": {"zzz": [8, 16]}}, {"widths": {"conv1": [8, 32]}},
    {"kernels": {"stage1": {"3x3": [1, 1]}}},
])  # fmt: skip
def test_a_result_that_cannot_be_names_its_folder(tmp_path: Path, change: dict[str, Any]) -> None:
    study = Study.of(SETTINGS)
    run(study, tmp_path, work=invented, quiet=True)
    row = next(row for row in study.rows() if row.arm == "pruned")
    place = folder(tmp_path, row.cells[1])
    file = place / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(TopiaristError, match=f"delete the folder {place} and run"):
        run(study, tmp_path, work=invented, quiet=True)


@pytest.mark.parametrize("lost", ["architecture.json", "model.safetensors"])
@pytest.mark.by_day(1)
def test_a_damaged_network_says_which_folder_to_delete(tmp_path: Path, lost: str) -> None:
    study = Study.of({**SETTINGS, "data": "digits:8", "seeds": 1, "arms": []})
    run(study, tmp_path, quiet=True)
    row = next(row for row in study.rows() if row.arm == "pruned")
    place = folder(tmp_path, row.cells[0])
    (place / lost).write_text("no such thing")
    found = run(Study.of({**study.as_json(), "arms": ["finetune"]}), tmp_path, quiet=True)
    (told,) = {each for each in found["failed"].values() if "damaged" in each or "JSON" in each}
    assert f"in a study, delete the folder {place} and run the study again" in told
