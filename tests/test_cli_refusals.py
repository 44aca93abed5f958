"""How the command line says no: one sentence that names the remedy, exit status 2, no traceback."""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import topiarist
from door import NET, SHAPE, one_sentence, run
from topiarist.cli import commands

STUDIES = Path(__file__).parent.parent / "studies"
BAD = {
    "seed too large": (["prune", NET, "--method", "l1", "--data", "digits", "--seed", str(2**64)], "from 0 to"),
    "negative seed": (["train", NET, "--data", "digits", "--seed", "-1"], "from 0 to"),
    "nothing": ([], "demo, methods"),
    "an empty method": (["train", NET, "--data", "digits", "--method", ""], "the value of '--method' is empty"),
    "an empty folder": (["train", NET, "--data", "digits", "--out="], "'--out' has an empty value"),
    "an empty argument": (["compress", ""], "an argument is empty"),
    "unknown command": (["prun"], "did you mean prune"),
    "unknown method": (["prune", NET, "--method", "l7", "--data", "digits"], "l1"),
    "unknown card": (["methods", "l7"], "l1"),
    "unknown model": (["inspect", "zoo:resnet21", "--input", SHAPE], "resnet20"),
    "no such kind of model": (["inspect", "resnet20", "--input", SHAPE], "zoo:resnet20"),
    "no such factory": (["inspect", "no_such_package:make", "--input", SHAPE], "no_such_package"),
    "unknown data": (["inspect", NET, "--data", "digit"], "digits"),
    "no data file": (["inspect", NET, "--data", "npz:/no/such.npz"], "/no/such.npz"),
    "unknown option": (["inspect", NET, "--inptu", SHAPE], "did you mean --input"),
    "a field without its name": (["train", NET, "--data", "digits", "--lr", 0.1], "did you mean --recipe.lr"),
    "unknown field": (["prune", NET, "--method", "l1", "--method.q", "1"], "--method.p"),
    "field without method": (["prune", NET, "--method.p", "1"], "--method NAME"),
    "no method": (["prune", NET, "--data", "digits"], "needs --method"),
    "no model": (["inspect", "--input", SHAPE], "needs MODEL"),
    "word for a number": (["prune", NET, "--method", "l1", "--budget.macs", "half"], "must be a number, but got half"),
    "part of a whole number": (
        ["prune", NET, "--method", "l1", "--epochs", "1.5"],
        "a whole number, but got 1.5",
    ),
    "neither of two": (["prune", NET, "--method", "l1", "--budget.allocation", "best"], "'uniform', 'global'"),
    "value missing": (["prune", NET, "--method", "l1", "--epochs"], "needs a value"),
    "negative budget": (["prune", NET, "--method", "l1", "--budget.macs", "-0.5"], "from 0 to 1"),
    "budget above one": (["prune", NET, "--method", "l1", "--budget.macs", "50"], "write 0.5"),
    "budget below the floor": (
        ["prune", NET, "--data", "digits", "--method", "l1", "--budget.macs", "0.01", "--budget.floor", "0.9"],
        "at least",
    ),
    "a budget of one number": (
        ["prune", NET, "--method", "l1", "--budget", "0.5"],
        "--budget takes no value of its own: give --budget.macs, --budget.params",
    ),
    "a recipe of one number": (
        ["prune", NET, "--method", "l1", "--steps.training", "3"],
        "--steps.training must be a mapping of names to values, such as {epochs: 1}, but got 3",
    ),
    "a switch with a value": (["prune", NET, "--method", "l1", "--rewind=3"], "--rewind takes no value"),
    "no budget": (["prune", NET, "--data", "digits", "--method", "l1"], "needs a budget"),
    "no weights and no data": (["prune", NET, "--method", "l1", "--budget.macs", "0.5"], "--weights FILE"),
    "wrong channel count": (["inspect", NET, "--input", "3x8x8"], "channels"),
    "fails on the input": (["inspect", NET, "--input", "7"], "fails on the example input"),
    "no input": (["inspect", NET], "--input"),
    "shape": (["inspect", NET, "--input", "1,a"], "write it as"),
    "unknown pin": (["inspect", NET, "--input", SHAPE, "--why", "nope"], "nope"),
    "bad recipe": (["train", NET, "--data", "digits", "--epochs", "-1"], "epochs"),
    "no weights file": (["inspect", NET, "--input", SHAPE, "--weights", "/no/such.pt"], "/no/such.pt"),
    "weights are a folder": (["inspect", NET, "--input", SHAPE, "--weights", "/"], "no weights file"),
    "scan without weights": (["sensitivity", NET, "--data", "digits"], "needs --weights"),
    "scan without data": (["sensitivity", NET, "--weights", "/no/such.pt"], "needs --data"),
    "no study": (["study", "/no/such.yaml"], "/no/such.yaml"),
    "no workers": (["study", "/no/such.yaml", "--workers", "0"], "give at least 1"),
    "less than no workers": (["study", "/no/such.yaml", "--workers", "-2"], "give at least 1"),
    "data elsewhere": (["study", STUDIES / "slimming.yaml", "--scale", "cpu"], "--data-folder DIR"),
    "nothing to merge": (["merge", "/no/such", "/no/such", "--out", "out"], "there is no study.json in /no/such"),
    "no results": (["report", "/no/such"], "/no/such"),
    "no config": (["inspect", NET, "--config", "/no/such.yaml"], "/no/such.yaml"),
}


CONFIGS = {
    "recipe: 3": "--recipe must be a mapping of names to values, but got 3",
    "recipe:": "--recipe must be a mapping of names to values, but got None",
    "recipe: {lrr: 1}": "has no option --recipe.lrr: did you mean --recipe.lr",
    "epoch: 3": "has no option --epoch: did you mean --epochs",
    "json: 3": "--json must be true or false, but got 3",
    "method: {p: 1}": "--method.FIELD needs --method NAME",
    "data: 3": "--data must be a word (a number in quotes), but got 3",
    "- a": "must be a mapping",
    "recipe: &a {epochs: *a}": "cannot read the configuration",
}
"""Text of a configuration → what is said about it."""


@pytest.mark.parametrize("text", CONFIGS)
def test_a_bad_configuration_is_one_sentence(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(text)
    words = ["train", NET, "--data", "digits", "--config", tmp_path / "config.yaml", "--out", tmp_path / "out"]
    assert CONFIGS[text] in one_sentence(run(*words), capsys)
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words, remedy = BAD[case]
    assert remedy in one_sentence(run(*words), capsys)


def test_configs_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "options.yaml"
    for text, told in (
        ("a: [", "line 1"),
        ("just words", "mapping"),
        ("modle: x", "modle"),
        ("method: [l1]", "method"),
    ):
        file.write_text(text)
        assert told in one_sentence(run("prune", NET, "--config", file), capsys)
    file.write_bytes(b"\xff\xfe\x00")
    assert "text file" in one_sentence(run("prune", NET, "--config", file), capsys)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_weights_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = topiarist.load_model(NET).state_dict()
    weights = tmp_path / "whole.safetensors"
    save_file(state, weights)
    first = next(key for key, value in state.items() if value.ndim == 4)
    whole, stored = weights.read_bytes(), tmp_path / "torch.pt"
    torch.save(state, stored)
    cases = {
        "cut.safetensors": (whole[: len(whole) // 2], "truncated"),
        "cut.pt": (stored.read_bytes()[:2000], "truncated"),
        "empty.pt": (b"", "truncated"),
        "text.pt": (b"these are words", "truncated"),
        "object.pt": (pickle.dumps(Path("here")), "save"),
    }
    for name, (content, told) in cases.items():
        (tmp_path / name).write_bytes(content)
        words = ["inspect", NET, "--input", SHAPE, "--weights", tmp_path / name]
        assert told in one_sentence(run(*words), capsys)
    lacking = {key: value for key, value in state.items() if key != first}
    nan = {**state, first: torch.full_like(state[first], torch.nan)}
    foreign = {**state, "extra.weight": torch.ones(1)}
    wrong = {**state, first: torch.ones(1, 2, 3, 4)}
    for tensors, told in ((lacking, first), (foreign, "extra.weight"), (wrong, "(1, 2, 3, 4)"), (nan, "NaN"), ({}, "")):
        save_file(tensors, tmp_path / "other.safetensors")
        words = ["inspect", NET, "--input", SHAPE, "--weights", tmp_path / "other.safetensors"]
        assert told in one_sentence(run(*words), capsys)
    matrix = next(key for key, value in state.items() if value.ndim == 2)
    torch.save({**state, matrix: state[matrix].to_sparse_csr()}, stored)
    assert "save dense tensors" in one_sentence(run("inspect", NET, "--input", SHAPE, "--weights", stored), capsys)
    torch.save([1, 2], stored)
    assert "state dict" in one_sentence(run("inspect", NET, "--input", SHAPE, "--weights", stored), capsys)
    torch.save(topiarist.load_model(NET), stored)
    assert "does not run" in one_sentence(run("inspect", NET, "--input", SHAPE, "--weights", stored), capsys)


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    for words in (["demo"], ["train", NET, "--data", "digits"], ["prune", NET, "--data", "digits", "--method", "l1"]):
        told = one_sentence(run(*words, "--out", tmp_path / "file" / "out"), capsys)
        assert "another --out" in told
    for name in ("result.json", "model.safetensors", "architecture.json"):
        (tmp_path / name / name).mkdir(parents=True)
        words = ["prune", NET, "--data", "digits", "--method", "l1", "--budget.macs", "0.5", "--out", tmp_path / name]
        assert f"its {name} is a folder" in one_sentence(run(*words), capsys)


def test_an_interrupt_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "methods", interrupted)
    monkeypatch.setattr("topiarist.cli.arguments.parse", lambda *_: {})
    assert run("methods") == 130
    assert capsys.readouterr().err.startswith("topiarist: interrupted")


def test_a_full_disk_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as writing does: it knows no name

    monkeypatch.setattr(commands, "methods", full)
    monkeypatch.setattr("topiarist.cli.arguments.parse", lambda *_: {})
    assert "make room" in one_sentence(run("methods"), capsys)


@pytest.mark.parametrize("words", [[""], ["methods", ""], ["inspect", "zoo:"], ["inspect", NET, "--data", "npz:"]])
def test_a_message_shows_the_beginning_of_a_long_value(words, capsys):
    said = one_sentence(run(*words[:-1], words[-1] + "x" * 5000), capsys)
    assert "x" * 100 in said
    assert "x" * 181 not in said


@pytest.mark.nightly
def test_a_closed_pipe_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "topiarist", "methods", "--json"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
