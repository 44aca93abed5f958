"""Surgery: `cut` removes dead positions, `mask` leaves them in place but makes them not exist, `masked` for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.graph import (
    Graph,
    Keep,
    KeptPositions,
    broadcast_kept,
    checked_keep,
    fast_path_off,
    named_tensors,
    removed_blocks,
    unwrapped,
    unwrapped_names,
    with_dropins,
)
from topiarist.surgery.carrying import carry_over
from topiarist.surgery.masked_operators import install_masked_forwards
from topiarist.surgery.plans import apply_plan, check_shapes, copied, plan


def cut(model: nn.Module, graph: Graph, keep: Keep, *training: Any) -> nn.Module:
    """Removes the dead positions of every slice; the given model stays as it is.

    The class of the model and the keys of its state dict stay, but for those of removed blocks. Weights of a weight
    graph cannot be removed one by one: there the cut is the mask.

    In the middle of a training, what trains the model is given too, and continues with the smaller one. An optimiser
    stays the same object, with its groups and their rates, so that schedulers, gradient scalers and wrappers that hold
    it need nothing. It now holds the new parameters, with its state cut as they are. Gradients that backward has summed
    up move to the new parameters. From then on the optimiser refuses a step while the old ones have gradients: then the
    loss was computed with the model from before.

    The training continues as that of the masked model, exactly, where the optimiser treats every weight by itself (SGD,
    Adam, RMSprop, Adagrad and their kin), or by norms of tensors (LARS, LAMB). Adafactor's step depends on means over
    a tensor, which are those over the smaller one from then on, without the zeros; its estimate of each kept weight's
    second moment, ``row[i] col[j] / mean(row)``, is the same after the cut as before. Muon's rate follows the
    new shape.

    Args:
        model: the traced model, or one of the same architecture.
        graph: its graph.
        keep: group name → bool ``(units,)``, at least one True each; groups left out keep everything.
        training: optimisers over the model's parameters, and averages of it: `torch.optim.swa_utils.AveragedModel` and
            others with the network in ``.module``, or dicts of name and tensor. They are changed in place: all of them,
            or none where one is refused.

    Returns:
        A new, smaller model. Compile it, or wrap it in `DistributedDataParallel`, as the one before.

    Raises:
        TopiaristError: the graph or the keep is of another network; or what trains it is, cannot be cut, has a method
            attached, or the model is distributed.

    Examples:
        >>> model = cut(model, graph, keep, optimizer, ema)  # doctest: +SKIP
    """
    work = plan(graph, keep)
    check_shapes(unwrapped(model), graph.shapes)
    smaller = apply_plan(unwrapped(model), work)
    if training:
        carry_over(model, smaller, work, training)
    return smaller


def with_values(model: nn.Module, other: nn.Module) -> nn.Module:
    """Returns a copy of a model with the tensors of another one of the same shape, such as a repaired mask."""
    made = copied(model)
    made.load_state_dict(other.state_dict())
    return made


def rewound(model: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """Returns a copy of a model with other values in all tensors: its own, before it was trained.

    Raises:
        TopiaristError: the values are not of this model.
    """
    made = copied(model)
    try:
        made.load_state_dict(unwrapped_names(values, made.state_dict()))
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise TopiaristError(
            f"the network cannot be rewound to these values: {reason}; give model.state_dict() as it was before "
            "training (copied: state_dict() itself changes with the model)"
        ) from error
    for name, tensor in made.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TopiaristError(f"the values to rewind to are not finite in {name}; give a state dict that trained")
    return made


def mask(model: nn.Module, graph: Graph, keep: Keep) -> nn.Module:
    """Zeroes the dead positions of every slice and makes normalisations see the kept ones only.

    In the masked model dead positions do not exist: layer, group, RMS and instance norms compute their statistics over
    kept positions, attention keeps its scale. It is what `cut` must equal, and the reference of every proof. It is for
    running: the gradients that torch computes through layer and group norms count the dead positions.

    Args:
        model: the traced model, or one of the same architecture.
        graph: its graph.
        keep: as for `cut`.

    Returns:
        A new model of the old size.
    """
    model = unwrapped(model)
    keep = checked_keep(graph, keep)
    check_shapes(model, graph.shapes)
    made = copied(model)
    _zero(made, graph, keep)
    install_masked_forwards(made, graph, keep)
    return made


@contextmanager
def masked(model: nn.Module, graph: Graph, keep: Keep) -> Iterator[nn.Module]:
    """Masks the model itself for as long as the context lasts, so that keeps can be tried without copies.

    Afterwards each tensor has its values again, bit by bit. For running the network, not for training it. The
    arguments are those of `mask`.
    """
    model = unwrapped(model)
    keep = checked_keep(graph, keep)
    check_shapes(model, graph.shapes)
    tensors = named_tensors(model)
    values = {name: tensors[name].detach().clone() for name, _ in zeroed_positions(graph, keep)}
    forwards = [(module, module.__dict__.get("forward")) for module in model.modules()]
    with with_dropins(model), fast_path_off():
        try:
            _zero(model, graph, keep)
            install_masked_forwards(model, graph, keep)
            yield model
        finally:
            with torch.no_grad():
                for name, value in values.items():
                    tensors[name].copy_(value)
            for module, forward in forwards:
                module.__dict__.pop("forward", None)
                if forward is not None:
                    module.__dict__["forward"] = forward


@torch.no_grad()
def _zero(model: nn.Module, graph: Graph, keep: Keep) -> None:
    """Sets what a keep removes to zero, in place."""
    tensors = named_tensors(model)
    for (name, axis), kept in zeroed_positions(graph, keep).items():
        tensor = tensors[name]
        tensor.masked_fill_(~broadcast_kept(kept, axis, tensor.shape).to(tensor.device), 0)


def zeroed_positions(graph: Graph, keep: Keep) -> KeptPositions:
    """Returns where a mask sets zeros, as `Graph.kept` tells it: False where there is one.

    Of a removed block only the parameters of its tips become zero, so that it adds zeros and nothing else changes.
    """
    zeroed = {place: kept for place, kept in graph.kept(keep).items() if not kept.all()}
    tips = {tip for block in removed_blocks(graph.groups, keep) for tip in block.tips}
    for name in graph.parameters:
        if name.rpartition(".")[0] in tips:
            zeroed[name, None] = torch.zeros(prod(graph.shapes[name]), dtype=torch.bool)
    return zeroed
