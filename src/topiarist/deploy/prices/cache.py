"""What was measured before on this machine: a file of plain numbers that can be deleted at any time."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from topiarist.errors import TopiaristError
from topiarist.files import user_folder, write_text

LARGEST = 64 << 20
"""Bytes of a file that is read."""


@dataclass(eq=False)
class Cache:
    """Holds seconds by the name of what was measured.

    Attributes:
        file: where they are kept between runs.
        values: the seconds.
        changed: whether there is something to write.
    """

    file: Path
    values: dict[str, float]
    changed: bool = False

    @staticmethod
    def open(folder: Path | None, setting: str) -> Cache:
        """Reads what was measured in one setting: a machine, a runtime with its version, a number of threads.

        A file that cannot be read, or holds something else, is measured anew.
        """
        name = re.sub(r"[^A-Za-z0-9.]+", "-", setting)[:80] + "-" + hashlib.sha256(setting.encode()).hexdigest()[:8]
        file = (folder or user_folder("latency")) / f"{name}.json"
        return Cache(file, _read(file))

    def get(self, key: str) -> float | None:
        """Returns the seconds, if they were measured."""
        return self.values.get(key)

    def put(self, key: str, seconds: float) -> None:
        """Holds the seconds."""
        self.values[key] = seconds
        self.changed = True

    def write(self) -> None:
        """Writes what is new; warns where the file cannot be written, for the numbers hold without it."""
        if not self.changed:
            return
        try:
            self.values = {**_read(self.file), **self.values}  # another process may have measured meanwhile
            write_text(self.file, json.dumps(self.values))
            self.changed = False
        except TopiaristError as error:
            warnings.warn(f"latencies are measured anew next time: {error}, or set TOPIARIST_CACHE", stacklevel=2)


def _read(file: Path) -> dict[str, float]:
    """Returns the seconds in a file, none where it is absent or holds something else."""
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        found = file.stat()
        if stat.S_ISREG(found.st_mode) and found.st_size < LARGEST:
            read = json.loads(file.read_text(encoding="utf-8"))
            return {key: value for key, value in read.items() if isinstance(value, float) and 0 < value < 1e4}
    return {}
