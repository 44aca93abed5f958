"""Torch-Pruning 1.6.1, driven as its own reproduction scripts and examples drive it.

Its importances keep their default settings. Pruning goes in small steps (400 to the whole network), group by group,
until the network keeps just under the asked MACs, as in its CIFAR scripts. Those rank globally, its README and its
comparison of criteria locally: both are tried, and the one goes on that is better on held-out images right after
pruning (local if they are equal).
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from topiarist.data import Data
from topiarist.graph import Graph
from topiarist.methods import Method
from topiarist.models.zoo.blocks import ZeroShortcut

STEPS = 400
BATCH = 64

_IMPORTANCES: dict[str, Callable[[], Any]] = {
    "l1": lambda: tp.importance.MagnitudeImportance(p=1),
    "l2": lambda: tp.importance.MagnitudeImportance(p=2),
    "fpgm": lambda: tp.importance.FPGMImportance(p=2),
    "taylor": lambda: tp.importance.TaylorImportance(),
    "hessian": lambda: tp.importance.HessianImportance(),
    "bn_scale": lambda: tp.importance.BNScaleImportance(),
    "group_norm": lambda: tp.importance.MagnitudeImportance(p=2, normalizer="max"),  # "for CIFAR", say its scripts
}
TRAINED = {
    "bn_scale": lambda *args, **rest: tp.pruner.BNScalePruner(*args, reg=1e-3, **rest),
    "group_norm": lambda *args, **rest: tp.pruner.GroupNormPruner(*args, reg=5e-4, **rest),
}
"""Those with sparse training. Its scripts have reg 1e-5 and 5e-4 for a hundred epochs; the first is raised, as ours is,
since a few epochs would leave no trace of it."""
NAMES = tuple(_IMPORTANCES)


@dataclass(frozen=True)
class Regulariser(Method):
    """Torch-Pruning's sparse training in our loop: it changes the gradients between backward and step."""

    paper = "Fang, Ma, Song, Mi, Wang: DepGraph: Towards Any Structural Pruning, CVPR 2023"

    pruner: Any

    def penalty(self, model: nn.Module, graph: Graph) -> Tensor:
        self.pruner.regularize(model)
        return torch.zeros(())  # all is in the gradients already


def regulariser(model: nn.Module, example: Tensor, name: str) -> Regulariser:
    """The sparse training of an importance, for `topiarist.fit`."""
    return Regulariser(_pruner(model, example, name, _IMPORTANCES[name](), ranking="global"))


def prune(
    model: nn.Module, data: Data, name: str, fraction: float, score: Callable[[nn.Module], float]
) -> tuple[nn.Module, str, float]:
    """The smaller network, the ranking that was better by ``score``, and CPU seconds of that one alone."""
    found = []
    for ranking in ("local", "global"):
        smaller = copy.deepcopy(model).eval()
        begin = time.process_time()
        reached = _reduce(smaller, data, name, fraction, ranking)
        seconds = time.process_time() - begin
        if reached:
            found.append((score(smaller), smaller, ranking, seconds))
    if not found:
        raise RuntimeError("Torch-Pruning does not reach the budget")
    _, smaller, ranking, seconds = max(found, key=lambda entry: entry[0])
    smaller.zero_grad(set_to_none=True)
    return smaller, ranking, seconds


def macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example)
    return counter.get_total_flops() // 2


def _reduce(model: nn.Module, data: Data, name: str, fraction: float, ranking: str) -> bool:
    """Prunes in place until the fraction of MACs is met; false if it never is."""
    example, importance = data.example(), _IMPORTANCES[name]()
    count = _counter(model, example)
    allowed = fraction * count()
    pruner = _pruner(model, example, name, importance, ranking)
    if name == "taylor":
        for x, y in data.batches("train", BATCH):
            cross_entropy(model(x), y).backward()
    elif name == "hessian":
        _squared_gradients(model, data, importance)
    for _ in range(STEPS):
        for group in pruner.step(interactive=True):
            group.prune()
            if count() <= allowed:  # also within a step, which may take a channel of every layer
                return True
    return False


def _counter(model: nn.Module, example: Tensor) -> Callable[[], int]:
    """Counts what `macs` does without running the network: pruning channels leaves the maps' sizes as they are."""
    places: dict[nn.Conv2d | nn.Linear, int] = {}

    def note(layer: Any, inputs: Any, output: Tensor) -> None:
        places[layer] = output[0, 0].numel()  # 1 for linear layers, the places of the map for convolutions

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    return lambda: sum(layer.weight.numel() * count for layer, count in places.items())


def _squared_gradients(model: nn.Module, data: Data, importance: Any) -> None:
    """Mean squared gradients of single examples, as its documentation describes the Hessian importance.

    Its own ``accumulate_grad`` of version 1.6.1 looks parameters up by name in a dictionary whose keys are parameters,
    so that it keeps the last example alone. It is handed what it documents.
    """
    sums = {parameter: torch.zeros_like(parameter) for parameter in model.parameters()}
    for x, y in data.batches("train", 1):
        model.zero_grad()
        cross_entropy(model(x), y).backward()
        for parameter, total in sums.items():
            total += parameter.grad.square()
    importance._accu_grad = sums
    importance._counter = dict.fromkeys(sums, len(data.train_y))


def _pruner(model: nn.Module, example: Tensor, name: str, importance: Any, ranking: str) -> Any:
    make = TRAINED.get(name, tp.pruner.BasePruner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(
            model,
            example,
            importance=importance,
            global_pruning=ranking == "global",
            pruning_ratio=1.0,
            iterative_steps=STEPS,
            ignored_layers=list(ignored(model)),
            num_heads={},
            in_channel_groups={},
            out_channel_groups={},
        )


def ignored(model: nn.Module) -> Iterator[nn.Module]:
    """The classifier; and where shortcuts append zeros, all that writes into the residual stream.

    Its graph lets such a padding pass as if it changed no size, so that a cut stream leaves a network that does not
    run. The first convolution of each block is cut, as in Li et al. (2017).
    """
    yield [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    if any(isinstance(module, ZeroShortcut) for module in model.modules()):
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d) and (name == "conv1" or name.endswith("conv2")):
                yield module
