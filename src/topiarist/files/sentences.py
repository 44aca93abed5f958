"""What many messages share: suggestions of close names, and the first line of another library's error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggestion(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """Returns ``"did you mean A or B?"`` where known names are close, else ``otherwise`` or a choice of all names.

    Args:
        name: what was asked for.
        known: the names that there are.
        otherwise: what to say where no name is close.
    """
    names = list(known)
    close = difflib.get_close_matches(str(name)[:200], names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return otherwise or f"choose from {', '.join(names)}"


def one_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its class where it has none, at most 200 characters."""
    text = str(error).strip()
    line = text.splitlines()[0].rstrip(".: ") if text else type(error).__name__
    return line if len(line) <= 200 else line[:197] + "..."


def shown(value: object) -> str:
    """Returns a value as Python writes it, at most 120 characters; its type where it cannot be written."""
    try:
        text = repr(value)
    except Exception:  # too deep, or too many digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 120 else text[:117] + "..."
