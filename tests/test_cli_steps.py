"""`topiarist prune` in several steps, and with channel selectors."""

import json

import pytest
import torch

import topiarist
from door import FEW, NET, one_sentence, run

PRE = "zoo:preresnet110?width=0.125&bottleneck=False"


@pytest.mark.nightly
def test_pruning_in_steps_trains_between_them(tmp_path, capsys):
    words = ["prune", NET, "--data", "digits", "--method", "magnitude", "--budget.ratio", 0.2, "--train.epochs", 1]
    words += ["--epochs", 0, "--json", "--out"]
    kept = {}
    for name, more in (
        ("one", []),
        ("three", ["--steps", 3, "--steps.training.epochs", 1, "--steps.schedule", "cubic"]),
    ):
        assert run(*words, tmp_path / name, *more) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["pruning"]["steps"]["count"] == (3 if more else 1)
        assert result["proof"]["max_rel_diff"] <= 1e-10
        kept[name] = topiarist.Architecture.load(tmp_path / name / "architecture.json").keep
    assert sum(int(k.sum()) for k in kept["one"].values()) == sum(int(k.sum()) for k in kept["three"].values())
    assert any(not torch.equal(kept["one"][name], kept["three"][name]) for name in kept["one"])


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    out = tmp_path_factory.mktemp("selected")
    words = ["prune", PRE, "--data", FEW, "--method", "slimming", "--budget.ratio", 0.6]
    assert run(*words, "--selectors", "auto", "--train.epochs", 1, "--epochs", 0, "--out", out) == 0
    return out


@pytest.mark.nightly
def test_selectors_let_slimming_cut_what_a_block_reads(selected):
    result = json.loads((selected / "result.json").read_text())
    assert len(result["selectors"]) == 55  # 54 blocks and the last norm
    assert result["kept"]["bn.selector"][0] <= result["kept"]["bn.selector"][1] == 8
    assert not any(name.endswith("conv2") for name in result["kept"])
    make = topiarist.make_model(PRE, in_channels=1, classes=10, input_size=8)
    loaded = topiarist.load(make, selected)
    assert sum(p.numel() for p in loaded.parameters()) == result["params"]["after"]


@pytest.mark.nightly
def test_the_trained_weights_are_those_of_the_plain_network(selected, tmp_path, capsys):
    words = ["prune", PRE, "--data", FEW, "--method", "slimming", "--budget.ratio", 0.6, "--json"]
    words += ["--weights", selected / "trained.safetensors", "--epochs", 0, "--out", tmp_path]
    assert run(*words, "--selectors", "layer*.bn1") == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["selectors"]) == 54
    assert result["accuracy"]["before"] == json.loads((selected / "result.json").read_text())["accuracy"]["before"]


@pytest.mark.parametrize(("more", "told"), [
    (["--selectors", "auto"], "leave selectors out"), (["--selectors", "x*"], "matches no"),
    (["--steps", 0], "steps"), (["--steps.schedule", "slow"], "schedule"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_the_training(more, told, tmp_path, capsys):
    words = ["prune", NET, "--data", FEW, "--method", "l1", "--budget.macs", 0.5, "--train.epochs", 1]
    words += ["--epochs", 0, "--out", tmp_path]
    assert told in one_sentence(run(*words, *more), capsys)
    assert not (tmp_path / "trained.safetensors").exists()


@pytest.mark.parametrize("method", [("sss", "--method.structure", "channel"), ("l0",)])
def test_methods_that_train_meet_a_budget_without_weights(tmp_path, method):
    """What only the training ranks is no reason to refuse before it."""
    name, *fields = method
    told = ("--data", FEW, "--train.epochs", "2", "--budget.ratio", "0.8", "--epochs", "0", "--seed", "0")
    out = ("--out", str(tmp_path / "out"))
    assert run("prune", "zoo:digitsnet?width=0.25", "--method", name, *fields, *told, *out) == 0
