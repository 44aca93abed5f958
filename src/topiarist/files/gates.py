"""What training with gates keeps beside the weights, for the score: buffers of the model, and a file of their own.

They are not part of the state dict, which stays that of the plain network.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.files.tensors import read_safetensors, write_safetensors

GATE = "__left_by_"
"""Stands between a parameter's name and the method's in the name of a buffer."""


def register_gate(owner: nn.Module, name: str, value: Tensor) -> None:
    """Registers a buffer outside the state dict, for `topiarist.measure.Stats.tensor`; ``GATE`` is in its name."""
    owner.register_buffer(name, value.detach().clone(), persistent=False)


def gate_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Returns name → buffer, of all that trainings with gates registered in a model."""
    return {name: buffer for name, buffer in model.named_buffers() if GATE in name}


def gates_file(weights: Path) -> Path:
    """Returns the file of a model's gates, named after that of its weights: ``model.gates.safetensors``."""
    return weights.with_suffix(".gates.safetensors")


def write_gates(model: nn.Module, path: Path) -> None:
    """Writes the gates of a model as safetensors, with a checksum.

    Raises:
        TopiaristError: the file cannot be written.
    """
    gates = {name: buffer.detach().cpu().contiguous() for name, buffer in gate_buffers(model).items()}
    write_safetensors(path, partial(save_file, gates))


def read_gates(model: nn.Module, path: Path) -> None:
    """Registers in a model what `write_gates` wrote of it, if there is such a file.

    Raises:
        TopiaristError: the file is damaged, or belongs to another model.
    """
    if not path.exists():
        return
    stored = read_safetensors(path, load_file, "write it again, or delete it to do without gates")
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in stored.items():
        parameter, mark, method = name.partition(GATE)
        known = parameter in parameters and mark and "." not in method
        if not known or not value.is_floating_point() or not value.isfinite().all():
            raise TopiaristError(
                f"{path} does not belong to this model ({name}); write it again, or delete it to do without gates"
            )
        owner, _, leaf = name.rpartition(".")
        register_gate(model.get_submodule(owner), leaf, value)
