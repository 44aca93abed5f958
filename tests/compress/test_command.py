"""`topiarist compress` and `topiarist decompress`, from the command line to the files and back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import topiarist
from door import NET, one_sentence, run
from topiarist import compress


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned")
    words = ["--data", "digits", "--method", "l1", "--budget.macs", 0.6, "--train.epochs", 2, "--epochs", 0]
    assert run("prune", NET, *words, "--out", out) == 0
    return out


def test_a_pruned_network_goes_into_one_file_and_comes_back(pruned: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "small.tpcf", tmp_path / "back"
    assert run("compress", pruned, "--out", file) == 0
    assert run("decompress", file, "--out", out) == 0
    ours, theirs = load_file(out / "model.safetensors"), load_file(pruned / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    x = torch.randn(2, 1, 8, 8)
    make = topiarist.make_model(NET)
    models = [topiarist.load(make, out), topiarist.load(make, pruned), compress.load_model(make, file)]
    first, second, third = (model.eval()(x) for model in models)
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_centroids_are_trained_and_every_byte_is_counted(
    pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "small.tpcf"
    words = ["--bits", 3, "--half", "--model", NET, "--data", "digits", "--epochs", 1, "--finetune.lr", 0.01]
    assert run("compress", pruned, *words, "--out", file, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bytes"] == file.stat().st_size
    assert result["bytes"] == result["overhead"] + sum(row["bytes"] for row in result["tensors"])
    assert all(row["codes"] <= 7 for row in result["tensors"] if row["codes"] and len(row["shape"]) > 1)
    assert result["accuracy"].keys() == {"before", "shared", "finetuned", "stored"}
    model = compress.load_model(topiarist.make_model(NET), file)
    assert topiarist.evaluate(model, topiarist.load_data("digits")) == result["accuracy"]["stored"]


def test_weights_alone_are_shared_by_globs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a.weight": torch.randn(30, 30), "b.weight": torch.randn(40, 40)}, tmp_path / "x.safetensors")
    words = ["--bits", '{"a.*": 2}', "--out", tmp_path / "x.tpcf"]
    assert run("compress", tmp_path / "x.safetensors", *words) == 0
    printed = capsys.readouterr().out
    assert "times smaller than 10,000 bytes" in printed
    state = compress.load(tmp_path / "x.tpcf")
    assert len(state["a.weight"].unique()) <= 3
    assert len(state["b.weight"].unique()) == 1600


def test_a_bare_file_has_no_architecture(pruned: Path, tmp_path: Path) -> None:
    sizes = []
    for name, words in (("whole", []), ("bare", ["--bare"])):
        assert run("compress", pruned, "--bits", "paper", *words, "--out", tmp_path / name) == 0
        sizes.append((tmp_path / name).stat().st_size)
        assert (compress.load_architecture(tmp_path / name) is None) == (name == "bare")
    assert sizes[0] > sizes[1] + 100


def test_what_cannot_be_done_costs_a_sentence(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    out = ["--out", tmp_path / "x.tpcf"]
    assert "no weights file" in one_sentence(run("compress", tmp_path / "none", *out), capsys)
    assert "give both" in one_sentence(run("compress", pruned, "--data", "digits", *out), capsys)
    assert "1 to 12" in one_sentence(run("compress", pruned, "--bits", 40, *out), capsys)
    (tmp_path / "damaged.tpcf").write_bytes(b"TPCF\x07 and more")
    found = one_sentence(run("decompress", tmp_path / "damaged.tpcf", "--out", tmp_path / "o"), capsys)
    assert "version 7" in found
    assert run("compress", pruned, *out) == 0
    capsys.readouterr()
    words = ["--max-bytes", 5000, "--out", tmp_path / "o"]
    assert "max_bytes" in one_sentence(run("decompress", tmp_path / "x.tpcf", *words), capsys)
