"""Weights from a file into a model: safetensors, or a PyTorch state dict read without running any code in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from topiarist.cli.show import some
from topiarist.errors import TopiaristError
from topiarist.files import ForeignObjectError, gates_file, read_archive, read_gates, read_safetensors
from topiarist.graph import unwrapped_names

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts store the state dict beside other things."""

_SAVE = "save one with torch.save(model.state_dict(), FILE)"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the state dict in a file.

    Args:
        path: a safetensors file, or one of `torch.save` that holds a state dict (alone or under ``state_dict``).

    Raises:
        TopiaristError: there is no such file, it is truncated, or it holds something else.
    """
    if not path.is_file():
        raise TopiaristError(f"there is no weights file {path}: give the path of a .safetensors or .pt file")
    state = _read(path)
    for wrapper in _WRAPPERS:
        inner = state.get(wrapper)
        if isinstance(inner, Mapping):
            state = inner
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(state):
        raise TopiaristError(f"{path} holds no state dict: {_SAVE}")
    for key, value in tensors.items():
        if kind := _not_dense(value):
            raise TopiaristError(f"{path} cannot be used ({key} is a {kind} tensor): save dense tensors of numbers")
    return tensors


def _not_dense(value: Tensor) -> str:
    """Returns what kind of tensor this is, where it is none with a number of its own for each entry."""
    kinds = {"quantised": value.is_quantized, "nested": value.is_nested, "meta": value.is_meta}
    kinds["sparse"] = value.layout != torch.strided
    return next((kind for kind, is_so in kinds.items() if is_so), "")


def _read(path: Path) -> Mapping[str, object]:
    """Reads a file by its first bytes; one named .safetensors is read as such, for the better message."""
    from topiarist.compress import MAGIC

    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(MAGIC):
        raise TopiaristError(f"{path} is compressed: restore its weights with `topiarist decompress {path}`")
    if path.suffix == ".safetensors" or start[8:] == b"{":  # eight bytes of length, then JSON
        return _read_safetensors(path)
    if not start.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle as torch once wrote it
        raise _damaged(path)
    return _read_torch(path)


def _damaged(path: Path) -> TopiaristError:
    return TopiaristError(f"{path} is truncated or no weights file: {_SAVE}")


def _read_safetensors(path: Path) -> Mapping[str, object]:
    from safetensors.torch import load_file

    return read_safetensors(path, load_file, "write or copy it again")


def _read_torch(path: Path) -> Mapping[str, object]:
    try:
        value = read_archive(path)
    except ForeignObjectError as error:
        raise TopiaristError(
            f"{path} holds {error}, which only code can restore, and Topiarist does not run any of a file: save the "
            "tensors alone, with torch.save(model.state_dict(), FILE)"
        ) from error
    except TopiaristError:
        raise
    except Exception as error:  # a damaged archive fails in any way: zip, pickle, key, type, end of file
        raise _damaged(path) from error
    if not isinstance(value, Mapping):
        raise TopiaristError(f"{path} holds a {type(value).__name__} and no state dict: save model.state_dict()")
    return value


def put_weights(model: nn.Module, path: Path) -> None:
    """Loads a file's weights into a model in place, all of them or none, and the gates stored beside them.

    Raises:
        TopiaristError: names or shapes are not the model's, or values are not finite.
    """
    weights = read_weights(path)
    own = model.state_dict()
    weights = unwrapped_names(weights, own)  # a model that was trained in parallel, or compiled
    addresses = {own[key].data_ptr() for key in own.keys() & weights.keys()}
    tied = {key for key in own.keys() - weights.keys() if own[key].data_ptr() in addresses}  # stored once
    missing = own.keys() - weights.keys() - tied
    foreign = weights.keys() - own.keys()
    if missing or foreign:
        reasons = [f"it lacks {some(sorted(missing))}"] if missing else []
        reasons += [f"the model has no {some(sorted(foreign))}"] if foreign else []
        raise TopiaristError(f"{path} is of another model ({' and '.join(reasons)}): name the model it belongs to")
    for key, value in weights.items():
        if value.shape != own[key].shape:
            sizes = f"{key} is {tuple(value.shape)} in the file and {tuple(own[key].shape)} in the model"
            raise TopiaristError(f"{path} does not fit the model ({sizes}): give the options it was trained with")
        if value.dtype.is_floating_point != own[key].dtype.is_floating_point:
            kind = f"{key} is a tensor of {value.dtype}"
            raise TopiaristError(f"{path} does not fit the model ({kind}): save tensors of {own[key].dtype}")
        if value.is_floating_point() and not value.float().isfinite().all():
            raise TopiaristError(f"{path} has NaN or infinite values in {key}: train with a smaller learning rate")
    model.load_state_dict(weights, strict=False)
    read_gates(model, gates_file(path))
