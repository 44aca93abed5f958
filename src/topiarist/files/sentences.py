"""What many messages have in common: names that come close, and the first line of somebody else's error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def close_matches(name: str, known: Iterable[str]) -> str:
    """``"did you mean A or B?"`` where names come close, else an empty string."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else ""


def one_line(error: BaseException) -> str:
    """The first line of an exception's message, or its class where it has none; short enough for a sentence."""
    text = str(error).strip()
    line = text.splitlines()[0].rstrip(".: ") if text else type(error).__name__
    return line if len(line) <= 200 else line[:197] + "..."
