"""The command line, through its front door: what it prints, reads and writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

import topiarist
from door import FEW, NET, SHAPE, run
from topiarist import Pruning, TopiaristError, methods
from topiarist.budget import Budget, cost
from topiarist.cli import COMMANDS, commands
from topiarist.cli.arguments import parse
from topiarist.cli.inputs import parse_shape


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network that was trained for a moment."""
    out = tmp_path_factory.mktemp("trained")
    assert run("train", NET, "--data", FEW, "--epochs", 2, "--out", out) == 0
    return out


@pytest.fixture
def weights(trained: Path) -> Path:
    return trained / "model.safetensors"


# ---- what it prints -------------------------------------------------------------------------------------------------


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in COMMANDS)
    for name in COMMANDS:
        assert run(name, "--help") == 0
        printed = capsys.readouterr().out
        assert printed.startswith(f"usage: topiarist {name}")
        assert "--json" in printed
    assert run("--version") == 0
    assert topiarist.__version__ in capsys.readouterr().out


def test_methods_lists_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    printed = capsys.readouterr().out
    words = " ".join(printed.split())
    assert all(
        f" {name} {methods.get(name).granularity} {methods.describe(name)['summary']}" in words
        for name in methods.names()
    )
    assert run("methods", "--json") == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == methods.names()


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.by_day(6)
def test_a_card_and_the_help_show_each_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", name) == 0
    card = capsys.readouterr().out
    assert run("prune", "--method", name, "--help") == 0
    shown = capsys.readouterr().out
    for field in methods.describe(name)["fields"]:
        assert f"--method.{field['name']}" in card
        assert f"--method.{field['name']}" in shown


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.by_day(6)
def test_cards_and_tables_show_what_a_method_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = methods.describe(name)
    assert run("methods", name) == 0
    card = capsys.readouterr().out
    for key in ("granularity", "target", "paper"):
        assert f"\n{key}: {told[key]}\n" in card
    needs = ", ".join(told["needs"]) or "nothing"
    assert f"\nneeds: {needs}\n" in card
    assert run("methods") == 0
    [row] = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] == [name]]
    assert row[1] == told["granularity"]
    assert " ".join(told["summary"].split()).startswith(" ".join(row[2:]).rstrip("…"))


def test_start_is_quick() -> None:
    """Help needs no torch, a list of methods nothing heavier than torch."""
    code = """if True:
        import sys
        from topiarist.cli import main
        assert main(["--help"]) == 0 and "torch" not in sys.modules
        assert main(["methods"]) == 0
        assert not {"torchvision", "timm", "lightning_fabric", "matplotlib", "sklearn"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_inspect_shows_groups_and_pins(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", NET, "--input", SHAPE, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    graph = topiarist.trace(topiarist.load_model(NET), torch.randn(1, 1, 8, 8))
    assert [(group["name"], group["units"]) for group in found["groups"]] == [(g.name, g.units) for g in graph.groups]
    assert [tuple(entry.values()) for entry in found["pinned"]] == list(graph.pinned)
    assert found["macs"] == cost(graph).macs
    assert run("inspect", NET, "--data", "digits") == 0
    printed = capsys.readouterr().out
    assert all(group.name in printed for group in graph.groups)
    assert "fc.weight:0" in printed


@pytest.mark.parametrize(
    ("name", "told"), [("fc.weight", "must stay"), ("fc.weight:1", "not pinned"), ("fc", "fc.bias")]
)
def test_inspect_explains_a_pin(name: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", NET, "--input", SHAPE, "--why", name) == 0
    assert told in capsys.readouterr().out


# ---- options --------------------------------------------------------------------------------------------------------


def options(*words: str) -> dict[str, object]:
    return parse("prune", commands.prune, words)


def test_fields_are_flags() -> None:
    typed = "zoo:lenet5 --method l1 --method.p 2 --budget.macs=0.5 --finetune.batch-size 7 --budget.exclude conv1,*.bn"
    found = options(*typed.split(), "--budget.ratios.layer1.*", "0.5", "--budget.ratios.a-b=0.2")
    request = found["pruning"]
    assert request.method == methods.make("l1", p=2)
    assert request.budget == Budget(macs=0.5, exclude=("conv1", "*.bn"), ratios={"layer1.*": 0.5, "a-b": 0.2})
    assert found["finetune"] == topiarist.Recipe(epochs=40, lr=0.001, schedule="constant", batch_size=7)
    assert found["model"] == "zoo:lenet5"


def test_all_of_it_can_come_from_yaml_and_what_is_typed_wins(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    told = {"model": "zoo:lenet5", "method": {"name": "l1", "p": 2}, "budget": {"macs": 0.5, "floor": 2}, "epochs": 3}
    file.write_text(yaml.safe_dump(told))
    found = options("--config", str(file))
    assert found["pruning"].method == methods.make("l1", p=2)
    assert (found["model"], found["pruning"].budget, found["epochs"]) == ("zoo:lenet5", Budget(macs=0.5, floor=2), 3)
    found = options("--epochs", "4", f"--config={file}", "--budget.macs", "0.3", "--method.p", "1")
    assert (found["pruning"], found["epochs"]) == (Pruning.of("l1", Budget(macs=0.3, floor=2)), 4)
    file.write_text("method: slimming\nmodel: zoo:lenet5\nbudget: {ratio: 0.5}")
    assert options("--config", str(file))["pruning"].method == methods.make("slimming")


def test_printed_options_are_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["zoo:lenet5", "--method", "l1", "--method.p", "2", "--budget.exclude", "a,b"]
    assert run("prune", *words, "--print_config") == 0
    file = tmp_path / "options.yaml"
    file.write_text(capsys.readouterr().out)
    assert options("--config", str(file)) == options(*words)


@pytest.mark.parametrize(
    ("text", "shape"),
    [("1,3,32,32", (1, 3, 32, 32)), ("3x32x32", (1, 3, 32, 32)), ("784", (1, 784)), ("2,16,32", (2, 16, 32))],
)
def test_shapes(text: str, shape: tuple[int, ...]) -> None:
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["", "3x", "a,b", "0,3", "-1,3", "1.5", "3xx2"])
def test_shapes_that_cannot_be_read(text: str) -> None:
    with pytest.raises(TopiaristError, match=r"write it as 1,3,224,224"):
        parse_shape(text)


# ---- train and prune ------------------------------------------------------------------------------------------------


def test_train_writes_weights_and_result(trained: Path, weights: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    assert len(result["epochs"]) == 2
    model = topiarist.load_model(NET)
    model.load_state_dict(load_file(weights))
    assert topiarist.evaluate(model, topiarist.load_data("digits")) == result["accuracy"]
    assert sorted(path.name for path in trained.iterdir()) == ["model.safetensors", "result.json"]


def test_prune_writes_all_that_a_script_needs(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", "l1", "--budget.macs", 0.5, "--data", FEW, "--epochs", 1, "--out", tmp_path, "--json"]
    assert run("prune", NET, "--weights", weights, *words) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert json.loads(capsys.readouterr().out) == result
    for name in ("macs", "params", "latency_ms"):
        assert set(result[name]) == {"before", "after"}
        assert result[name]["after"] > 0
    assert result["macs"]["after"] <= 0.5 * result["macs"]["before"]
    assert set(result["accuracy"]) == {"before", "pruned", "finetuned"}
    assert result["proof"]["max_rel_diff"] <= 1e-10
    assert ("fc.weight", 0) in [(entry["tensor"], entry["axis"]) for entry in result["pinned"]]
    assert all(set(entry) == {"tensor", "axis", "reason"} for entry in result["pinned"])
    small = topiarist.load(topiarist.make_model(NET), tmp_path)
    assert sum(p.numel() for p in small.parameters()) == result["params"]["after"]
    assert topiarist.evaluate(small, topiarist.load_data("digits")) == result["accuracy"]["finetuned"]


def test_nothing_in_a_folder_tells_of_a_network_that_was_there_before(weights: Path, tmp_path: Path) -> None:
    words = ["--weights", weights, "--input", "1x8x8", "--method", "l1", "--budget.ratio", 0.5, "--out", tmp_path]
    assert run("prune", NET, *words) == 0
    assert run("train", NET, "--data", FEW, "--epochs", 1, "--out", tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "result.json"]
    assert run("prune", NET, *words) == 0
    assert run("compress", tmp_path, "--bare", "--out", tmp_path / "x.tpcf") == 0
    assert run("decompress", tmp_path / "x.tpcf", "--out", tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "x.tpcf"]


def test_prune_trains_first_where_there_are_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--method", "slimming", "--budget.ratio", 0.7, "--data", FEW, "--train.epochs", 1, "--epochs", 0]
    assert run("prune", NET, *words, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "layer1.0.conv1" in printed
    assert "accuracy: before" in printed
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["accuracy"]["finetuned"] is None
    assert (tmp_path / "trained.safetensors").is_file()


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from topiarist.cli import pruning

    def interrupted(*_: object) -> float:
        raise KeyboardInterrupt

    words = ["--method", "l1", "--budget.ratio", 0.5, "--data", FEW, "--train.epochs", 1, "--epochs", 1]
    with monkeypatch.context() as patch:
        patch.setattr(pruning, "_accuracy", interrupted)
        assert run("prune", NET, *words, "--out", tmp_path) == 130
    assert (tmp_path / "train.ckpt").is_file()
    assert run("prune", NET, *words, "--out", tmp_path) == 0
    again, fresh = (json.loads((folder / "result.json").read_text()) for folder in (tmp_path, _fresh(words, tmp_path)))
    assert again["accuracy"] == fresh["accuracy"]
    assert not list(tmp_path.glob("*.ckpt"))


def _fresh(words: list[object], folder: Path) -> Path:
    assert run("prune", NET, *words, "--out", folder / "fresh") == 0
    return folder / "fresh"


def test_single_weights_stay_zero_in_fine_tuning(weights: Path, tmp_path: Path) -> None:
    words = ["--method", "magnitude", "--budget.ratio", 0.1, "--data", FEW, "--epochs", 1, "--out", tmp_path]
    assert run("prune", NET, "--weights", weights, *words) == 0
    found = load_file(tmp_path / "model.safetensors")
    matrices = [value for value in found.values() if value.ndim > 1]
    kept = sum(int(value.count_nonzero()) for value in matrices) / sum(value.numel() for value in matrices)
    assert 0 < kept <= 0.1


@pytest.mark.nightly
def test_what_is_dead_can_go(weights: Path, tmp_path: Path) -> None:
    """At one weight in two hundred most channels are dead: the file holds a smaller network of the same outputs."""
    words = ["--weights", weights, "--method", "magnitude", "--budget.ratio", 0.005, "--input", SHAPE, "--out"]
    assert run("prune", NET, *words, tmp_path / "sparse") == 0
    assert run("prune", NET, *words, tmp_path / "small", "--shrink") == 0
    told = json.loads((tmp_path / "small" / "result.json").read_text())["shrunk"]
    assert told["proof"]["max_rel_diff"] <= told["drift"] + 1e-10
    sparse, small = (topiarist.load(topiarist.make_model(NET), tmp_path / name) for name in ("sparse", "small"))
    assert sum(p.numel() for p in small.parameters()) == told["params"] < sum(p.numel() for p in sparse.parameters())
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(small.eval()(x), sparse.eval()(x))
    assert run("prune", NET, "--weights", weights, "--method", "l1", "--budget.macs", 0.5, "--input", SHAPE,
               "--shrink", "--out", tmp_path / "no") == 2  # fmt: skip


def test_without_data_nothing_is_measured(weights: Path, tmp_path: Path) -> None:
    words = ["--method", "random", "--budget.ratio", 0.5, "--input", SHAPE, "--out", tmp_path]
    assert run("prune", NET, "--weights", weights, *words) == 0
    accuracy = json.loads((tmp_path / "result.json").read_text())["accuracy"]
    assert accuracy == {"before": None, "pruned": None, "finetuned": None}


def test_weights_of_other_makes(weights: Path, tmp_path: Path) -> None:
    """A PyTorch file, alone, wrapped, or from a parallel training."""
    state = load_file(weights)
    for stored in (state, {"state_dict": state, "epoch": 3}, {f"module.{key}": value for key, value in state.items()}):
        torch.save(stored, tmp_path / "weights.pt")
        assert run("inspect", NET, "--input", SHAPE, "--weights", tmp_path / "weights.pt") == 0


class Tied(nn.Module):
    """Two layers that share their weight, which safetensors stores once."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def test_tied_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tied_model.py").write_text("from test_cli import Tied as make\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    state = Tied().state_dict()
    del state["second.weight"]
    save_file(state, "tied.safetensors")
    assert run("inspect", "tied_model:make", "--input", "2,4", "--weights", "tied.safetensors") == 0


# ---- studies --------------------------------------------------------------------------------------------------------


def test_study_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = {
        "network": NET,
        "data": FEW,
        "prunings": [{"method": "l1", "budget": {"macs": 0.5}}],
        "seeds": 1,
        "recipe": {"epochs": 1},
        "finetune": {"epochs": 1},
        "arms": ["finetune"],
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    out = tmp_path / "out"
    assert run("study", file, "--out", out, "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert [row["arm"] for row in results["rows"]] == ["unpruned", "pruned", "finetune"]
    (out / "report.html").unlink()
    assert run("report", out) == 0
    assert "fine-tuned" in capsys.readouterr().out
    assert (out / "report.html").is_file()


def test_demo_reports_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from topiarist import report, studies

    results: dict[str, object] = {"failed": {}}
    monkeypatch.setattr(studies, "demo", lambda *_, **__: results, raising=False)
    monkeypatch.setattr(report, "show", lambda *_: None)
    monkeypatch.setattr(report, "write_report", lambda *_: None)
    assert run("demo", "--out", tmp_path) == 0
    results["failed"] = {"cell": "the loss diverged"}
    assert run("demo", "--out", tmp_path) == 1
