"""Files that are complete or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from glob import escape
from pathlib import Path

from topiarist.errors import TopiaristError
from topiarist.files.sentences import one_line, shortened, shown

_DRAFT = ".draft"
"""How the temporary names end."""


def writable(path: object) -> Path:
    """Checks that a file can be written, before the work for it begins; missing folders are made.

    Returns:
        The file itself, where the path leads to it by links: these stay.

    Raises:
        TopiaristError: this is not a path, something else than a file is there, or its folder cannot be written.
    """
    target = Path(os.path.realpath(as_path(path)))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(target).st_mode):
                raise OSError("what is there is not a regular file")
        with tempfile.TemporaryFile(dir=target.parent):
            return target
    except OSError as error:
        raise _unwritable(path, error) from error


def as_path(path: object) -> Path:
    """Returns a path as a caller gave it.

    Raises:
        TopiaristError: it is not a path, or one that no system takes.
    """
    try:
        given = Path(path)  # type: ignore[arg-type]
        if b"\0" in os.fsencode(given):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise TopiaristError(
            f"{shown(path)} is not a path: give the name of a file, a str or a pathlib.Path"
        ) from error
    return given


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Writes under a temporary name, then renames: a file is complete or absent, also for other processes.

    Args:
        path: the file; missing folders are made.
        write: writes the file that it is given.

    Raises:
        TopiaristError: as for `writable`, or the disk is full.
    """
    target = writable(path)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=_DRAFT)
        os.close(handle)
        try:
            write(Path(name))
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Writes a text in one step, as UTF-8; unpaired surrogates, which JSON can hold, become question marks.

    Raises:
        TopiaristError: the file cannot be written.
    """
    atomically(path, lambda draft: draft.write_text(text, encoding="utf-8", errors="replace"))


def remove_drafts(folder: Path, of: str = "") -> None:
    """Removes the temporary files that killed processes left in a folder; no other process may be writing there.

    Args:
        folder: where they are.
        of: how the names of the files begin whose drafts are removed; all by default.
    """
    for draft in folder.glob(f".{escape(of)}*.{'?' * 8}{_DRAFT}"):
        draft.unlink(missing_ok=True)


def _unwritable(path: object, error: OSError) -> TopiaristError:
    return TopiaristError(
        f"cannot write {shortened(path)}: {error.strerror or one_line(error)}; choose another file or folder"
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
