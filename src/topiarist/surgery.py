"""Surgery: `cut` removes dead positions, `mask` leaves them in place but makes them not exist."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.graph import Graph, Keep, checked_keep
from topiarist.graph.calls import ALONE, modes_restored
from topiarist.graph.dropins import describe, swap_in
from topiarist.graph.sizes import Attribute, assign
from topiarist.graph.solution import Correction
from topiarist.shim import install


@dataclass(frozen=True)
class Plan:
    """All that a cut does to a model, in plain values.

    Attributes:
        survivors: tensor → axis → indices that stay.
        sizes: attributes and their new values.
        corrections: module → what its shim corrects.
        zeros: tensor → flat bool, False where a weight is set to zero (one unit per weight).
    """

    survivors: Mapping[str, Mapping[int, Tensor]]
    sizes: Mapping[Attribute, int]
    corrections: Mapping[str, Correction]
    zeros: Mapping[str, Tensor]


def plan(graph: Graph, keep: Keep) -> Plan:
    """Works out a cut without touching a model.

    Raises:
        TopiaristError: the keep does not fit the graph, or leaves sizes that nothing can satisfy.
    """
    keep = checked_keep(graph, keep)
    zeros = {
        part.tensor: keep[group.name]
        for group in graph.groups
        for part in group.slices
        if part.axis is None and not keep[group.name].all()
    }
    structured = {g.name: keep[g.name] for g in graph.groups if not g.of_weights}
    if all(mask.all() for mask in structured.values()):
        return Plan({}, {}, {}, zeros)
    dead = graph.solution.dead(structured)
    sizes, open_ = graph.solution.sizes(dead)
    if open_:
        e = open_[0]
        raise TopiaristError(
            f"no attribute gives the size computed at {e.line} in {e.module or 'the model'} after this cut; "
            "graph.check(model, example_inputs) pins what cannot be cut"
        )
    return Plan(graph.solution.survivors(dead), sizes, graph.solution.corrections(dead), zeros)


def cut(model: nn.Module, graph: Graph, keep: Keep) -> nn.Module:
    """Removes the dead positions of every slice; the given model stays as it is.

    The class of the model and the keys of its state dict stay. Weights of a weight graph cannot be removed one by one:
    there the cut is the mask.

    Args:
        model: the traced model, or one of the same architecture.
        graph: its graph.
        keep: group name → bool ``(units,)``, at least one True each; groups left out keep everything.

    Returns:
        A new, smaller model.
    """
    check_shapes(model, graph.shapes)
    return carry_out(model, plan(graph, keep))


def check_shapes(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises where a model is not of the shape that was traced."""
    found = {name: tuple(t.shape) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    for name, shape in shapes.items():
        if found.get(name) != shape:
            raise TopiaristError(
                f"this is not the network that was traced: its {name} has shape {found.get(name, 'none at all')}, not "
                f"{shape}; make the model with the same options"
            )


def carry_out(model: nn.Module, work: Plan) -> nn.Module:
    """Applies a plan to a copy of a model, whose tensors are indexed as they are copied."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    made: dict[int, object] = {}
    for name in {*work.survivors, *work.zeros}:
        tensor = _tensor(tensors, name)
        value = tensor.detach()
        for axis, kept in work.survivors.get(name, {}).items():
            if value.ndim <= axis or (len(kept) and int(kept.max()) >= value.shape[axis]):
                raise TopiaristError(f"{name} of shape {tuple(tensor.shape)} is not the tensor that was traced")
            value = value.index_select(axis, kept.to(value.device))
        if name in work.zeros:
            value = value * work.zeros[name].to(value.device).view(value.shape)
        made[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    smaller = copied(model, made)
    if work.survivors:
        swap_in(smaller)
        assign(smaller, work.sizes)
        install(smaller, dict(work.corrections))
        describe(smaller)
    return smaller


def copied(model: nn.Module, replaced: dict[int, object] | None = None) -> nn.Module:
    """A deep copy in which some tensors (by id) are already replaced, so that they are not copied first."""
    memo: dict[int, object] = dict(replaced or {})
    try:
        with ALONE, modes_restored(made := copy.deepcopy(model, memo)):
            return made
    except (RuntimeError, TypeError) as error:
        raise TopiaristError(f"the model cannot be copied ({error}); detach tensors stored in it first") from error


def with_values(model: nn.Module, other: nn.Module) -> nn.Module:
    """A copy of a model with the tensors of another one that has the same: a masked model's, after a repair."""
    made = copied(model)
    made.load_state_dict(other.state_dict())
    return made


def _tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise TopiaristError(f"the model has no tensor {name!r}; it is not the one that was traced")
    return tensors[name]


def mask(model: nn.Module, graph: Graph, keep: Keep) -> nn.Module:
    """Zeroes the dead positions of every slice and makes normalisations see the survivors only.

    In the masked model dead positions do not exist: layer, group, RMS and instance norms compute their statistics over
    the survivors, attention keeps its scale. It is what `cut` must equal, and the reference of every proof.

    Args:
        model: the traced model, or one of the same architecture.
        graph: its graph.
        keep: as for `cut`.

    Returns:
        A new model of the old size.
    """
    from topiarist.survivors import install_survivors

    check_shapes(model, graph.shapes)
    keep = checked_keep(graph, keep)
    masked = copied(model)
    tensors = dict(masked.named_parameters()) | dict(masked.named_buffers())
    with torch.no_grad():
        for group in graph.groups:
            gone = ~keep[group.name]
            for part in group.slices if gone.any() else ():
                tensor = _tensor(tensors, part.tensor)
                positions = part.positions[gone].flatten().to(tensor.device)
                if part.axis is None:
                    tensor.view(-1).index_fill_(0, positions, 0)
                else:
                    tensor.index_fill_(part.axis, positions, 0)
    install_survivors(masked, graph, keep)
    return masked
