"""Trains a small network on scikit-learn's digits and cuts it three times, in five ways; see `cuts_in_training.py`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import topiarist

EPOCHS, CUTS, BATCH = 6, (2, 3, 4), 64
WIDTHS = (24, 48, 48)
KEPT = (5 / 6, 4 / 6, 3 / 6)
"""Of each layer's filters, after each cut."""
DECAY = 0.05
RATE = 0.01
"""That of `examples/own_loop.py`, chosen before any result was seen."""


@dataclass
class Training:
    """What a training consists of; cuts replace its parts."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    ema: AveragedModel
    example: Tensor


@dataclass(frozen=True)
class Run:
    """What is recorded of one training."""

    arm: str
    dtype: str
    rate: float
    seed: int
    widths: list[int]
    losses: list[float]
    accuracy: float
    average: float
    model: nn.Module = field(repr=False)


Cut = Callable[[int], None]
"""Makes the cut of an index."""
Arm = Callable[[Training, ExitStack], Cut]


def cut_with_topiarist(model: Any, example: Any, ratio: float, optimizer: Any, ema: Any) -> Any:
    result = topiarist.prune(model, example, "l1", topiarist.Budget(ratio=ratio))
    return result.carry_over(model, optimizer, ema)


def pruner_of_torch_pruning(model: Any, example: Any) -> Any:
    import torch_pruning as tp

    l1 = tp.importance.MagnitudeImportance(p=1, group_reduction="first")
    options = {"pruning_ratio": 0.5, "iterative_steps": 3, "ignored_layers": [model[-1]]}
    return tp.pruner.MagnitudePruner(model, example, importance=l1, **options)


def cut_with_torch_pruning(model: Any, pruner: Any, scheduler: Any) -> Any:
    pruner.step()
    optimizer = AdamW(model.parameters(), lr=scheduler.get_last_lr()[0], weight_decay=DECAY)
    scheduler.optimizer = optimizer
    return optimizer, average_of(model)


def cut_with_torch_pruning_by_hand(model: Any, pruner: Any, optimizer: Any, ema: Any) -> None:
    before = dict(model.named_parameters())
    for parameter in before.values():  # it cuts gradients too: as gradients, indices say what is kept
        parameter.grad = torch.arange(parameter.numel(), dtype=parameter.dtype).view_as(parameter)
    pruner.step()
    kept, state = {}, {}
    for name, parameter in model.named_parameters():
        kept[name], parameter.grad = parameter.grad.long(), None
        shape, old = before[name].shape, optimizer.state[before[name]]
        state[parameter] = {k: v.flatten()[kept[name]] if v.shape == shape else v for k, v in old.items()}
    optimizer.state.clear()
    optimizer.state.update(state)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    averages = ema.module.state_dict()
    for name, value in averages.items():
        weight = name.replace("running_mean", "weight").replace("running_var", "weight")
        averages[name] = value.flatten()[kept[weight]] if weight in kept else value
    ema.module = copy.deepcopy(model)
    ema.module.load_state_dict(averages)


def average_of(model: nn.Module) -> AveragedModel:
    """An average of the weights that begins with those of now."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True)


def of_the_rest(at: int) -> float:
    """The fraction that a cut keeps of what the one before kept."""
    return KEPT[at] / (KEPT[at - 1] if at else 1.0)


def carried(training: Training, stack: ExitStack) -> Cut:
    """`carry_over`."""

    def cut(at: int) -> None:
        it = training
        it.model = cut_with_topiarist(it.model, it.example, of_the_rest(at), it.optimizer, it.ema)

    return cut


def masked(training: Training, stack: ExitStack) -> Cut:
    """Masks: the filters of zeros are those of the smallest norms, so each keep holds those before it."""
    graph = topiarist.trace(training.model, training.example)
    masks = stack.enter_context(ExitStack())

    def cut(at: int) -> None:
        scores = topiarist.methods.make("l1").score(graph, topiarist.collect(training.model, graph))
        keep = topiarist.allocate(graph, scores, topiarist.Budget(ratio=KEPT[at]))
        masks.close()
        masks.enter_context(topiarist.attach(None, training.model, training.optimizer, graph, keep))
        training.ema.module = topiarist.mask(training.ema.module, graph, keep)

    return cut


def renewed(training: Training, stack: ExitStack) -> Cut:
    """The same cut, and a new optimiser at the rate that the schedule has reached."""

    def cut(at: int) -> None:
        it, budget = training, topiarist.Budget(ratio=of_the_rest(at))
        it.model = topiarist.prune(it.model, it.example, "l1", budget).model
        it.optimizer = AdamW(it.model.parameters(), lr=it.scheduler.get_last_lr()[0], weight_decay=DECAY)
        it.scheduler.optimizer, it.ema = it.optimizer, average_of(it.model)

    return cut


def peer(training: Training, stack: ExitStack) -> Cut:
    """Torch-Pruning and a new optimiser."""
    pruner = pruner_of_torch_pruning(training.model, training.example)

    def cut(at: int) -> None:
        training.optimizer, training.ema = cut_with_torch_pruning(training.model, pruner, training.scheduler)

    return cut


def peer_by_hand(training: Training, stack: ExitStack) -> Cut:
    """Torch-Pruning, and the state cut by its user."""
    pruner = pruner_of_torch_pruning(training.model, training.example)

    def cut(at: int) -> None:
        cut_with_torch_pruning_by_hand(training.model, pruner, training.optimizer, training.ema)

    return cut


ARMS: dict[str, Arm] = {
    "masks": masked,
    "carry_over": carried,
    "new optimiser": renewed,
    "Torch-Pruning": peer,
    "Torch-Pruning, by hand": peer_by_hand,
}


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def network() -> nn.Module:
    """Three convolutions and a classifier."""
    one, two, three = WIDTHS
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(three, 10))
    return nn.Sequential(block(1, one), nn.MaxPool2d(2), block(one, two), block(two, three), *head)


def run(arm: str, seed: int, dtype: torch.dtype = torch.float64, rate: float = RATE) -> Run:
    """Trains the network in one way."""
    data = topiarist.load_data("digits")
    torch.manual_seed(seed)
    model = network().to(dtype)
    optimizer = AdamW(model.parameters(), lr=rate, weight_decay=DECAY)
    steps = EPOCHS * math.ceil(len(data.train_y) / BATCH)
    scheduler = CosineAnnealingLR(optimizer, steps)
    it = Training(model, optimizer, scheduler, average_of(model), data.example().to(dtype))
    shuffle, losses = torch.Generator().manual_seed(seed), list[float]()
    with ExitStack() as stack:
        cut = ARMS[arm](it, stack)
        for epoch in range(EPOCHS):
            if epoch in CUTS:
                cut(CUTS.index(epoch))
            it.model.train()
            for x, y in data.batches("train", BATCH, shuffle):
                loss = cross_entropy(it.model(x.to(dtype)), y)
                loss.backward()
                it.optimizer.step()
                it.optimizer.zero_grad()
                it.scheduler.step()
                it.ema.update_parameters(it.model)
                losses.append(loss.item())
    convolutions = [m.weight for m in it.model.modules() if isinstance(m, nn.Conv2d)]
    widths = [int((weight.detach().flatten(1).abs().sum(1) > 0).sum()) for weight in convolutions]
    accuracies = [topiarist.evaluate(copy.deepcopy(net).float(), data) for net in (it.model, it.ema.module)]
    return Run(arm, str(dtype).partition(".")[2], rate, seed, widths, losses, *accuracies, it.model)
