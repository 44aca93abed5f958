"""``topiarist bench`` through the front door: its networks, its files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from door import FEW, NET, SHAPE, one_sentence, run
from topiarist import Bench, load_model
from topiarist.deploy import make_target

QUICK = ("--rounds", 6, "--no-memory", "--json")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that prune wrote."""
    out = tmp_path_factory.mktemp("pruned")
    words = ["--method", "l1", "--budget.macs", 0.5, "--data", FEW, "--train.epochs", 0, "--epochs", 0, "--out", out]
    assert run("prune", NET, *words, "--allow_blind") == 0
    return out


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    """An ONNX file."""
    pytest.importorskip("onnxruntime")
    file = tmp_path / "net.onnx"
    make_target("onnxruntime").export(load_model(NET, in_channels=1, classes=10), torch.randn(1, 1, 8, 8), file)
    return file


def benched(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    capsys.readouterr()
    assert run("bench", *words, *QUICK) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.by_day(1)
def test_a_folder_brings_the_network_before(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = benched(capsys, pruned, "--batch", "1,2", "--out", tmp_path)
    result = json.loads((pruned / "result.json").read_text())
    assert found["networks"] == [
        {"name": "before pruning", "macs": result["macs"]["before"]},
        {"name": str(pruned), "macs": result["macs"]["after"]},
    ]
    assert [reading["setting"]["batch"] for reading in found["readings"]] == [1, 1, 2, 2]
    assert all(reading["latency"]["n"] == 6 for reading in found["readings"])
    assert found["readings"][1]["efficiency"] is not None
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    assert Bench.from_json(found).to_json() == found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.png", "bench.svg"]


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.by_day(1)
def test_names_folders_and_files_side_by_side(
    pruned: Path, onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{NET}&in_channels=1&classes=10"
    words = ["--input", SHAPE, "--targets", "onnxruntime", "--out", tmp_path / "out"]
    found = benched(capsys, name, pruned, onnx, *words)
    assert [network["name"] for network in found["networks"]] == [name, str(pruned), str(onnx)]
    assert [reading["reason"] for reading in found["readings"]] == ["", "", ""]
    assert found["networks"][2]["macs"] is None
    alone = benched(capsys, onnx, "--targets", "onnxruntime", "--out", tmp_path / "alone")  # the file has its shape
    assert alone["readings"][0]["bytes"] == onnx.stat().st_size


def test_a_picture_of_a_bench(tmp_path: Path) -> None:
    assert run("bench", NET, "--input", SHAPE, "--rounds", 6, "--no-memory", "--out", tmp_path) == 0
    assert "torch, 1 thread, batch 1" in (tmp_path / "bench.svg").read_text()


@pytest.mark.usefixtures("blank_figures")
def test_ctrl_c_leaves_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from topiarist import deploy

    def stopped(*words: Any, **options: Any) -> Bench:
        def stop(what: str, done: int, total: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        return measure(*words, **{**options, "progress": stop})

    measure = deploy.bench
    monkeypatch.setattr(deploy, "bench", stopped)
    assert run("bench", NET, "--input", SHAPE, *QUICK, "--out", tmp_path) == 130
    assert "what was measured is in" in capsys.readouterr().err
    found = json.loads((tmp_path / "bench.json").read_text())
    assert (found["interrupted"], found["readings"][0]["latency"]["n"]) == (True, 3)


BAD = {
    "no network": (["bench"], "needs NETWORKS"),
    "unknown network": (["bench", "resnet20"], "name a model such as zoo:resnet20, a folder that prune wrote"),
    "unknown target": (["bench", NET, "--input", SHAPE, "--targets", "torhc"], "did you mean torch"),
    "twice": (["bench", NET, NET, "--input", SHAPE], "named twice"),
    "no input": (["bench", NET], "--input 1,3,224,224"),
    "inputs differ": (["bench", NET, "zoo:lenet5", "--input", SHAPE], "take the same inputs"),
    "no rounds": (["bench", NET, "--input", SHAPE, "--rounds", "0"], "count of the rounds must be at least 1"),
    "no time": (["bench", NET, "--input", SHAPE, "--seconds", "-1"], "seconds of the rounds must be above 0"),
    "no threads": (["bench", NET, "--input", SHAPE, "--threads", "0"], "threads must be a whole number from 1 to"),
    "no batch": (["bench", NET, "--input", SHAPE, "--batch", "1,-2"], "a batch must be a whole number"),
    "word for a number": (["bench", NET, "--input", SHAPE, "--threads", "two"], "--threads must be"),
    "no such file": (["bench", "no.onnx"], "there is no file no.onnx"),
    "no folder to write": (["bench", NET, "--input", SHAPE, "--out", "/proc/none"], "cannot write the folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, told = BAD[case]
    monkeypatch.chdir(tmp_path)
    assert told in one_sentence(run(*words), capsys)


@pytest.mark.parametrize("text", ["", "no such thing", "\x08\x07"])
def test_a_file_that_is_no_network(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    file = tmp_path / "net.onnx"
    file.write_text(text)
    assert "damaged or no ONNX file" in one_sentence(run("bench", file, "--out", tmp_path / "out"), capsys)


@pytest.mark.parametrize("text", ["[]", "{}", '{"model": 3}', '{"model": "zoo:digitsnet", "macs": 3, "shrunk": null}'])
def test_a_folder_that_prune_did_not_write(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "topiarist prune" in one_sentence(run("bench", tmp_path, "--out", tmp_path / "out"), capsys)
    (tmp_path / "result.json").write_text(text)
    assert "has no architecture.json" in one_sentence(run("bench", tmp_path, "--out", tmp_path / "out"), capsys)
    (tmp_path / "architecture.json").write_text("{}")
    assert "not the result of a pruning" in one_sentence(run("bench", tmp_path, "--out", tmp_path / "out"), capsys)


def test_a_missing_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    words = ["--input", SHAPE, "--targets", "onnxruntime", "--out", tmp_path]
    assert "pip install 'topiarist[export]'" in one_sentence(run("bench", NET, *words), capsys)
