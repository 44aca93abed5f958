"""How near the next layer's outputs stay when channels go: ThiNet and LASSO against L1 and chance.

    python benchmarks/reconstruction.py FOLDER [--out runs/reconstruction] [--seeds 3] [--workers 2]

FOLDER holds ``fashion_mnist.npz`` as `fetch.py` writes it. A quarter-width VGG-11 trains for 3 epochs on a subset.
Then each layer loses 30 %, 50 % and 70 % of its channels, first alone, then together with all others, and the output
of the layer that reads it is compared with the original network's on 500 test images: ``|Y - Y'|^2 / |Y|^2`` over the
outputs that stay. Nothing is fine-tuned. Resumable: networks and rows that are there already are not made again.
Writes ``reconstruction.md`` and ``reconstruction.json`` beside this script.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import topiarist
from topiarist.methods import Repair, make
from topiarist.pruning import choose

HERE = Path(__file__).parent
NETWORK = "zoo:vgg11?width=0.25&in_channels=1&input_size=28"
SHARES = (0.7, 0.5, 0.3)
ARMS = {
    "random": ("random", None),
    "l1": ("l1", None),
    "l1, refitted": ("l1", "lasso"),
    "thinet": ("thinet", "thinet"),
    "lasso": ("lasso", "lasso"),
}
"""Name in the table → who selects, and who repairs."""
EXAMPLES, BATCH = 500, 100


def network(data: topiarist.Data, seed: int, out: Path) -> nn.Module:
    """A trained network, from the folder if it is there."""
    path = out / f"vgg11-{seed}.pt"
    torch.manual_seed(seed)
    model = topiarist.load_model(NETWORK)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        topiarist.fit(model, data, topiarist.Recipe(epochs=3, lr=0.05, batch_size=64), seed=seed)
        torch.save(model.state_dict(), path)
    return model.eval()


Batches = list[tuple[Tensor, Tensor]]


def outputs(model: nn.Module, layers: list[str], images: Batches) -> Iterator[dict[str, Tensor]]:
    """What some layers put out, batch by batch."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, args, y, name=name: seen.update({name: y.double()}))
        for name in layers
    ]
    with torch.no_grad():
        for x, _ in images:
            model(x)
            yield dict(seen)
    for handle in handles:
        handle.remove()


def errors(before: list[dict[str, Tensor]], pruned: nn.Module, layers: dict[str, Tensor], images: Batches) -> dict:
    """``|Y - Y'|^2 / |Y|^2`` of each layer, over the outputs that it keeps."""
    apart, size = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    for ys, others in zip(before, outputs(pruned, [*layers], images), strict=True):
        for name, kept in layers.items():
            apart[name] += float((ys[name] - others[name])[:, kept].square().sum())
            size[name] += float(ys[name][:, kept].square().sum())
    return {name: apart[name] / size[name] for name in layers}


def readers(graph: topiarist.Graph) -> dict[str, str]:
    """Group → the layer that reads it: in a plain network there is one."""
    return {group.name: group.by_role("input")[0].tensor.removesuffix(".weight") for group in graph.groups}


def kept_outputs(graph: topiarist.Graph, keep: dict[str, Tensor], layer: str) -> Tensor:
    """Bool ``(outputs,)`` of a layer."""
    for group in graph.groups:
        for part in group.by_role("output"):
            if part.tensor == f"{layer}.weight":
                return keep[group.name]
    return torch.ones(graph.shapes[f"{layer}.weight"][0], dtype=torch.bool)


def rows(model: nn.Module, data: topiarist.Data, seed: int, done: set[tuple]) -> Iterator[dict[str, Any]]:
    """One row for each layer, arm and share, alone and together."""
    graph = topiarist.trace(model, data.example())
    read = readers(graph)
    seen, images = (list(islice(data.batches(split, BATCH), EXAMPLES // BATCH)) for split in ("train", "test"))
    stats = topiarist.collect(model, graph, seen)
    before = list(outputs(model, [*read.values()], images))
    alone = [({name: share}, share) for share in SHARES for name in read]
    for ratios, share in [*alone, *(({"*": share}, share) for share in SHARES)]:
        case = next(iter(ratios))
        for arm, (selector, repairer) in ARMS.items():
            if (case, arm, share) in done:
                continue
            begin = time.process_time()
            method = make(selector, seed=seed) if selector != "l1" else make(selector)
            keep = choose(method, graph, stats, topiarist.Budget(ratios=ratios))
            pruned = topiarist.mask(model, graph, keep)
            if repairer is not None:
                repair = make(repairer, seed=seed)
                assert isinstance(repair, Repair)
                repair.repair(pruned, graph, keep, stats)
            seconds = time.process_time() - begin
            names = read.values() if case == "*" else [read[case]]
            found = errors(before, pruned, {name: kept_outputs(graph, keep, name) for name in names}, images)
            yield {"seed": seed, "case": case, "arm": arm, "share": share, "errors": found, "seconds": seconds}


def cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"


def table(found: list[dict[str, Any]], together: bool) -> list[str]:
    """A row for each reading layer and share, a column for each arm."""
    values: dict[tuple[str, float], dict[str, list[float]]] = {}
    for row in found:
        if (row["case"] == "*") == together:
            for layer, error in row["errors"].items():
                values.setdefault((layer, row["share"]), {}).setdefault(row["arm"], []).append(error)
    lines = [f"| channels kept | reading layer | {' | '.join(ARMS)} |", "|---|---|" + "---|" * len(ARMS)]
    for layer, share in sorted(values, key=lambda key: -key[1]):
        cells = [cell(values[layer, share][arm]) for arm in ARMS]
        lines.append(f"| {share:.0%} | `{layer}` | {' | '.join(cells)} |")
    return [*lines, "", *verdict(found, together), ""]


def verdict(found: list[dict[str, Any]], together: bool) -> list[str]:
    """How often each method's outputs are nearer than L1's and chance's, of the same network, layer and share."""
    by = {
        (row["seed"], row["case"], row["share"], layer, row["arm"]): error
        for row in found
        if (row["case"] == "*") == together
        for layer, error in row["errors"].items()
    }
    lines = []
    for arm in ("thinet", "lasso"):
        mine = {key[:-1]: error for key, error in by.items() if key[-1] == arm}
        told = [
            f"{sum(error < by[(*key, other)] for key, error in mine.items())} of {len(mine)} times below {other}"
            for other in ("l1", "random", "l1, refitted")
        ]
        lines.append(f"- {arm}: {', '.join(told)}.")
    return lines


def page(found: list[dict[str, Any]], options: argparse.Namespace) -> str:
    seconds = {
        arm: statistics.mean(row["seconds"] for row in found if row["case"] == "*" and row["arm"] == arm)
        for arm in ARMS
    }
    return "\n".join([
        "# Reconstruction: the next layer's outputs when channels go",
        "",
        "Relative squared error |Y − Y'|² / |Y|² of the layer that reads the pruned one, over the outputs that it "
        f"keeps, on {EXAMPLES} test images of fashion_mnist, mean ± standard deviation over {options.seeds} networks: "
        f"quarter-width VGG-11, {options.train:,} training images, 3 epochs. `random` and `l1` only select. `thinet` "
        f"and `lasso` select and repair, on {EXAMPLES} training images; `l1, refitted` is L1's selection with the "
        f"least squares of `lasso`. Nothing is fine-tuned. {options.workers} workers of one thread on {os.cpu_count()} "
        f"cores ({platform.machine()}), topiarist {topiarist.__version__}, torch {torch.__version__}. Rerun: "
        "`python benchmarks/reconstruction.py FOLDER`.",
        "",
        "## Each layer alone",
        "",
        *table(found, together=False),
        "## All layers together",
        "",
        "What a layer reads is wrong already. The least squares of `lasso` and `l1, refitted` go from front to "
        "back and make up for that; `thinet` measures all layers in the original network.",
        "",
        *table(found, together=True),
        "CPU seconds to select and repair all layers: "
        + ", ".join(f"{arm} {told:.1f}" for arm, told in seconds.items())
        + ".",
        "",
    ])  # fmt: skip


def work(seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of one seed, those of an earlier run included."""
    torch.set_num_threads(1)
    log = options.out / f"rows-{seed}.jsonl"
    found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    data = topiarist.load_data(f"npz:{options.folder / 'fashion_mnist.npz'}?train={options.train}", seed)
    model = network(data, seed, options.out)
    for row in rows(model, data, seed, {(row["case"], row["arm"], row["share"]) for row in found}):
        found.append(row)
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/reconstruction"))
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        found = [row for each in pool.map(partial(work, options=options), range(options.seeds)) for row in each]
    (HERE / "reconstruction.md").write_text(page(found, options))
    lines = ",\n".join(json.dumps(row) for row in found)
    (HERE / "reconstruction.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
