"""Loading: the class by its name in transformers, the weights from safetensors, and nothing else."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from topiarist.architecture import SHAPE_FILE, WEIGHTS_FILE, Architecture, load
from topiarist.errors import TopiaristError
from topiarist.files import as_path, read_json, shown
from topiarist.integrations.huggingface.folders import CONFIG_FILE, GENERATION_FILE, PRUNED, is_shaped, unreadable
from topiarist.integrations.huggingface.library import built, class_named, transformers
from topiarist.surgery import check_shapes


def from_pretrained(folder: str | os.PathLike[str]) -> Any:
    """Loads a folder that `save_pretrained` wrote, of either kind, in evaluation mode.

    The class is the one that the configuration names, of transformers itself. Nothing is fetched, no code in the folder
    is run, and no weight is drawn: a tensor that is missing or of another shape is an error.

    Args:
        folder: on this machine.

    Returns:
        The model, a `transformers.PreTrainedModel`, with its generation configuration.

    Raises:
        TopiaristError: a file is missing or damaged, or transformers has no such class.
    """
    path = as_path(folder)
    values = read_json(path / CONFIG_FILE, "the configuration", "give a folder that save_pretrained() wrote")
    kind = _named_class(values, path)
    try:
        config = kind.config_class.from_pretrained(path, local_files_only=True)
    except Exception as error:  # a configuration is refused in many ways
        raise unreadable(path / CONFIG_FILE, error) from error
    return (_load_shaped if is_shaped(path) else load_plain)(kind, config, path)


def load_plain(kind: Any, config: Any, folder: Path) -> Any:
    """Loads a folder as transformers does, and refuses it where a weight would be drawn."""
    try:
        model, report = kind.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True, dtype="auto", output_loading_info=True
        )
    except Exception as error:  # transformers and safetensors raise anything
        raise unreadable(folder, error) from error
    if lacking := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise TopiaristError(
            f"{folder} has no weights that fit {lacking[0]}: write it again with save_pretrained() of "
            "topiarist.integrations.huggingface"
        )
    return model.eval()


def _load_shaped(kind: Any, config: Any, folder: Path) -> Any:
    library = transformers()
    if (version := config.transformers_version) != library.__version__:
        warnings.warn(
            f"{folder} was written with transformers {version}, whose code was corrected for the pruned sizes: compare "
            f"the outputs before you use it with {library.__version__}",
            stacklevel=3,
        )
    inner = folder / PRUNED
    architecture = Architecture.load(inner / SHAPE_FILE)
    try:
        network = built(config, kind, device="meta")
    except Exception as error:  # numbers that do not go together
        raise unreadable(folder / CONFIG_FILE, error) from error
    check_shapes(network, architecture.shapes)
    model = load(partial(_unpruned, kind, config, inner / WEIGHTS_FILE), inner).eval()
    if (folder / GENERATION_FILE).is_file():
        model.generation_config = library.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def _unpruned(kind: Any, config: Any, weights: Path) -> nn.Module:
    """Returns a network of the old shape, whose tensors have the types of those in a file."""
    types = _types(weights)
    first = next((each for each in types.values() if each.is_floating_point), torch.float32)
    model: nn.Module = built(config, kind, first)
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to(types.get(name, tensor.dtype))
    return model


def _types(weights: Path) -> dict[str, torch.dtype]:
    """Returns the types of the tensors in a file; none where it cannot be read, which `load` will say."""
    try:
        with safe_open(weights, "pt") as tensors:
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {n: (p[:0] if p.get_shape() else tensors.get_tensor(n)).dtype for n, p in parts.items()}
    except (SafetensorError, OSError):
        return {}


def _named_class(values: object, folder: Path) -> Any:
    """Returns the class of transformers that a configuration names."""
    names = values.get("architectures") if isinstance(values, dict) else None
    if not isinstance(names, list) or not names:
        raise TopiaristError(
            f"{folder / CONFIG_FILE} names no class under architectures: give a folder that save_pretrained() wrote"
        )
    for place, kernel in _implementations(values):
        if not kernel.isidentifier():
            raise TopiaristError(f"{folder / CONFIG_FILE} asks for code of others ({place} {shown(kernel)}): remove it")
    kind = class_named(names[0])
    if kind is None:
        raise TopiaristError(
            f"{folder / CONFIG_FILE} names {shown(names[0])}, which is no model of transformers "
            f"{transformers().__version__}: install the version that wrote it, or correct the name"
        )
    return kind


def _implementations(values: object) -> Iterator[tuple[str, str]]:
    """Yields the names of implementations in a configuration, which could be those of code elsewhere."""
    for key, value in values.items() if isinstance(values, dict) else ():
        yield from _implementations(value)
        if "_implementation" in str(key) and isinstance(value, str):
            yield key, value
