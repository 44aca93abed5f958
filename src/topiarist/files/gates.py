"""What a training with gates leaves beside the weights, for the score: buffers of the model, and a file of their own.

They are not part of the state dict, which stays that of the plain network.
"""

from __future__ import annotations

from pathlib import Path

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from topiarist.errors import TopiaristError

LEFT = "__left_by_"
"""Between a parameter's name and that of the method."""


def leave(owner: nn.Module, name: str, value: Tensor) -> None:
    """A buffer outside the state dict, which `topiarist.measure.Stats.tensor` sees; ``name`` has `LEFT` in it."""
    owner.register_buffer(name, value.detach().clone(), persistent=False)


def left(model: nn.Module) -> dict[str, Tensor]:
    """Name → buffer, of all that trainings left in a model."""
    return {name: buffer for name, buffer in model.named_buffers() if LEFT in name}


def file_beside(weights: Path) -> Path:
    """The file of what trainings left, whose name goes with that of the weights: ``model.gates.safetensors``."""
    return weights.with_suffix(".gates.safetensors")


def write_left(model: nn.Module, path: Path) -> None:
    """Writes what trainings left in a model as safetensors."""
    save_file({name: buffer.detach().cpu().contiguous() for name, buffer in left(model).items()}, path)


def read_left(model: nn.Module, path: Path) -> None:
    """Puts into a model what `write_left` wrote of it, if it wrote anything.

    Raises:
        TopiaristError: the file is damaged, or belongs to another model.
    """
    if not path.exists():
        return
    try:
        found = load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise TopiaristError(
            f"{path} is damaged or no safetensors file ({error}); write it again, or delete it to do without the gates"
        ) from error
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in found.items():
        parameter, mark, method = name.partition(LEFT)
        known = parameter in parameters and mark and "." not in method
        if not known or not value.is_floating_point() or not value.isfinite().all():
            raise TopiaristError(
                f"{path} does not belong to this model ({name}); write it again, or delete it to do without the gates"
            )
        owner, _, leaf = name.rpartition(".")
        leave(model.get_submodule(owner), leaf, value)
