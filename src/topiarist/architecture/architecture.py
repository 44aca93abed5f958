"""The shape as a value: what each group keeps and where its slices are, in JSON, without weights.

An `Architecture` re-applies to a fresh model without tracing. That is what trains a pruned shape from scratch, restores
a pruned model without pickle, and carries a design from one network to another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from topiarist.architecture.consistency import check_layers, check_runs, check_sizes
from topiarist.architecture.encoding import Shape, decode, encode
from topiarist.errors import TopiaristError
from topiarist.files import (
    gate_buffers,
    gates_file,
    read_gates,
    read_json,
    read_safetensors,
    shown,
    writable,
    write_gates,
    write_json,
    write_safetensors,
)
from topiarist.graph import (
    SELECTOR,
    Graph,
    Group,
    Inputs,
    Keep,
    check_finite,
    checked_keep,
    declare_selectors,
    kept_positions,
    removed_blocks,
    unwrapped,
)
from topiarist.surgery import Plan, apply_plan, check_shapes, copied, plan

WEIGHTS_FILE, SHAPE_FILE = "model.safetensors", "architecture.json"


class Architecture(Shape):
    """What a pruned network looks like.

    Attributes:
        groups: with their slices, as the graph had them.
        keep: group name → bool ``(units,)``.
        shapes: of the tensors before the cut, by name.
        sizes: attributes of modules and the values that the cut gives them.
        corrections: module → what is corrected in its forward.
        selectors: norms that a channel selector follows.
    """

    @classmethod
    def of(cls, graph: Graph, keep: Keep) -> Architecture:
        """Returns the architecture that a keep of a graph leaves."""
        work = plan(graph, keep)
        groups = tuple(Group(g.name, g.units, g.slices, g.stage, blocks=g.blocks) for g in graph.groups)
        shapes = dict(graph.shapes)
        return cls(groups, checked_keep(graph, keep), shapes, work.sizes, work.corrections, graph.selectors)

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Returns group name → (units kept, units there were)."""
        return {g.name: (int(self.keep[g.name].sum()), g.units) for g in self.groups}

    def plan(self) -> Plan:
        """Returns what `topiarist.surgery.apply_plan` does to a model of the old shape."""
        kept: dict[str, dict[int, Tensor]] = {}
        masks: dict[str, Tensor] = {}
        smaller = [group for group in self.groups if not self.keep[group.name].all()]
        for (tensor, axis), positions in kept_positions(smaller, self.shapes, self.keep).items():
            if axis is None:
                masks[tensor] = positions
            else:
                kept.setdefault(tensor, {})[axis] = torch.nonzero(positions).flatten()
        return Plan(kept, self.sizes, self.corrections, masks, removed_blocks(self.groups, self.keep))

    def apply(self, model: nn.Module, inputs: Inputs | None = None) -> nn.Module:
        """Cuts a model of the old shape; the weights that are kept stay as they are.

        Channel selectors that it lacks are declared first.

        Args:
            model: of the old shape.
            inputs: example inputs that the smaller network must run on; without them its layers alone are checked.

        Raises:
            TopiaristError: the model's tensors are not those that were traced, or the smaller network cannot run.
        """
        if self.selectors:
            declare_selectors(model := copied(model), self.selectors)
        model = unwrapped(model)
        check_shapes(model, self.shapes)
        check_sizes(model, self.sizes)
        smaller = apply_plan(model, self.plan())
        check_layers(smaller)
        if inputs is not None:
            check_runs(smaller, inputs)
        return smaller

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Sees that tensors are those of a network that was cut to this shape.

        Raises:
            TopiaristError: one has another shape, or none has a name that the network knows.
        """
        kept = self.plan().kept
        known = [name for name in state if name in self.shapes]  # of tied tensors the network knows one name
        if not known and state:
            raise TopiaristError(
                f"the architecture is of another network, which has no {next(iter(state))}; give the one that prune() "
                "wrote for these weights"
            )
        for name in known:
            cut = {axis: len(indices) for axis, indices in kept.get(name, {}).items()}
            wanted = tuple(cut.get(axis, size) for axis, size in enumerate(self.shapes[name]))
            if (shape := tuple(state[name].shape)) != wanted:
                raise TopiaristError(
                    f"the architecture is of another network, whose {name} is {wanted} and not {shape}; give the one "
                    "that prune() wrote for these weights"
                )

    def build(self, make_model: Callable[[], nn.Module]) -> nn.Module:
        """Returns a pruned network with random weights, for training from scratch.

        Args:
            make_model: returns a model of the old shape with fresh weights. Where the model has a method
                ``reset_parameters``, it is called after the cut, so that the weights are drawn for the new shape.
        """
        model = self.apply(make_model())
        reset = getattr(model, "reset_parameters", None)
        if callable(reset) and not self.plan().masks:
            reset()
        return model

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for `json`."""
        return encode(self)

    @classmethod
    def from_json(cls, value: Any) -> Architecture:
        """Inverts `to_json`.

        Raises:
            TopiaristError: the value is no architecture, damaged, or of a version that this release does not know.
        """
        return cls(**vars(decode(value)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file."""
        write_json(Path(path), self.to_json(), compact=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Architecture:
        """Reads the JSON file.

        Raises:
            TopiaristError: there is no such file, or it is no architecture.
        """
        return cls.from_json(read_json(Path(path), "the architecture", "give a folder that prune() wrote"))


def save(model: nn.Module, architecture: Architecture, path: str | os.PathLike[str]) -> None:
    """Writes a pruned model into a folder: its tensors as safetensors, its shape as JSON.

    Args:
        model: the pruned model, perhaps trained further.
        architecture: its shape.
        path: the folder; it is made where there is none.

    Raises:
        TopiaristError: the folder cannot be written.
    """
    folder = Path(path)
    write_tensors(model, folder / WEIGHTS_FILE)
    architecture.save(folder / SHAPE_FILE)


def write_tensors(model: nn.Module, path: Path) -> None:
    """Writes a model's state dict as safetensors with a checksum, whole or not at all; tied tensors are stored once.

    What a training with gates left for the score goes into a file beside it, ``model.gates.safetensors``.

    Raises:
        TopiaristError: the file cannot be written.
    """
    model = unwrapped(model)
    gates = gates_file(writable(path))
    if gates.is_file():
        gates.unlink()  # those of other weights
    write_safetensors(path, partial(save_model, model))
    if gate_buffers(model):
        write_gates(model, gates)


def load(make_model: Callable[[], nn.Module], path: str | os.PathLike[str], inputs: Inputs | None = None) -> nn.Module:
    """Restores a pruned model, without pickle and without tracing.

    Args:
        make_model: returns a model of the old shape.
        path: the folder that `save` wrote, or the safetensors file in it.
        inputs: example inputs that the network must run on, as for `Architecture.apply`.

    Raises:
        TopiaristError: a file is missing, damaged, or belongs to another model.
    """
    if not callable(make_model):
        raise TopiaristError(f"load() takes a function that makes the model: topiarist.make_model({shown(make_model)})")
    folder = Path(path)
    folder = folder.parent if folder.suffix == ".safetensors" else folder
    model = Architecture.load(folder / SHAPE_FILE).apply(make_model(), inputs)
    file = folder / WEIGHTS_FILE
    if file.is_dir():
        raise TopiaristError(f"{file} is a folder and no file; give the folder that prune() wrote")
    picked = {name: b.clone() for name, b in model.named_buffers() if not b.is_floating_point() and _of_selector(name)}
    read_safetensors(file, partial(_fill, model), "write it again, or give the folder that prune() wrote")
    check_finite(model)
    read_gates(model, gates_file(file))
    for name, indices in picked.items():
        if not torch.equal(model.get_buffer(name), indices):
            raise TopiaristError(f"{file} is damaged: {name} is not what the architecture says; write it again")
    return model


def _of_selector(name: str) -> bool:
    return name.endswith(f"{SELECTOR}.indices")


def _fill(model: nn.Module, file: str) -> None:
    """Reads a file's tensors into a model."""
    _check_types(model, file)
    try:
        load_model(model, file)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise TopiaristError(
            f"{file} does not belong to this architecture ({reason}): give the folder that prune() wrote"
        ) from error


def _check_types(model: nn.Module, file: str) -> None:
    """Raises where a file holds whole numbers, truth values or complex numbers in the place of weights."""
    state = model.state_dict()
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (it is no dict)
            kind = tensors.get_slice(name).get_dtype()
            if name in state and state[name].is_floating_point() and not kind.startswith(("F", "BF")):
                raise TopiaristError(f"{file} holds {name} as {kind}, which is no floating-point type; write it again")
