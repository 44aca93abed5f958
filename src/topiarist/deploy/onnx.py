"""ONNX files, by either of torch's exporters."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from topiarist.deploy.interface import Draft
from topiarist.errors import TopiaristError
from topiarist.files import import_package

KEY = "topiarist"
"""Under which a file says what was cut, and by what."""

LARGEST = 2**31 - 2**20
"""Bytes of weights that an ONNX file holds; its format ends at 2 GiB."""


def export_onnx(draft: Draft, path: Path) -> None:
    """Writes an ONNX file.

    Raises:
        TopiaristError: a package is missing, or the weights are too large for one file.
    """
    import_package("onnx", "export")
    tensors = [*draft.module.parameters(), *draft.module.buffers()]  # tied ones once
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > LARGEST:
        raise TopiaristError(
            f"the weights take {size / 1e9:.1f} GB, and an ONNX file holds 2 GB: export to torch-export instead"
        )
    with quiet():
        (_by_dynamo if draft.exporter == "dynamo" else _by_torchscript)(draft, path)


def _by_torchscript(draft: Draft, path: Path) -> None:
    axes = {name: dict(axes) for name, axes in zip(draft.names, draft.axes, strict=True) if axes}
    with patch.object(torch._C, "_jit_is_onnx_log_enabled", None, create=True):  # else it prints graphs that fail
        torch.onnx.export(
            draft.module,
            draft.tensors,
            str(path),
            dynamo=False,
            input_names=list(draft.names),
            dynamic_axes=axes or None,
        )


def _by_dynamo(draft: Draft, path: Path) -> None:
    import_package("onnxscript", "export")
    torch.onnx.export(
        exported_program(draft),
        f=str(path),
        input_names=list(draft.names),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def exported_program(draft: Draft) -> torch.export.ExportedProgram:
    """Returns the network as `torch.export` reads it; the sizes that may change are symbols."""
    free = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in draft.axes)
    with quiet():
        return torch.export.export(draft.module, draft.tensors, dynamic_shapes=(free,) if any(free) else None)


def describe_onnx(path: Path, metadata: str) -> None:
    """Writes what a file says about itself into its ``metadata_props``."""
    onnx: Any = import_package("onnx", "export")
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {KEY: metadata})
    onnx.save(model, str(path))


@contextmanager
def quiet() -> Iterator[None]:
    """Context in which the exporters say nothing: what is wrong with a file is found by running it."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
