"""How fast a study trains on one GPU, against the paper's recipe as one would first write it down.

    python benchmarks/gpu_speed.py FOLDER [--network resnet56] [--at-once 4] [--rounds 5]
    python benchmarks/gpu_speed.py FOLDER --mini    # a few images on whatever device there is: only whether it runs

FOLDER holds ``cifar10.npz`` as `fetch.py` writes it. Images per second of training in batches of 64, padded, cropped
and flipped:

- plain: a loop over a `torch.utils.data.DataLoader` whose four processes crop and flip image by image, float32;
- fit: `topiarist.fit` as it is, with the images on the device;
- fast: the same with bfloat16, channels last and a compiled step;
- at once: several such trainings on the same GPU, their images added up, which is how a study runs there
  (``topiarist study ... --workers 4``).

Each round runs all of them, one after the other; what counts is the median over rounds, and the ratio to the plain loop
of the same round. Epochs that compile or warm up do not count. Writes ``gpu_speed.md`` and ``gpu_speed.json`` beside
this script (with --mini nothing).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import topiarist
from topiarist.data import Data
from topiarist.train import Speed

HERE = Path(__file__).parent
BATCH, PAD = 64, 4
FAST: dict[str, Any] = {"precision": "bf16-mixed", "channels_last": True, "compiled": True}


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Training images, cropped and flipped one by one as they are asked for."""

    def __init__(self, data: Data) -> None:
        self.x, self.y = data.train_x, data.train_y
        self.mean, self.std = (torch.tensor(each).view(-1, 1, 1) for each in (data.mean, data.std))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = (self.x[index].float() / 255 - self.mean) / self.std
        height, width = image.shape[1:]
        padded = torch.nn.functional.pad(image, (PAD,) * 4)
        top, left = torch.randint(2 * PAD + 1, (2,)).tolist()
        image = padded[:, top : top + height, left : left + width]
        return image.flip(2) if torch.rand(()) < 0.5 else image, self.y[index]


def network(name: str, data: Data) -> nn.Module:
    return topiarist.load_model(f"zoo:{name}", in_channels=data.input_shape[0], classes=data.classes)


def plain(name: str, data: Data, epochs: int) -> float:
    """Images per second of the loop that one would first write."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = network(name, data).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(Images(data), BATCH, shuffle=True, num_workers=4, pin_memory=device == "cuda")
    times = []
    for _ in range(epochs):
        start = time.perf_counter()
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()
            optimizer.step()
            loss.item()  # as one prints it
        times.append(time.perf_counter() - start)
    return len(data.train_y) / median(times[1:])


def fit(name: str, data: Data, epochs: int, **options: Any) -> float:
    """Images per second of `topiarist.fit`; the first epoch warms up, the last one is followed by the test images."""
    recipe = topiarist.Recipe(epochs=epochs + 1, lr=0.1, batch_size=BATCH)
    history = topiarist.fit(network(name, data), data, recipe, speed=Speed(evaluate_every=0, **options))
    return len(data.train_y) / median(epoch.seconds for epoch in history.epochs[1:-1])


def _one(name: str, source: str, epochs: int, options: dict[str, Any], ready: Any) -> float:
    data = topiarist.load_data(source)
    ready.wait()
    return fit(name, data, epochs, **options)


def at_once(name: str, source: str, epochs: int, count: int, options: dict[str, Any]) -> float:
    """Images per second of several trainings together."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(count) as pool:
        ready = manager.Barrier(count)
        return sum(pool.starmap(_one, [(name, source, epochs, options, ready)] * count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", default="resnet56")
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--mini", action="store_true")
    asked = parser.parse_args()
    source = f"npz:{asked.folder / 'cifar10.npz'}" + ("?train=256" if asked.mini else "")
    data = topiarist.load_data(source)
    name, epochs, rounds = ("resnet20", 2, 1) if asked.mini else (asked.network, asked.epochs, asked.rounds)
    fast = {"channels_last": True} if asked.mini else FAST
    ways: dict[str, Callable[[], float]] = {
        "plain": lambda: plain(name, data, epochs),
        "fit": lambda: fit(name, data, epochs),
        "fast": lambda: fit(name, data, epochs, **fast),
        f"{asked.at_once} at once": lambda: at_once(name, source, epochs, asked.at_once, fast),
    }
    found: list[dict[str, float]] = []
    for number in range(rounds):
        found.append({way: measure() for way, measure in ways.items()})
        print(number + 1, {way: round(speed) for way, speed in found[-1].items()}, flush=True)
    if not asked.mini:
        write(found, name)


def write(found: list[dict[str, float]], name: str) -> None:
    """The table and the numbers behind it."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    lines = [
        "# Trainings on one GPU",
        "",
        f"{name} on cifar10, batches of {BATCH}; images per second, medians (least to most) of {len(found)} rounds, "
        f"and the ratio to the plain loop of the same round. {device}, torch {torch.__version__}, topiarist "
        f"{topiarist.__version__}, Python {platform.python_version()}. Rerun: `python benchmarks/gpu_speed.py FOLDER`.",
        "",
        "| way | images/s | against plain |",
        "|---|---:|---:|",
    ]
    for way in found[0]:
        speeds, ratios = [row[way] for row in found], [row[way] / row["plain"] for row in found]
        spread = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
        lines.append(f"| {way} | {median(speeds):,.0f} ({spread}) | {median(ratios):.2f} |")
    (HERE / "gpu_speed.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (HERE / "gpu_speed.json").write_text(json.dumps({"device": device, "rounds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
