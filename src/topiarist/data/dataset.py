"""Labelled images in memory: checked, normalised, split, batched and augmented."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from topiarist.errors import TopiaristError
from topiarist.files import shortened, shown
from topiarist.graph import check_plain

Split = Literal["train", "test"]
_AUGMENTS = ("crop-flip", "crop", None)
_LEAST_STD = 1e-12


@dataclass(frozen=True, eq=False)
class Data:
    """Labelled images, split into training and test examples.

    Attributes:
        name: its name in reports.
        train_x: float32 or uint8 ``(N, C, H, W)``.
        train_y: int64 ``(N,)``, from 0 to ``classes - 1``.
        test_x: as ``train_x``.
        test_y: as ``train_y``.
        classes: number of classes.
        mean: per channel, of the training images; for uint8 images after division by 255.
        std: likewise.
        augment: of the training images: ``"crop-flip"``, ``"crop"`` or ``None`` (see `augment`).

    Raises:
        TopiaristError: the tensors contradict each other, or are not images and labels.
    """

    name: str
    train_x: Tensor = field(repr=False)
    train_y: Tensor = field(repr=False)
    test_x: Tensor = field(repr=False)
    test_y: Tensor = field(repr=False)
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str | None = None

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            _check_split(self.name, split, *self._split(split), self.classes)
        if self.train_x.shape[1:] != self.test_x.shape[1:] or self.train_x.dtype != self.test_x.dtype:
            raise TopiaristError(
                f"{shortened(self.name)}: test images differ from training images in size or type: make them alike"
            )
        fits = len(self.mean) == len(self.std) == self.train_x.shape[1]
        if not fits or not all(map(math.isfinite, self.mean)) or not all(0 < each < math.inf for each in self.std):
            raise TopiaristError(
                f"{shortened(self.name)}: mean and std need one finite number for each channel, and std must be above 0"
            )
        if self.augment not in _AUGMENTS:
            raise TopiaristError(
                f"{shortened(self.name)}: augment is {shown(self.augment)}, but must be 'crop-flip', 'crop' or None"
            )

    @classmethod
    def of(
        cls, name: str, train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, augment: str | None = None
    ) -> Self:
        """Returns data whose classes and normalisation constants come from the training examples.

        Raises:
            TopiaristError: as for the class; also where a label below the largest has no training example.
        """
        _check_split(name, "train", train_x, train_y, classes=None)
        present = torch.unique(train_y)
        classes = int(present[-1]) + 1
        if len(present) != classes:
            raise TopiaristError(
                f"{name}: only {len(present)} of the labels 0 to {classes - 1} occur in train_y: leave no gap"
            )
        mean, std = _moments(train_x)
        return cls(name, train_x, train_y, test_x, test_y, classes, mean, std, augment)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train_x.shape[1:]
        return channels, height, width

    def normalise(self, x: Tensor) -> Tensor:
        """Returns ``(x - mean) / std`` per channel as float32, with uint8 images divided by 255 first."""
        unit = 255.0 if x.dtype == torch.uint8 else 1.0
        mean = torch.tensor(self.mean, device=x.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=x.device).view(-1, 1, 1)
        return (x.float() - unit * mean) / (unit * std)

    def example(self, batch: int = 1) -> Tensor:
        """Returns the first training images, normalised: ``(batch, C, H, W)``, or fewer where there are fewer."""
        return self.normalise(self.train_x[:batch])

    def batches(
        self,
        split: Split,
        batch_size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        augmented: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields one pass over a split, as normalised float32 images and labels.

        A last batch of one example joins the one before it, since batch norm cannot train on a single example.

        Args:
            split: ``"train"`` or ``"test"``.
            batch_size: examples in a batch; the last may be smaller, or larger by one.
            generator: shuffles the examples; without it they come in order.
            device: where the batches go; by default they stay where the data is.
            augmented: whether to augment the images, as the attribute ``augment`` says.
        """
        if batch_size < 1:
            raise TopiaristError(f"the batch size is {batch_size}, but must be at least 1")
        x, y = self._split(split)
        device = x.device if device is None else torch.device(device)
        order = None
        if generator is not None:
            order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
        start = 0
        while start < len(x):
            stop = len(x) if len(x) - start <= batch_size + (batch_size > 1) else start + batch_size
            chosen = slice(start, stop) if order is None else order[start:stop]
            images = x[chosen].to(device)
            if augmented:
                images = augment(images, self.augment, generator)
            yield self.normalise(images), y[chosen].to(device)
            start = stop

    def subset(self, n: int, seed: int = 0) -> Data:
        """Returns the same data with ``n`` training examples, drawn so that the classes keep their shares.

        Raises:
            TopiaristError: ``n`` is not between 1 and the number of training examples.
        """
        if not hasattr(n, "__index__") or not 1 <= n <= len(self.train_x):
            least = f"{shortened(self.name)} has {len(self.train_x)} training examples"
            raise TopiaristError(f"{least}: take 1 to all, not {shown(n)}")
        chosen, _ = stratified(self.train_y, n, seed)
        return dataclasses.replace(self, train_x=self.train_x[chosen], train_y=self.train_y[chosen])

    def split(self, fraction: float, seed: int = 0) -> Data:
        """Returns the same data with a fraction of the training examples held out in place of the test examples.

        For choices that must not see the test set. The classes keep their shares, the normalisation stays as it is.

        Raises:
            TopiaristError: the fraction leaves one of the two parts without an example.
        """
        count = round(fraction * len(self.train_x)) if math.isfinite(fraction) else 0
        if not 0 < count < len(self.train_x):
            raise TopiaristError(
                f"a validation split of {fraction} leaves no examples on one side: give a fraction such as 0.1"
            )
        held, rest = stratified(self.train_y, count, seed)
        return dataclasses.replace(
            self,
            train_x=self.train_x[rest],
            train_y=self.train_y[rest],
            test_x=self.train_x[held],
            test_y=self.train_y[held],
        )

    def held_out(self, fraction: float, seed: int = 0) -> Data:
        """Returns the same data with only those training examples that `split` holds out.

        What a method measures and chooses by is then new to a network that was trained on the rest.

        Raises:
            TopiaristError: as `split`.
        """
        held = self.split(fraction, seed)
        return dataclasses.replace(self, train_x=held.test_x, train_y=held.test_y)

    def to(self, device: torch.device | str) -> Data:
        """Returns the same data with its tensors on ``device``."""
        return dataclasses.replace(
            self,
            train_x=self.train_x.to(device),
            train_y=self.train_y.to(device),
            test_x=self.test_x.to(device),
            test_y=self.test_y.to(device),
        )

    def _split(self, split: str) -> tuple[Tensor, Tensor]:
        if split not in ("train", "test"):
            raise TopiaristError(f"there is no split {shown(split)}: name 'train' or 'test'")
        return getattr(self, f"{split}_x"), getattr(self, f"{split}_y")


def augment(x: Tensor, kind: str | None, generator: torch.Generator | None = None) -> Tensor:
    """Moves and mirrors every image of a batch at random, all at once.

    ``"crop"`` pads with zeros and crops a window of the old size at a random place: padding 4 as in the CIFAR recipes,
    less on small images (a sixth of the shorter side). ``"crop-flip"`` also mirrors each image with probability 1/2.

    Args:
        x: ``(N, C, H, W)``, any dtype.
        kind: ``"crop-flip"``, ``"crop"`` or ``None``, which returns ``x``.
        generator: the source of randomness.

    Raises:
        TopiaristError: there is no such kind.
    """
    if kind is None:
        return x
    if kind not in _AUGMENTS:
        raise TopiaristError(f"there is no augmentation {shown(kind)}: take 'crop-flip', 'crop' or None")
    n, _, height, width = x.shape
    pad = min(4, max(1, min(height, width) // 6))
    home = torch.device("cpu") if generator is None else generator.device
    top, left = torch.randint(2 * pad + 1, (2, n, 1), generator=generator, device=home).to(x.device)
    rows = top + torch.arange(height, device=x.device)
    columns = left + torch.arange(width, device=x.device)
    if kind == "crop-flip":
        mirrored = torch.randint(2, (n, 1), generator=generator, device=home).to(x.device).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(x, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    images = torch.arange(n, device=x.device).view(n, 1, 1)
    return padded[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def stratified(y: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the indices of ``count`` random examples, each class with its share, and of the rest; both in order.

    Each example gets the position ``(order + u) / size`` in its own class, with a random order and one random ``u`` in
    [0, 1) for each class; the lowest positions are taken, so a class is off its share by about one example at most.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(y), generator=generator)
    labels = y.cpu()[shuffled]
    by_class = labels.argsort(stable=True)
    sizes = torch.bincount(labels)
    begins = sizes.cumsum(0) - sizes
    label = labels[by_class]
    orders = torch.arange(len(y)) - begins[label]
    offsets = torch.rand(len(sizes), generator=generator, dtype=torch.float64)
    positions = (orders + offsets[label]) / sizes[label]
    order = shuffled[by_class[positions.argsort(stable=True)]]
    return order[:count].sort().values.to(y.device), order[count:].sort().values.to(y.device)


def _check_split(name: str, split: str, x: Tensor, y: Tensor, classes: int | None) -> None:
    """Raises a TopiaristError unless ``x`` are images and ``y`` their labels, below ``classes`` where that is known."""
    name = shortened(name)
    for part, values in (("x", x), ("y", y)):
        if not isinstance(values, Tensor):
            raise TopiaristError(
                f"{name}: {split}_{part} is of type {type(values).__name__}: give a tensor, as torch.as_tensor makes it"
            )
        check_plain(values, f"{name}: {split}_{part} is")
    if x.ndim != 4 or x.dtype not in (torch.uint8, torch.float32) or 0 in x.shape:
        raise TopiaristError(
            f"{name}: {split}_x is {x.dtype} of shape {tuple(x.shape)}, but must be uint8 or float32 of shape "
            "(N, C, H, W) with at least one image"
        )
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise TopiaristError(
            f"{name}: {split}_y is {y.dtype} of shape {tuple(y.shape)}, but must be int64 with one label for each "
            f"of the {len(x)} images"
        )
    low, high = int(y.min()), int(y.max())
    if low < 0 or (classes is not None and high >= classes):
        raise TopiaristError(
            f"{name}: {split}_y has the label {low if low < 0 else high}, but labels count from 0"
            + (f" to {classes - 1}: correct it" if classes else ": correct it")
        )
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise TopiaristError(f"{name}: {split}_x has NaN or infinite values: remove these images")


def _moments(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel, of uint8 divided by 255; 1 for a constant channel."""
    if x.dtype == torch.uint8:
        shades = torch.arange(256, dtype=torch.float64, device=x.device) / 255
        share = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in x.unbind(1)]).double()
        share /= share.sum(1, keepdim=True)
        mean = share @ shades
        std = (share * (shades - mean[:, None]) ** 2).sum(1).sqrt()
    else:
        std, mean = torch.std_mean(x, dim=(0, 2, 3), correction=0)
    std = torch.where(std > _LEAST_STD, std, torch.ones_like(std))
    return tuple(mean.tolist()), tuple(std.tolist())
