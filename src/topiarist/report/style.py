"""How arms look, everywhere in the report: each has a colour and a mark of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path

_MARKS = {
    "unpruned": "P",
    "pruned": "X",
    "finetune": "o",
    "scratch_e": "s",
    "scratch_b": "D",
    "lottery": "*",
    "lottery_random": "h",
    "uniform": "v",
    "guided": "^",
    "transferred": ">",
    "spare_1": "<",
    "spare_2": "p",
    "spare_3": "d",
    "spare_4": "8",
}
"""Arm → mark; each is a colour of the page too. The spare ones are for arms that are not named here."""

COLOURS = {
    name: f"#1e0a{number:02x}" for number, name in enumerate(("ink", "muted", "line", "paper", "accent", *_MARKS))
}
"""Stand-ins that matplotlib draws with; each becomes ``var(--NAME)`` in the page."""


def variable(name: str) -> str:
    """What the style sheet calls a colour: ``"scratch_b"`` → ``"scratch-b"``."""
    return name.replace("_", "-")


@dataclass(frozen=True)
class Look:
    """How an arm is shown.

    Attributes:
        name: of the colour, a key of `COLOURS`.
        mark: matplotlib's letter for it.
    """

    name: str
    mark: str

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
        told = []
        for points, code in path.iter_segments(simplify=False):
            pairs = zip(points[::2] / size, -points[1::2] / size, strict=True)
            numbers = " ".join(f"{x:.2f} {y:.2f}" for x, y in pairs)
            told.append("Z" if code == Path.CLOSEPOLY else f"{letters[code]}{numbers}")
        return "".join(told)


def looks(arms: Iterable[str]) -> dict[str, Look]:
    """Arm → how it looks; arms that are not known take spare looks in their order."""
    found: dict[str, Look] = {}
    spare = [name for name in _MARKS if name.startswith("spare_")]
    for arm in arms:
        if arm not in found:
            unknown = [each for each in found if each not in _MARKS]
            name = arm if arm in _MARKS else spare[len(unknown) % len(spare)]
            found[arm] = Look(name, _MARKS[name])
    return found
