"""What is in a folder: names of files, and the sign for transformers."""

from __future__ import annotations

from pathlib import Path

from topiarist.architecture import WEIGHTS_FILE
from topiarist.errors import TopiaristError
from topiarist.files import one_line

CONFIG_FILE, GENERATION_FILE, INDEX_FILE = "config.json", "generation_config.json", "model.safetensors.index.json"

PRUNED = "pruned"
"""The folder within the folder, which holds weights and architecture where the configuration does not suffice."""

SIGNPOST = "load this folder with topiarist.integrations.huggingface.from_pretrained"
"""Where transformers looks for the weights of such a folder: no such file exists, so that its error says this."""


def is_shaped(folder: Path) -> bool:
    """Returns whether transformers would meet the sign in a folder."""
    index = folder / INDEX_FILE
    return index.is_file() and not (folder / WEIGHTS_FILE).is_file() and SIGNPOST in index.read_text("utf-8", "replace")


def unreadable(path: Path, error: Exception) -> TopiaristError:
    """Returns the error for a file or folder that cannot be loaded."""
    return TopiaristError(
        f"{path} cannot be loaded ({one_line(error)}): give a folder that save_pretrained() of "
        "topiarist.integrations.huggingface wrote"
    )
