"""ONNX files, by either of torch's exporters."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from topiarist.graph import Inputs
from topiarist.measure import mode


def export_onnx(model: nn.Module, example_inputs: Inputs, path: Path) -> None:
    """Writes an ONNX file for exactly these shapes, by torch's older exporter: the quickest way to a runtime."""
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    with warnings.catch_warnings(), mode(model, training=False):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, args, str(path), dynamo=False)
