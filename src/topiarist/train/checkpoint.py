"""The state of a training in one file: written in one step, read without running code, checked before use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topiarist.errors import TopiaristError
from topiarist.files import atomically, one_line, read_archive, shown

State = dict[str, Any]
"""Tensors, numbers, strings, and lists and dicts of them."""

_FORMAT = "topiarist.checkpoint.1"


def save(path: Path, state: State) -> None:
    """Writes a training's state in one step.

    Whatever stops the writing, ``path`` holds the former state or the new one in full.

    Args:
        path: the file; missing folders are made.
        state: tensors, numbers, strings, and lists and dicts of them.

    Raises:
        TopiaristError: the file cannot be written.
    """

    def write(draft: Path) -> None:
        with draft.open("wb") as file:
            torch.save({"format": _FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())

    try:
        atomically(path, write)
    except RuntimeError as error:  # torch's writer turns a full disk into one
        raise TopiaristError(
            f"cannot write the checkpoint {path} ({one_line(error)}): free some space there"
        ) from error


def load(path: Path) -> State | None:
    """Reads what `save` wrote, onto the CPU; ``None`` where there is no such file.

    Raises:
        TopiaristError: the file cannot be read, is damaged, or is something else.
    """
    if not path.exists():
        return None
    try:
        state = read_archive(path)
    except TopiaristError:
        raise
    except Exception as error:  # a damaged archive fails in any way: zip, pickle, key, type, end of file
        raise TopiaristError(
            f"the checkpoint {path} is damaged or not a checkpoint: delete it to start again, or name another file"
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise TopiaristError(f"{path} is not a checkpoint of a training: name another file")
    return state


def same_run(path: Path, stored: object, wanted: Mapping[str, object]) -> None:
    """Checks that a checkpoint continues this very training.

    Raises:
        TopiaristError: a setting differs; the sentence names it.
    """
    stored = stored if isinstance(stored, Mapping) else {}
    for name in [*wanted, *stored]:
        was, now = stored.get(name), wanted.get(name)
        if not _equal(was, now):
            label = name if isinstance(name, str) else shown(name)
            raise TopiaristError(
                f"the checkpoint {path} is of another run ({label} was {shown(was)}, now {shown(now)}): delete it "
                "to start again, or name another file"
            )


def _equal(stored: object, wanted: object) -> bool:
    """Returns whether two plain values are equal; one that holds tensors is not plain."""
    try:
        return bool(stored == wanted)
    except (RuntimeError, TypeError, ValueError):
        return False


def same_model(path: Path, stored: object, wanted: Mapping[str, Tensor]) -> None:
    """Checks that stored tensors have the names and shapes of a model's.

    Raises:
        TopiaristError: they do not; the sentence names the first difference.
    """
    shapes = {key: tuple(value.shape) for key, value in wanted.items() if isinstance(value, Tensor)}
    stored = stored if isinstance(stored, Mapping) else {}
    others = {key: tuple(value.shape) for key, value in stored.items() if isinstance(value, Tensor)}
    for key in [*shapes, *others]:
        if shapes.get(key) != others.get(key):
            raise TopiaristError(
                f"the checkpoint {path} is of another model ({shown(key)} is {others.get(key, 'missing')} there and "
                f"{shapes.get(key, 'missing')} here): delete it to start again, or name another file"
            )
