"""One study at several scales: what is run in minutes, on a laptop, or on a GPU as in the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from topiarist.errors import TopiaristError

PAPER = "paper"
"""The scale at which published numbers were measured; all others are told to be smaller."""


def at_scale(settings: Mapping[str, Any], scale: str | None = None) -> dict[str, Any]:
    """The settings of a study at one of its scales.

    ``scales`` maps names to keys that take the place of the study's own; ``scale`` names the one that is taken where
    none is asked for, else it is the first. Below the paper's scale a ``note`` says so.

    Args:
        settings: plain values, as in a YAML file; without ``scales`` they are returned as they are.
        scale: the scale that is asked for.

    Raises:
        TopiaristError: there is no such scale, or ``scales`` is no mapping of names to keys.
    """
    rest = {key: value for key, value in settings.items() if key not in ("scale", "scales")}
    scales = settings.get("scales")
    if scales is None:
        if scale is not None or "scale" in settings:
            raise TopiaristError("This study has no scales: leave the scale out, or add the key 'scales'.")
        return rest
    if not isinstance(scales, Mapping) or not scales or not all(map(_named, scales.items())):
        raise TopiaristError("The key 'scales' maps names to keys of the study, as in {mini: {seeds: 2}}: write it so.")
    name = settings.get("scale", next(iter(scales))) if scale is None else scale
    if not isinstance(name, str) or name not in scales:
        raise TopiaristError(f"There is no scale {name!r}: this study has {', '.join(map(str, scales))}.")
    found = {**rest, **scales[name]}
    if name != PAPER:
        found.setdefault("note", _note(name))
    return found


def _named(scale: tuple[Any, Any]) -> bool:
    return isinstance(scale[0], str) and isinstance(scale[1], Mapping)


def _note(name: str) -> str:
    return (
        f"This is the scale {name}: smaller networks, data and recipes than the paper's. The published numbers beside "
        "ours are of the paper's scale, so compare how the arms differ, not how high they are."
    )
