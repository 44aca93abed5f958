"""Pruning in Lightning's own trainer, on the digits: what it cuts and logs, and that a stopped training continues."""

from __future__ import annotations

import inspect
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

import topiarist
from topiarist import Budget, TopiaristError
from topiarist.models import import_torchvision

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    with suppress(TopiaristError):
        import_torchvision()  # which Lightning imports, and which may be built for another torch
    pl = pytest.importorskip("lightning.pytorch", reason="Lightning's trainer is not installed")
    from topiarist.integrations.lightning import PruningCallback
    from topiarist.methods.l0 import L0
    from topiarist.methods.sss import SSS

pytestmark = pytest.mark.filterwarnings("ignore")

DATA = topiarist.load_data("digits")
IMAGES = DATA.example()
PLAIN = {"weights_only": True} if "weights_only" in inspect.signature(pl.Trainer.fit).parameters else {}
"""Lightning 2.6 can refuse checkpoints that hold more than plain values; older ones have no such argument."""


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(12, 10),
        )

    def training_step(self, batch: Any, at: int) -> Any:
        return cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)]


class KilledError(Exception):
    pass


class Kill(pl.Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 2:
            raise KilledError


def train(
    callback: Any, folder: Path | None = None, resume: Path | None = None, more: tuple[Any, ...] = (), **options: Any
) -> Any:
    torch.manual_seed(0 if resume is None else 1)
    module = Classifier()
    examples = torch.utils.data.TensorDataset(DATA.train_x[:128], DATA.train_y[:128])
    loader = torch.utils.data.DataLoader(examples, batch_size=32, shuffle=True)
    saving = [pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)] if folder else []
    trainer = pl.Trainer(
        **{"max_epochs": 4, "accelerator": "cpu", "devices": 1, "logger": False} | options,
        callbacks=[callback, *saving, *more],
        enable_checkpointing=bool(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader, ckpt_path=resume, **PLAIN)
    return trainer


COURSES = {
    "l1": lambda: PruningCallback("l1", 0.5, at=[1, 3], example_inputs=IMAGES),
    "slimming": lambda: PruningCallback("slimming", Budget(ratio=0.5), at=[1, 3], example_inputs=IMAGES),
    "l0": lambda: PruningCallback(L0(), 0.5, at=[1, 3], example_inputs=IMAGES),
    "sss": lambda: PruningCallback(SSS(structure="channel"), 0.5, at=[3], example_inputs=IMAGES),
    "sfp": lambda: PruningCallback("sfp", 0.5, at=[3], example_inputs=IMAGES),
    "gradual": lambda: PruningCallback(
        "magnitude", 0.1, at=range(1, 15, 2), per="step", schedule="cubic", example_inputs=IMAGES
    ),
    "vardrop": lambda: PruningCallback("vardrop", example_inputs=IMAGES),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.nightly] if n in ("sss", "vardrop") else []) for n in COURSES]
)
@pytest.mark.by_day(2)
def test_a_killed_training_continues_bit_by_bit(name: str, tmp_path: Path) -> None:
    """Killed after two of four epochs: shuffled data, dropout, schedule and gates are those of the undisturbed one."""
    undisturbed = train(COURSES[name]()).lightning_module.state_dict()
    with pytest.raises(KilledError):
        train(COURSES[name](), tmp_path, more=(Kill(),))
    continued = train(COURSES[name](), resume=tmp_path / "epoch=1.ckpt").lightning_module.state_dict()
    assert undisturbed.keys() == continued.keys() == Classifier().state_dict().keys()
    assert all(torch.equal(undisturbed[key], continued[key]) for key in undisturbed)


def test_the_network_stays_the_same_object_and_meets_the_budget() -> None:
    """Its optimiser and average become smaller with it, and the figures are logged."""
    seen: list[Any] = []

    class Look(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            average.module.load_state_dict(pl_module.model.state_dict())
            seen.append((pl_module.model, trainer.optimizers[0]))

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(float(trainer.callback_metrics["pruning/macs"]))

    average = AveragedModel(Classifier().model)
    callback = PruningCallback("l1", 0.4, at=[1, 3], example_inputs=IMAGES, averages=[average])
    trainer = train(callback, more=(Look(),))
    (network, optimizer), *macs = seen
    whole = topiarist.cost(topiarist.trace(Classifier().model, IMAGES)).macs
    assert network is trainer.lightning_module.model
    assert optimizer is trainer.optimizers[0]
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in network.parameters()}
    assert all(optimizer.state[parameter]["exp_avg"].shape == parameter.shape for parameter in network.parameters())
    assert [p.shape for p in average.module.parameters()] == [p.shape for p in network.parameters()]
    assert macs[0] == whole > macs[1] == macs[2] > macs[3]
    assert 0.3 * whole < macs[3] <= 0.4 * whole
    assert topiarist.cost(topiarist.trace(network, IMAGES)).macs == macs[3]
    again = callback.pruning.cuts.architecture.apply(Classifier().model)
    assert [p.shape for p in again.parameters()] == [p.shape for p in network.parameters()]


def test_gradual_pruning_follows_the_cubic_schedule() -> None:
    """Zhu and Gupta's sparsity after cut t of n: s (1 - (1 - t / n)^3); pruned weights stay zero afterwards."""
    zeros: list[float] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            weights = [p for p in pl_module.parameters() if p.ndim > 1]
            zeros.append(sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights))

    at = [2, 4, 6, 8]
    callback = PruningCallback("magnitude", 0.2, at=at, per="step", schedule="cubic", example_inputs=IMAGES)
    train(callback, more=(Look(),))
    due = [sum(cut <= step for cut in at) for step in range(len(zeros))]
    assert zeros == pytest.approx([0.8 * (1 - (1 - t / 4) ** 3) for t in due], abs=0.01)


def test_a_checkpoint_of_another_pruning_is_refused(tmp_path: Path) -> None:
    train(COURSES["sfp"](), tmp_path, max_epochs=4)
    with pytest.raises(TopiaristError, match="another pruning"):
        train(COURSES["l1"](), resume=tmp_path / "epoch=1.ckpt")


@pytest.mark.parametrize(
    ("course", "options", "message"),
    [
        ({"attribute": "network"}, {}, "has no network 'network'"),
        ({"at": [2, 4]}, {}, "comes after 4 epochs, and the training has 4"),
        ({"at": [20], "per": "step"}, {}, "comes after 20 steps, and the training has 16"),
        ({}, {"strategy": "ddp", "devices": 2}, "DDPStrategy holds the tensors"),
    ],
)
def test_what_is_refused(course: dict[str, Any], options: dict[str, Any], message: str) -> None:
    callback = PruningCallback("l1", 0.5, **{"at": [1], "example_inputs": IMAGES} | course)
    if options:  # without processes
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
        with pytest.raises(TopiaristError, match=message):
            callback.setup(trainer, Classifier(), "fit")
    else:
        with pytest.raises(TopiaristError, match=message):
            train(callback)
