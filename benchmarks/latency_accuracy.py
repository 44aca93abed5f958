"""Accuracy at equal milliseconds: a latency budget, a MACs budget, and Torch-Pruning's best importance.

    python benchmarks/latency_accuracy.py DATA [--weights FILE] [--out benchmarks/latency_accuracy] [--seeds 5]

DATA holds `fashion_mnist.npz` and `cifar10.npz` as `fetch.py` writes them; FILE holds trained weights of `zoo:resnet20`
(without it the network is trained here). Quarter-width VGG-11 on fashion_mnist, ResNet-20 on cifar10. A latency budget
cuts to 0.5 and 0.65 of the milliseconds in ONNX Runtime (one thread, batch 1). The other arms are cut to the same
measured milliseconds: of all amounts that they can be asked for, the largest that is as fast. Torch-Pruning has its
importance, its scope and its rounding chosen on held-out training images after a shorter fine-tune. All arms then
fine-tune alike, on the same seeds. Writes OUT.jsonl, a line for each network, arm and seed, and OUT.md; lines that are
there are skipped. Needs `torch-pruning` and the extra `export`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import warnings
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topiarist import (
    Budget,
    Data,
    Recipe,
    allocate,
    collect,
    cut,
    evaluate,
    fit,
    load_model,
    methods,
    prune,
    trace,
)
from topiarist.deploy import Session, machine, make_target, ratio_of

FRACTIONS = {"vgg11": 0.5, "resnet20": 0.65}  # of ResNet-20 the peer cuts only inside blocks, and reaches no 0.5
TARGET = make_target("onnxruntime")
NETWORKS = {
    "vgg11": ("zoo:vgg11?width=0.25&in_channels=1&input_size=28", "fashion_mnist"),
    "resnet20": ("zoo:resnet20", "cifar10"),
}
TRAINING = {"vgg11": Recipe(epochs=4, lr=0.05), "resnet20": Recipe(epochs=2, lr=0.01, schedule="constant")}
FINE_TUNING = {
    "vgg11": Recipe(epochs=2, lr=0.01, schedule="cosine"),
    "resnet20": Recipe(epochs=1, lr=0.01, schedule="cosine"),
}
CHOOSING = Recipe(epochs=1, lr=0.01, schedule="constant")
TRAIN = {"vgg11": 20_000, "resnet20": 10_000}
HELD_OUT, SHORT = 2_000, 5_000
T95 = {2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 9: 2.26}


def load(folder: Path, name: str, first: int, last: int) -> Data:
    """Some of the training images, and all test images."""
    with np.load(folder / f"{name}.npz") as stored:
        parts = {key: torch.from_numpy(stored[key]) for key in stored.files}
    x, y = parts["train_x"][first:last], parts["train_y"][first:last].long()
    test_x, test_y = parts["test_x"], parts["test_y"].long()
    shaped = (t.unsqueeze(1) if t.ndim == 3 else t.permute(0, 3, 1, 2).contiguous() for t in (x, test_x))
    train_x, test_x = shaped
    return Data.of(name, train_x, y, test_x, test_y, augment="crop-flip" if name == "cifar10" else None)


def trained(name: str, data: Data, weights: Path | None, seed: int, folder: Path) -> nn.Module:
    """The network that is pruned."""
    path = folder / f"{name}-{seed}.pt"
    torch.manual_seed(seed)
    model = load_model(NETWORKS[name][0])
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    if name == "resnet20" and weights is not None:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(weights))
    fit(model, data, TRAINING[name], seed=seed)
    torch.save(model.state_dict(), path)
    return model.eval()


class Clock:
    """Measures networks against the whole one."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.whole: Session = TARGET.prepare(model, x)
        self.x = x

    def __call__(self, model: nn.Module, seconds: float = 1.0) -> float:
        """Milliseconds as a fraction of the whole network's."""
        return ratio_of(TARGET.prepare(model.eval(), self.x), self.whole, self.x, seconds)


def largest(make: Callable[[float], nn.Module], clock: Clock, wanted: float, step: float = 0.03) -> nn.Module:
    """The network of the largest amount that is as fast as wanted."""
    for amount in np.arange(0.95, 0.02, -step):
        model = make(float(amount))
        if clock(model, 0.3) <= wanted * 1.02 and clock(model, 1.5) <= wanted * 1.01:
            return model
    raise RuntimeError("no amount is as fast")


def by_latency(model: nn.Module, x: Tensor, fraction: float) -> tuple[nn.Module, dict[str, float]]:
    """The latency budget's network."""
    done = prune(model, x, "l1", Budget(latency=fraction, target="onnxruntime"))
    assert done.latency is not None
    return done.model, {"predicted": done.latency.predicted}


def by_macs(model: nn.Module, x: Tensor, clock: Clock, wanted: float, multiple: int) -> nn.Module:
    """The network of a MACs budget that is as fast."""
    graph, l1 = trace(model, x), methods.make("l1")
    scores = l1.score(graph, collect(model, graph, None, l1.needs))

    def make(amount: float) -> nn.Module:
        return cut(model, graph, allocate(graph, scores, Budget(macs=amount, multiple=multiple)))

    return largest(make, clock, wanted)


def peers(data: Data) -> dict[str, Callable[[nn.Module, Tensor, float], nn.Module]]:
    """Torch-Pruning: importance, scope, rounding → the network at a share of channels kept."""
    import torch_pruning as tp  # type: ignore[import-untyped]
    from structured.peer import ignored

    importances = {
        "group L1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "group L2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "LAMP": lambda: tp.importance.LAMPImportance(),
        "BN scale": lambda: tp.importance.BNScaleImportance(),
        "group Taylor": lambda: tp.importance.GroupTaylorImportance(),
    }

    def run(kind: str, scope: bool, rounds: int | None, model: nn.Module, x: Tensor, kept: float) -> nn.Module:
        copied = copy.deepcopy(model).eval()
        pruner = tp.pruner.BasePruner(
            copied,
            x,
            importance=importances[kind](),
            pruning_ratio=1 - kept,
            global_pruning=scope,
            max_pruning_ratio=0.9,
            round_to=rounds,
            ignored_layers=list(ignored(copied)),
        )
        if kind == "group Taylor":
            for images, labels in list(data.batches("train", 64, torch.Generator().manual_seed(0)))[:8]:
                nn.functional.cross_entropy(copied(images), labels).backward()
        pruner.step()
        copied.zero_grad()
        return copied

    return {
        f"{kind}, {'global' if scope else 'local'}, {'multiples of 8' if rounds else 'any width'}": partial(
            run, kind, scope, rounds
        )
        for kind in importances
        for scope in (False, True)
        for rounds in ((None, 8) if kind in ("group L1", "group L2") and not scope else (8,))
    }


def best_peer(model: nn.Module, x: Tensor, clock: Clock, wanted: float, data: Data, held_out: Data) -> str:
    """The setting of Torch-Pruning that is most accurate on held-out images after a short fine-tune."""
    scored = {}
    for name, make in peers(data).items():
        try:
            smaller = largest(partial(make, model, x), clock, wanted, 0.07)
        except Exception as error:  # a setting of the peer that fails is left out, and named
            print("peer", name, "fails:", error, flush=True)
            continue
        short = Data.of("short", data.train_x[:SHORT], data.train_y[:SHORT], held_out.train_x, held_out.train_y)
        fit(smaller, short, CHOOSING, seed=0)
        scored[name] = evaluate(smaller, short)
        print("peer", name, scored[name], flush=True)
    return max(scored, key=lambda name: scored[name])


def lines_of(
    name: str, seed: int, folder: Path, weights: Path | None, cache: Path, peer: str | None
) -> tuple[list[dict[str, Any]], str]:
    """All arms of one network and seed."""
    dataset = NETWORKS[name][1]
    data, held_out = load(folder, dataset, 0, TRAIN[name]), load(folder, dataset, 40_000, 40_000 + HELD_OUT)
    model = trained(name, data, weights, seed if name == "vgg11" else 0, cache)
    x = data.example()
    clock = Clock(model, x)
    ours, facts = by_latency(model, x, FRACTIONS[name])
    wanted = clock(ours, 4.0)
    peer = peer or best_peer(model, x, clock, wanted, data, held_out)
    arms = {
        "latency": ours,
        "MACs": by_macs(model, x, clock, wanted, 1),
        "MACs, multiple 8": by_macs(model, x, clock, wanted, 8),
        "Torch-Pruning": largest(partial(peers(data)[peer], model, x), clock, wanted),
    }
    before = evaluate(model, data)
    lines = []
    for arm, smaller in arms.items():
        measured = clock(smaller, 3.0)
        pruned = evaluate(smaller, data)
        fit(smaller, data, FINE_TUNING[name], seed=seed)
        line = {"network": name, "seed": seed, "arm": arm, "before": before, "pruned": pruned, "peer": peer}
        lines.append({**line, "accuracy": evaluate(smaller, data), "measured": measured, **facts})
        print(json.dumps(lines[-1]), flush=True)
    return lines, peer


def report(lines: list[dict[str, Any]]) -> str:
    """The page."""
    lasting = " and ".join(f"{name} {FINE_TUNING[name].epochs} × {TRAIN[name]:,} images" for name in NETWORKS)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime", "torch-pruning"))
    text = [
        "# Accuracy at equal milliseconds",
        "",
        "All arms of a network are equally fast in ONNX Runtime (one thread, batch 1): VGG-11 in half of the whole "
        "network's time, ResNet-20 in 0.65 of it, since Torch-Pruning cuts that only inside blocks and reaches no "
        f"half; then all fine-tune alike, {lasting}. Accuracy on all test images in per cent, "
        "mean ± 95 % interval over seeds; differences are paired by seed. Made by `latency_accuracy.py`.",
        "",
        f"{machine()}; {date.today()}; {packages}",
        "",
        "| network | arm | time | whole | pruned | fine-tuned | latency budget − arm |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in NETWORKS:
        mine = {line["seed"]: line["accuracy"] for line in lines if (line["network"], line["arm"]) == (name, "latency")}
        for arm in dict.fromkeys(line["arm"] for line in lines if line["network"] == name):
            rows = [line for line in lines if (line["network"], line["arm"]) == (name, arm)]
            differences = [mine[row["seed"]] - row["accuracy"] for row in rows]
            label = f"{arm} ({rows[0]['peer']})" if arm == "Torch-Pruning" else arm
            columns = [mean([row[key] for row in rows], 2) for key in ("measured", "before", "pruned")]
            columns += [spread([row["accuracy"] for row in rows]), "–" if arm == "latency" else spread(differences)]
            text.append(f"| {name} | {label} | {' | '.join(columns)} |")
    return "\n".join(text) + "\n"


def mean(values: list[float], digits: int) -> str:
    """The mean."""
    return f"{statistics.mean(values):.{digits}f}"


def spread(values: list[float]) -> str:
    """The mean with its 95 % interval."""
    if len(values) < 3:
        return mean(values, 2)
    half = T95.get(len(values) - 1, 2.0) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


def main() -> None:
    """Computes what is missing, and writes the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--cache", type=Path, default=Path("runs/latency_accuracy"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    options.cache.mkdir(parents=True, exist_ok=True)
    file = options.out.with_suffix(".jsonl")
    lines = [json.loads(row) for row in file.read_text().splitlines()] if file.exists() else []
    for name in options.networks:
        for seed in range(options.seeds):
            if not any((line["network"], line["seed"]) == (name, seed) for line in lines):
                peer = next((line["peer"] for line in lines if line["network"] == name), None)
                more, _ = lines_of(name, seed, options.data, options.weights, options.cache, peer)
                lines += more
                file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options.out.with_suffix(".md").write_text(report(lines))


if __name__ == "__main__":
    main()
