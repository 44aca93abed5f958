"""Where this package keeps what can be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path


def user_folder(name: str) -> Path:
    """Returns a folder of ``$TOPIARIST_CACHE``, else of ``topiarist`` in the user's cache folder."""
    own = os.environ.get("TOPIARIST_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(own) if own else Path(shared) / "topiarist") / name
