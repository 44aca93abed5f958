"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DASH = "–"


def count(value: float | None) -> str:
    """A count with three digits and a unit prefix: ``1234567`` → ``"1.23 M"``."""
    if value is None:
        return DASH
    for size, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{prefix}" if value < 999.5 * size else f"{value / size:.0f}{prefix}"
    return f"{value:.3g}"


def size(value: float | None) -> str:
    """Bytes with three digits: ``45678`` → ``"45.7 kB"``."""
    if value is None:
        return DASH
    told = count(value)
    return f"{told}B" if " " in told else f"{told} B"


def percent(fraction: float | None) -> str:
    """A fraction as per cent: ``0.4987`` → ``"50 %"``, ``0.054`` → ``"5.4 %"``."""
    if fraction is None:
        return DASH
    return f"{100 * fraction:.0f} %" if fraction >= 0.0995 else f"{100 * fraction:.1f} %"


def milliseconds(value: float | None) -> str:
    """Milliseconds, two digits after the point below ten: ``0.5478`` → ``"0.55 ms"``."""
    if value is None:
        return DASH
    return f"{value:.2f} ms" if value < 9.995 else f"{value:.3g} ms" if value < 999.5 else f"{value:.0f} ms"


def accuracy(summary: Mapping[str, Any]) -> str:
    """Mean ± standard deviation of an accuracy in per cent."""
    if summary["mean"] is None:
        return DASH
    return f"{summary['mean']:.2f}" + ("" if summary["std"] is None else f" ± {summary['std']:.2f}")
