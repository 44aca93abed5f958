"""Files of tensors (safetensors) with a checksum of all their bytes, so that a changed bit is noticed.

The checksum is an entry of the file's metadata: the SHA-256 of the file in which its own digits are zeros.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from topiarist.errors import TopiaristError
from topiarist.files.atomic import atomically
from topiarist.files.sentences import one_line

T = TypeVar("T")

_KEY, _KIND, _DIGITS = "topiarist.checksum", "topiarist-sha256:", 64
_EMPTY = {_KEY: _KIND + _DIGITS * "0"}
_ENTRY = re.compile(rf'"{re.escape(_KEY)}":"{_KIND}([0-9a-f]{{{_DIGITS}}})"'.encode())
_TRACES = (b"topiarist.ch", b"st.checksum", b"topiarist-sha", b"st-sha256:")
"""A changed bit leaves some of them whole, and so do a few, so that they cannot make the checksum disappear."""
_LONGEST = 100_000_000
"""Bytes of a header, at most, as safetensors has it."""


def write_safetensors(path: Path, save: Callable[[str, dict[str, str]], object]) -> None:
    """Writes a file of tensors with a checksum, in one step.

    Args:
        path: the file; missing folders are made.
        save: writes it, given a name and metadata: `safetensors.torch.save_file` or ``save_model`` of some tensors.

    Raises:
        TopiaristError: the file cannot be written.
    """

    def write(draft: Path) -> None:
        try:
            save(str(draft), dict(_EMPTY))
        except SafetensorError as error:  # a full disk, as a rule
            raise OSError(str(error)) from error
        _seal(draft)

    atomically(path, write)


def read_safetensors(path: Path, load: Callable[[str], T], remedy: str) -> T:
    """Returns what ``load`` reads of a file of tensors whose checksum is right; a file without one gives a warning.

    Args:
        path: the file.
        load: reads it, given its name: `safetensors.torch.load_file`, or ``load_model`` into some model.
        remedy: what to do where the file is damaged.

    Raises:
        TopiaristError: there is no such file, or it is damaged.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError
        sealed = _is_sealed(path)
        value = load(str(path))
    except FileNotFoundError as error:
        raise TopiaristError(f"there is no {path}; {remedy}") from error
    except (SafetensorError, OSError, ValueError) as error:
        reason = one_line(error)
        raise TopiaristError(f"{path} is damaged, truncated or no safetensors file ({reason}); {remedy}") from error
    if not sealed:
        warnings.warn(
            f"{path} has no checksum, so that changed bits in it are not noticed: load it, and write it again with "
            "topiarist.architecture.write_tensors(model, path)",
            stacklevel=3,
        )
    return value


def _seal(path: Path) -> None:
    """Puts the checksum of a file into the place that its metadata has for it."""
    _, header = _header(path)
    entry = _ENTRY.search(header)
    assert entry is not None, "safetensors writes metadata as it is given"
    digits = _checksum(path, entry.start(1)).encode()
    with path.open("r+b") as file:
        file.seek(8 + entry.start(1))
        file.write(digits)


def _is_sealed(path: Path) -> bool:
    """Returns whether a file has a checksum.

    Raises:
        ValueError: it is not that of the file.
    """
    length, header = _header(path)
    entries = list(_ENTRY.finditer(header))
    if not entries and not any(trace in header for trace in _TRACES):
        return False
    if len(entries) != 1 or length != len(header):
        raise ValueError("its checksum is damaged")
    if _checksum(path, entries[0].start(1)).encode() != entries[0][1]:
        raise ValueError("its checksum is wrong")
    return True


def _header(path: Path) -> tuple[int, bytes]:
    """Returns the length that a file's header should have, and the header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return length, file.read(min(length, _LONGEST))


def _checksum(path: Path, place: int) -> str:
    """Returns the SHA-256 of a file, with zeros at a place of the header, where its own digits are."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(8 + place))
        file.seek(_DIGITS, 1)
        digest.update(_DIGITS * b"0")
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
