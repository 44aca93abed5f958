"""Data by name: ``digits``, ``npz:PATH``, ``folder:PATH`` and ``torchvision:NAME``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from topiarist.data.dataset import Data, stratified
from topiarist.data.files import read_folder, read_npz, to_images, to_labels
from topiarist.errors import TopiaristError
from topiarist.files import one_line, shown, suggestion
from topiarist.models import import_torchvision, split_options

DATA_FORMS = "digits, digits:SIZE, npz:PATH, folder:PATH or torchvision:NAME"
"""How a data set can be named, for messages and help texts."""

_DIGITS_TEST = 500


def load_data(spec: str, seed: int = 0, **options: Any) -> Data:
    """Loads the data set that ``spec`` names.

    Args:
        spec: ``digits`` (scikit-learn's 8x8 digits, 1297 for training and 500 for test) or ``digits:SIZE`` (resized);
            ``npz:PATH`` with the arrays ``train_x``, ``train_y``, ``test_x`` and ``test_y``; ``folder:PATH`` with
            images in ``train/CLASS/`` and ``test/CLASS/`` (or ``val/CLASS/``); ``torchvision:NAME``. ``?key=value`` may
            follow.
        seed: decides which digits are for training; the other sets come with a split of their own.
        options: ``augment`` for all (``"crop-flip"``, ``"crop"`` or ``None``; by default ``"crop-flip"`` for colour
            images and ``None`` for grey ones); ``train`` for all: how many training examples are drawn (all by
            default), the classes keeping their shares; ``size`` for a folder (by default the first image's); ``root``,
            ``download`` and what else its class takes for torchvision.

    Raises:
        TopiaristError: no such data, a missing package, or a file that cannot be used.
    """
    name, inline = split_options(spec)
    options = {**inline, **options}
    kind, colon, source = name.partition(":")
    if kind not in _LOADERS or bool(colon) > bool(source) or not (source or kind == "digits"):
        hint = f"name data as {DATA_FORMS}"
        hint = hint if kind in _LOADERS else suggestion(kind, _LOADERS, hint)
        raise TopiaristError(f"there is no data {shown(spec)}: {hint}")
    loader = _LOADERS[kind]
    own = {key: options[key] for key in options if key not in ("augment", "train")}
    parameters = inspect.signature(loader).parameters.values()
    takes = ["augment", "train", *(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters) and (unknown := set(own) - set(takes)):
        raise TopiaristError(f"{kind} data has no option {shown(min(unknown))}: it takes {', '.join(takes)}")
    parts = loader(source, seed, **own)
    usual = "crop-flip" if parts["train_x"].shape[1] > 1 else None
    data = Data.of(name, **parts, augment=options.get("augment", usual))
    return data if options.get("train") is None else data.subset(options["train"], seed)


def _digits(source: str, seed: int) -> dict[str, Tensor]:
    if source and not (source.isdecimal() and 1 <= int(source) <= 256):
        raise TopiaristError(
            f"{shown(f'digits:{source}')} is not a size: give the side of the images in pixels, as in digits:28"
        )
    bunch = importlib.import_module("sklearn.datasets").load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16  # the shades of grey are 0 to 16
    labels = torch.from_numpy(bunch.target).long()
    if source:
        images = F.interpolate(images, size=(int(source), int(source)), mode="bilinear", align_corners=False)
    test, train = stratified(labels, _DIGITS_TEST, seed)
    return {"train_x": images[train], "train_y": labels[train], "test_x": images[test], "test_y": labels[test]}


def _torchvision(
    source: str, _seed: int, *, root: str = "data", download: bool = False, **extra: Any
) -> dict[str, Tensor]:
    import_torchvision()
    datasets: Any = importlib.import_module("torchvision.datasets")
    known = [key for key in dir(datasets) if inspect.isclass(getattr(datasets, key))]
    if source not in known:
        hint = suggestion(source, known, "see the documentation of torchvision.datasets for the names")
        raise TopiaristError(f"torchvision.datasets has no {shown(source)}: {hint}")
    parts: dict[str, Tensor] = {}
    for split in ("train", "test"):
        options = {"root": str(root), "download": bool(download), **extra}
        x, y = _torchvision_split(getattr(datasets, source), source, split, options)
        parts[f"{split}_x"] = to_images(f"torchvision:{source}", f"{split} images", np.asarray(x))
        parts[f"{split}_y"] = to_labels(f"torchvision:{source}", f"{split} labels", np.asarray(y))
    return parts


def _torchvision_split(dataset: Any, name: str, split: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """Returns the images and labels of one split, as torchvision holds them in memory."""
    accepted = inspect.signature(dataset).parameters
    if not {"train", "split"} & set(accepted):
        raise TopiaristError(f"torchvision:{name} has no training and test split of its own: take folder:PATH for it")
    by_flag = "train" in accepted or "split" in options  # EMNIST names its variant "split" and passes "train" on
    which: dict[str, Any] = {"train": split == "train"} if by_flag else {"split": split}
    try:
        stored = dataset(**options, **which)
    except Exception as error:  # not there, not complete, no network, wrong option: torchvision's message says which
        raise TopiaristError(
            f"torchvision:{name} cannot be read from {shown(options['root'])} ({one_line(error)}): "
            f"fetch it once with torchvision:{name}?download=true, or name its folder with ?root=PATH"
        ) from error
    images, labels = getattr(stored, "data", None), getattr(stored, "targets", getattr(stored, "labels", None))
    if not hasattr(images, "shape") or labels is None:
        raise TopiaristError(f"torchvision:{name} does not hold its images in memory: take folder:PATH for it")
    return images, labels


_LOADERS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "digits": _digits,
    "npz": read_npz,
    "folder": read_folder,
    "torchvision": _torchvision,
}
