"""Formats numbers and names for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

DASH = "–"


def printable(text: str) -> str:
    """Returns a text without what no file of text can hold: control characters and unpaired surrogates become ``�``."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "�", text)


def count(value: float | None) -> str:
    """Formats a count with three digits and a unit prefix: ``1234567`` → ``"1.23 M"``."""
    if value is None:
        return DASH
    for size, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{prefix}" if value < 999.5 * size else f"{value / size:.0f}{prefix}"
    return f"{value:.3g}"


def size(value: float | None) -> str:
    """Formats bytes with three digits: ``45678`` → ``"45.7 kB"``."""
    if value is None:
        return DASH
    text = count(value)
    return f"{text}B" if " " in text else f"{text} B"


def percent(fraction: float | None) -> str:
    """Formats a fraction as per cent: ``0.4987`` → ``"50 %"``, ``0.054`` → ``"5.4 %"``."""
    if fraction is None:
        return DASH
    return f"{100 * fraction:.0f} %" if fraction >= 0.0995 else f"{100 * fraction:.1f} %"


def milliseconds(value: float | None) -> str:
    """Formats milliseconds, two digits after the point below ten, three below a tenth: ``0.5478`` → ``"0.55 ms"``."""
    return DASH if value is None else f"{_digits(value, value)} ms"


def latency(reading: Mapping[str, Any] | None, value: float | None) -> str:
    """Formats a median in milliseconds, ± half its interval: ``"0.51 ± 0.02 ms"``.

    Args:
        reading: its ``low`` and ``high``, where they are known.
        value: the median.
    """
    if value is None or reading is None or reading.get("low") is None or reading.get("high") is None:
        return milliseconds(value)
    return f"{_digits(value, value)} ± {_digits((reading['high'] - reading['low']) / 2, value)} ms"


def _digits(value: float, scale: float) -> str:
    """Formats a number with as many digits after the point as one of this scale has."""
    places = 3 if scale < 0.0995 else 2 if scale < 9.995 else 1 if scale < 99.95 else 0
    return f"{value:.{places}f}"


def first_reading(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the latency of a row on the study's first target; older results have none but its median."""
    return next(iter((row.get("latency") or {}).values()), None)


def accuracy(summary: Mapping[str, Any]) -> str:
    """Formats mean ± standard deviation of an accuracy in per cent."""
    if summary["mean"] is None:
        return DASH
    return f"{summary['mean']:.2f}" + ("" if summary["std"] is None else f" ± {summary['std']:.2f}")


def times(size: str) -> str:
    """Formats the size of a kernel or a feature map: ``"3x3"`` → ``"3×3"``."""
    return size.replace("x", "×")


def shortened(name: str, most: int = 18) -> str:
    """Returns the end of a long name, where layers differ: ``"features.block1.conv1"`` → ``"…ures.block1.conv1"``."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def distinct(names: Sequence[str]) -> list[str]:
    """Returns dotted names without what all have in common at their ends: ``a.0.conv``, ``a.1.conv`` → ``0``, ``1``."""
    parts = [name.split(".") for name in names]
    for end in (0, -1):
        while len(parts) > 1 and all(len(each) > 1 and each[end] == parts[0][end] for each in parts):
            parts = [each[1:] if end == 0 else each[:-1] for each in parts]
    return [".".join(each) for each in parts]


def interval(low: float | None, high: float | None) -> str:
    """Formats both ends of an interval of differences: ``"−0.42 to +0.15"``."""
    return DASH if low is None or high is None else f"{signed(low)} to {signed(high)}"


def signed(value: float) -> str:
    """Formats a difference with its sign: ``-0.4`` → ``"−0.40"``."""
    return f"{value:+.2f}".replace("-", "−")


def unbroken(text: str) -> Markup:
    """Returns a sentence for the page that breaks no line within ``95 %``, ``n = 3``, ``3 seeds`` or ``Scratch-B``."""
    joined = re.sub(r"(?<=\d) (?=%|points|seeds)|(?<=n) (?==)|(?<==) ", "\u00a0", str(escape(text)))
    return Markup(re.sub(r"Scratch-[BE]", r'<span class="unbroken">\g<0></span>', joined))
