"""Peak activation memory: the closed form against measurement, of whole networks and cut to half of it.

    python benchmarks/memory.py [NAME …]    # writes benchmarks/memory.json and benchmarks/memory.md

Each network is traced with one image. The lowest L1 norms are removed, uniformly, until half of the peak is left. Then
the whole and the cut network run on a batch, in eval mode and without gradients, and are measured in ways that share
nothing with the tracer:

- held: the storages that operators return, added up as long as a weak reference to them lives;
- allocator: every allocation of torch's CPU allocator, as the profiler reports it, with what kernels need as they run;
- GPU, where there is one: `torch.cuda.max_memory_allocated` beyond what was allocated before.
"""

from __future__ import annotations

import argparse
import json
import platform
import textwrap
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import topiarist
from topiarist.graph import Graph
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.models import load_model

NETWORKS = {
    "torchvision:vgg16": 224,
    "torchvision:resnet18": 224,
    "torchvision:resnet50": 224,
    "torchvision:densenet121": 224,
    "torchvision:mobilenet_v2": 224,
    "torchvision:efficientnet_b0": 224,
    "torchvision:googlenet": 224,
    "torchvision:convnext_tiny": 224,
    "torchvision:swin_t": 224,
    "torchvision:vit_b_16": 224,
    "timm:vit_tiny_patch16_224": 224,
    "zoo:vgg16": 32,
    "zoo:resnet56": 32,
    "zoo:densenet40": 32,
}
"""Name → pixels on each side of its images."""

KEPT, BATCH, SEED = 0.5, 4, 0


class Held(TorchDispatchMode):
    """Adds up the storages that operators return, as long as they live.

    Attributes:
        peak: the most bytes at any time.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        outside = [*model.parameters(), *model.buffers(), images]
        self.outside = {tensor.untyped_storage().data_ptr() for tensor in outside}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        out = func(*args, **(kwargs or {}))
        for storage in [leaf.untyped_storage() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]:
            if storage.data_ptr() not in self.outside:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


def held(model: nn.Module, images: Tensor) -> int:
    with torch.no_grad(), Held(model, images) as account:
        model(images)
    return account.peak


def allocator(model: nn.Module, images: Tensor) -> int:
    with torch.no_grad():
        model(images)
        with torch.profiler.profile(profile_memory=True) as profile:
            model(images)
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def gpu(model: nn.Module, images: Tensor) -> int:
    model, images = model.cuda(), images.cuda()
    with torch.no_grad():
        model(images)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(images)
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    model.cpu()
    return peak


MEASURES: dict[str, Callable[[nn.Module, Tensor], int]] = {"held": held, "allocator": allocator}
if torch.cuda.is_available():
    MEASURES["gpu"] = gpu


def fastest(work: Callable[[], object], times: int) -> float:
    """Returns the seconds of the fastest of some runs."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def measured(name: str, size: int) -> dict[str, Any]:
    """Returns what was predicted and measured of one network, in bytes for the batch."""
    torch.manual_seed(SEED)
    model = load_model(name).eval()
    images = torch.randn(BATCH, 3, size, size)
    graph = topiarist.trace(model, images[:1])
    method = make("l1")
    scores = method.score(graph, collect(model, graph))
    keep = topiarist.allocate(graph, scores, topiarist.Budget(memory=KEPT))
    networks = {"whole": (model, graph.full()), "cut": (topiarist.cut(model, graph, keep), keep)}
    found: dict[str, Any] = {"network": name, "pixels": size}
    for which, (network, kept) in networks.items():
        numbers = {how: measure(network, images) for how, measure in MEASURES.items()}
        found[which] = {"predicted": BATCH * topiarist.cost(graph, kept).memory, **numbers}
    return {**found, "ms": _milliseconds(graph, keep)}


def _milliseconds(graph: Graph, keep: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns how long a cost takes, and the part of it that memory takes."""
    dead, timeline = graph.dead(keep), graph.solution.timeline
    whole, part = fastest(lambda: topiarist.cost(graph, keep), 20), fastest(lambda: timeline.peak(dead), 20)
    return {"cost": round(1000 * whole, 3), "memory": round(1000 * part, 3)}


def row(found: Mapping[str, Any]) -> str:
    cells = [found["network"], str(found["pixels"])]
    for numbers in (found["whole"], found["cut"]):
        predicted = numbers["predicted"]
        cells.append(f"{predicted / 1e6:.2f}")
        cells += [f"{numbers[how] / 1e6:.2f} ({predicted / numbers[how] - 1:+.1%})" for how in MEASURES]
    cells.append(", ".join(f"{found['cut'][how] / found['whole'][how]:.1%}" for how in MEASURES))
    cells.append(f"{found['ms']['memory']:.2f} of {found['ms']['cost']:.2f}")
    return f"| {' | '.join(cells)} |"


def story(rows: list[dict[str, Any]]) -> str:
    """Returns what the table shows and how it was made."""
    pairs = [(found[which]["predicted"], found[which]["held"]) for found in rows for which in ("whole", "cut")]
    exact = sum(predicted == peak for predicted, peak in pairs)
    worst = max(abs(predicted / peak - 1) for predicted, peak in pairs)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"The peak of a forward pass on {BATCH} images, in MB (10⁶ bytes), of the whole network and cut to "
        f"{KEPT:.0%} of the peak (L1 norms, uniform): predicted by the closed form from a trace with one image, and "
        "measured. In brackets the prediction's error. *Held*: the storages that operators return, added up as "
        f"long as they live. {exact} of {len(pairs)} predictions are what was held to the byte, and none is off by "
        f"more than {worst:.2%}. *Allocator*: all that torch's CPU allocator gave out, as its profiler reports it; "
        "oneDNN's convolutions take memory of their own while they run, which the prediction leaves out. *Kept*: "
        f"the cut network's share of the whole one, by {' and '.join(MEASURES)}. *ms*: for the peak of one keep, of "
        f"all that `topiarist.cost` takes. Random weights of seed {SEED}, {torch.get_num_threads()} threads of "
        f"{platform.machine()}, which did other work besides, {device}; topiarist {topiarist.__version__}, torch "
        f"{torch.__version__}, Python {platform.python_version()}. Rerun: `python benchmarks/memory.py`."
    )


def write(rows: list[dict[str, Any]], where: Path) -> None:
    """Writes the table, and the numbers beside it."""
    names = ["predicted", *({"gpu": "GPU"}.get(how, how) for how in MEASURES)]
    head = ["network", "pixels", *(f"{which}: {name}" for which in ("whole", "cut") for name in names), "kept", "ms"]
    lines = ["# Peak activation memory", "", *textwrap.wrap(story(rows), 120), ""]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *map(row, rows)]
    where.with_suffix(".md").write_text("\n".join(lines) + "\n")
    where.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NETWORKS), help="networks to run; all by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in options.names:
        rows.append(measured(name, NETWORKS.get(name, 224)))
        print(row(rows[-1]), flush=True)
        write(rows, options.out)


if __name__ == "__main__":
    main()
