"""Loaders, losses, metrics and teachers that fail, early or late, are answered in one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import topiarist
from corners import corners, equal, net, state
from topiarist import TopiaristError, evaluate, fit
from topiarist.train import Recipe

DATA = corners()
X, Y = DATA.normalise(DATA.train_x), DATA.train_y
BATCHES = [(X[start : start + 20], Y[start : start + 20]) for start in range(0, 100, 20)]
TEST = [(DATA.normalise(DATA.test_x), DATA.test_y)]
SHORT = Recipe(epochs=2, lr=0.05, schedule="constant", weight_decay=0.0, momentum=0.0)
TAUGHT = replace(SHORT, distillation=0.5)
EMPTY = (X[:0], Y[:0])


def hits(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).float().mean()


class Rows(Dataset[Any]):
    """Fails at its 51st row."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == 50:
            raise self.error
        return X[index], Y[index]


class Unsized(Dataset[Any]):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index], Y[index]


class Hits:
    def __init__(self) -> None:
        self.right: list[float] = []

    def reset(self) -> None:
        self.right = []

    def update(self, output: Tensor, target: Tensor) -> None:
        self.right.append(float(hits(output, target)))

    def compute(self) -> float:
        return self.right[0]


LATE = [
    (DataLoader(Rows(ValueError("no row\nof this")), 10), r"data fail at batch 6 \(ValueError: no row\): mend"),
    ([BATCHES[0], (X[:5], Y[:5] + 9)], r"fails (on batch 2, inputs of shape \(5, 1, 6, 6\) \(|.*)Target 9 is out"),
    ([BATCHES[0], (X[:5].double(), Y[:5])], "fails on batch 2"),
    ([BATCHES[0], {"pixels": X[:5]}], "fails on batch 2|needs targets|no target"),
    ([BATCHES[0], (X[:5].to_sparse(), Y[:5])], "fails on batch 2|layout"),
    ([BATCHES[0], (X[:5].to("meta"), Y[:5])], "fail at batch 2|meta tensor"),
    ([BATCHES[0], (torch.nested.nested_tensor([X[0], X[1]], layout=torch.jagged), Y[:2])], "nested|fails on batch 2"),
]  # fmt: skip


@pytest.mark.parametrize("use", [
    lambda model, data: fit(model, data, SHORT),
    lambda model, data: fit(model, BATCHES, SHORT, test=data),
    evaluate,
    lambda model, data: evaluate(model, data, metric=F.cross_entropy),
    lambda model, data: topiarist.prune(model, X[:2], "taylor", 0.5, data=data),
])  # fmt: skip
@pytest.mark.parametrize(("data", "message"), LATE)
def test_a_batch_that_fails_later_is_named(use: Callable[..., Any], data: Any, message: str) -> None:
    with pytest.raises(TopiaristError, match=message) as error:
        use(net(), data)
    assert "\n" not in str(error.value)


@pytest.mark.nightly
def test_what_fails_in_a_worker_is_reported() -> None:
    with pytest.raises(TopiaristError, match=r"train data fail at batch 6 \(ValueError: no row\): mend the loader"):
        fit(net(), DataLoader(Rows(ValueError("no row")), 10, num_workers=1), SHORT)


def test_a_loader_that_fails_keeps_the_checkpoint_of_before(tmp_path: Path) -> None:
    read = list[int]()

    class Later(Rows):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            read.append(index)
            if len(read) > 150:
                raise self.error
            return X[index], Y[index]

    model, whole = net(seed=3), net()
    good = DataLoader(TensorDataset(X[:100], Y[:100]), 10)
    with pytest.raises(TopiaristError, match=r"train data fail at batch \d \(OSError"):
        fit(net(), DataLoader(Later(OSError("unplugged")), 10), SHORT, checkpoint=tmp_path / "state")
    assert len(fit(model, good, SHORT, checkpoint=tmp_path / "state").epochs) == 2
    fit(whole, good, SHORT)
    assert equal(state(model), state(whole))


@pytest.mark.parametrize(("options", "message"), [
    ({"loss": nn.CrossEntropyLoss}, r"is the class CrossEntropyLoss: give an object of it, as CrossEntropyLoss\(\)"),
    ({"loss": lambda output, target: F.cross_entropy(output, target).detach()}, "the loss has no gradient"),
    ({"loss": lambda output, target: hits(output, target) * 1j}, r"one number.* of torch\.complex64"),
    ({"loss": lambda output, target: output.argmax()}, r"one number.* of torch\.int64"),
    ({"loss": lambda output, target: output.sum().to("meta")}, "fails on batch 1"),
    ({"loss": lambda output, target: output.sum() * math.nan}, "first batch is nan: look for NaN"),
    ({"data": [(X * math.inf, Y)]}, "first batch is nan: look for NaN"),
    ({"data": DATA, "loss": lambda output, target: output.sum() / 0 + 1 // 0}, "fails on batch 1, .*division"),
    ({"data": DATA, "metric": lambda output, target: 1 / 0}, "the metric fails"),
    ({"metric": Hits, "test": TEST}, r"metric is the class Hits: give an object of it, as Hits\(\) makes"),
    ({"metric": "accuracy", "test": TEST}, "metric must be a function"),
    ({"metric": lambda output, target: 10**400, "test": TEST}, "metric must return one number"),
    ({"metric": hits}, "give test=, or leave metric out"),
    ({"metric": hits, "test": [EMPTY]}, "no batch in the test data"),
    ({"data": [EMPTY]}, "no batch in the train data"),
    ({"test": DATA}, r"give list\(data\.batches\('test', 100\)\)"),
    ({"teacher": net().to("meta"), "recipe": TAUGHT}, "the teacher has no values yet"),
    ({"teacher": lambda x: x, "recipe": TAUGHT}, r"teacher must be a torch\.nn\.Module"),
    ({"teacher": nn.Linear, "recipe": TAUGHT}, r"teacher must be a torch\.nn\.Module"),
    ({"data": [(X, Y.tolist())], "recipe": replace(SHORT, mixup=0.4),
      "loss": lambda output, target: F.cross_entropy(output, torch.tensor(target))}, "mixup takes targets"),
    ({"data": [(X, Y[:1])], "recipe": replace(SHORT, mixup=0.4), "loss": lambda output, _: output.sum()},
     "mixup takes targets that are tensors"),
    ({"recipe": {"epochs": 1}}, r"recipe must be a topiarist\.Recipe, but got {'epochs': 1}"),
    ({"speed": "16"}, r"speed must be a topiarist\.train\.Speed"),
    ({"seed": 1.5}, "seed must be a whole number"),
    ({"seed": 10**30}, "seed must be a whole number"),
    ({"progress": 3}, "progress must be a function"),
    ({"checkpoint": "/dev/full"}, "is not a regular file"),
    ({"checkpoint": 3}, "3 is not a path"),
    ({"data": Unsized()}, "Unsized cannot be read in batches of 64 .*no len.*__len__ and __getitem__"),
])  # fmt: skip
def test_what_cannot_be_trained_costs_nothing(options: dict[str, Any], message: str) -> None:
    model, random = net(), torch.get_rng_state()
    options = {"data": BATCHES, "recipe": SHORT} | options
    before = state(model)
    with pytest.raises(TopiaristError, match=message) as error:
        fit(model, options.pop("data"), **options)
    assert "\n" not in str(error.value)
    assert equal(state(model), before)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_model_without_values_is_refused() -> None:
    for model in (net().to("meta"), nn.LazyLinear(3)):
        with pytest.raises(TopiaristError, match="no values yet"):
            fit(model, BATCHES, SHORT)
    for other in ("resnet", net):
        with pytest.raises(TopiaristError, match=r"model must be a torch\.nn\.Module"):
            evaluate(other, BATCHES)  # type: ignore[arg-type]


def test_empty_batches_count_for_nothing() -> None:
    trained, other = net(), net()
    history = fit(trained, [EMPTY, BATCHES[0], EMPTY, *BATCHES[1:]], SHORT, test=[EMPTY, *TEST], metric=hits)
    assert [row.test_metric for row in history.epochs] == [
        row.test_metric for row in fit(other, BATCHES, SHORT, test=TEST, metric=hits).epochs
    ]
    assert equal(state(trained), state(other))
    assert topiarist.measure.evaluate_batches(trained, [*TEST, EMPTY]) == topiarist.measure.evaluate_batches(
        trained, TEST
    )


@pytest.mark.parametrize("kind", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_classes_of_any_whole_type_are_classes(kind: torch.dtype) -> None:
    trained, other = net(), net()
    fit(trained, [(x, y.to(kind)) for x, y in BATCHES], SHORT)
    fit(other, BATCHES, SHORT)
    assert equal(state(trained), state(other))
    assert evaluate(trained, [(X, Y.to(kind))]) == evaluate(trained, [(X, Y)])


def test_scores_that_are_nan_are_right_of_no_example() -> None:
    assert evaluate(net(), [(X * math.nan, Y)]) == 0.0
    half = torch.cat((X[:50], X[:50] * math.nan))
    assert evaluate(net(), [(half, Y[:50].repeat(2))]) == evaluate(net(), [(X[:50], Y[:50])]) / 2


def test_a_checkpoint_is_not_continued_with_another_loss_or_metric(tmp_path: Path) -> None:
    path = tmp_path / "state"
    fit(net(), BATCHES, SHORT, test=TEST, metric=hits, checkpoint=path)
    stored, model = path.read_bytes(), net(seed=3)
    for options in ({}, {"metric": F.cross_entropy}, {"metric": hits, "loss": F.cross_entropy}):
        before = state(model)
        with pytest.raises(TopiaristError, match=r"of another run .(metric|loss) was"):
            fit(model, BATCHES, SHORT, test=TEST, checkpoint=path, **options)
        assert equal(state(model), before)
        assert path.read_bytes() == stored
