"""Weights from a file into a model: safetensors, or a PyTorch state dict read without running any code in it."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.files import gates_file, read_gates

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts store the state dict beside other things."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file.

    Args:
        path: a safetensors file, or one of `torch.save` that holds a state dict (alone or under ``state_dict``).

    Raises:
        TopiaristError: no such file, a truncated one, or one that holds something else.
    """
    if not path.is_file():
        raise TopiaristError(f"There is no weights file {path}: give the path of a .safetensors or .pt file.")
    found = _read(path)
    for wrapper in _WRAPPERS:
        inner = found.get(wrapper)
        if isinstance(inner, Mapping):
            found = inner
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(found):
        raise TopiaristError(f"{path} holds no state dict: save one with torch.save(model.state_dict(), FILE).")
    return tensors


def _read(path: Path) -> Mapping[str, object]:
    """What a file holds, by how it begins; a name that says safetensors is taken at its word, for the better error."""
    from topiarist.compress import MAGIC

    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(MAGIC):
        raise TopiaristError(f"{path} is compressed already: `topiarist decompress {path}` gives its weights back.")
    if path.suffix == ".safetensors" or start[8:] == b"{":  # eight bytes of length, then JSON
        return _read_safetensors(path)
    if not start.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle as torch once wrote it
        raise TopiaristError(_damaged(path))
    return _read_torch(path)


def _damaged(path: Path) -> str:
    return f"{path} is truncated or no weights file: save one with torch.save(model.state_dict(), FILE)."


def _read_safetensors(path: Path) -> Mapping[str, object]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise TopiaristError(f"{path} is truncated or no safetensors file: write or copy it again.") from error


def _read_torch(path: Path) -> Mapping[str, object]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a format that is no PyTorch's; what is wrong is said below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error) and "not an allowed global" not in str(error):
            raise TopiaristError(_damaged(path)) from error
        told = f"{path} holds objects that only code can restore, which Topiarist does not run"
        raise TopiaristError(f"{told}: save the tensors alone with torch.save(model.state_dict(), FILE).") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise TopiaristError(_damaged(path)) from error
    if not isinstance(found, Mapping):
        raise TopiaristError(f"{path} holds a {type(found).__name__} and no state dict: save model.state_dict().")
    return found


def put_weights(model: nn.Module, path: Path) -> None:
    """Load a file's weights into a model, in place, all of them or none, with what gates left beside them.

    Raises:
        TopiaristError: names or shapes that are not the model's, or values that are not finite.
    """
    weights = read_weights(path)
    own = model.state_dict()
    if all(key.startswith("module.") for key in weights):  # a model that was trained in parallel
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    places = {own[key].data_ptr() for key in own.keys() & weights.keys()}
    tied = {key for key in own.keys() - weights.keys() if own[key].data_ptr() in places}  # stored once
    missing = own.keys() - weights.keys() - tied
    foreign = weights.keys() - own.keys()
    if missing or foreign:
        told = [f"lacks {_some(missing)}"] if missing else []
        told += [f"has {_some(foreign)} that the model does not know"] if foreign else []
        raise TopiaristError(f"{path} does not belong to this model, it {' and '.join(told)}: name the model it is of.")
    for key, value in weights.items():
        if value.shape != own[key].shape:
            sizes = f"{key} is {tuple(value.shape)} in the file and {tuple(own[key].shape)} in the model"
            raise TopiaristError(f"{path} does not fit the model, {sizes}: give the options it was trained with.")
        if value.is_sparse or value.is_meta or value.dtype.is_floating_point != own[key].dtype.is_floating_point:
            kind = f"{key} is a {'sparse ' if value.is_sparse else ''}tensor of {value.dtype}"
            raise TopiaristError(f"{path} does not fit the model, {kind}: save dense tensors of {own[key].dtype}.")
        if value.is_floating_point() and not value.float().isfinite().all():
            raise TopiaristError(
                f"{path} has NaN or infinite values in {key}: train again with a smaller learning rate."
            )
    model.load_state_dict(weights, strict=False)
    read_gates(model, gates_file(path))


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")
