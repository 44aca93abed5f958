"""The folder of the data: a study names files without it, so that its cells are the same on every machine."""

from __future__ import annotations

from pathlib import Path

from topiarist.models import split_options


def placed(spec: str, folder: Path | None) -> str:
    """Returns the name of a data set with its relative path in a folder; other names stay as they are.

    Args:
        spec: as for `topiarist.load_data`; of ``torchvision:NAME`` the folder becomes the root.
        folder: holds the data.
    """
    name, question, tail = spec.partition("?")
    kind, _, path = name.partition(":")
    if folder is None:
        return spec
    if kind in ("npz", "folder"):
        return f"{kind}:{folder / Path(path).expanduser()}{question}{tail}"
    if kind == "torchvision" and "root" not in split_options(spec)[1]:
        return f"{spec}{'&' if question else '?'}root={folder}"
    return spec


def missing(spec: str) -> Path | None:
    """Returns the relative path that a data set names, where nothing is there; else ``None``."""
    kind, _, path = spec.partition("?")[0].partition(":")
    file = Path(path).expanduser()
    return file if kind in ("npz", "folder") and not file.is_absolute() and not file.exists() else None
