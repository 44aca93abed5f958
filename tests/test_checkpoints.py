"""A stopped training goes on to the bit; what is wrong with a checkpoint is told."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from corners import QUICK, Gated, Units, corners, equal, net, state
from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.methods import Method
from topiarist.train import Epoch, Recipe, fit


@pytest.fixture(scope="module")
def data() -> Data:
    return corners()


def stop_after(epoch: int) -> Callable[[int, int, Epoch], None]:
    def progress(done: int, epochs: int, row: Epoch) -> None:
        if done == epoch:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("method", [None, Gated()], ids=["plain", "gated"])
def test_a_stopped_training_resumes_to_the_same_bits(data: Data, tmp_path: Path, method: Method | None) -> None:
    path = tmp_path / "runs" / "state.pt"
    undisturbed = net()
    whole = fit(undisturbed, data, QUICK, seed=3, method=method, graph=Units(undisturbed))
    for epoch in (1, 3):
        model = net(seed=epoch)  # what the model holds when it resumes does not matter
        model.load_state_dict(state(net())) if epoch == 1 else None
        with pytest.raises(KeyboardInterrupt):
            fit(
                model,
                data,
                QUICK,
                seed=3,
                method=method,
                graph=Units(model),
                checkpoint=path,
                progress=stop_after(epoch),
            )
        assert len(torch.load(path, weights_only=True)["rows"]) == epoch
    model = net(seed=9)
    rest = fit(model, data, QUICK, seed=3, method=method, graph=Units(model), checkpoint=path)
    assert equal(state(model), state(undisturbed))
    if method is not None:
        assert torch.equal(model[0].factor, undisturbed[0].factor)
        assert model[0].factor != 1
    assert [replace(row, seconds=0) for row in rest.epochs] == [replace(row, seconds=0) for row in whole.epochs]
    assert os.listdir(path.parent) == ["state.pt"]
    model = net(seed=10)
    assert fit(model, data, QUICK, seed=3, method=method, graph=Units(model), checkpoint=path) == rest  # all is done
    assert equal(state(model), state(undisturbed))


class Interrupting(nn.Module):
    """A network whose n-th training pass is interrupted."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.net, self.at, self.passes = net(), at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        if self.training and self.passes == self.at:
            raise KeyboardInterrupt
        return self.net(x)


def test_a_stop_within_an_epoch_leaves_the_last_whole_one(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    undisturbed, model = Interrupting(0), Interrupting(16)
    fit(undisturbed, data, QUICK)
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, QUICK, checkpoint=path)
    assert len(torch.load(path, weights_only=True)["rows"]) == 2
    model.at = 0
    fit(model, data, QUICK, checkpoint=path)
    assert equal(state(model), state(undisturbed))


def test_divergence_is_told_and_the_last_good_state_kept(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    model = net()

    def poison(done: int, epochs: int, row: Epoch) -> None:
        if done == 2:
            with torch.no_grad():
                model[6].bias.fill_(torch.inf)

    with pytest.raises(TopiaristError, match=r"epoch 3 of 4.*state\.pt.*lower the learning rate from 0\.05"):
        fit(model, data, QUICK, checkpoint=path, progress=poison)
    stored = torch.load(path, weights_only=True)
    assert len(stored["rows"]) == 2
    assert all(value.isfinite().all() for value in stored["model"].values())
    with pytest.raises(TopiaristError, match="epoch 1 of 1"):
        fit(net(), data, Recipe(epochs=1, lr=1e30, batch_size=64))


def test_a_checkpoint_of_something_else_is_refused(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    fit(net(), data, QUICK, checkpoint=path)
    content = path.read_bytes()
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(TopiaristError, match="another model"):
        fit(other, data, QUICK, checkpoint=path)
    with pytest.raises(TopiaristError, match=r"another run \(lr was 0.05, now 0.01\)"):
        fit(net(), data, replace(QUICK, lr=0.01), checkpoint=path)
    with pytest.raises(TopiaristError, match=r"another run \(seed was 0, now 1\)"):
        fit(net(), data, QUICK, seed=1, checkpoint=path)
    assert path.read_bytes() == content
    torch.save(net().state_dict(), path)
    with pytest.raises(TopiaristError, match="not a checkpoint"):
        fit(net(), data, QUICK, checkpoint=path)


def test_a_damaged_checkpoint_is_refused(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    recipe = replace(QUICK, epochs=1)
    fit(net(), data, recipe, checkpoint=path)
    content = path.read_bytes()
    place = content.index(torch.load(path, weights_only=True)["model"]["6.weight"].numpy().tobytes())
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    for damaged in (b"", content[:100], content[: len(content) // 2], content[:-1], flipped, b"x" * 5000):
        path.write_bytes(damaged)
        with pytest.raises(TopiaristError, match="damaged"):
            fit(net(), data, recipe, checkpoint=path)
        assert path.read_bytes() == damaged
    path.unlink()
    path.mkdir()
    with pytest.raises(TopiaristError, match="not a regular file: name another"):
        fit(net(), data, recipe, checkpoint=path)


def test_a_checkpoint_that_cannot_be_written(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    model = net()
    before = state(model)
    with pytest.raises(TopiaristError, match=r"cannot write .*state\.pt"):
        fit(model, data, QUICK, checkpoint=tmp_path / "file" / "state.pt")
    assert equal(state(model), before)  # found before the first step

    path = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(net(), data, QUICK, checkpoint=path, progress=stop_after(1))
    content = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TopiaristError, match="No space left on device"):
        fit(net(), data, QUICK, checkpoint=path)
    assert path.read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["file", "state.pt"]
