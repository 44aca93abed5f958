"""What each step of a training makes smaller: the loss of a batch, smoothed, mixed and distilled as a recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from topiarist.errors import TopiaristError
from topiarist.graph import call_model
from topiarist.measure import (
    Batch,
    Inputs,
    Loss,
    Target,
    batch_size,
    check_function,
    class_scores,
    cross_entropy,
    has_classes,
    inputs_and_labels,
    inputs_and_target,
    map_tensors,
    one_number,
    right_examples,
)
from topiarist.train.recipe import Recipe


class Outcome(NamedTuple):
    """What came of a batch.

    Attributes:
        loss: a scalar.
        right: of how many examples the class was right, a scalar; ``None`` where they have no classes.
        size: how many examples there are.
    """

    loss: Tensor
    right: Tensor | None
    size: int


@dataclass(frozen=True, eq=False)
class Objective:
    """Computes ``(1 - d) * loss(f(x), y) + d * T^2 * KL(softmax(g(x) / T) || softmax(f(x) / T))`` of a batch.

    ``f`` is the network, ``g`` its teacher, ``d`` the share of distillation, ``T`` the temperature. With mixup
    ``x = b x_i + (1 - b) x_j`` and ``loss = b loss_i + (1 - b) loss_j``, ``b ~ Beta(alpha, alpha)``.

    Attributes:
        recipe: has ``d``, ``T``, ``alpha`` and the label smoothing.
        loss: of output and target, the mean over the batch; by default the cross entropy, or where a batch has no
            target the loss that the network returns itself.
        teacher: in eval mode, on the network's device.
        plain: refuse a network that yields anything else than scores ``(N, classes)``.

    Raises:
        TopiaristError: the recipe and these do not fit together.
    """

    recipe: Recipe
    loss: Loss | None = None
    teacher: nn.Module | None = None
    plain: bool = False

    def __post_init__(self) -> None:
        if self.loss is not None:
            check_function(self.loss, "loss")
        if self.loss is not None and self.recipe.label_smoothing:
            raise TopiaristError("label_smoothing is that of the cross entropy: leave it out, or leave out loss")
        if bool(self.recipe.distillation) != (self.teacher is not None):
            lacks = "teacher=, a network" if self.teacher is None else "Recipe(distillation=0.5)"
            raise TopiaristError(f"distillation takes a teacher and its share of the loss: give {lacks}")

    def __call__(self, module: nn.Module, batch: Batch) -> Outcome:
        """Returns the loss of a batch that is on the module's device."""
        inputs, target = inputs_and_target(batch)
        if self.recipe.mixup and module.training:
            inputs, target, mixed, share = self._mixed(inputs, target)
        else:
            mixed, share = None, 1.0
        output = call_model(module, inputs)
        loss = self._loss(output, target)
        if mixed is not None:
            loss = share * loss + (1 - share) * self._loss(output, mixed)
        _, labels = inputs_and_labels(batch)
        if self.teacher is not None:
            if not has_classes(output, labels):
                raise TopiaristError(
                    "distillation compares the scores of classes, and the targets are none: leave it out, or compare "
                    "with the teacher in a loss of your own"
                )
            weight = self.recipe.distillation
            loss = (1 - weight) * loss + weight * distance(output, self._taught(inputs), self.recipe.temperature)
        return Outcome(loss, right_examples(output, labels), batch_size(inputs))

    def _loss(self, output: object, target: Target) -> Tensor:
        if self.loss is not None:
            return one_number(self.loss(output, target))
        if target is None:
            return _own_loss(output)
        if isinstance(output, tuple | list):
            raise TopiaristError(
                f"the model yields a {type(output).__name__} in training: give loss=, a function of it and the targets"
            )
        scores = class_scores(output, plain=True) if self.plain else output
        return cross_entropy(scores, target, self.recipe.label_smoothing)

    def _mixed(self, inputs: Inputs, target: Target) -> tuple[Inputs, Target, Target, float]:
        """Returns mixed inputs, both targets, and the share of the first."""
        targets = list(target.values()) if isinstance(target, Mapping) else target
        targets = targets if isinstance(targets, list | tuple) else [targets]
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise TopiaristError(
                "mixup takes batches of one floating-point tensor and its targets: leave it out of the recipe"
            )
        if not all(isinstance(each, Tensor) and each.shape[:1] == inputs.shape[:1] for each in targets):
            raise TopiaristError(
                "mixup takes targets that are tensors with the examples along the first axis: leave it out"
            )
        order = torch.randperm(len(inputs)).to(inputs.device)
        share = float(torch.distributions.Beta(self.recipe.mixup, self.recipe.mixup).sample())
        other = map_tensors(target, lambda tensor: tensor[order])
        return share * inputs + (1 - share) * inputs[order], target, other, share

    @torch.no_grad()
    def _taught(self, inputs: Inputs) -> object:
        assert self.teacher is not None
        return call_model(self.teacher, inputs)


def distance(output: object, taught: object, temperature: float) -> Tensor:
    """Returns ``T^2 * KL(softmax(t / T) || softmax(s / T))``, the mean over all but the axis of classes.

    The factor keeps its gradients as large as those of the loss whatever the temperature (Hinton et al. 2015).

    Raises:
        TopiaristError: the teacher's scores are of another shape.
    """
    scores, wanted = class_scores(output), class_scores(taught)
    if scores.shape != wanted.shape:
        raise TopiaristError(
            f"the teacher's scores are of shape {tuple(wanted.shape)} and the network's {tuple(scores.shape)}: give a "
            "teacher of the same classes"
        )
    own, other = ((each / temperature).log_softmax(1) for each in (scores, wanted))
    return temperature**2 * F.kl_div(own, other, reduction="none", log_target=True).sum(1).mean()


def _own_loss(output: object) -> Tensor:
    """Returns the loss that a network returns itself, or the sum of its losses, as detectors of torchvision do."""
    loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if loss is None and isinstance(output, dict) and output and all(map(_is_loss, output.values())):
        loss = torch.stack([each.reshape(()) for each in output.values()]).sum()
    if loss is None:
        raise TopiaristError(
            "the batches have no target and the model returns no loss: yield pairs (inputs, target), put labels among "
            "the arguments, or give loss="
        )
    return one_number(loss)


def _is_loss(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad
