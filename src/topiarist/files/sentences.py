"""What many messages share: suggestions of close names, lists, and the first line of another library's error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence


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


def listed(names: Sequence[str], most: int = 3) -> str:
    """Returns ``"a, b, c and 4 more"``: the first names, and how many others there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its class where it has none, at most 200 characters."""
    text = str(error).strip()
    return shortened(text.splitlines()[0].rstrip(".: ") if text else type(error).__name__)


def shortened(text: object) -> str:
    """Returns a text, or a path, at most 200 characters of it."""
    line = str(text)
    return line if len(line) <= 200 else line[:197] + "..."


def shown(value: object) -> str:
    """Returns a value as Python writes it, at most 120 characters; its type where it cannot be written."""
    text = ""
    try:
        for piece in _pieces(value):
            text += piece.replace("\n", " ")
            if len(text) > 120:
                return text[:117] + "..."
    except Exception:  # too deep, or too many digits
        return f"a value of type {type(value).__name__}"
    return text


def _pieces(value: object) -> Iterator[str]:
    """Yields what Python writes for a value in pieces: one that refers to itself many times has no end of them."""
    if type(value) is dict:
        yield "{"
        for at, (key, each) in enumerate(value.items()):
            yield f"{', ' if at else ''}{key!r}: "
            yield from _pieces(each)
        yield "}"
    elif isinstance(value, list | tuple) and type(value) in (list, tuple):  # others write themselves in their own way
        first, last = "[]" if isinstance(value, list) else "()"
        yield first
        for at, each in enumerate(value):
            yield ", " if at else ""
            yield from _pieces(each)
        yield ("," if isinstance(value, tuple) and len(value) == 1 else "") + last
    else:
        yield repr(value)
