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
from topiarist.files import as_path, one_line, read_json, shown
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
    if getattr(config, "use_pretrained_backbone", False):  # which releases before version 5 fetch, to overwrite it then
        config.use_pretrained_backbone = False
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
    if report["unexpected_keys"]:
        name = min(map(str, report["unexpected_keys"]))
        raise TopiaristError(
            f"{folder} has weights {shown(name)} that its configuration has no place for: write it again with "
            "save_pretrained() of topiarist.integrations.huggingface"
        )
    return model.eval()


def _load_shaped(kind: Any, config: Any, folder: Path) -> Any:
    """Loads a folder with an architecture, whose corrections are those of the code that was traced."""
    written, installed = config.transformers_version, transformers().__version__
    try:
        model = _pruned(kind, config, folder / PRUNED)
    except TopiaristError as error:
        if written == installed:
            raise
        raise TopiaristError(
            f"{folder} was written with transformers {written}, whose code is not that of {installed} "
            f"({one_line(error)}): install transformers=={written}, or save the model again with the new one"
        ) from error
    if written != installed:
        warnings.warn(
            f"{folder} was written with transformers {written}: compare its outputs before you use it with {installed}",
            stacklevel=3,
        )
    if (folder / GENERATION_FILE).is_file():
        generation = transformers().GenerationConfig
        try:
            model.generation_config = generation.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # it is refused in many ways
            raise unreadable(folder / GENERATION_FILE, error) from error
    return model


def _pruned(kind: Any, config: Any, folder: Path) -> Any:
    """Returns the model with the architecture and the weights in a folder."""
    architecture = Architecture.load(folder / SHAPE_FILE)
    try:
        network = built(config, kind, device="meta")
    except Exception as error:  # numbers that do not go together
        raise unreadable(folder.parent / CONFIG_FILE, error) from error
    check_shapes(network, architecture.shapes)
    return load(partial(_unpruned, kind, config, folder / WEIGHTS_FILE), folder).eval()


def _unpruned(kind: Any, config: Any, weights: Path) -> nn.Module:
    """Returns a network of the old shape, whose tensors have the types of those in a file."""
    types = _types(weights)
    first = next((each for each in types.values() if each.is_floating_point), torch.float32)
    model: nn.Module = built(config, kind, first)
    for name, tensor in model.state_dict(keep_vars=True).items():
        kind = types.get(name, tensor.dtype)
        if kind.is_floating_point != tensor.dtype.is_floating_point:
            raise unreadable(weights, TypeError(f"{name} is of {kind}"))
        tensor.data = tensor.data.to(kind)
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
