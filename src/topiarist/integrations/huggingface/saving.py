"""Saving: what transformers writes, where that is enough, and the architecture beside it where it is not."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from topiarist.architecture import WEIGHTS_FILE, Architecture, save
from topiarist.errors import TopiaristError
from topiarist.files import as_path, one_line, read_json, shown, writable, write_json, write_text
from topiarist.graph import Inputs, named_tensors
from topiarist.integrations.huggingface.folders import CONFIG_FILE, INDEX_FILE, PRUNED, SIGNPOST
from topiarist.integrations.huggingface.library import checked, quietly
from topiarist.integrations.huggingface.loading import load_plain
from topiarist.integrations.huggingface.solving import Values
from topiarist.integrations.huggingface.stating import implementations, stated_by_configuration, with_weights
from topiarist.pruning import Pruned

CARD = """This model was pruned by Topiarist. Its layers have widths that config.json cannot state, so it is loaded with

    from topiarist.integrations import huggingface
    model = huggingface.from_pretrained("FOLDER")
"""


@dataclass(frozen=True)
class Saved:
    """Says how a model was saved.

    Attributes:
        folder: where.
        plain: whether the configuration states the shape, so that transformers loads the folder by itself.
        numbers: of the configuration that changed, with their new values; a dot leads into a part of it.
        reason: why the configuration does not suffice; empty where it does.
    """

    folder: Path
    plain: bool
    numbers: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""

    def __str__(self) -> str:
        if not self.plain:
            return f"{SIGNPOST}: the configuration cannot state the shape ({self.reason})"
        changed = ", ".join(f"{name} {value}" for name, value in self.numbers.items()) or "nothing changed"
        return f"transformers loads {self.folder} by itself: {changed} in its configuration"


def save_pretrained(
    model: Pruned | nn.Module,
    folder: str | os.PathLike[str],
    *,
    architecture: Architecture | None = None,
    inputs: Inputs | None = None,
) -> Saved:
    """Writes a pruned model of transformers into a folder, so that it loads again with all its weights.

    Numbers of the configuration that give every tensor its shape are looked for by building networks. They are believed
    if the network that they give computes what the pruned one does, on example inputs. Then transformers loads the
    folder. Else the architecture is written as well, and `from_pretrained` of this module loads the folder. Other files
    there, such as a tokenizer's, stay as they are.

    Args:
        model: what `topiarist.prune` returned, or the pruned model.
        folder: it is made where there is none.
        architecture: the model's shape; that of a result by default.
        inputs: example inputs of the network; those of a result by default. Without them a configuration is believed
            only if no number in the network's modules speaks against it.

    Returns:
        Which of both it is, and why.

    Raises:
        TopiaristError: the model is none of transformers, the folder cannot be written, or the configuration does not
            suffice and no architecture is given.
    """
    if isinstance(model, Pruned):
        architecture = model.architecture if architecture is None else architecture
        inputs = model.inputs if inputs is None else inputs
        model = model.model
    model = network = checked(model)
    if any(tensor.is_meta for tensor in named_tensors(network).values()):
        raise TopiaristError("the model has no values (meta parameters): load its weights first")
    if architecture is not None and not isinstance(architecture, Architecture):
        raise TopiaristError(f"architecture must be that of a result, but got {shown(architecture)}: leave it out")
    target = as_path(folder)
    writable(target / CONFIG_FILE)
    with quietly():
        values, reason = stated_by_configuration(model, inputs)
    with _drafts(target) as draft:
        if values is not None and not _write_plain(model, values, draft / "plain"):
            values, reason = None, "transformers does not read back what it writes for this model"
        if values is not None:
            _install(draft / "plain", target)
        elif architecture is not None:
            _write_shaped(model, architecture, draft / "shaped")
            _install(draft / "shaped", target)
        else:
            raise TopiaristError(
                f"the configuration cannot state the shape of this model ({reason}): give what prune() returned, or "
                "its architecture= and inputs="
            )
    numbers = {".".join(map(str, path)): value for path, value in (values or {}).items()}
    return Saved(target, values is not None, numbers, reason)


@contextmanager
def _drafts(folder: Path) -> Iterator[Path]:
    """Makes a folder for what is being written, within the one that it is for."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving.") as draft, quietly():
            yield Path(draft)
    except (OSError, SafetensorError) as error:  # the latter for a full disk, as a rule
        raise TopiaristError(f"cannot write into {folder} ({one_line(error)}): choose another folder") from error


def _write_plain(model: Any, values: Values, folder: Path) -> bool:
    """Writes what transformers does, and returns whether it reads the same: it may rename and convert tensors."""
    with_weights(model, values).save_pretrained(folder)
    config = type(model.config).from_pretrained(folder)
    again = load_plain(type(model), config, folder).to(model.device).state_dict()
    return all(
        name in again and again[name].dtype == tensor.dtype and torch.equal(again[name], tensor)
        for name, tensor in model.state_dict().items()
    )


def _write_shaped(model: Any, architecture: Architecture, folder: Path) -> None:
    """Writes the original configuration, weights and architecture, and the sign for transformers."""
    save(model, architecture, folder / PRUNED)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.save_pretrained(folder)
    values = read_json(folder / CONFIG_FILE, "the configuration", "write it again")
    write_json(folder / CONFIG_FILE, {**values, **implementations(config)})
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    write_json(folder / INDEX_FILE, {"metadata": {}, "weight_map": dict.fromkeys(model.state_dict(), SIGNPOST)})
    write_text(folder / "README.md", CARD)


def _install(draft: Path, folder: Path) -> None:
    """Moves files into a folder, weights last; a process that dies on the way leaves a folder without weights."""
    for old in (folder / WEIGHTS_FILE, folder / INDEX_FILE, *folder.glob("model-*-of-*.safetensors")):
        old.unlink(missing_ok=True)
    if (folder / PRUNED).is_dir():
        shutil.rmtree(folder / PRUNED)
    for new in sorted(draft.iterdir(), key=lambda path: path.name.startswith("model") or path.is_dir()):
        if new.name != "README.md" or not (folder / new.name).exists():
            os.replace(new, folder / new.name)
