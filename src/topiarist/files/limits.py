"""What reading a file may cost, whoever wrote it: totals, counted before memory is taken.

A reader may take ``allowance()`` bytes beyond what the network itself needs or the file honestly holds. How much a file
can honestly hold follows from its own size, by the factors below; the work is in proportion to the bytes, so that the
limit on memory is also one on time (10 s on one core).
"""

from __future__ import annotations

import os

from topiarist.errors import TopiaristError

ALLOWANCE = 256 << 20
"""Bytes that reading a file may take beyond what it honestly holds."""
VARIABLE = "TOPIARIST_READ_BYTES"
"""The environment variable that gives another allowance."""

IN_WEIGHTS, IN_IMAGES = 512, 16
"""Bytes that a byte of a file can honestly stand for: of compressed weights and masks, and of compressed images."""

_VALUE, _CHARACTER = 80, 4
"""Bytes that a value and a character of JSON take at most."""


def allowance() -> int:
    """Returns the bytes that reading a file may take beyond what it honestly holds.

    Raises:
        TopiaristError: the environment variable is no whole number.
    """
    given = os.environ.get(VARIABLE, "")
    if given and not (given.isascii() and given.isdigit() and len(given) < 20):
        raise TopiaristError(f"{VARIABLE} is {given[:100]!r}, but must be a number of bytes: correct it, or unset it")
    return int(given) if given else ALLOWANCE


def check_size(size: int, what: str, honest: int = 0) -> None:
    """Checks what reading will take, before it is taken.

    Args:
        size: bytes that it takes in total.
        what: what messages call the file.
        honest: bytes that the file can honestly hold.

    Raises:
        TopiaristError: that is more than the allowance and what is honest.
    """
    most = allowance() + honest
    if size > most:
        raise TopiaristError(
            f"{what} would take {size:,} bytes of memory, and no more than {most:,} may be taken: if you trust it, set "
            f"the environment variable {VARIABLE}={size}"
        )


def json_size(text: str) -> int:
    """Returns the bytes that the values of a JSON text take at most."""
    return _CHARACTER * len(text) + _VALUE * sum(map(text.count, ",:[{"))
