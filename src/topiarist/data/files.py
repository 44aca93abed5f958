"""Images and labels from files: npz archives and folders of pictures, read without trusting them."""

from __future__ import annotations

import importlib
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from topiarist.errors import TopiaristError
from topiarist.files import IN_IMAGES, check_size, import_package, one_line, shortened, shown

_KEYS = ("train_x", "train_y", "test_x", "test_y")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_MOST_CHANNELS = 4  # an axis this short is taken for colours
_MOST_PIXELS = 2_000_000_000  # of all images of a folder together, which are in memory at once

Array = np.ndarray[Any, Any]
T = TypeVar("T")


def read_npz(source: str, _seed: int) -> dict[str, Tensor]:
    """Returns the arrays ``train_x``, ``train_y``, ``test_x`` and ``test_y`` of an npz file, never unpickling.

    Raises:
        TopiaristError: no such file, a damaged one, or one that does not hold these arrays.
    """
    path = Path(source).expanduser()
    if not os.path.isfile(path):  # which says no of a name that is too long, where Path.is_file raises
        raise TopiaristError(
            f"there is no file {shortened(source)}: give the path of an npz file with {', '.join(_KEYS)}"
        )
    parts = {}
    try:
        with zipfile.ZipFile(path) as archive:
            present = {name.removesuffix(".npy") for name in archive.namelist()}
            if missing := [key for key in _KEYS if key not in present]:
                raise TopiaristError(f"{source} lacks {', '.join(missing)}: store {', '.join(_KEYS)} with numpy.savez")
            size = sum(_size(archive, key) for key in _KEYS)
            check_size(size, f"the data in {source}", honest=IN_IMAGES * path.stat().st_size)
            for key in _KEYS:
                with archive.open(f"{key}.npy") as stream:
                    array = np.lib.format.read_array(stream, allow_pickle=False)
                parts[key] = (to_images if key.endswith("x") else to_labels)(source, key, array)
    except TopiaristError:
        raise
    except Exception as error:  # a damaged archive fails in many ways, and all of them mean the same
        raise TopiaristError(
            f"{source} cannot be read ({one_line(error)}): write it again with numpy.savez, numbers only"
        ) from error
    return parts


def _size(archive: zipfile.ZipFile, key: str) -> int:
    """Returns the bytes that an array takes, with its conversion, if its header says what the archive does."""
    name = f"{key}.npy"
    info = archive.getinfo(name)
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} has the unknown format version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        if stream.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"{name} is not as long as it says")
    converted = np.dtype(np.uint8 if dtype == np.uint8 else np.float32 if key.endswith("x") else np.int64)
    return info.file_size + math.prod(shape) * (0 if converted == dtype else converted.itemsize)


def read_folder(source: str, _seed: int, *, size: int | None = None) -> dict[str, Tensor]:
    """Returns the images of ``train/CLASS/`` and ``test/CLASS/``; grey where all of them are, else in colour.

    Args:
        source: the folder that holds ``train``, and ``test`` or, where that is missing, ``val``.
        size: height and width that every image is resized to; by default the first image's.

    Raises:
        TopiaristError: a folder is missing or empty, an image is damaged or no regular file, or all images together
            have more than two billion pixels.
    """
    root = Path(source).expanduser()
    if size is not None and (type(size) is not int or size < 1):
        raise TopiaristError(f"size is {shown(size)}, but must be the side of the images in pixels")
    held_out = "val" if os.path.isdir(root / "val") and not os.path.isdir(root / "test") else "test"
    listed = {split: _list_images(root / place) for split, place in (("train", "train"), ("test", held_out))}
    numbers = {label: number for number, label in enumerate(sorted({label for label, _ in listed["train"]}))}
    if unknown := sorted({label for label, _ in listed["test"]} - set(numbers)):
        raise TopiaristError(
            f"{root}/{held_out} has the class {shown(unknown[0])} that train lacks: give it training images too"
        )
    import_package("PIL", "vision")
    files = [path for entries in listed.values() for _, path in entries]
    shape = _opened(files[0])[1] if size is None else (size, size)
    _check_pixels(source, len(files), shape, "the first one's" if size is None else "the given")
    mode = "L" if all(_opened(path)[0] in ("1", "L") for path in files) else "RGB"
    parts: dict[str, Tensor] = {}
    for split, entries in listed.items():
        parts[f"{split}_x"] = to_images(source, split, np.stack([_pixels(path, mode, shape) for _, path in entries]))
        parts[f"{split}_y"] = torch.tensor([numbers[label] for label, _ in entries])
    return parts


def _check_pixels(source: str, count: int, shape: tuple[int, int], whose: str) -> None:
    """Raises before memory is taken for more pixels than a data set may have."""
    width, height = shape
    if count * width * height <= _MOST_PIXELS:
        return
    raise TopiaristError(
        f"{source}: {count:,} images of {width}x{height}, {whose} size, are {count * width * height:,} pixels, and "
        f"{_MOST_PIXELS:,} are the most: give a smaller size, as in folder:{source}?size={_largest_side(count)}"
    )


def _largest_side(count: int) -> int:
    """Returns the largest usual side with which so many images may be loaded."""
    fitting = (side for side in (224, 128, 64, 32, 16) if count * side * side <= _MOST_PIXELS)
    return next(fitting, 1)


def _list_images(folder: Path) -> list[tuple[str, Path]]:
    """Returns the class name and path of every image in the folders of ``folder``, in order."""
    if not os.path.isdir(folder):
        raise TopiaristError(f"there is no folder {shortened(folder)}: put images into train/CLASS/ and test/CLASS/")
    try:
        images = [
            (label.name, path)
            for label in sorted(folder.iterdir())
            if label.is_dir() and not label.name.startswith(".")
            for path in sorted(label.iterdir())
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
        ]
    except OSError as error:
        raise TopiaristError(f"cannot list {error.filename} ({error.strerror}): check its permissions") from error
    if odd := next((path for _, path in images if not path.is_file()), None):
        raise TopiaristError(f"{odd} is named as an image, but is no regular file: remove or rename it")
    if not images:
        raise TopiaristError(f"{folder} has no images: put {', '.join(_SUFFIXES)} files into one folder for each class")
    return images


def _opened(path: Path) -> tuple[str, tuple[int, int]]:
    """Returns mode, and width and height, of an image, without decoding it."""
    return _guarded(path, lambda image: (image.mode, image.size))


def _pixels(path: Path, mode: str, size: tuple[int, int]) -> Array:
    """Returns an image as uint8 ``(H, W)`` or ``(H, W, 3)``, resized bilinearly to ``size`` (width, height)."""
    bilinear = importlib.import_module("PIL.Image").Resampling.BILINEAR

    def decode(image: Any) -> Array:
        converted = image.convert(mode)
        return np.asarray(converted if converted.size == size else converted.resize(size, bilinear))

    return _guarded(path, decode)


def _guarded(path: Path, read: Callable[[Any], T]) -> T:
    """Returns what ``read`` makes of an image; every failure becomes one sentence."""
    try:
        with importlib.import_module("PIL.Image").open(path) as image:
            if not image.mode.startswith(("I", "F")):
                return read(image)
    except Exception as error:  # damaged images fail in as many ways as there are formats
        raise TopiaristError(f"{path} is not a readable image ({one_line(error)}): remove or replace it") from error
    raise TopiaristError(f"{path} has more than 8 bits a channel: convert it to 8 bits first")


def to_images(source: str, key: str, array: Array) -> Tensor:
    """Converts NHW, NHWC or NCHW to NCHW; uint8 stays, floats become float32.

    Raises:
        TopiaristError: another type or shape; ``source`` and ``key`` name it.
    """
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise TopiaristError(f"{source}: {key} is of type {array.dtype}: store images as uint8 or float32")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] <= _MOST_CHANNELS:
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] > _MOST_CHANNELS:
        raise TopiaristError(f"{source}: {key} has the shape {array.shape}: store images as (N, H, W) or (N, H, W, C)")
    with np.errstate(over="ignore"):  # what becomes infinite is refused later
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.uint8 if array.dtype == np.uint8 else np.float32))


def to_labels(source: str, key: str, array: Array) -> Tensor:
    """Converts whole numbers ``(N,)`` to int64.

    Raises:
        TopiaristError: another type or shape; ``source`` and ``key`` name it.
    """
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise TopiaristError(
            f"{source}: {key} is {array.dtype} of shape {array.shape}: store labels as one whole number for each image"
        )
    return torch.from_numpy(array.astype(np.int64))
