"""The sensitivity scan: each point is one group masked by hand, judged by held-out training examples."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import topiarist
from door import FEW, NET, run
from topiarist.cli.pruning import write_json
from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.measure import Stats, collect, evaluate_batches
from topiarist.pruning import Sensitivity, sensitivity
from topiarist.pruning import sensitivity_scan as module
from topiarist.report import sensitivity as curves
from topiarist.surgery import mask


def examples() -> Data:
    """Two-by-two images, classes in turn."""
    random = torch.Generator().manual_seed(1)
    parts = {}
    for split, size in (("train", 200), ("test", 20)):
        parts[f"{split}_y"] = torch.arange(size) % 3
        parts[f"{split}_x"] = torch.randn(size, 1, 2, 2, generator=random) + parts[f"{split}_y"].view(-1, 1, 1, 1)
    return Data.of("squares", **parts)


def network() -> nn.Module:
    """Two convolutions, trained; then half the filters of the first become zero, and their scales and shifts too."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 3),
    )
    topiarist.fit(model, examples(), topiarist.Recipe(epochs=8, batch_size=16, lr=0.05))
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            tensor[::2] = 0
    return model.eval()


MODEL, DATA = network(), examples()
GRAPH = topiarist.trace(MODEL, DATA.example())


def test_each_point_is_its_group_masked_by_hand() -> None:
    found = sensitivity(MODEL, GRAPH, DATA, "l1", (0.75, 0.5, 0.1), held_out=0.3, seed=4)
    held = list(DATA.split(0.3, 4).batches("test", 256))
    norms = {"0": MODEL[0].weight.flatten(1).norm(1, 1), "3": MODEL[3].weight.flatten(1).norm(1, 1)}
    assert [(p.group, p.kept) for p in found.points] == [("0", 6), ("0", 4), ("0", 1), ("3", 4), ("3", 3), ("3", 1)]
    for point in found.points:
        keep = torch.zeros(point.units, dtype=torch.bool)
        keep[norms[point.group].argsort(descending=True)[: point.kept]] = True
        accuracy, loss = evaluate_batches(mask(MODEL, GRAPH, {point.group: keep}), held)
        assert point.accuracy == accuracy
        assert point.loss == pytest.approx(loss, rel=1e-6)
    assert (found.total, found.examples) == (6, 60)


def test_dead_units_cost_nothing() -> None:
    found = sensitivity(MODEL, GRAPH, DATA, "l1", (0.9, 0.7, 0.5, 0.2))
    first = found.groups["0"]
    assert all((p.accuracy, p.loss) == (found.accuracy, pytest.approx(found.loss)) for p in first[:3])
    assert first[3].loss != pytest.approx(found.loss)


def test_whole_groups_have_the_accuracy_of_the_network() -> None:
    found = sensitivity(MODEL, GRAPH, DATA, "random", (1.0,))
    assert found.accuracy == topiarist.evaluate(MODEL, DATA.split(0.1))
    assert {(p.accuracy, p.loss) for p in found.points} == {(found.accuracy, found.loss)}


def test_the_test_examples_are_never_looked_at() -> None:
    other = dataclasses.replace(DATA, test_x=-DATA.test_x, test_y=2 - DATA.test_y)
    assert sensitivity(MODEL, GRAPH, DATA, "taylor") == sensitivity(MODEL, GRAPH, other, "taylor")


def test_scores_are_measured_on_the_rest_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counting(model: nn.Module, graph: topiarist.Graph, batches: list, needs: frozenset) -> Stats:
        asked.append(sum(len(y) for _, y in batches))
        return collect(model, graph, batches, needs)

    monkeypatch.setattr(module, "collect", counting)
    sensitivity(MODEL, GRAPH, DATA, "taylor", held_out=0.2)
    assert asked == [160]


def test_single_weights_can_be_scanned() -> None:
    found = sensitivity(MODEL, GRAPH, DATA, "magnitude", (0.5,))
    assert [(p.group, p.kept) for p in found.points] == [("0.weight", 36), ("3.weight", 216), ("6.weight", 36)]


def test_the_model_stays_as_it_is_and_progress_is_told() -> None:
    model = copy.deepcopy(MODEL)
    before = copy.deepcopy(model.state_dict())
    told: list[Sensitivity] = []
    found = sensitivity(model, GRAPH, DATA, ratios=(0.5, 0.25), progress=told.append)
    assert [len(each.points) for each in told] == [0, 1, 2, 3, 4]
    assert told[-1] == found
    assert all(each.total == 4 for each in told)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_scanned_is_told() -> None:
    for options, told in (
        ({"method": "thinet"}, "no scores"),
        ({"ratios": (50,)}, "write 0.5"),
        ({"ratios": ()}, "no ratio"),
        ({"held_out": 0.0}, "validation split"),
        ({"method": "l7"}, "no method"),
    ):
        with pytest.raises(TopiaristError, match=told):
            sensitivity(MODEL, GRAPH, DATA, **options)
    with pytest.raises(TopiaristError, match="shape"):
        sensitivity(MODEL, GRAPH, topiarist.load_data("digits"))
    with pytest.raises(TopiaristError, match="but data is a list: make"):
        sensitivity(MODEL, GRAPH, [(DATA.train_x, DATA.train_y)])  # type: ignore[arg-type]
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(TopiaristError, match="nothing in this network"):
        sensitivity(fixed, topiarist.trace(fixed, DATA.example()), DATA)


# ---- the picture ----------------------------------------------------------------------------------------------------


def test_the_picture_shows_every_point(tmp_path: Path) -> None:
    found = sensitivity(MODEL, GRAPH, DATA, ratios=(0.75, 0.25))
    panels = [axes for axes in curves.draw(found).axes if axes.get_visible()]
    lines = {line.get_label(): line.get_xydata().tolist() for axes in panels for line in axes.get_lines()}
    for name, points in found.groups.items():
        expected = [[100, found.accuracy], *([100 * p.kept / p.units, p.accuracy] for p in points)]
        assert torch.allclose(torch.tensor(lines[name]), torch.tensor(expected))
    for name in ("one.svg", "two.svg", "one.png"):
        curves.save_sensitivity(found, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    curves.save_sensitivity(dataclasses.replace(found, points=()), tmp_path / "empty.svg")


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    assert run("train", NET, "--data", FEW, "--epochs", 1, "--out", out) == 0
    return out / "model.safetensors"


@pytest.mark.nightly
def test_the_command_writes_what_the_function_finds(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sensitivity", NET, "--weights", weights, "--data", FEW, "--out", tmp_path, "--held-out", 0.2]
    assert run(*words, "--method", "l1", "--method.p", 2, "--ratios", "0.75,0.25", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    data = topiarist.load_data(FEW)
    model = topiarist.load_model(NET)
    topiarist.cli.inputs.put_weights(model, weights)
    graph = topiarist.trace(model, data.example())
    found = sensitivity(model, graph, data, topiarist.methods.make("l1", p=2), (0.75, 0.25), held_out=0.2)
    assert told == json.loads(json.dumps(found.to_json()))
    assert json.loads((tmp_path / "sensitivity.json").read_text()) == told
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"sensitivity.{end}" for end in ("json", "png", "svg")]
    assert run(*words) == 0
    printed = capsys.readouterr().out
    assert all(group.name in printed for group in graph.groups)
    assert "training examples" in printed


def test_an_interrupted_scan_leaves_what_it_measured(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [5]

    def interrupted(*arguments: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return evaluate_batches(*arguments)

    monkeypatch.setattr(module, "evaluate_batches", interrupted)
    words = ["--weights", weights, "--data", FEW, "--ratios", "0.5", "--out", tmp_path]
    assert run("sensitivity", NET, *words) == 130
    assert str(tmp_path / "sensitivity.json") in " ".join(capsys.readouterr().err.split())
    told = json.loads((tmp_path / "sensitivity.json").read_text())
    assert 0 < len(told["points"]) < told["total"]
    assert [path.name for path in tmp_path.iterdir()] == ["sensitivity.json"]


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "result.json", {"old": 1})

    def full(self: Path, text: str, **_: object) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(TopiaristError, match="No space left on device; choose another"):
        write_json(tmp_path / "result.json", {"new": 2})
    assert json.loads((tmp_path / "result.json").read_text()) == {"old": 1}
