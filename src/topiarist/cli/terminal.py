"""Standard output and error as they may be: closed, full, at a broken pipe, or unable to show every character."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any


class PrintError(Exception):
    """Standard output took no more: a full disk, or a reader that has left."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.reader_left = isinstance(error, BrokenPipeError)


@contextmanager
def steady_streams() -> Iterator[None]:
    """Context in which printing cannot break the work.

    Characters that a terminal does not know become question marks. What standard error does not take is left out. What
    standard output does not take raises `PrintError`, once, for results are printed after they are written.
    """
    _open_closed()
    output, error = sys.stdout, sys.stderr
    with _replacing(output), _replacing(error):
        careful: Any = _Stream(output, needed=True)
        silent: Any = _Stream(error, needed=False)
        with redirect_stdout(careful), redirect_stderr(silent):
            yield


def _open_closed() -> None:
    """Leads streams that were closed before the start nowhere; else the first files would get their numbers."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, nowhere)


@contextmanager
def _replacing(stream: Any) -> Iterator[None]:
    """Context in which a stream replaces what its encoding does not have."""
    before = getattr(stream, "errors", None)
    if not hasattr(stream, "reconfigure") or before is None:
        yield
        return
    stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        with suppress(OSError):
            stream.reconfigure(errors=before)


class _Stream:
    """Passes text on to a stream, which leads nowhere after its first failure."""

    def __init__(self, stream: Any, *, needed: bool) -> None:
        self._stream, self._needed = stream, needed

    def write(self, text: str) -> int:
        self._do(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._do(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _do(self, act: Callable[..., object], *text: str) -> None:
        try:
            act(*text)
        except OSError as error:
            with suppress(OSError):  # it may be no file; and what it holds back must not fail at the exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self._needed:
                raise PrintError(error) from error
