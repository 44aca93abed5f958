"""Locks on folders and files, so that two runs never mix what they write; the system undoes them with the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from topiarist.errors import TopiaristError


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Locks a file or folder that exists for this process alone; waits for another process that has locked it."""
    with _lock(path, wait=True):
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder that exists for this run alone; the system unlocks it however the process ends.

    Where a system has no such locks, as some shared file systems, nothing is locked.

    Raises:
        TopiaristError: another run has locked it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(_lock(folder, wait=False))
        except BlockingIOError as error:
            raise _in_use(folder, "folder") from error
        yield


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Locks a file that is to be written, by a hidden one beside it: the folder stays free for other files.

    Raises:
        TopiaristError: another run has locked it.
    """
    beside = path.with_name(f".{path.name}.lock")
    with ExitStack() as stack:
        try:
            beside.touch()
            handle = stack.enter_context(_lock(beside, wait=False))
            if not os.path.samestat(os.fstat(handle), beside.stat()):  # the run before removed it at this moment
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError) as error:
            raise _in_use(path, "file") from error
        stack.callback(beside.unlink, missing_ok=True)  # still locked then
        yield


@contextmanager
def _lock(path: Path, *, wait: bool) -> Iterator[int]:
    """Locks a file or folder and yields its handle.

    Raises:
        BlockingIOError: another process has locked it, and ``wait`` is off.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except (ImportError, OSError):  # no such locks on this system: the user has to avoid two runs at once
            pass
        yield handle
    finally:
        os.close(handle)


def _in_use(path: Path, what: str) -> TopiaristError:
    return TopiaristError(f"another run is using {path}: wait until it ends, or choose another {what}")
