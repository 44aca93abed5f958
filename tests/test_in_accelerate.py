"""Pruning in a loop with Accelerate: the weights are those of the same loop without it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

import topiarist
from continuing import Net, X, Y, distance
from topiarist import Budget, TopiaristError
from topiarist.models import import_torchvision

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    with suppress(TopiaristError):
        import_torchvision()  # which Accelerate may import, and which may be built for another torch
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")

EPOCHS, CUT, BATCH, TOGETHER = 4, 2, 3, 2
"""The cut comes before the epoch of that index; each step has the gradients of two of the four batches of an epoch."""


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Accelerate keeps one state for the whole process, which other tests may have begun."""
    forget()
    yield
    forget()


def forget() -> None:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def parts(model: nn.Module) -> tuple[Any, Any, Any]:
    """An optimiser, its schedule and the batches."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return optimizer, DataLoader(TensorDataset(X, Y), batch_size=BATCH), StepLR(optimizer, 1, 0.9)


def pruned(model: nn.Module) -> Any:
    return topiarist.prune(model, X[:2], "slimming", Budget(ratio=0.6))


def plain_loop(method: str | None = "slimming", epochs: int = EPOCHS) -> nn.Module:
    """What Accelerate should do, written out."""
    model: nn.Module = Net()
    optimizer, loader, scheduler = parts(model)
    with ExitStack() as attached:
        attached.enter_context(topiarist.attach(method, model, optimizer, topiarist.trace(model, X[:2])))
        for epoch in range(epochs):
            if epoch == CUT:
                attached.close()
                model = pruned(model).carry_over(model, optimizer)
            for at, (x, y) in enumerate(loader):
                (cross_entropy(model(x), y) / TOGETHER).backward()
                if (at + 1) % TOGETHER == 0:
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
    return model


class Loop:
    """The same with Accelerate, epoch by epoch."""

    def __init__(self, model: nn.Module) -> None:
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=TOGETHER)
        optimizer, loader, scheduler = parts(model)
        self.model, self.optimizer, self.loader, self.scheduler = self.accelerator.prepare(
            model, optimizer, loader, scheduler
        )

    def cut(self) -> Any:
        result = pruned(self.model)
        self.model = result.carry_over(self.model, self.optimizer)
        self.accelerator.free_memory()  # it would save the model from before
        self.accelerator.prepare(self.model, self.optimizer, self.loader)
        self.accelerator.prepare_scheduler(self.scheduler)
        return result

    def epoch(self) -> None:
        for x, y in self.loader:
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(cross_entropy(self.model(x), y))
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()


def test_a_cut_in_mid_training_gives_the_weights_of_a_plain_loop() -> None:
    loop = Loop(Net())
    optimizer = loop.optimizer
    with topiarist.attach("slimming", loop.model, loop.optimizer, topiarist.trace(loop.model, X[:2])):
        for _ in range(CUT):
            loop.epoch()
    loop.cut()
    for _ in range(EPOCHS - CUT):
        loop.epoch()
    plain = plain_loop()
    assert distance(plain_loop(epochs=CUT), plain_loop(None, CUT)) > 1e-6  # the penalty is seen
    assert sum(p.numel() for p in plain.parameters()) < sum(p.numel() for p in Net().parameters())
    assert distance(loop.model, plain) <= 1e-10
    assert loop.optimizer is optimizer
    assert loop.scheduler.get_last_lr() == [pytest.approx(0.01 * 0.9 ** (2 * EPOCHS))]


def test_a_state_that_was_saved_after_a_cut_continues_bit_by_bit(tmp_path: Path) -> None:
    loop = Loop(Net())
    loop.epoch()
    result = loop.cut()
    loop.epoch()
    loop.accelerator.save_state(str(tmp_path / "state"))
    result.architecture.save(tmp_path / "cut.json")
    loop.epoch()
    assert sorted(path.name for path in (tmp_path / "state").glob("[mos]*")) == [
        "model.safetensors",
        "optimizer.bin",
        "scheduler.bin",
    ]

    again = Loop(topiarist.Architecture.load(tmp_path / "cut.json").apply(Net()))
    again.accelerator.load_state(str(tmp_path / "state"))
    again.epoch()
    assert distance(again.model, loop.model) == 0
    assert again.scheduler.get_last_lr() == loop.scheduler.get_last_lr()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_smaller_model_computes_with_its_own_weights(precision: str) -> None:
    """Accelerate writes mixed precision into a model's forward, where the larger one must not stay."""
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    before = Net().float()
    model, optimizer = accelerator.prepare(before, torch.optim.AdamW(before.parameters(), lr=0.01))
    x = X.float()
    with torch.no_grad():
        result = topiarist.prune(model, x[:2], "l1", Budget(ratio=0.5))
        model = result.carry_over(model, optimizer).eval()
        expected = model(x)
        for parameter in before.parameters():
            parameter.zero_()
        assert torch.equal(model(x), expected)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            assert torch.equal(type(model).forward(model, x).float(), expected)
