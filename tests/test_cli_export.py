"""The command that writes a file for a runtime, through its front door."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import topiarist
from door import FEW, NET, SHAPE, one_sentence, run
from topiarist.deploy import target_of
from topiarist.surgery import difference

KINDS = ["onnx", "openvino", "torch-export"]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that prune wrote."""
    out = tmp_path_factory.mktemp("half")
    words = ("--train.epochs", 0, "--epochs", 0, "--method", "l1", "--budget.macs", 0.5)
    assert run("prune", NET, "--data", FEW, *words, "--out", out) == 0
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.by_day(1)
def test_a_folder_becomes_a_file_that_says_what_was_cut(
    kind: str, half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"net{target_of(kind).suffix}"
    assert run("export", half, "--target", kind, "--out", file, "--dynamic-size", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    result = json.loads((half / "result.json").read_text())
    assert (told["path"], told["target"], told["batch"], told["image_size"]) == (str(file), kind, None, None)
    said = json.loads(target_of(kind).metadata(file))
    assert said["topiarist"] == topiarist.__version__
    assert said["network"] == result["model"]
    for key in ("pruning", "macs", "params", "kept"):
        assert said[key] == told["metadata"][key] == result[key]
    model, x = topiarist.load(topiarist.make_model(result["model"]), half), torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert difference(target_of(kind).load(file)(x), model.eval()(x)) <= 1e-5


def test_a_network_is_named_and_the_lines_are_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", NET, "--input", SHAPE, "--out", tmp_path / "a.onnx") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path / 'a.onnx'}: ")
    assert first.endswith(" bytes, any batch, images of 8x8, written by torchscript")
    assert "torch differ by" in second
    assert second.endswith("of the largest at 1x1x8x8, 3x1x8x8")


def test_weights_and_the_seed_are_heeded(half: Path, tmp_path: Path) -> None:
    for name, words in (("a", ["--weights", half / "trained.safetensors"]), ("b", []), ("c", ["--seed", 1])):
        assert run("export", NET, "--data", FEW, "--out", tmp_path / f"{name}.onnx", *words) == 0
    x = torch.randn(2, 1, 8, 8)
    a, b, c = (target_of("onnx").load(tmp_path / f"{name}.onnx")(x) for name in "abc")
    assert difference(a, b) <= 1e-6  # it was trained for no epoch
    assert difference(a, c) > 1e-3


def test_refusals_are_one_sentence(half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for name, leave in (("shapeless", "architecture.json"), ("nameless", "result.json")):
        shutil.copytree(half, tmp_path / name)
        (tmp_path / name / leave).unlink()
    shutil.copytree(half, tmp_path / "foreign")
    (tmp_path / "foreign" / "result.json").write_text("[]")
    out = ["--out", tmp_path / "a.onnx"]
    for words, wanted in (
        ([tmp_path / "shapeless", *out], "has no architecture.json"),
        ([tmp_path / "nameless", *out], "has no result.json"),
        ([tmp_path / "foreign", *out], "is not the result of a pruning"),
        ([tmp_path / "none", *out], "there is no folder"),
        ([half, *out, "--weights", half / "model.safetensors"], "leave --weights out"),
        ([NET, *out], "--input"),
        ([half, "--out", tmp_path / "a.xml"], "end in .onnx"),
        ([half, "--out", "/proc/none/a.onnx"], "cannot write"),
        ([half, *out, "--target", "onx"], "did you mean onnx?"),
        ([half, *out, "--exporter", "jit"], "there is no exporter 'jit'"),
        ([half], "needs --out"),
    ):
        assert wanted in one_sentence(run("export", *words), capsys)
    assert not (tmp_path / "a.onnx").exists()


def test_a_folder_runs_no_code_that_its_file_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "architecture.json").write_text("{}")
    values = {"model": "os:system?command=touch pwned", "data": None, "macs": {"before": 2, "after": 1}, "shrunk": None}
    (tmp_path / "result.json").write_text(json.dumps(values))
    for command in (["export", tmp_path, "--out", tmp_path / "a.onnx"], ["bench", tmp_path, "--out", tmp_path / "out"]):
        said = one_sentence(run(*command, "--input", "1,3,8,8"), capsys)
        assert "whose code would run: if you trust it, add --network" in said
    assert not Path("pwned").exists()
