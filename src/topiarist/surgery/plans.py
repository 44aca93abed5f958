"""The plan of a cut: all that it does to a model as plain values, and its application to a copy."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.graph import (
    ALONE,
    Attribute,
    Block,
    Corrections,
    Graph,
    Keep,
    assign_attributes,
    checked_keep,
    garbage_kept,
    modes_restored,
    modules_of,
    named_tensors,
    removed_blocks,
    unwrapped,
    update_descriptions,
    use_dropins,
)
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

    def changes(self, name: str) -> bool:
        """Returns whether a tensor becomes smaller, or gets zeros."""
        return name in self.kept or name in self.masks

    def of(self, name: str, value: Tensor) -> Tensor:
        """Returns what is kept of a tensor, or of one that is aligned to it, such as its gradient.

        Args:
            name: of the tensor that the plan cuts.
            value: of its shape; axes of size 1 stay, and no zeros are set where there are any.
        """
        for axis, kept in self.kept.get(name, {}).items():
            if value.shape[axis] != 1:
                value = value.index_select(axis, kept.to(value.device))
        mask = self.masks.get(name)
        if mask is None or mask.numel() != value.numel():
            return value
        return value.masked_fill(~mask.to(value.device).view(value.shape), 0)


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


def check_shapes(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises where a model is not of the shape that was traced."""
    if not isinstance(model, nn.Module):
        raise TopiaristError(f"the model must be a torch.nn.Module, but got {type(model).__name__}: give the network")
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
        value = work.of(name, tensor.detach())
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
    for held in (value for module in modules_of(model).values() for value in vars(module).values()):
        if type(held) in (dict, OrderedDict) and not held:  # eight in each module, which deepcopy takes long for
            memo[id(held)] = type(held)()
    try:
        with ALONE, garbage_kept(), modes_restored(made := copy.deepcopy(model, memo)):
            return made
    except (RuntimeError, TypeError) as error:
        raise TopiaristError(f"the model cannot be copied ({error}); detach tensors stored in it first") from error
