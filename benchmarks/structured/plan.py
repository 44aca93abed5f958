"""What is compared: networks, recipes, methods of both sides, and the cells, those first that say most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import peer

from topiarist import methods
from topiarist.studies import Cell

BUDGETS = (0.5, 0.3)
SCRATCH = ("l1", "slimming", "thinet", "taylor")
SCRATCH_SEED = 1_000_003  # from the seed itself a network would start from the trained one's own initial weights
CAP = 2.0  # Scratch-B trains for at most twice the epochs
PEER = "tp:"  # begins the names of Torch-Pruning's methods
RANKINGS = {"local": "uniform", "global": "global"}  # a ranking → the allocation that makes it
PAIRS = ("slimming+lasso",)  # the one chooses, the other refits what is left
TRAINING_ROLES = {"penalty", "proximal", "gate", "soft"}

RECIPES: Mapping[str, Mapping[str, Any]] = {"l0": {"optimizer": "adam", "lr": 1e-3}}  # as its docstring advises
"""Method → what its extra epochs have otherwise than `Setting.extra`; the same number of them."""

FIELDS: Mapping[str, Callable[[str, float | None], dict[str, Any]]] = {
    # The extra epochs are few: at the paper's 1e-4 the scales would hardly move. Torch-Pruning's gets the same.
    "slimming": lambda network, macs: {"lam": 1e-3},
    # The successor's form: a shift alone cannot bridge layers whose norms differ in size.
    "lcp": lambda network, macs: {"form": "affine"},
    # Batch norms undo the size of filters, says its docstring, so what reads a channel.
    "group_lasso": lambda network, macs: {"kind": "channel"},
    # Gates start nearly open, since the network is trained, and move by about 0.1 to 0.3: all down but where the loss
    # holds them. That is a ranking; none shuts. By SGD they shut at 20, and the network does not survive it.
    "l0": lambda network, macs: {"lam": 1.0, "dropout": 0.1},
    # Blocks, where there are some that can go.
    "sss": lambda network, macs: {"structure": "channel"} if "vgg" in network else {},
}
"""Method → fields that differ from its defaults, for a network at a budget; all others run with their defaults."""


@dataclass(frozen=True)
class Setting:
    """One network on one data set, and how it is trained.

    Attributes:
        title: what tables call it.
        network: its name, as `topiarist.make_model` takes it.
        data: name of a file of the data folder, or ``digits``.
        images: training images.
        held: further training images, held out: the version is chosen on them.
        test: test images, all where there are fewer.
        measure: training images that methods of both sides may measure on.
        tune: training images of the fine-tuning.
        base: recipe of the unpruned network, and of shapes from scratch.
        extra: recipe of the extra epochs that methods with sparse training get.
        finetune: recipe after pruning.
        scratch: budget → how many seeds get the arms from scratch.
        exclude: norms whose channels neither side cuts.
    """

    title: str
    network: str
    data: str
    images: int
    held: int
    test: int
    measure: int
    tune: int
    base: Mapping[str, Any]
    extra: Mapping[str, Any]
    finetune: Mapping[str, Any]
    scratch: Mapping[float, int]
    exclude: tuple[str, ...] = ()

    @property
    def data_name(self) -> str:
        """The data set with its sizes, from which the prepared file and the cells have their names."""
        return f"{self.data}-{self.images}-{self.held}-{self.test}"


def settings(images: int | None, mini: bool) -> tuple[Setting, ...]:
    """The networks; ``images`` training images (a number for each data set if ``None``)."""
    short = {"lr": 0.02, "schedule": "step", "milestones": (0.5,), "batch_size": 64}
    if mini:
        base = {"epochs": 5, "lr": 0.1, "batch_size": 32}
        one = {"epochs": 1, "lr": 0.02, "schedule": "constant", "batch_size": 32}
        narrow = "zoo:digitsnet?width=0.5"
        return (
            Setting(
                "ResNet-8, half width", narrow, "digits", 1000, 297, 500, 128, 1000, base, one, one, {0.5: 1, 0.3: 1}
            ),
        )
    n = images or 10_000
    vgg = Setting(
        title="VGG-11, quarter width",
        network="zoo:vgg11?width=0.25",
        data="fashion_mnist",
        images=n,
        held=2000,
        test=10_000,
        measure=512,
        tune=n // 2,
        base={"epochs": 10, "lr": 0.05, "batch_size": 64},
        extra={"epochs": 2, "lr": 0.01, "batch_size": 64, "schedule": "constant"},
        finetune={"epochs": 2, **short},
        scratch={0.5: 2, 0.3: 2},
    )
    resnet = Setting(
        title="ResNet-20",
        network="zoo:resnet20",
        data="cifar10",
        images=n,
        held=2000,
        test=5000,
        measure=512,
        tune=2 * n // 5,
        base={"epochs": 10, "lr": 0.1, "batch_size": 64},
        extra={"epochs": 1, "lr": 0.01, "batch_size": 64, "schedule": "constant"},
        finetune={"epochs": 2, **short},
        scratch={0.5: 1},
        # The residual streams, which Torch-Pruning cannot follow through this network's shortcuts.
        exclude=("bn1", "layer2.0.bn2", "layer3.0.bn2"),
    )
    return (vgg, resnet)


def ours() -> list[str]:
    """Every structured method of the registry, and pairs of which one chooses and the other repairs."""
    return [*(name for name in methods.names() if methods.get(name).granularity == "structure"), *PAIRS]


def everyone() -> list[str]:
    """The methods of both sides; Torch-Pruning's begin with ``tp:``."""
    return ours() + [PEER + name for name in peer.NAMES]


def trains(method: str) -> bool:
    """Whether a method takes part in training, so that it gets the extra epochs."""
    if method.startswith(PEER):
        return method.removeprefix(PEER) in peer.TRAINED
    return bool(TRAINING_ROLES & set(methods.describe(chooser(method))["roles"]))


def ranks(method: str) -> bool:
    """Whether one of our methods ranks units by scores, so that both rankings are tried, as for Torch-Pruning's.

    Not those that select units themselves: `lasso`, `thinet` and `pfa` within widths that a budget shares out, `lcp`
    by a global ranking that it learns.
    """
    return not method.startswith(PEER) and "criterion" in methods.describe(chooser(method))["roles"]


def _excludes(method: str) -> bool:
    """Whether a method leaves a setting's ``exclude`` alone: `sss` takes whole blocks, the other side lists layers."""
    return not method.startswith(PEER) and method != "sss"


def chooser(method: str) -> str:
    """The one of a pair that chooses; of other names the method itself."""
    return method.partition("+")[0]


def fields(method: str, network: str, macs: float | None) -> dict[str, Any]:
    """The fields of one of our methods for a network at a budget, where they are not its defaults."""
    method = chooser(method)
    return FIELDS[method](network, macs) if method in FIELDS else {}


def base(setting: Setting, seed: int) -> Cell:
    """The trained network that all methods start from."""
    return Cell("base", setting.network, setting.data_name, seed, settings={"recipe": dict(setting.base)})


def pruned(setting: Setting, method: str, macs: float, seed: int) -> Cell:
    """A method at a budget: pruned and fine-tuned."""
    start = base(setting, seed)
    chosen = {} if method.startswith(PEER) else fields(method, setting.network, macs)
    exclude = list(setting.exclude) if _excludes(method) else []
    if trains(method):
        # One sparse training serves all budgets, but for sfp, which trains for one.
        told: dict[str, Any] = {"recipe": {**setting.extra, **RECIPES.get(method, {})}, "fields": chosen}
        if exclude:  # what is not cut gets no penalty, no gates and no zeros either
            told["exclude"] = exclude
        if method == "sfp":  # its rate follows from what may be cut, see `work.rate_of`
            told["budget"] = {"macs": macs}
        start = Cell("sparse", setting.network, setting.data_name, seed, chooser(method), settings=told, needs=(start,))
    told = {
        "fields": chosen,
        "measure": setting.measure,
        "tune": setting.tune,
        "recipe": dict(setting.finetune),
    }
    if ranks(method):
        told["rankings"] = list(RANKINGS)
    budget: dict[str, Any] = {"macs": macs}
    if exclude:
        budget["exclude"] = exclude
    return Cell("pruned", setting.network, setting.data_name, seed, method, budget, told, (start,))


def timed(setting: Setting, method: str, macs: float, seed: int) -> Cell:
    """The pruning alone once more, for the seconds that it takes where nothing runs beside it."""
    cell = pruned(setting, method, macs, seed)
    return replace(cell, arm="timed", settings={**cell.settings, "recipe": None})


def cells(chosen: Iterable[Setting], names: Iterable[str], seeds: Iterable[int]) -> Iterator[Cell]:
    """All cells but those from scratch: seed by seed, and what is cheap before what needs training."""
    chosen, names = tuple(chosen), sorted(names, key=trains)
    for seed in seeds:
        for late in (False, True):
            for setting in chosen:
                yield base(setting, seed)
                for name in (name for name in names if trains(name) is late):
                    yield from (pruned(setting, name, macs, seed) for macs in BUDGETS)


def scratch(setting: Setting, widths: Mapping[str, int], seed: int) -> tuple[Cell, Cell]:
    """Scratch-E and Scratch-B of a shape; equal widths give the same cells, whichever method found them."""
    told = {"recipe": dict(setting.base), "widths": dict(widths), "cap": CAP}

    def arm(name: str) -> Cell:
        return Cell(name, setting.network, setting.data_name, seed + SCRATCH_SEED, settings=told)

    return arm("scratch_e"), arm("scratch_b")
