"""What a pruning continues from, as two files beside a trainer's checkpoint: JSON and safetensors, no pickle."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from topiarist.errors import TopiaristError
from topiarist.files import read_json, read_safetensors, write_json, write_safetensors

VALUES, TENSORS = "topiarist.json", "topiarist.safetensors"
_MARK = "tensor:"
"""Begins the name of a tensor that stands in another file."""


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes nested values and tensors into a folder.

    Raises:
        TopiaristError: a file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    plain = _without_tensors(state, "", tensors)
    write_safetensors(folder / TENSORS, partial(save_file, tensors))
    write_json(folder / VALUES, plain, compact=True)


def read_state(folder: Path) -> dict[str, Any]:
    """Inverts `write_state`.

    Raises:
        TopiaristError: a file is missing or damaged.
    """
    remedy = "give a checkpoint that was written while the callback pruned, or start without it"
    plain = read_json(folder / VALUES, "the pruning's state", remedy)
    tensors = read_safetensors(folder / TENSORS, load_file, remedy)
    try:
        state = _with_tensors(plain, tensors)
    except KeyError as error:
        raise TopiaristError(f"{folder / VALUES} names a tensor that {TENSORS} lacks ({error}); {remedy}") from error
    if not isinstance(state, dict) or not {"pruning", "done", "softened", "architecture", "gates"} <= state.keys():
        raise TopiaristError(f"{folder / VALUES} holds no state of a pruning; {remedy}")
    return state


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Returns plain values with the names of tensors, which are collected."""
    if isinstance(value, Tensor):
        tensors[name] = value.contiguous()
        return _MARK + name
    if isinstance(value, dict):
        return {key: _without_tensors(entry, f"{name}/{key}", tensors) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_tensors(entry, f"{name}/{at}", tensors) for at, entry in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, str) and value.startswith(_MARK):
        return tensors[value.removeprefix(_MARK)]
    if isinstance(value, dict):
        return {key: _with_tensors(entry, tensors) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_tensors(entry, tensors) for entry in value]
    return value
