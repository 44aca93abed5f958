"""A cell with its data and its folder, for what fills it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import topiarist
from topiarist import Architecture, Recipe, evaluate, fit, prune, trace
from topiarist.data import Data
from topiarist.studies import Cell
from topiarist.train import Speed

Result = dict[str, Any]
MODEL = "model.safetensors"
LOOKED_AT = 2000
"""Training images for the least squares of a cut."""
SMALL = "small"
"""Folder in a cell's, of a network that was shrunk."""


@dataclass(frozen=True)
class Bench:
    """A cell, its data (with held-out images for tests, where choices are made), the whole data, and its folder."""

    cell: Cell
    data: Data
    whole: Data
    folder: Path

    def model(self, start: Path | None = None, shift: int = 0) -> nn.Module:
        """The network, with the weights of another cell or new ones."""
        torch.manual_seed(self.cell.seed + shift)
        model = topiarist.load_model(f"zoo:{self.cell.network}", dropout=self.cell.settings.get("dropout", 0.0))
        if start is not None:
            model.load_state_dict(load_file(start / MODEL))
        return model

    def recipe(self, name: str = "recipe") -> Recipe:
        return Recipe(**self.cell.settings[name])

    def fit(self, model: nn.Module, recipe: Recipe, name: str = "only", **more: Any) -> None:
        path = self.folder / f"{name}.ckpt"
        speed = Speed(evaluate_every=0, channels_last=True)  # with which most processors compute convolutions sooner
        fit(model, self.data, recipe, seed=self.cell.seed, checkpoint=path, speed=speed, **more)

    def error(self, model: nn.Module, data: Data | None = None) -> float:
        """Per cent of the test images."""
        return round(100 - evaluate(model, data or self.data), 4)

    def keep(self, model: nn.Module, result: Result) -> Result:
        """Stores the weights."""
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, self.folder / MODEL)
        return result

    def cut(self, model: nn.Module, widths: Mapping[str, float]) -> nn.Module:
        """Without some of its units, which lasso chooses and makes up for; ``widths`` is group → fraction kept."""
        looked = self.data.subset(min(LOOKED_AT, len(self.data.train_y)))
        return prune(model, self.data.example(), "lasso", {"ratios": dict(widths)}, looked).model

    def widths(self, model: nn.Module) -> dict[str, int]:
        """Group → units."""
        return {group.name: group.units for group in trace(model, self.data.example()).groups}

    def shape(self, small: nn.Module) -> Architecture:
        """A small network's widths as a cut of the whole one; which units went makes no difference any more."""
        graph, widths = trace(self.model(), self.data.example()), self.widths(small)
        keep = {group.name: torch.arange(group.units) < widths.get(group.name, 1) for group in graph.groups}
        return Architecture.of(graph, keep)
