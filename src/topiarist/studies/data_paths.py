"""Where data lies: a study names files without saying where they are, so that its cells are the same everywhere."""

from __future__ import annotations

from pathlib import Path

from topiarist.models import split_options


def placed(spec: str, folder: Path | None) -> str:
    """The name of a data set whose relative path begins in a folder; others stay as they are.

    Args:
        spec: as for `topiarist.load_data`; of ``torchvision:NAME`` the folder becomes the root.
        folder: holds the data.
    """
    name, question, tail = spec.partition("?")
    kind, _, place = name.partition(":")
    if folder is None:
        return spec
    if kind in ("npz", "folder"):
        return f"{kind}:{folder / Path(place).expanduser()}{question}{tail}"
    if kind == "torchvision" and "root" not in split_options(spec)[1]:
        return f"{spec}{'&' if question else '?'}root={folder}"
    return spec


def missing(spec: str) -> Path | None:
    """The relative path that a data set names and that is not there; none where it is, or names no such path."""
    kind, _, place = spec.partition("?")[0].partition(":")
    path = Path(place).expanduser()
    return path if kind in ("npz", "folder") and not path.is_absolute() and not path.exists() else None
