"""Training: known recipes, the same result as a plain loop, resumption to the bit, and errors that help."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from topiarist.data import Data, load_data
from topiarist.errors import TopiaristError
from topiarist.graph.groups import Group, Slice
from topiarist.methods import Method
from topiarist.pruning import prune
from topiarist.train import (
    Epoch,
    History,
    Recipe,
    constant,
    cosine,
    evaluate,
    fit,
    linear,
    reinitialise,
    scratch_b,
    scratch_e,
    step,
)

QUICK = Recipe(epochs=4, lr=0.05, batch_size=16)


@pytest.fixture(scope="module")
def data() -> Data:
    """Three kinds of 6x6 images, a bright corner each, with noise."""
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(131) % 3
    x = 0.3 * torch.randn(131, 1, 6, 6, generator=generator)
    for index, (row, column) in enumerate([(0, 0), (0, 3), (3, 0)]):
        x[y == index, :, row : row + 3, column : column + 3] += 1
    return Data.of("corners", x[:101], y[:101], x[101:], y[101:], augment="crop-flip")


def net(seed: int = 0, dropout: float = 0.2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(36, 3),
    )


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class Units:
    """As much of a graph of weights as training reads."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        sizes = {name: model.get_parameter(name).numel() for name in names}
        self.groups = [Group(name, n, (Slice(name, None, torch.arange(n)[:, None]),)) for name, n in sizes.items()]

    def __getitem__(self, name: str) -> Group:
        return next(group for group in self.groups if group.name == name)


class Factor(nn.Module):
    """A stochastic gate on one layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.factor + 0.1 * torch.randn(1) if self.training else self.factor)


class Gated(Method):
    """All three training-time roles at once."""

    paper = "none"

    def penalty(self, model: nn.Module, graph: object) -> Tensor:
        return 0.1 * model.get_submodule("0.gate").factor.square().sum()

    def proximal(self, model: nn.Module, graph: object, lr: float) -> None:
        model[0].weight.mul_(1 - 0.01 * lr)

    @contextmanager
    def gates(self, model: nn.Module, graph: object) -> Iterator[nn.Module]:
        gate = Factor()
        model[0].add_module("gate", gate)
        handle = model[0].register_forward_hook(lambda module, args, output: gate(output))
        try:
            yield gate
        finally:
            handle.remove()
            model[0].register_buffer("factor", gate.factor.detach(), persistent=False)
            del model[0].gate


# Recipes


def test_the_paper_s_rates() -> None:
    paper = Recipe.paper()
    assert (paper.epochs, paper.batch_size, paper.momentum, paper.weight_decay) == (160, 64, 0.9, 1e-4)
    rates = [paper.rate(epoch) for epoch in (0, 79, 80, 119, 120, 159)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    finetune = Recipe.finetune()
    assert (finetune.epochs, {finetune.rate(epoch) for epoch in range(40)}) == (40, {0.001})


def test_schedules_are_functions_of_progress() -> None:
    assert [step(p, (0.5, 0.75), 0.1) for p in (0.0, 0.4999, 0.5, 0.75)] == pytest.approx([1, 1, 0.1, 0.01])
    assert [cosine(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])
    assert constant(0.9) == 1
    assert [linear(p, (0.5, 0.75)) for p in (0.0, 0.5, 0.75, 1.0)] == pytest.approx([1, 1, 0.5, 0])
    assert [linear(p) for p in (0.0, 0.25, 1.0)] == pytest.approx([1, 0.75, 0])
    assert linear(0.5, (1.0,)) == 1
    assert [Recipe(epochs=30, milestones=(1 / 3, 2 / 3)).rate(epoch) for epoch in (9, 10, 19, 20)] == pytest.approx(
        [0.1, 0.01, 0.01, 0.001]
    )


@pytest.mark.parametrize(
    ("ratio", "epochs"), [(1.519, 243), (1.1157, 178), (1.3791, 220), (1.1883, 190), (1.6273, 260)]
)
def test_scratch_b_gives_the_epochs_of_the_paper_s_networks(ratio: float, epochs: int) -> None:
    stretched = scratch_b(Recipe.paper(), ratio)
    assert stretched == replace(Recipe.paper(), epochs=epochs)
    first_low = next(epoch for epoch in range(epochs) if stretched.rate(epoch) < 0.1)
    assert first_low == -(-epochs // 2)


def test_scratch_arms_spend_what_they_say() -> None:
    recipe = Recipe(epochs=100)
    assert scratch_e(recipe) == recipe
    assert scratch_b(recipe, 5.0, cap=2.0).epochs == 200
    assert scratch_b(recipe, 1.5, cap=2.0).epochs == 150
    assert scratch_b(recipe, 1.15).epochs == 115  # 100 * 1.15 is 114.99… in floating point
    for ratio, cap in ((0.5, None), (2.0, 0.5), (float("nan"), None), (float("inf"), None)):
        with pytest.raises(TopiaristError, match="scratch-B"):
            scratch_b(recipe, ratio, cap)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": -1},
        {"epochs": 2.5},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -1e-4},
        {"nesterov": True, "momentum": 0.0},
        {"batch_size": 0},
        {"schedule": "quadratic"},
        {"optimizer": "lbfgs"},
        {"nesterov": True, "optimizer": "adam"},
        {"milestones": (0.5, 75)},
        {"gamma": 0.0},
    ],
    ids=str,
)
def test_a_recipe_refuses_what_cannot_be(change: dict[str, object]) -> None:
    with pytest.raises(TopiaristError, match=next(iter(change))):
        replace(Recipe(), **change)


# The loop


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
    history = fit(net(), data, QUICK, progress=lambda *row: seen.append(row), evaluate_every=3)
    assert [(epoch, epochs) for epoch, epochs, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert tuple(row for _, _, row in seen) == history.epochs
    assert [row.test_accuracy is None for row in history.epochs] == [True, True, False, False]
    assert [row.test_accuracy is None for row in fit(net(), data, QUICK, evaluate_every=0).epochs] == [True] * 3 + [
        False
    ]


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
    history = fit(model, data, replace(QUICK, epochs=2), precision="bf16-mixed")
    assert history.epochs[1].loss < history.epochs[0].loss
    assert model[0].weight.dtype == torch.float32


# Checkpoints


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
    with pytest.raises(TopiaristError, match="damaged or not a checkpoint"):
        fit(net(), data, recipe, checkpoint=path)


def test_a_checkpoint_that_cannot_be_written(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    model = net()
    before = state(model)
    with pytest.raises(TopiaristError, match="cannot write the checkpoint"):
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
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3).requires_grad_(False)), "nothing to train"),
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
        fit(net(), data, QUICK, accelerator="abacus")
    with pytest.raises(TopiaristError, match="split"):
        evaluate(net(), data, "validation")
    with pytest.raises(TopiaristError, match="no method"):
        fit(net(), data, QUICK, method="no_such_method")


# Fresh weights


def test_reinitialise_draws_anew_by_seed() -> None:
    model, other = net(1), net(2)
    with torch.no_grad():
        model[1].running_mean.fill_(3)
    before = torch.get_rng_state()
    assert reinitialise(model, seed=4) is model
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(state(model), state(reinitialise(other, seed=4)))
    assert not equal(state(model), state(reinitialise(net(1), seed=5)))


def test_reinitialise_takes_the_network_s_own_initialisation() -> None:
    def make() -> nn.Sequential:
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        nn.init.constant_(model[1].weight, 0.5)
        nn.init.normal_(model[0].weight, 0, 7)
        return model

    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    reinitialise(model, seed=4, make_model=make)
    torch.manual_seed(4)
    assert equal(state(model), state(make()))
    with pytest.raises(TopiaristError, match="another shape"):
        reinitialise(nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)), make_model=make)


@pytest.mark.parametrize(
    ("layer", "inputs"), [(nn.Conv2d(64, 32, 3), 64), (nn.ConvTranspose2d(32, 64, 3), 32)], ids=["conv", "transposed"]
)
def test_masked_convolutions_are_drawn_for_the_weights_that_are_left(layer: nn.Module, inputs: int) -> None:
    model = nn.Sequential(layer)
    kept = torch.rand(layer.weight.numel(), generator=torch.Generator().manual_seed(0)) < 0.1
    reinitialise(model, Units(model, "0.weight"), {"0.weight": kept}, seed=1)
    weight = layer.weight.detach().flatten()
    assert not weight[~kept].any()
    assert weight[kept].std().item() == pytest.approx((2 * inputs / int(kept.sum())) ** 0.5, rel=0.06)


def test_masked_linear_layers_keep_their_own_initialisation() -> None:
    model, whole = nn.Sequential(nn.Linear(20, 5)), nn.Sequential(nn.Linear(20, 5))
    kept = torch.arange(100) % 4 == 0
    reinitialise(model, Units(model, "0.weight"), {"0.weight": kept}, seed=1)
    reinitialise(whole, seed=1)
    assert torch.equal(model[0].weight.flatten(), whole[0].weight.flatten() * kept)


def test_reinitialise_refuses_to_guess() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_parameter("token", nn.Parameter(torch.zeros(3)))
    with pytest.raises(TopiaristError, match=r"'token'.*make_model"):
        reinitialise(model)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(TopiaristError, match="make_model"):
        reinitialise(normed)
    with pytest.raises(TopiaristError, match="graph"):
        reinitialise(nn.Sequential(nn.Linear(2, 2)), keep={"0.weight": torch.ones(4, dtype=torch.bool)})


# Several processes

_RANK = """
import sys, torch
from torch import nn
from topiarist.data import load_data
from topiarist.train import Recipe, fit
torch.set_num_threads(1)

def run(devices):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    recipe = Recipe(epochs=2, batch_size=63)
    history = fit(model, load_data("digits").subset(195), recipe, accelerator="cpu", devices=devices)
    return [*model.state_dict().values(), torch.tensor(history.epochs[-1].loss)]

for one, two in zip(run(1), run(2), strict=True):
    torch.testing.assert_close(one, two)
assert torch.distributed.get_world_size() == 2

from topiarist import make_model, methods, prune, trace
from topiarist.pruning import Batches
from topiarist.stats import collect

data = load_data("digits").subset(195)
torch.manual_seed(1)
model = make_model("zoo:digitsnet?width=0.25")()
for method in ("taylor", "apoz", "fisher", "pfa"):  # gradients, activations, curvature, covariance
    wish = None if method == "pfa" else 0.5
    one, two = (prune(model, data.example(), method, wish, data, distributed=each) for each in (False, True))
    assert not all(bool(kept.all()) for kept in one.keep.values()), method
    for name, kept in one.keep.items():
        assert torch.equal(kept, two.keep[name]), (method, name)
        both = kept.clone().byte()  # and the other process says the same
        torch.distributed.all_reduce(both)
        assert torch.equal(both, 2 * kept.byte()), (method, name)

graph, seen = trace(model, data.example()), []
measuring = [methods.make(name) for name in methods.names()]
measuring = [method for method in measuring if method.needs - {"weights", "training", "evaluations"}]
assert {"taylor", "apoz", "fisher", "pfa", "obd", "obs", "wanda"} <= {method.name for method in measuring}
model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
for size, mine in ((30, (105, 90)), (195, (195, 195))):  # seven batches; a single one, which the second only shows
    for method in measuring:
        batches, units = Batches(data, size, 0), method.units(graph)
        one = collect(model, units, batches, method.needs)
        seen.clear()
        two = collect(model, units, batches, method.needs, distributed=True)
        assert sum(seen) == mine[torch.distributed.get_rank()], (method, seen)
        assert one.sums.keys() == two.sums.keys(), method
        for key, total in one.sums.items():
            torch.testing.assert_close(two.sums[key], total, rtol=1e-12, atol=1e-12 * float(total.abs().max()))
torch.distributed.destroy_process_group()
"""


def test_nobody_to_share_with() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))
    data = load_data("digits")
    with pytest.raises(TopiaristError, match="torchrun"):
        prune(model, data.example(), "taylor", 0.5, data, distributed=True)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {  # what torchrun sets
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1] / "src"),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK],
            cwd=tmp_path,
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        for rank in ranks:
            told = rank.communicate(timeout=120)[1]
            assert rank.returncode == 0, told
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
