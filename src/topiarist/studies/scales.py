"""One study at several scales: run in minutes, on a laptop, or on a GPU as in the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.studies.cells import Json

PAPER = "paper"
"""The scale at which published numbers were measured; a note says of all others that they are smaller."""


def at_scale(settings: Json, scale: str | None = None) -> dict[str, Any]:
    """Returns the settings of a study at one of its scales.

    ``scales`` maps names to keys that replace the study's own; ``scale`` names the default, else it is the first.
    Below the paper's scale a ``note`` says so.

    Args:
        settings: plain values, as in a YAML file; without ``scales`` they are returned as they are.
        scale: the scale, where not the default.

    Raises:
        TopiaristError: there is no such scale, or ``scales`` is no mapping of names to keys.
    """
    if not isinstance(settings, Mapping):
        raise TopiaristError(
            f"a study is a mapping of keys to values, but got {shown(settings)}; see studies/README.md"
        )
    own = {key: value for key, value in settings.items() if key not in ("scale", "scales")}
    scales = settings.get("scales")
    if scales is None:
        if scale is not None or "scale" in settings:
            raise TopiaristError("this study has no scales; leave the scale out, or add the key 'scales'")
        return own
    if not isinstance(scales, Mapping) or not scales or not all(map(_is_scale, scales.items())):
        raise TopiaristError("the key 'scales' maps names to keys of the study; write it as in {mini: {seeds: 2}}")
    name = settings.get("scale", next(iter(scales))) if scale is None else scale
    if not isinstance(name, str) or name not in scales:
        raise TopiaristError(f"there is no scale {shown(name)}; this study has {', '.join(map(str, scales))}")
    chosen = {**own, **scales[name]}
    if name != PAPER:
        chosen.setdefault("note", _note(name))
    return chosen


def _is_scale(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Mapping)


def _note(name: str) -> str:
    return (
        f"Scale {name}: smaller networks, data and recipes than the paper's. The published numbers beside ours are of "
        "the paper's scale: compare the differences between arms, not the accuracies."
    )
