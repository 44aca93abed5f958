"""The data: prepared once for a run, so that each of its many cells reads only what it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from plan import Setting

import topiarist
from topiarist.data import Data
from topiarist.data.dataset import stratified
from topiarist.files import atomically

WHERE = "FOLDER/NAME.npz is as benchmarks/fetch.py writes it"
_PARTS = ("train_x", "train_y", "test_x", "test_y", "held_x", "held_y")


def prepare(setting: Setting, source: Path | None, out: Path) -> None:
    """Draw the images of a setting, the classes keeping their shares, and keep them in the run's folder."""
    path = place(out, setting.data_name)
    if path.exists():
        return
    if setting.data != "digits" and source is None:
        raise topiarist.TopiaristError(f"There is no data: give --data FOLDER, where {WHERE}.")
    whole = topiarist.load_data("digits" if setting.data == "digits" else f"npz:{source}/{setting.data}.npz")
    held, rest = stratified(whole.train_y, setting.held, seed=0)
    chosen = rest[stratified(whole.train_y[rest], setting.images, seed=0)[0]]
    size = min(setting.test, len(whole.test_y))
    test = stratified(whole.test_y, size, seed=0)[0]
    arrays = {
        "train_x": whole.train_x[chosen],
        "train_y": whole.train_y[chosen],
        "test_x": whole.test_x[test],
        "test_y": whole.test_y[test],
        "held_x": whole.train_x[held],
        "held_y": whole.train_y[held],
    }

    def write(draft: Path) -> None:
        with draft.open("wb") as stream:
            np.savez(stream, **{name: tensor.numpy() for name, tensor in arrays.items()})

    atomically(path, write)


def place(out: Path, name: str) -> Path:
    """Where the prepared images lie."""
    return out / "data" / f"{name}.npz"


def load(out: Path, name: str) -> tuple[Data, Data]:
    """The data, and the same with the held-out images in place of the test images."""
    with np.load(place(out, name), allow_pickle=False) as stored:
        parts = {key: torch.from_numpy(stored[key]) for key in _PARTS}
    augment = "crop-flip" if parts["train_x"].shape[1] > 1 else None
    data = Data.of(name, *(parts[key] for key in _PARTS[:4]), augment=augment)
    return data, replace(data, test_x=parts["held_x"], test_y=parts["held_y"])
