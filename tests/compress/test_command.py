"""`topiarist compress` and `topiarist decompress`, from the command line to the files and back."""

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import topiarist
from door import FEW, NET, one_sentence, run
from topiarist import compress


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned")
    words = ["--data", FEW, "--method", "l1", "--budget.macs", 0.6, "--train.epochs", 2, "--epochs", 0]
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
    words = ["--bits", 3, "--half", "--model", NET, "--data", FEW, "--epochs", 1, "--finetune.lr", 0.01]
    assert run("compress", pruned, *words, "--out", file, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bytes"] == file.stat().st_size
    assert result["bytes"] == result["overhead"] + result["architecture"] + sum(
        row["bytes"] for row in result["tensors"]
    )
    assert all(row["codes"] <= 7 for row in result["tensors"] if row["codes"] and len(row["shape"]) > 1)
    assert result["accuracy"].keys() == {"before", "shared", "finetuned", "stored"}
    model = compress.load_model(topiarist.make_model(NET), file)
    assert topiarist.evaluate(model, topiarist.load_data("digits")) == result["accuracy"]["stored"]


def test_weights_alone_are_shared_by_globs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a.weight": torch.randn(30, 30), "b.weight": torch.randn(40, 40)}, tmp_path / "x.safetensors")
    words = ["--bits", '{"a.*": 2}', "--out", tmp_path / "x.tpcf"]
    assert run("compress", tmp_path / "x.safetensors", *words) == 0
    printed = capsys.readouterr().out
    assert "times smaller than the 10,000 bytes" in printed
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


def test_a_sparse_network_comes_back_with_its_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(topiarist.make_model(NET)().state_dict(), tmp_path / "x.safetensors")
    words = ["--weights", tmp_path / "x.safetensors", "--input", "1x8x8", "--method", "magnitude"]
    assert run("prune", NET, *words, "--budget.ratio", 0.2, "--out", tmp_path / "sparse") == 0
    capsys.readouterr()
    assert run("compress", tmp_path / "sparse", "--out", tmp_path / "x.tpcf") == 0
    assert "the architecture; " in capsys.readouterr().out
    assert run("decompress", tmp_path / "x.tpcf", "--out", tmp_path / "back") == 0
    for name in ("architecture.json", "model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "sparse" / name).read_bytes()


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


TRAINED = ["--bits", 3, "--model", NET, "--data", FEW, "--epochs", 2]


def test_a_stopped_training_of_centroids_goes_on(
    pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from topiarist.train import loop

    def stopped(run: object, epoch: object = loop._epoch) -> object:
        if next(stops):
            raise KeyboardInterrupt
        return epoch(run)  # type: ignore[operator]

    stops = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_epoch", stopped)
        assert run("compress", pruned, *TRAINED, "--out", tmp_path / "x.tpcf") == 130
    assert "run the same command again: it continues" in capsys.readouterr().err
    [checkpoint] = tmp_path.iterdir()
    assert len(torch.load(checkpoint)["rows"]) == 1
    (tmp_path / "x.tpcf").mkdir()  # now the file cannot be written
    assert "cannot write" in one_sentence(run("compress", pruned, *TRAINED, "--out", tmp_path / "x.tpcf"), capsys)
    (tmp_path / "x.tpcf").rmdir()
    other = [*TRAINED[2:], "--bits", 2]  # another network, whose training begins anew
    assert run("compress", pruned, *other, "--out", tmp_path / "x.tpcf") == 0
    assert set(tmp_path.iterdir()) == {checkpoint, tmp_path / "x.tpcf"}
    assert run("compress", pruned, *TRAINED, "--out", tmp_path / "x.tpcf") == 0
    assert [file.name for file in tmp_path.iterdir()] == ["x.tpcf"]
    assert run("compress", pruned, *TRAINED, "--out", tmp_path / "fresh") == 0
    assert (tmp_path / "fresh").read_bytes() == (tmp_path / "x.tpcf").read_bytes()


def test_a_full_disk_after_the_training_loses_no_centroids(
    pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise topiarist.TopiaristError("cannot write: no space left; choose another folder")

    with monkeypatch.context() as patch:
        patch.setattr(compress, "save", full)
        one_sentence(run("compress", pruned, *TRAINED, "--out", tmp_path / "x", "--json"), capsys)
    [checkpoint] = tmp_path.iterdir()
    assert len(torch.load(checkpoint)["rows"]) == 2


def test_what_cannot_be_stored_is_refused_before_the_training(
    pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from topiarist import train

    monkeypatch.setattr(train, "fit", lambda *_, **__: pytest.fail("it was trained"))
    large, out = load_file(pruned / "trained.safetensors"), ["--out", tmp_path / "x.tpcf"]
    large["bn1.running_var"] += 1e6
    save_file(large, tmp_path / "large.safetensors")
    capsys.readouterr()
    words = ["compress", tmp_path / "large.safetensors", *TRAINED, "--half", *out]
    assert "beyond 65504" in one_sentence(run(*words), capsys)
    assert "cannot write" in one_sentence(run("compress", pruned, *TRAINED, "--out", tmp_path), capsys)
    below = tmp_path / "large.safetensors" / "x"
    assert "cannot write" in one_sentence(run("compress", pruned, *TRAINED, "--out", below), capsys)
    for words in (["--bits", 4, "--epochs", 5], ["--epochs", 5, *TRAINED[2:6]], ["--bits", 4, "--finetune.lr", 1]):
        assert "give --bits, --model and --data" in one_sentence(run("compress", pruned, *words, *out), capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["large.safetensors"]


def test_nothing_is_written_onto_what_is_read(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pruned, copy)
    (copy / "link").symlink_to("model.safetensors")
    capsys.readouterr()
    for name in ("model.safetensors", "architecture.json", "link"):
        found = one_sentence(run("compress", copy, "--out", copy / name), capsys)
        assert f"{name} is the input: give another --out" in found
    shutil.copy(pruned / "trained.safetensors", copy / "model.safetensors")
    found = one_sentence(run("compress", copy, "--bits", 4, "--out", tmp_path / "x"), capsys)
    assert "the architecture is of another network" in found
    assert run("compress", pruned, "--out", copy / "model.safetensors") == 0
    capsys.readouterr()
    found = one_sentence(run("decompress", copy / "model.safetensors", "--out", copy), capsys)
    assert "is the input: give another --out" in found
    assert not (tmp_path / "x").exists()


def test_other_files_are_called_what_they_are(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", pruned, "--out", tmp_path / "x.tpcf") == 0
    capsys.readouterr()
    (tmp_path / "x.py").write_text("import topiarist")
    out = ["--out", tmp_path / "y"]
    found = one_sentence(run("compress", tmp_path / "x.tpcf", *out), capsys)
    assert "is compressed: restore its weights with `topiarist decompress" in found
    for file in (tmp_path / "x.py", pruned / "result.json"):
        assert "no weights file" in one_sentence(run("compress", file, *out), capsys)
    found = one_sentence(run("compress", pruned, "--bits", '{"conv*": "paper"}', *out), capsys)
    assert (
        "--bits must be a whole number or {name: a whole number} or one of 'paper', but got {'conv*': 'paper'}" in found
    )
    assert "typing" not in found


def test_a_full_disk_is_told_as_such(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", pruned, "--out", tmp_path / "x.tpcf") == 0
    capsys.readouterr()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        status = run("decompress", tmp_path / "x.tpcf", "--out", tmp_path / "o")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot write" in one_sentence(status, capsys)
    assert not list((tmp_path / "o").iterdir())
