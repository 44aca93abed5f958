"""Accuracy against measured milliseconds: pruned channels, pruned weights, and both.

    python benchmarks/sparse_accuracy.py DATA --weights FILE [--networks NAME …] [--out benchmarks/sparse_accuracy]

DATA holds `fashion_mnist.npz` and `cifar10.npz` as `fetch.py` writes them; FILE holds trained weights of
`zoo:resnet56`. Half-width VGG-11 on fashion_mnist is trained here; ResNet-56 on cifar10 is fine-tuned on these images
first. Channels are pruned by L1 to fractions of the milliseconds in ONNX Runtime, weights by magnitude to fractions of
those in `topiarist.sparse`, one by one and in fours (of four neighbouring output channels together), and both channels
and weights one after the other; all with one thread and batch 1. All arms fine-tune for as many epochs in all, the
whole network too; both for half of them between the two. Then all networks of a seed run in turns on every runtime,
and of each network the fastest one counts. A fraction that is out of reach is left out, and named. Writes OUT.jsonl, a
line for each network, seed, arm and fraction, OUT.md and OUT.svg; networks and seeds that are there are skipped. Needs
the extras `export` and `sparse`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import torch
from latency_accuracy import load, mean, spread
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from topiarist import (
    Budget,
    Data,
    Pruned,
    Recipe,
    TopiaristError,
    cost,
    evaluate,
    fit,
    load_model,
    methods,
    prune,
    trace,
)
from topiarist.deploy import machine, make_target
from topiarist.sparse import host
from topiarist.train import Speed

NETWORKS = {
    "vgg11": ("zoo:vgg11?width=0.5&in_channels=1&input_size=28", "fashion_mnist"),
    "resnet56": ("zoo:resnet56", "cifar10"),
}
TITLES = {"vgg11": "VGG-11, half width, Fashion-MNIST", "resnet56": "ResNet-56, CIFAR-10"}
TRAINING = {"vgg11": Recipe(epochs=4, lr=0.05), "resnet56": Recipe(epochs=1, lr=0.01, schedule="constant")}
FINE_TUNING = (Recipe(epochs=1, lr=0.01, schedule="constant"), Recipe(epochs=1, lr=0.005, schedule="constant"))
"""One after the other; where channels and weights are pruned, weights are pruned between the two."""
TRAIN = {"vgg11": 10_000, "resnet56": 5_000}
TUNE = {"vgg11": 5_000, "resnet56": 2_500}
TEST = {"vgg11": 4_000, "resnet56": 2_000}
"""Images that the network is trained, fine-tuned and tested on."""
CHANNELS = (0.7, 0.5, 0.35)
WEIGHTS = (0.5, 0.35, 0.25, 0.18)
FOURS = (0.35, 0.25, 0.18)
BOTH = tuple((channels, weights) for channels in (0.7, 0.5) for weights in (0.5, 0.35))
"""Fractions of the milliseconds; of both the second is one of the network whose channels are pruned."""
DENSE = ("torch", "onnxruntime", "openvino")
ROUNDS = 9
SECONDS = 0.03
PAUSE = 0.05
WARM = 3
ARMS = {
    "channels": ("#e08214", "s"),
    "weights": ("#2166ac", "o"),
    "weights in fours": ("#7b3294", "^"),
    "both": ("#1b7837", "D"),
}
"""Colour and marker."""

Line = dict[str, Any]
Run = Callable[[], Any]


@dataclass(frozen=True)
class Images:
    """The images of one network; for training they hold one test image, so that no epoch waits for a test."""

    train: Data
    tune: Data
    test: Data


@dataclass(frozen=True)
class Result:
    """A network after fine-tuning, and its line without milliseconds."""

    model: nn.Module
    line: Line


def images_of(name: str, folder: Path) -> Images:
    """The images that a network takes."""
    data = load(folder, NETWORKS[name][1], 0, TRAIN[name])
    train = replace(data, test_x=data.test_x[:1], test_y=data.test_y[:1])
    tune = replace(train, train_x=data.train_x[: TUNE[name]], train_y=data.train_y[: TUNE[name]])
    return Images(train, tune, replace(data, test_x=data.test_x[: TEST[name]], test_y=data.test_y[: TEST[name]]))


def trained(name: str, images: Images, weights: Path | None, seed: int, cache: Path) -> nn.Module:
    """The network that is pruned."""
    path = cache / f"{name}-{seed}.pt"
    torch.manual_seed(seed)
    model = load_model(NETWORKS[name][0])
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    if name == "resnet56" and weights is not None:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(weights))
    fit(model, images.train, TRAINING[name], seed=seed, speed=Speed(channels_last=True))
    torch.save(model.state_dict(), path)
    return model.eval()


def accuracy(model: nn.Module, images: Images) -> float:
    """Per cent of the test images; in small batches, which are quicker on a CPU."""
    return evaluate(model, images.test, batch_size=64)


def fine_tuned(done: Pruned, images: Images, seed: int, recipes: tuple[Recipe, ...]) -> list[nn.Module]:
    """The network after each of some recipes; zeros stay zeros."""
    held: dict[str, Any] = {"graph": done.graph, "keep": done.keep} if done.graph.kind == "weight" else {}
    networks = []
    for recipe in recipes:
        order = len(FINE_TUNING) * seed + FINE_TUNING.index(recipe)
        fit(done.model, images.tune, recipe, seed=order, speed=Speed(channels_last=True), **held)
        networks.append(copy.deepcopy(done.model).eval())
    return networks


def fewer_channels(model: nn.Module, x: Tensor, fraction: float) -> Pruned:
    """Prunes channels to a fraction of the milliseconds."""
    return prune(model, x, "l1", Budget(latency=fraction, target="onnxruntime"))


def fewer_weights(model: nn.Module, x: Tensor, fraction: float, block: int = 1) -> Pruned:
    """Prunes weights to a fraction of the milliseconds, those of so many output channels together."""
    return prune(model, x, methods.make("magnitude", block=block), Budget(latency=fraction, target="sparse"))


def zeros(model: nn.Module) -> float:
    """The fraction of the weights that are zero."""
    weights = [parameter.detach() for parameter in model.parameters() if parameter.ndim > 1]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def results_of(model: nn.Module, images: Images, seed: int) -> list[Result]:
    """The whole network, and that of every arm and fraction, fine-tuned."""
    x = images.tune.example()
    macs, before = cost(trace(model, x)).macs, accuracy(model, images)
    tuned = copy.deepcopy(model)
    for at, recipe in enumerate(FINE_TUNING):
        fit(tuned, images.tune, recipe, seed=len(FINE_TUNING) * seed + at, speed=Speed(channels_last=True))
    whole = {"arm": "whole", "asked": [], "before": before, "pruned": before, "accuracy": accuracy(tuned, images)}
    results = [Result(tuned.eval(), {**whole, "zeros": zeros(tuned), "macs": 1.0})]

    def add(arm: str, asked: list[float], prunes: Callable[[], Pruned], recipes: tuple[Recipe, ...]) -> list[nn.Module]:
        began = time.perf_counter()
        try:
            done = prunes()
        except TopiaristError as error:
            print(f"{arm} {label(asked)} is left out: {error}", flush=True)
            return []
        pruned_in = time.perf_counter() - began
        line = {"arm": arm, "asked": asked, "before": before, "pruned": accuracy(done.model, images)}
        networks = fine_tuned(done, images, seed, recipes)
        tuned = networks[-1]
        line |= {"accuracy": accuracy(tuned, images), "zeros": zeros(tuned), "macs": done.after.macs / macs}
        results.append(Result(tuned, line))
        print(json.dumps(line), f"({pruned_in:.0f} of {time.perf_counter() - began:.0f} s to prune)", flush=True)
        return networks

    fewer = {f: add("channels", [f], partial(fewer_channels, model, x, f), FINE_TUNING) for f in CHANNELS}
    for fraction in WEIGHTS:
        add("weights", [fraction], partial(fewer_weights, model, x, fraction), FINE_TUNING)
    for fraction in FOURS:
        add("weights in fours", [fraction], partial(fewer_weights, model, x, fraction, 4), FINE_TUNING)
    for first, second in BOTH:
        if fewer[first]:
            add("both", [first, second], partial(fewer_weights, fewer[first][0], x, second), FINE_TUNING[1:])
    return results


def medians(runs: dict[tuple[int, str], Run]) -> dict[tuple[int, str], float]:
    """CPU milliseconds of each, run in turns, with a pause before each, in which threads of others fall asleep."""
    counts = {key: max(1, math.ceil(1000 * SECONDS / milliseconds(run, 1))) for key, run in runs.items()}
    times: dict[tuple[int, str], list[float]] = {key: [] for key in runs}
    for _ in range(ROUNDS):
        for key, run in runs.items():
            time.sleep(PAUSE)
            times[key].append(milliseconds(run, counts[key]))
    return {key: statistics.median(each) for key, each in times.items()}


def milliseconds(run: Run, count: int) -> float:
    """The mean of some runs, after a few that do not count."""
    for _ in range(WARM):
        run()
    start = time.process_time()
    for _ in range(count):
        run()
    return max(1e-3, 1000 * (time.process_time() - start) / count)


def lines_of(name: str, seed: int, folder: Path, weights: Path | None, cache: Path) -> list[Line]:
    """All lines of one network and seed."""
    images = images_of(name, folder)
    began = time.perf_counter()
    model = trained(name, images, weights, seed, cache)
    print(f"{name} {seed}: trained in {time.perf_counter() - began:.0f} s", flush=True)
    results = results_of(model, images, seed)
    x, began = images.tune.example(), time.perf_counter()
    runs = {
        (at, target): make_target(target).prepare(result.model, x).bind(x)
        for at, result in enumerate(results)
        for target in (*DENSE, "sparse")
    }
    print(f"{name} {seed}: prepared in {time.perf_counter() - began:.0f} s", flush=True)
    began, ms = time.perf_counter(), medians(runs)
    print(f"{name} {seed}: measured in {time.perf_counter() - began:.0f} s", flush=True)
    lines = []
    for at, result in enumerate(results):
        own = {target: ms[at, target] for target in (*DENSE, "sparse")}
        fastest = min(own, key=lambda target: own[target])
        lines.append({"network": name, "seed": seed, **result.line, "ms": own, "fastest": fastest})
    return lines


def label(asked: list[float]) -> str:
    """What was asked for, in the table."""
    return " × ".join(f"{fraction:g}" for fraction in asked) or "–"


def alike(lines: list[Line], name: str) -> dict[tuple[str, str], list[Line]]:
    """Arm and fraction → its lines, one for each seed."""
    rows: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if line["network"] == name:
            rows.setdefault((line["arm"], label(line["asked"])), []).append(line)
    order = ["whole", *ARMS]
    return dict(sorted(rows.items(), key=lambda row: (order.index(row[0][0]), [-f for f in row[1][0]["asked"]])))


def best(line: Line) -> float:
    """Milliseconds on the fastest runtime."""
    return line["ms"][line["fastest"]]


def table(lines: list[Line], name: str) -> list[str]:
    """The table of one network."""
    text = [
        f"## {TITLES[name]}",
        "",
        "| arm | asked | seeds | zeros | dense, ms | sparse, ms | fastest | speed-up | pruned | accuracy | change |",
        "|---|---|---:|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    rows = alike(lines, name)
    whole = {line["seed"]: line for line in rows["whole", "–"]}
    for (arm, asked), same in rows.items():
        cells = [
            str(len(same)),
            f"{statistics.mean(line['zeros'] for line in same):.0%}",
            spread([min(line["ms"][target] for target in DENSE) for line in same]),
            spread([line["ms"]["sparse"] for line in same]),
            ", ".join(dict.fromkeys(line["fastest"] for line in same)),
            spread([best(whole[line["seed"]]) / best(line) for line in same]),
            mean([line["pruned"] for line in same], 1),
            spread([line["accuracy"] for line in same]),
            "–" if arm == "whole" else spread([line["accuracy"] - whole[line["seed"]]["accuracy"] for line in same]),
        ]
        text.append(f"| {arm} | {asked} | {' | '.join(cells)} |")
    return [*text, ""]


def report(lines: list[Line]) -> str:
    """The page."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime", "openvino", "llvmlite"))
    names = [name for name in NETWORKS if any(line["network"] == name for line in lines)]
    tuned = " and ".join(f"{name} {len(FINE_TUNING)} × {TUNE[name]:,} images" for name in names)
    tested = " and ".join(f"{name} {TEST[name]:,}" for name in names)
    text = [
        "# Accuracy against milliseconds",
        "",
        "Channels are pruned by L1 to a fraction of the milliseconds in ONNX Runtime, weights by magnitude to a "
        "fraction of those in `topiarist.sparse` (in fours: those of four neighbouring output channels together), and "
        "both channels and weights one after the other: the second fraction is one of the "
        f"network whose channels are pruned. All fine-tune for as long: {tuned}. Milliseconds are CPU time of one "
        "thread at batch 1, medians of runs in turns. *Dense* is the fastest of torch, ONNX Runtime and OpenVINO. "
        "*Speed-up* and the picture take the fastest runtime of each network, of the whole one too. Accuracy on "
        f"test images ({tested}) in per cent, right after pruning and after fine-tuning; the change from the whole "
        "network in points, paired by seed. Mean ± 95 % interval over seeds. Fractions that are out of reach have "
        "no row. Made by `sparse_accuracy.py`.",
        "",
        f"{machine()} ({host().cpu}, vectors of {host().lanes} floats); {date.today()}; {packages}",
        "",
    ]
    return "\n".join(text + [row for name in names for row in table(lines, name)])


def point(lines: list[Line]) -> tuple[float, float]:
    """Mean milliseconds and accuracy."""
    return statistics.mean(map(best, lines)), statistics.mean(line["accuracy"] for line in lines)


def panel(axes: Axes, lines: list[Line], name: str) -> None:
    """Draws one network; each line begins where its pruning did: at the whole network, or at one of fewer channels."""
    rows = alike(lines, name)
    dot = point(rows["whole", "–"])
    chains: dict[tuple[str, tuple[float, ...]], list[tuple[float, float]]] = {}
    for (arm, _), same in rows.items():
        if arm in ARMS:
            before = tuple(same[0]["asked"][:-1])
            start = point(rows["channels", label(list(before))]) if before else dot
            chains.setdefault((arm, before), [start]).append(point(same))
    labelled: set[str] = set()
    for (arm, _), points in chains.items():
        colour, marker = ARMS[arm]
        ms, accuracies = zip(*points, strict=True)
        axes.plot(ms, accuracies, color=colour, lw=1.6, alpha=0.85, zorder=2)
        text = f"_{arm}" if arm in labelled else arm
        axes.plot(ms[1:], accuracies[1:], marker, color=colour, ms=6, mec="white", mew=0.8, label=text, zorder=3)
        labelled.add(arm)
    axes.plot(*dot, "o", color="#222222", ms=7, mec="white", mew=0.8, label="whole network", zorder=4)
    axes.set_title(TITLES[name], loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("milliseconds, fastest runtime", fontsize=10)
    axes.set_xlim(left=0)
    axes.grid(color="#e4e4e4", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(color="#999999", labelsize=9)


def draw(lines: list[Line]) -> Figure:
    """The picture: a panel for each network."""
    names = [name for name in NETWORKS if any(line["network"] == name for line in lines)]
    figure = Figure(figsize=(4.8 * len(names), 4.2), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        panel(axes, lines, name)
    panels[0].set_ylabel("test accuracy, %", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=10)
    return figure


def main() -> None:
    """Computes what is missing, and writes the page and the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--cache", type=Path, default=Path("runs/sparse_accuracy"))
    options = parser.parse_args()
    if "resnet56" in options.networks and options.weights is None:
        parser.error("resnet56 takes --weights FILE, its trained weights; --networks vgg11 needs none")
    warnings.filterwarnings("ignore")
    options.cache.mkdir(parents=True, exist_ok=True)
    file = options.out.with_suffix(".jsonl")
    lines = [json.loads(row) for row in file.read_text().splitlines()] if file.exists() else []
    for name in options.networks:
        for seed in range(options.seeds):
            if not any((line["network"], line["seed"]) == (name, seed) for line in lines):
                lines += lines_of(name, seed, options.data, options.weights, options.cache)
                file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options.out.with_suffix(".md").write_text(report(lines))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sparse_accuracy"}):
        draw(lines).savefig(options.out.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
