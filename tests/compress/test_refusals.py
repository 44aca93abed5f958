"""What the codec refuses, in one sentence and before anything is lost."""

from pathlib import Path

import pytest
import torch
from torch import nn

import topiarist
from door import NET, run
from topiarist import TopiaristError, compress


@pytest.mark.parametrize(
    "state",
    [
        None, [torch.ones(2)], torch.ones(2), {1: torch.ones(2)}, {"\ud800": torch.ones(2)}, {"a": 3},
        {"a": torch.ones(2).to(torch.float8_e4m3fnuz)},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_network_is_told(state, tmp_path):
    with pytest.raises(TopiaristError):
        compress.save(state, tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [
    {"path": None}, {"path": "a\0b"}, {"architecture": {}}, {"index_bits": "5", "mode": "paper"},
    {"index_bits": 2.5, "mode": "paper"},
], ids=str)  # fmt: skip
def test_wrong_options_are_told(options, tmp_path):
    with pytest.raises(TopiaristError):
        compress.save({"a": torch.ones(3)}, **{"path": tmp_path / "file", **options})


def test_wrong_ways_to_read_are_told(tmp_path):
    compress.save({"a": torch.ones(3)}, tmp_path / "file")
    for path, options in (
        (None, {}),
        ("a\0b", {}),
        (tmp_path / "file", {"max_bytes": "5"}),
        (tmp_path / "file", {"max_bytes": None}),
    ):
        with pytest.raises(TopiaristError):
            compress.load(path, **options)
    with pytest.raises(TopiaristError, match=r"no torch.nn.Module"):
        compress.load_model(lambda: None, tmp_path / "file")


@pytest.mark.parametrize("options", [
    {"steps": -1}, {"steps": 1.5}, {"seed": -1, "init": "random"}, {"seed": "a", "init": "random"}, {"bits": {3: 3}},
    {"bits": {}},
], ids=str)  # fmt: skip
def test_sharing_says_what_it_cannot_take(options):
    with pytest.raises(TopiaristError):
        compress.share(nn.Linear(4, 4), **options)
    for network in (None, nn.Linear(4, 4).state_dict()):
        with pytest.raises(TopiaristError, match="share_state"):
            compress.share(network)
    with pytest.raises(TopiaristError, match="state dict"):
        compress.share_state(nn.Linear(4, 4), 3)


def test_conjugates_and_negatives_are_not_what_they_are_views_of(tmp_path):
    c = torch.randn(6, 5, dtype=torch.complex64)
    state = {"a": c, "b": c.conj(), "imaginary": c.imag, "negative": c.conj().imag}
    compress.save(state, tmp_path / "file")
    back = compress.load(tmp_path / "file")
    assert all(torch.equal(back[name], value.resolve_conj().resolve_neg()) for name, value in state.items())


def test_a_tied_model_refuses_a_file_whose_tensors_are_apart(tmp_path):
    def make(tied):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        if tied:
            model[1].weight = model[0].weight
        return model

    compress.save(make(False), tmp_path / "apart")
    with pytest.raises(TopiaristError, match="ties"):
        compress.load_model(lambda: make(True), tmp_path / "apart")
    tied = make(True)
    compress.save(tied, tmp_path / "tied")
    back = compress.load_model(lambda: make(True), tmp_path / "tied")
    assert torch.equal(back[1].weight, tied[1].weight)


def test_frozen_weights_are_shared_and_stay():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    model[0].weight.requires_grad_(False)
    shared = compress.share(model, bits=2)
    before = shared.model[0].weight.clone()
    with shared.tied() as tied:
        optimizer = torch.optim.SGD([p for p in tied.parameters() if p.requires_grad], lr=0.1)
        tied(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()
    assert torch.equal(shared.model[0].weight, before)
    assert len(shared.model[1].weight.unique()) <= 4


def test_nothing_that_is_no_file_is_replaced(tmp_path):
    target = tmp_path / "target"
    (tmp_path / "link").symlink_to(target)
    compress.save({"a": torch.ones(3)}, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert torch.equal(compress.load(target)["a"], torch.ones(3))
    (tmp_path / "folder").mkdir()
    with pytest.raises(TopiaristError, match="no file"):
        compress.save({"a": torch.ones(3)}, tmp_path / "folder")


def test_the_command_keeps_what_it_reads(tmp_path, capsys):
    weights = tmp_path / "model.safetensors"
    model = topiarist.load_model(NET)
    topiarist.save(model, topiarist.Architecture.of(*_whole(model)), tmp_path)
    before = weights.read_bytes()
    for out in (weights, tmp_path, Path("/dev/null")):
        assert run("compress", tmp_path, "--bits", 4, "--out", out) == 2
        assert "choose another --out" in capsys.readouterr().err
    assert weights.read_bytes() == before
    assert run("compress", tmp_path, "--bits", 4, "--epochs", 5, "--out", tmp_path / "a.tpcf") == 2
    assert "--data" in capsys.readouterr().err


def _whole(model):
    graph = topiarist.trace(model, torch.randn(1, 1, 8, 8))
    return graph, graph.full()
