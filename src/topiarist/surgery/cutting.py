"""Surgery: `cut` removes dead positions, `mask` leaves them in place but makes them not exist, `masked` for a while."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.graph import (
    ALONE,
    Attribute,
    Block,
    Corrections,
    Graph,
    Keep,
    KeptPositions,
    assign_attributes,
    broadcast_kept,
    checked_keep,
    fast_path_off,
    modes_restored,
    named_tensors,
    removed_blocks,
    unwrapped,
    unwrapped_names,
    update_descriptions,
    use_dropins,
    with_dropins,
)
from topiarist.surgery.masked_operators import install_masked_forwards
from topiarist.surgery.removed_blocks import remove_blocks
from topiarist.surgery.size_corrections import install_corrections


@dataclass(frozen=True)
class Plan:
    """All that a cut does to a model, in plain values.

    Attributes:
        kept: tensor → axis → indices that are kept.
        sizes: attributes and their new values.
        corrections: module → what is corrected in its forward.
        masks: tensor → flat bool, False where an individual weight is set to zero.
        removed: residual blocks that are removed.
    """

    kept: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)
    sizes: Mapping[Attribute, int] = field(default_factory=dict)
    corrections: Corrections = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    removed: tuple[Block, ...] = ()


def plan(graph: Graph, keep: Keep) -> Plan:
    """Returns what a cut does, without touching a model.

    Raises:
        TopiaristError: the keep does not fit the graph, or leaves sizes that nothing can satisfy.
    """
    keep = checked_keep(graph, keep)
    if graph.kind == "weight":
        return Plan(masks={name: kept for (name, _), kept in graph.kept(keep).items() if not kept.all()})
    if graph.kind == "block":
        return Plan(removed=removed_blocks(graph.groups, keep))
    if all(kept.all() for kept in keep.values()):
        return Plan()
    dead = graph.dead(keep)
    sizes, unsolved = graph.solution.sizes(dead)
    if unsolved:
        e = unsolved[0]
        raise TopiaristError(
            f"no attribute gives the size computed at {e.line} in {e.module or 'the model'} after this cut; "
            "topiarist.check(model, graph, example_inputs) pins what cannot be cut"
        )
    return Plan(graph.solution.kept_of_tensors(dead), sizes, graph.solution.corrections(dead))


def cut(model: nn.Module, graph: Graph, keep: Keep) -> nn.Module:
    """Removes the dead positions of every slice; the given model stays as it is.

    The class of the model and the keys of its state dict stay, but for those of removed blocks. Weights of a weight
    graph cannot be removed one by one: there the cut is the mask.

    Args:
        model: the traced model, or one of the same architecture.
        graph: its graph.
        keep: group name → bool ``(units,)``, at least one True each; groups left out keep everything.

    Returns:
        A new, smaller model.
    """
    model = unwrapped(model)
    check_shapes(model, graph.shapes)
    return apply_plan(model, plan(graph, keep))


def check_shapes(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises where a model is not of the shape that was traced."""
    own = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    for name, shape in shapes.items():
        if own.get(name) != shape:
            raise TopiaristError(
                f"this is not the network that was traced: its {name} has shape {own.get(name, 'none at all')}, not "
                f"{shape}; make the model with the same options"
            )


def apply_plan(model: nn.Module, work: Plan) -> nn.Module:
    """Applies a plan to a copy of a model that has the traced shapes; its tensors are indexed as they are copied."""
    tensors = named_tensors(model)
    made: dict[int, object] = {}
    for name in {*work.kept, *work.masks}:
        tensor = tensors[name]
        value = tensor.detach()
        for axis, kept in work.kept.get(name, {}).items():
            value = value.index_select(axis, kept.to(value.device))
        if name in work.masks:
            value = value.masked_fill(~work.masks[name].to(value.device).view(value.shape), 0)
        made[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    smaller = copied(model, made)
    if work.kept or work.removed:
        use_dropins(smaller)
        remove_blocks(smaller, work.removed)
        assign_attributes(smaller, work.sizes)
        install_corrections(smaller, work.corrections)
        update_descriptions(smaller)
    return smaller


def copied(model: nn.Module, replaced: dict[int, object] | None = None) -> nn.Module:
    """Returns a deep copy in which some tensors (by id) are already replaced, so that they are not copied."""
    model = unwrapped(model)
    memo: dict[int, object] = dict(replaced or {})
    for held in (value for module in model.modules() for value in vars(module).values()):
        if type(held) in (dict, OrderedDict) and not held:  # eight in each module, which deepcopy takes long for
            memo[id(held)] = type(held)()
    try:
        with ALONE, modes_restored(made := copy.deepcopy(model, memo)):
            return made
    except (RuntimeError, TypeError) as error:
        raise TopiaristError(f"the model cannot be copied ({error}); detach tensors stored in it first") from error


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
    kept positions, attention keeps its scale. It is what `cut` must equal, and the reference of every proof.

    Args:
        model: the traced model, or one of the same architecture.
        graph: its graph.
        keep: as for `cut`.

    Returns:
        A new model of the old size.
    """
    model = unwrapped(model)
    check_shapes(model, graph.shapes)
    keep = checked_keep(graph, keep)
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
    check_shapes(model, graph.shapes)
    keep = checked_keep(graph, keep)
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
