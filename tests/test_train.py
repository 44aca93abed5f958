"""Training: the same result as a plain loop, seeds, accuracy, and errors that help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from corners import QUICK, Units, corners, equal, net, state
from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.measure import evaluate
from topiarist.train import Epoch, History, Speed, fit


@pytest.fixture(scope="module")
def data() -> Data:
    return corners()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4, fused=True)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.9, 0.999), weight_decay=1e-4, fused=True)),
    ],
)
def test_fit_is_a_plain_loop(data: Data, name: str, make: Callable[..., torch.optim.Optimizer]) -> None:
    ours, plain = net(), net()
    history = fit(ours, data, replace(QUICK, optimizer=name), seed=7)

    torch.manual_seed(7)
    generator = torch.Generator().manual_seed(7)
    optimizer = make(plain.parameters())
    losses, lengths = [], []
    for epoch in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * 0.1 ** ((epoch >= 2) + (epoch >= 3))
        plain.train()
        for x, y in data.batches("train", 16, generator, augmented=True):
            optimizer.zero_grad()
            loss = cross_entropy(plain(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * len(y))
            lengths.append(len(y))
    assert equal(state(ours), state(plain))
    steps = len(losses) // 4
    assert sum(lengths[:steps]) == 101
    for epoch, row in enumerate(history.epochs):
        assert row.loss == pytest.approx(sum(losses[epoch * steps : (epoch + 1) * steps]) / 101, rel=1e-5)
    assert history.accuracy == history.epochs[-1].test_accuracy == evaluate(ours, data)


def test_fit_learns(data: Data) -> None:
    model = net()
    history = fit(model, data, replace(QUICK, epochs=8, augment=False))
    assert [row.epoch for row in history.epochs] == list(range(1, 9))
    assert [row.lr for row in history.epochs] == pytest.approx([0.05] * 4 + [0.005] * 2 + [0.0005] * 2)
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert history.accuracy > 90
    assert history.best >= history.accuracy
    assert history.seconds > 0


def test_seeds_decide_and_nothing_outside_is_touched(data: Data) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        model = net()
        torch.manual_seed(torch.seed() % 1000)
        before = torch.get_rng_state()
        fit(model, data, replace(QUICK, epochs=1), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return state(model)

    assert equal(run(1), run(1))
    assert not equal(run(1), run(2))


def test_modes_come_back(data: Data) -> None:
    model = net().train()
    model[1].eval()
    fit(model, data, replace(QUICK, epochs=1))
    evaluate(model, data)
    assert model.training
    assert not model[1].training


def test_progress_and_the_rhythm_of_evaluation(data: Data) -> None:
    seen: list[tuple[int, int, Epoch]] = []
    history = fit(net(), data, QUICK, progress=lambda *row: seen.append(row), speed=Speed(evaluate_every=3))
    assert [(epoch, epochs) for epoch, epochs, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert tuple(row for _, _, row in seen) == history.epochs
    assert [row.test_accuracy is None for row in history.epochs] == [True, True, False, False]
    last = fit(net(), data, QUICK, speed=Speed(evaluate_every=0)).epochs
    assert [row.test_accuracy is None for row in last] == [True] * 3 + [False]


def test_no_epochs_is_no_training(data: Data) -> None:
    model = net()
    before = state(model)
    history = fit(model, data, replace(QUICK, epochs=0))
    assert history == History()
    assert history.accuracy != history.accuracy  # NaN: nothing was measured
    assert equal(state(model), before)


def test_frozen_parameters_stay(data: Data) -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, data, replace(QUICK, epochs=1))
    assert torch.equal(model[0].weight, before)


def test_removed_weights_stay_zero(data: Data, tmp_path: Path) -> None:
    model = net()
    kept = {"0.weight": torch.arange(36) % 2 == 0, "6.weight": torch.arange(108) % 3 == 0}
    fit(model, data, QUICK, graph=Units(model, *kept), keep=kept, checkpoint=tmp_path / "state")
    for name, mask in kept.items():
        weight = model.get_parameter(name).flatten()
        assert not weight[~mask].any()
        assert weight[mask].all()
    again = net()
    fit(again, data, QUICK, graph=Units(again, *kept), keep=kept, checkpoint=tmp_path / "state")
    assert equal(state(again), state(model))
    other = {**kept, "0.weight": ~kept["0.weight"]}
    with pytest.raises(TopiaristError, match="another run"):
        fit(net(), data, QUICK, graph=Units(model, *kept), keep=other, checkpoint=tmp_path / "state")


def test_low_precision_trains(data: Data) -> None:
    model = net()
    history = fit(model, data, replace(QUICK, epochs=2), speed=Speed(precision="bf16-mixed"))
    assert history.epochs[1].loss < history.epochs[0].loss
    assert model[0].weight.dtype == torch.float32


# Accuracy, and models that do not fit


def test_evaluate_counts(data: Data) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Parameter(torch.tensor([0.0, 1.0, 0.5]))

        def forward(self, x: Tensor) -> Tensor:
            return self.scores.expand(len(x), 3)

    assert evaluate(Constant(), data) == pytest.approx(100 * (data.test_y == 1).float().mean().item())
    assert evaluate(Constant(), data, "train", batch_size=7) == pytest.approx(
        100 * (data.train_y == 1).float().mean().item()
    )


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3)), r"\(1, 6, 6\).*build it for that"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), "2 classes and 'corners' has 3"),
        (lambda: nn.Conv2d(1, 3, 3), r"yields a tensor \(2, 3, 4, 4\)"),
        (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), Pair()), "yields a tuple"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3).requires_grad_(False)),
            "no parameter that requires a gradient",
        ),
    ],
    ids=["channels", "classes", "maps", "tuple", "frozen"],
)
def test_a_model_that_does_not_fit_is_told_so(data: Data, model: Callable[[], nn.Module], told: str) -> None:
    with pytest.raises(TopiaristError, match=told):
        fit(model(), data, QUICK)


def test_other_bad_input(data: Data) -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(TopiaristError, match="NaN"):
        fit(model, data, QUICK)
    with pytest.raises(TopiaristError, match="NaN"):
        evaluate(model, data)
    with pytest.raises(TopiaristError, match="accelerator='abacus'"):
        fit(net(), data, QUICK, speed=Speed(accelerator="abacus"))
    with pytest.raises(TopiaristError, match="split"):
        evaluate(net(), data, "validation")
    with pytest.raises(TopiaristError, match="no method"):
        fit(net(), data, QUICK, method="no_such_method")
