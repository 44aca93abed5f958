"""Fetches the images that the benchmarks and the `cpu` scale of the ready studies read: one npz file for each set.

    python benchmarks/fetch.py FOLDER [mnist fashion_mnist emnist_letters cifar10]

Needs torchvision and a network; the originals stay in FOLDER/originals. Each file has the arrays ``train_x``,
``train_y``, ``test_x``, ``test_y``: bytes ``(images, height, width)`` or ``(images, height, width, 3)``, and labels
from 0 on. A file that is there is left as it is.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from topiarist.files import atomically
from topiarist.models import import_torchvision

import_torchvision()
from torchvision import datasets  # noqa: E402  (after a mismatched build was made to import)

SETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mnist": (datasets.MNIST, {}),
    "fashion_mnist": (datasets.FashionMNIST, {}),
    "emnist_letters": (datasets.EMNIST, {"split": "letters"}),
    "cifar10": (datasets.CIFAR10, {}),
}


def arrays(name: str, originals: Path) -> dict[str, Any]:
    """Both splits as plain arrays; the letters, which lie on their side and count from 1, as all others."""
    kind, options = SETS[name]
    found = {}
    for split in ("train", "test"):
        stored = kind(root=str(originals), train=split == "train", download=True, **options)
        x, y = np.asarray(stored.data), np.asarray(stored.targets)
        if name == "emnist_letters":
            x, y = x.transpose(0, 2, 1), y - 1
        found |= {f"{split}_x": x, f"{split}_y": y.astype(np.uint8)}
    return found


def store(parts: dict[str, Any], file: Path) -> None:
    with file.open("wb") as stream:
        np.savez_compressed(stream, **parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of {', '.join(SETS)}; all by default")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in SETS]:
        parser.error(f"no set is called {', '.join(unknown)}: choose from {', '.join(SETS)}")
    asked.folder.mkdir(parents=True, exist_ok=True)
    for name in asked.names or SETS:
        file = asked.folder / f"{name}.npz"
        if file.exists():
            print(f"{file} is there")
            continue
        parts = arrays(name, asked.folder / "originals")
        atomically(file, partial(store, parts))
        print(f"{file} written")


if __name__ == "__main__":
    main()
