"""Packages that may be missing, or built for another torch."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType

import torch

from topiarist.errors import TopiaristError
from topiarist.files.sentences import one_line

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[torch.library.Library] = []  # torch forgets a schema when its Library object is collected


def import_package(name: str, extra: str) -> ModuleType:
    """Imports an optional package, torchvision and what builds on it with a remedy for mismatched builds.

    torchvision registers shape functions for two operators of its compiled part while it is imported. Where that part
    was built for another torch (a CUDA build beside a CPU build) and cannot be loaded, the operators do not exist and
    the import fails, although the models need neither. Then the two schemas are defined here, and the import is tried
    again.

    Args:
        name: the package, for example ``"torchvision"``.
        extra: the extra of topiarist that installs it.

    Raises:
        TopiaristError: the package is missing, or cannot be imported.
    """
    try:
        try:
            return importlib.import_module(name)
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            _define_missing_schemas()
            _forget("torchvision", name)
            module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise TopiaristError(
            f"the package {error.name} is not installed: run `pip install 'topiarist[{extra}]'`"
        ) from error
    except Exception as error:  # an import can fail in as many ways as there are packages
        raise TopiaristError(
            f"{name} cannot be imported ({one_line(error)}): reinstall it to match torch {torch.__version__}"
        ) from error
    warnings.warn(
        "torchvision was built for another torch: its models work, its compiled operators (such as nms) do not",
        stacklevel=2,
    )
    return module


def _define_missing_schemas() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, operator):
            library.define(schema)
    _libraries.append(library)


def _forget(*packages: str) -> None:
    """Removes half-imported packages from the list of imported ones."""
    for module in list(sys.modules):
        if module.partition(".")[0] in packages:
            del sys.modules[module]
