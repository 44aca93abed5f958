"""Training and evaluation on loaders, with losses and metrics of one's own, are what a plain loop does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import topiarist
from corners import QUICK, corners, equal, net, state
from topiarist import Budget, Pruning, TopiaristError, evaluate, fit
from topiarist.train import Recipe

DATA = corners()
X, Y = DATA.normalise(DATA.train_x), DATA.train_y
TEST = [(DATA.normalise(DATA.test_x), DATA.test_y)]
BATCHES = [(X[start : start + 20], Y[start : start + 20]) for start in range(0, 100, 20)]
SHORT = Recipe(epochs=2, lr=0.05, schedule="constant", weight_decay=0.0, momentum=0.0)


class WithLoss(nn.Module):
    """Takes keywords and returns its own loss, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixels)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def loader(shuffled: bool = True, own: int | None = None) -> DataLoader[Any]:
    generator = None if own is None else torch.Generator().manual_seed(own)
    return DataLoader(TensorDataset(X, Y), 16, shuffle=shuffled, drop_last=True, generator=generator)


def plain(
    batches: Any, step: Callable[[nn.Module, Tensor, Tensor], Tensor], after: Callable[[nn.Module], object] = id
) -> nn.Module:
    """A loop as anyone writes it, over `SHORT`."""
    model = net()
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=True)
    for _ in range(2):
        model.train()
        for x, y in batches:
            optimizer.zero_grad()
            step(model, x, y).backward()
            optimizer.step()
            after(model)
    return model


def trained(recipe: Recipe = SHORT, data: Any = BATCHES, **options: Any) -> nn.Module:
    model = net()
    fit(model, data, recipe, **options)
    return model


def entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


# --- batches


def test_a_loader_trains_as_in_a_plain_loop() -> None:
    assert equal(state(trained(data=loader())), state(plain(loader(), entropy)))
    assert equal(state(trained(data=loader(own=5))), state(plain(loader(own=5), entropy)))
    assert equal(state(trained(data=TensorDataset(X, Y), recipe=replace(SHORT, batch_size=16))), state(
        plain(DataLoader(TensorDataset(X, Y), 16, shuffle=True), entropy)
    ))  # fmt: skip


def test_dicts_of_arguments_train_on_the_model_s_own_loss() -> None:
    model = WithLoss()
    history = fit(model, [{"pixels": x, "labels": y} for x, y in BATCHES], SHORT, test=[{"pixels": X, "labels": Y}])
    assert equal(state(model.net), state(trained()))
    assert history.accuracy == pytest.approx(evaluate(model.net, [(X, Y)]))
    assert history.epochs[0].train_accuracy > 20


def test_a_dict_of_losses_is_summed() -> None:
    """As detectors of torchvision return them, in training alone."""

    class Losses(WithLoss):
        def forward(self, pixels: Tensor, labels: Tensor | None = None) -> Any:
            if not self.training:
                return [{"scores": self.net(pixels)}]
            loss = super().forward(pixels, labels)["loss"]
            return {"boxes": loss * 0.25, "classes": loss * 0.75}

    model = Losses()
    fit(model, [((x, y),) for x, y in BATCHES], SHORT)
    for name, value in trained().state_dict().items():
        torch.testing.assert_close(model.net.state_dict()[name], value)


def test_progress_prints_a_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    history = fit(net(), BATCHES, SHORT, test=TEST, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.replace(" of 2:", ":") for line in lines] == str(history).splitlines()
    assert f"{history.accuracy:.2f} % of the test examples" in lines[1]


def test_a_loss_of_one_s_own_is_trained_and_tested() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, F.one_hot(target, 3).float())

    model = net()
    history = fit(model, BATCHES, SHORT, loss=loss, test=TEST)
    assert equal(state(model), state(plain(BATCHES, lambda model, x, y: loss(model(x), y))))
    assert history.metric == pytest.approx(evaluate(model, TEST, metric=loss))
    assert history.accuracy != history.accuracy  # a loss is measured in its place


@pytest.mark.parametrize("own", [None, 5])
@pytest.mark.parametrize("average", [0.0, 0.8])
def test_a_stopped_training_continues_to_the_same_bits(tmp_path: Path, own: int | None, average: float) -> None:
    recipe = replace(QUICK, average=average, mixup=0.4, optimizer="adamw")
    undisturbed, stopped = net(), net()
    whole = fit(undisturbed, loader(own=own), recipe, test=TEST)

    def interrupt(done: int, *_: object) -> None:
        if done == 2:
            raise KeyboardInterrupt

    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, loader(own=own), recipe, test=TEST, checkpoint=path, progress=interrupt)
    for model in (stopped, net(seed=7)):  # the second finds a training that is finished
        rest = fit(model, loader(own=own), recipe, test=TEST, checkpoint=path)
        assert equal(state(model), state(undisturbed))
        assert [replace(row, seconds=0) for row in rest.epochs] == [replace(row, seconds=0) for row in whole.epochs]
    with pytest.raises(TopiaristError, match="another run"):
        fit(stopped, BATCHES, recipe, checkpoint=path)


def test_prune_trains_on_batches_as_on_the_data_set() -> None:
    recipe = replace(SHORT, batch_size=200, augment=False)
    request = Pruning.of("slimming", 0.5, sparse_training=recipe)
    pair = (DATA.normalise(DATA.train_x), DATA.train_y)
    by_batch = topiarist.prune(net(dropout=0), X[:2], request, data=[pair])
    by_data = topiarist.prune(net(dropout=0), X[:2], request, data=DATA)
    for name, value in by_data.model.state_dict().items():
        torch.testing.assert_close(by_batch.model.state_dict()[name], value)


# --- metrics


class Hits:
    """As the metrics of torchmetrics."""

    def __init__(self) -> None:
        self.right, self.seen = 17, 40  # of another evaluation

    def reset(self) -> None:
        self.right = self.seen = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        self.right += int((output.argmax(1) == target).sum())
        self.seen += len(target)

    def compute(self) -> Tensor:
        return torch.tensor(100 * self.right / self.seen)


def test_metrics_of_all_kinds_agree_with_the_accuracy() -> None:
    model, uneven = net(), [(X[:70], Y[:70]), (X[70:], Y[70:])]
    wanted = evaluate(model, uneven)
    by_hand = 100 * (model.eval()(X).argmax(1) == Y).float().mean()
    assert wanted == pytest.approx(by_hand.item())
    assert evaluate(model, uneven, metric=Hits()) == pytest.approx(wanted)
    mean = evaluate(model, uneven, metric=lambda output, target: 100 * (output.argmax(1) == target).float().mean())
    assert mean == pytest.approx(wanted)
    assert evaluate(model, TensorDataset(X, Y), batch_size=7) == pytest.approx(wanted)
    assert evaluate(model, DATA, metric=Hits()) == pytest.approx(evaluate(model, DATA))


# --- recipes


def test_label_smoothing_is_torch_s() -> None:
    smooth = plain(BATCHES, lambda model, x, y: F.cross_entropy(model(x), y, label_smoothing=0.1))
    assert equal(state(trained(replace(SHORT, label_smoothing=0.1))), state(smooth))


def test_mixup_mixes_inputs_and_losses_alike() -> None:
    def mixed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        order = torch.randperm(len(x))
        share = float(torch.distributions.Beta(0.4, 0.4).sample())
        output = model(share * x + (1 - share) * x[order])
        return share * F.cross_entropy(output, y) + (1 - share) * F.cross_entropy(output, y[order])

    assert equal(state(trained(replace(SHORT, mixup=0.4))), state(plain(BATCHES, mixed)))


def test_the_average_is_torch_s_and_is_what_remains() -> None:
    averages: list[AveragedModel] = []

    def update(model: nn.Module) -> None:
        if not averages:
            averages.append(AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True))
        averages[0].update_parameters(model)

    plain(BATCHES, entropy, update)
    model = net()
    history = fit(model, BATCHES, replace(SHORT, average=0.8), test=TEST)
    wanted = averages[0].module.state_dict()
    for name, value in model.state_dict().items():
        if value.is_floating_point():  # torch counts batches one behind
            torch.testing.assert_close(value, wanted[name])
    assert history.accuracy == evaluate(model, TEST)


def test_distillation_is_its_formula() -> None:
    teacher, temperature, share = net(seed=3).eval(), 3.0, 0.7

    def distilled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        scores, wanted = model(x), teacher(x).detach()
        p, q = (F.softmax(each / temperature, 1) for each in (wanted, scores))
        divergence = (p * (p.log() - q.log())).sum(1).mean()
        return (1 - share) * F.cross_entropy(scores, y) + share * temperature**2 * divergence

    recipe = replace(SHORT, distillation=share, temperature=temperature)
    before, wanted = state(teacher), plain(BATCHES, distilled).state_dict()
    for name, value in trained(recipe, teacher=teacher.train()).state_dict().items():
        torch.testing.assert_close(value, wanted[name])
    assert equal(state(teacher), before)
    assert teacher.training


def test_a_pruned_network_is_taught_by_the_one_before() -> None:
    model = net(dropout=0)
    recipe = replace(SHORT, epochs=1, distillation=1.0, temperature=2.0)
    request = Pruning.of("l1", 0.7, steps={"count": 2, "training": recipe})
    taught = topiarist.prune(model, X[:2], request, data=BATCHES).model

    half = topiarist.prune(model, X[:2], "l1", Budget(macs=0.85))
    fit(half.model, BATCHES, recipe, teacher=model)
    by_hand = topiarist.prune(half.model, X[:2], "l1", Budget(macs=0.7 * half.before.macs / half.after.macs)).model
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(taught.state_dict()[name], value)


def test_the_rate_rises_to_its_schedule() -> None:
    recipe = Recipe(epochs=10, lr=1.0, schedule="cosine", warmup=0.3)
    cosine = Recipe(epochs=7, lr=1.0, schedule="cosine")
    assert [recipe.rate(epoch) for epoch in range(3)] == pytest.approx([0.25, 0.5, 0.75])
    assert [recipe.rate(epoch) for epoch in range(3, 10)] == pytest.approx([cosine.rate(epoch) for epoch in range(7)])


def test_adamw_shrinks_weights_by_the_rate_alone() -> None:
    recipe = replace(SHORT, optimizer="adamw", lr=0.01, momentum=0.9, weight_decay=0.5)
    optimizers: list[torch.optim.Optimizer] = []

    def step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return entropy(model, x, y)

    wanted = net()
    torch.manual_seed(0)
    optimizers.append(torch.optim.AdamW(wanted.parameters(), lr=0.01, weight_decay=0.5, fused=True))
    for _ in range(2):
        for x, y in BATCHES:
            optimizers[0].zero_grad()
            step(wanted, x, y).backward()
            optimizers[0].step()
    assert equal(state(trained(recipe)), state(wanted))


def test_old_checkpoints_match_recipes_without_later_fields() -> None:
    assert set(Recipe().to_json()) == {
        "epochs", "lr", "momentum", "weight_decay", "nesterov", "batch_size", "schedule", "milestones", "gamma",
        "augment", "optimizer",
    }  # fmt: skip
    assert Recipe(**Recipe(mixup=0.2).to_json()) == Recipe(mixup=0.2)


# --- other libraries


@pytest.mark.filterwarnings("ignore:torchvision was built for another torch")
def test_folders_and_transforms_of_torchvision(tmp_path: Path) -> None:
    from topiarist.models import import_torchvision

    image = pytest.importorskip("PIL.Image")
    import_torchvision()
    folders = pytest.importorskip("torchvision.datasets")
    v2 = pytest.importorskip("torchvision.transforms.v2")
    for index, (x, y) in enumerate(zip(DATA.train_x[:24], DATA.train_y[:24], strict=True)):
        place = tmp_path / "train" / str(int(y))
        place.mkdir(parents=True, exist_ok=True)
        image.fromarray(x[0].clamp(0, 1).mul(255).byte().numpy()).save(place / f"{index:02}.png")
    change = v2.Compose(
        [v2.Grayscale(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]
    )
    folder = folders.ImageFolder(str(tmp_path / "train"), transform=change)
    pixels, labels = torch.stack([torch.as_tensor(x) for x, _ in folder]), torch.tensor([y for _, y in folder])
    by_folder = trained(data=DataLoader(folder, batch_size=6))
    assert equal(state(by_folder), state(trained(data=DataLoader(TensorDataset(pixels, labels), batch_size=6))))
    assert evaluate(by_folder, folder) == evaluate(by_folder, [(pixels, labels)])


@pytest.mark.nightly
def test_a_dataset_of_hugging_face() -> None:
    datasets = pytest.importorskip("datasets")
    columns = pytest.importorskip("pyarrow").table({"pixels": X.tolist(), "labels": Y.tolist()})
    table = datasets.Dataset(datasets.table.InMemoryTable(columns), fingerprint="corners")  # pickled nowhere
    by_table, by_tensors = WithLoss(), WithLoss()
    recipe = replace(SHORT, batch_size=16)
    fit(by_table, table, recipe)
    shuffled = DataLoader([{"pixels": x, "labels": y} for x, y in zip(X, Y, strict=True)], 16, shuffle=True)
    fit(by_tensors, shuffled, recipe)
    assert equal(state(by_table), state(by_tensors))
    assert evaluate(by_table, table) == evaluate(by_tensors.net, [(X, Y)])


# --- bad input


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


def broken(*_: object) -> Tensor:
    raise KeyError("no such column")


@pytest.mark.parametrize(("options", "message"), [
    ({"data": []}, "no batch in the train data: pass at least one"),
    ({"data": DataLoader(TensorDataset(X[:0], Y[:0]))}, "no batch in the train data"),
    ({"data": iter(BATCHES)}, "only once: give a DataLoader or a list"),
    ({"data": (X, Y)}, r"give TensorDataset\(inputs, targets\), or \[\(inputs, targets\)\]"),
    ({"recipe": 2}, r"must be a topiarist.Recipe, but got 2: write Recipe\(epochs=2\)"),
    ({"data": X}, "got Tensor: use load_data"),
    ({"data": {"pixels": X}}, "got dict: use load_data"),
    ({"data": 7}, "got int: use load_data"),
    ({"data": ["a", "b"]}, "of type str without a tensor: yield tensors"),
    ({"data": [(torch.tensor(1.0), torch.tensor(1))]}, "a number: yield tensors"),
    ({"data": [X]}, "no target and the model returns no loss: yield pairs"),
    ({"data": [(X.double(), Y)]}, "fails on batch 1, inputs of shape .101, 1, 6, 6."),
    ({"data": [(X[:, :, :3], Y)]}, "fails on batch 1, inputs of shape .101, 1, 3, 6."),
    ({"data": [(X, Y + 9)]}, "fails on batch 1"),
    ({"data": [(X, Y.float())]}, "cross entropy takes classes"),
    ({"loss": "mse"}, "loss must be a function"),
    ({"loss": broken}, "fails on batch 1.*no such column"),
    ({"loss": lambda output, target: output}, "loss must return one number"),
    ({"loss": F.cross_entropy, "recipe": replace(SHORT, label_smoothing=0.1)}, "label_smoothing is that of the cross"),
    ({"metric": broken, "test": TEST}, "the metric fails .KeyError: .*no such column"),
    ({"metric": lambda output, target: output, "test": TEST}, "metric must return one number"),
    ({"metric": 3, "test": TEST}, "metric must be a function"),
    ({"test": []}, "no batch in the test data"),
    ({"test": [X]}, "an evaluation needs targets"),
    ({"data": DATA, "test": TEST}, "leave test out"),
    ({"recipe": replace(SHORT, distillation=0.5)}, "give teacher=, a network"),
    ({"teacher": net()}, r"give Recipe\(distillation=0.5\)"),
    ({"teacher": nn.Linear(2, 2), "recipe": replace(SHORT, distillation=0.5)}, "fails on batch 1"),
    ({"teacher": nn.Sequential(nn.Flatten(), nn.Linear(36, 5)), "recipe": replace(SHORT, distillation=0.5)},
     "teacher of the same classes"),
    ({"data": [(X, X[:, 0, 0, :3])], "loss": F.mse_loss, "teacher": net(1), "recipe": replace(SHORT, distillation=0.5)},
     "distillation compares the scores of classes"),
    ({"data": [{"pixels": X, "labels": Y}], "recipe": replace(SHORT, mixup=1.0)}, "mixup takes batches of"),
    ({"method": "vardrop", "data": DataLoader(Stream(), 10)}, "a length"),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused_in_a_sentence(options: dict[str, Any], message: str) -> None:
    model = net()
    options = {"data": BATCHES, "recipe": SHORT} | options
    before = state(model)
    with pytest.raises(TopiaristError, match=message) as error:
        fit(model, options.pop("data"), **options)
    assert "\n" not in str(error.value)
    assert equal(state(model), before)


def test_a_last_batch_that_batch_norm_cannot_train_on_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3))
    with pytest.raises(TopiaristError, match=r"batch 6, inputs of shape .1, 1, 6, 6.*drop_last=True"):
        fit(model, [*BATCHES, (X[:1], Y[:1])], SHORT)


@pytest.mark.parametrize("field", [
    {"warmup": 1.5}, {"label_smoothing": 1.0}, {"mixup": -1.0}, {"average": 1.0}, {"distillation": 2.0},
    {"temperature": 0.0}, {"optimizer": "lion"},
])  # fmt: skip
def test_recipes_out_of_range_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(TopiaristError, match=next(iter(field))):
        Recipe(**field)


def test_the_teacher_is_another_network() -> None:
    model = net()
    with pytest.raises(TopiaristError, match=r"shares weights.*copy\.deepcopy"):
        fit(model, BATCHES, replace(SHORT, distillation=0.5), teacher=model)
    fit(model, BATCHES, replace(SHORT, distillation=0.5), teacher=copy.deepcopy(model))
