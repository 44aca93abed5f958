"""How to train: recipes, learning-rate schedules, and the budgets of the scratch arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from topiarist.errors import TopiaristError
from topiarist.files import check_fields, shown, suggestion


def constant(progress: float, milestones: tuple[float, ...] = (), gamma: float = 1.0) -> float:
    """Keeps the learning rate: factor 1 at every ``progress``."""
    return 1.0


def step(progress: float, milestones: tuple[float, ...], gamma: float) -> float:
    """Multiplies the learning rate by ``gamma`` at each milestone: ``gamma ** #{m in milestones: progress >= m}``.

    Args:
        progress: finished fraction of the training, in [0, 1).
        milestones: fractions of the training at which the rate drops.
        gamma: what the rate is multiplied by at each.
    """
    return gamma ** sum(progress >= milestone for milestone in milestones)


def cosine(progress: float, milestones: tuple[float, ...] = (), gamma: float = 1.0) -> float:
    """Follows half a cosine from 1 to 0: ``(1 + cos(pi * progress)) / 2``."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(progress: float, milestones: tuple[float, ...] = (), gamma: float = 1.0) -> float:
    """Lowers the learning rate in a straight line to 0, from the first milestone on (without one, from the start)."""
    start = milestones[0] if milestones else 0.0
    return 1.0 if progress <= start else (1.0 - progress) / (1.0 - start)


SCHEDULES: Mapping[str, Callable[[float, tuple[float, ...], float], float]] = {
    "step": step,
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
}

OPTIMIZERS = ("adam", "adamw", "sgd")

_LATER = ("warmup", "label_smoothing", "mixup", "average", "distillation", "temperature")
"""Fields that came after the first release: absent from plain values where they are not set, so that old ones match."""


@dataclass(frozen=True)
class Recipe:
    """Training by SGD with momentum, Adam or AdamW; the defaults are the CIFAR recipe of the paper.

    Attributes:
        epochs: passes over the training set.
        lr: learning rate at the start.
        momentum: of the gradient, in [0, 1); Adam's ``beta_1``.
        weight_decay: factor of the L2 term, added to the gradient of every parameter; with ``"adamw"`` each weight
            shrinks by this share of the rate instead (Loshchilov & Hutter 2019).
        nesterov: look ahead by the momentum (the paper's code does not).
        batch_size: examples a step; a loader has its own.
        schedule: ``"step"``, ``"constant"``, ``"cosine"`` or ``"linear"``; the rate changes between epochs.
        milestones: fractions of the epochs at which the step schedule drops; the linear one falls from the first on.
        gamma: factor of each drop.
        augment: whether the data's own augmentation is applied to the training batches; a loader has its own.
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"`` (whose rates are near 0.001).
        warmup: fraction of the epochs in which the rate rises in a straight line to its schedule, which runs over the
            other epochs.
        label_smoothing: share of each target that is spread over all classes, in [0, 1) (Szegedy et al. 2016).
        mixup: ``alpha`` of mixup (Zhang et al. 2018): inputs and losses of two examples are mixed in the proportion
            ``Beta(alpha, alpha)``, one for each batch; 0: not at all.
        average: decay of the average of the weights, ``average = decay * average + (1 - decay) * weight`` after each
            step, in [0, 1). The average is what is tested, and what remains in the end; 0: none.
        distillation: share of the loss that is the distance to a teacher's scores, in [0, 1] (Hinton et al. 2015).
        temperature: what both networks' scores are divided by for that distance.

    Raises:
        TopiaristError: a value is out of its range.

    References:
        Liu, Sun, Zhou, Huang, Darrell. Rethinking the Value of Network Pruning. ICLR 2019.
        Hinton, Vinyals, Dean. Distilling the Knowledge in a Neural Network. 2015.
        Szegedy et al. Rethinking the Inception Architecture for Computer Vision. CVPR 2016.
        Zhang, Cisse, Dauphin, Lopez-Paz. mixup: Beyond Empirical Risk Minimization. ICLR 2018.
        Loshchilov, Hutter. Decoupled Weight Decay Regularization. ICLR 2019.
    """

    epochs: int = 160
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False
    batch_size: int = 64
    schedule: str = "step"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    augment: bool = True
    optimizer: str = "sgd"
    warmup: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    average: float = 0.0
    distillation: float = 0.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        check_fields(self, "the recipe")
        object.__setattr__(self, "milestones", tuple(map(float, self.milestones)))
        for kind, name, known in (
            ("schedule", self.schedule, SCHEDULES),
            ("optimizer", self.optimizer, OPTIMIZERS),
        ):
            if name not in known:
                raise TopiaristError(f"there is no {kind} {shown(name)}: {suggestion(name, known)}")
        for name, legal, wanted in (
            ("epochs", self.epochs >= 0, "0 or more"),
            ("lr", self.lr > 0, "above 0"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("nesterov", not self.nesterov or self.momentum > 0, "False where momentum is 0"),
            ("nesterov", not self.nesterov or self.optimizer == "sgd", "False where the optimizer is not sgd"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("milestones", all(0 <= fraction <= 1 for fraction in self.milestones), "fractions of the epochs"),
            ("gamma", 0 < self.gamma <= 1, "in (0, 1]"),
            ("warmup", 0 <= self.warmup <= 1, "a fraction of the epochs"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)"),
            ("mixup", 0 <= self.mixup < math.inf, "0 or more"),
            ("average", 0 <= self.average < 1, "in [0, 1)"),
            ("distillation", 0 <= self.distillation <= 1, "in [0, 1]"),
            ("temperature", 0 < self.temperature < math.inf, "above 0"),
        ):
            if not legal:
                raise TopiaristError(f"{name} of the recipe must be {wanted}, but got {shown(getattr(self, name))}")

    @classmethod
    def paper(cls) -> Recipe:
        """Returns the paper's CIFAR training: 160 epochs, rate 0.1, divided by 10 after one half and three quarters."""
        return cls()

    @classmethod
    def finetune(cls) -> Recipe:
        """Returns the paper's fine-tuning of inherited weights: 40 epochs at the constant rate 0.001."""
        return cls(epochs=40, lr=0.001, schedule="constant")

    def rate(self, epoch: int) -> float:
        """Returns the learning rate of an epoch, counted from 0."""
        rising = round(self.warmup * self.epochs)
        if epoch < rising:
            return self.lr * (epoch + 1) / (rising + 1)
        progress = (epoch - rising) / max(self.epochs - rising, 1)
        return self.lr * SCHEDULES[self.schedule](progress, self.milestones, self.gamma)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for `json`; later fields only where they are set, so that old checkpoints match."""
        unset = {name for name in _LATER if getattr(self, name) == getattr(Recipe(), name)}
        return {name: value for name, value in asdict(self).items() if name not in unset}


def scratch_e(recipe: Recipe) -> Recipe:
    """Returns the recipe of Scratch-E: a pruned architecture is trained from random weights for as many epochs."""
    return recipe


def scratch_b(recipe: Recipe, ratio: float, cap: float | None = None) -> Recipe:
    """Returns the recipe of Scratch-B: a pruned architecture is trained from random weights with as much computation.

    ``epochs = int(epochs_large * min(ratio, cap))``. The milestones are fractions, so they stretch along.

    Args:
        recipe: what the large network was trained with.
        ratio: MACs of the large network over MACs of the pruned one, at least 1; nonzero MACs for sparse masks.
        cap: upper bound of the ratio (the paper uses 2 on ImageNet and none on CIFAR).

    Raises:
        TopiaristError: the ratio or the cap is below 1.
    """
    for name, value in (("ratio", ratio), ("cap", cap)):
        if value is not None and not value >= 1:
            raise TopiaristError(
                f"scratch-B's {name} is {value}: it is the MACs of the large network over those of the small one, "
                "so give at least 1"
            )
    stretch = ratio if cap is None else min(ratio, cap)
    if not math.isfinite(recipe.epochs * stretch):
        raise TopiaristError("scratch-B's ratio is infinite: give a finite one, or a cap")
    # 100 * 1.15 is 114.99… in floating point: the whole number that was meant must not lose an epoch.
    return replace(recipe, epochs=int(recipe.epochs * stretch + 1e-9))
