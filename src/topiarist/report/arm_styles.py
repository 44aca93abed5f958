"""The colour and the mark of each arm, everywhere in the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path

from topiarist.studies import ARMS

SPARE = {
    "spare_1": ("<", "#1f7f86", "#62c4cb"),
    "spare_2": ("p", "#8a4bb0", "#c796e6"),
    "spare_3": ("d", "#946226", "#d3a168"),
    "spare_4": ("8", "#4f6d23", "#a5c76f"),
}
"""Mark and colours, on light and on dark paper, for arms of results that other versions wrote."""

_STYLES = {**{name: (arm.mark, *arm.colours) for name, arm in ARMS.items()}, **SPARE}

COLOURS = {
    name: f"#1e0a{number:02x}" for number, name in enumerate(("ink", "muted", "line", "paper", "accent", *_STYLES))
}
"""Stand-ins that matplotlib draws with; each becomes ``var(--NAME)`` in the page."""


def variable(name: str) -> str:
    """Returns what the style sheet calls a colour: ``"scratch_b"`` → ``"scratch-b"``."""
    return name.replace("_", "-")


@dataclass(frozen=True)
class Style:
    """How an arm is shown.

    Attributes:
        name: of the colour, a key of `COLOURS`.
        mark: matplotlib's letter for it.
        light: the colour on light paper.
        dark: the colour on dark paper.
    """

    name: str
    mark: str
    light: str
    dark: str

    @property
    def colour(self) -> str:
        """The stand-in that matplotlib draws with."""
        return COLOURS[self.name]

    @property
    def variable(self) -> str:
        """The colour's name in the style sheet, and a word that is safe in classes and ids."""
        return variable(self.name)

    @property
    def outline(self) -> str:
        """The mark as the data of an SVG path, within ±1."""
        style = MarkerStyle(self.mark)
        path = style.get_path().transformed(style.get_transform())
        size = np.abs(np.asarray(path.vertices)).max()
        letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
        segments = []
        for points, code in path.iter_segments(simplify=False):
            pairs = zip(points[::2] / size, -points[1::2] / size, strict=True)
            numbers = " ".join(f"{x:.2f} {y:.2f}" for x, y in pairs)
            segments.append("Z" if code == Path.CLOSEPOLY else f"{letters[code]}{numbers}")
        return "".join(segments)


def styles(arms: Iterable[str]) -> dict[str, Style]:
    """Returns the style of each arm; unknown ones take spare styles in their order."""
    each = list(dict.fromkeys(arms))
    unknown = [arm for arm in each if arm not in ARMS]
    names = {arm: arm if arm in ARMS else list(SPARE)[unknown.index(arm) % len(SPARE)] for arm in each}
    return {arm: Style(name, *_STYLES[name]) for arm, name in names.items()}
