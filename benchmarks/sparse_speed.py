"""How fast is unstructured sparsity? Kernels of `topiarist.sparse` against every dense runtime at hand, in one run.

    python benchmarks/sparse_speed.py [NAME …] [--out benchmarks/sparse_speed] [--fresh] [--threads 1 2]

Random weights; magnitude pruning layer by layer, to a tenth and a twentieth of all weights but those of the first layer
(of MobileNetV2 the 1×1 convolutions alone; of the linear layer also half; of ResNet-18 also a fifth, and "in fours":
the weights of four neighbouring output channels together). All runtimes run in turns. With one thread a number is CPU
time, with two it is wall time; medians of ROUNDS rounds, each after a pause and a few runs that do not count. The dense
runtimes take the network before pruning: zeros do not help them. Two more columns have it in lower precision, which
some processors compute natively; they do not count in the ratio. Writes OUT.jsonl, a line for each network and setting,
and OUT.md; lines that are there are skipped. Needs the extras `vision`, `export` and `sparse`; `torch.compile` runs
where a compiler is.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import topiarist
from topiarist import Budget, TopiaristError
from topiarist.deploy import export, machine, make_target
from topiarist.sparse import host

ROUNDS = 9
SECONDS = 40.0
PAUSE, WARM = 0.1, 0.05
Variant = tuple[float, int]
"""The part of the weights that is kept, and the output channels whose weights are pruned together."""
USUAL: tuple[Variant, ...] = ((0.1, 1), (0.05, 1))
NETWORKS: dict[str, tuple[str, tuple[Variant, ...], list[str]]] = {
    "resnet18": ("torchvision:resnet18", ((0.2, 1), *USUAL, (0.2, 4), (0.1, 4), (0.05, 4)), ["conv1"]),
    "resnet50": ("torchvision:resnet50", USUAL, ["conv1"]),
    "mobilenet_v2": ("torchvision:mobilenet_v2", USUAL, ["features.0.0", "features.*.conv.*.0", "classifier"]),
    "vit_tiny": ("timm:vit_tiny_patch16_224", USUAL, ["patch_embed", "head"]),
    "linear": ("", ((0.5, 1), *USUAL), []),
    "vgg16": ("torchvision:vgg16", USUAL, ["features.0"]),
}
SETTINGS = ((1, 1), (2, 1), (1, 16))
"""Threads and batch."""
DENSE = ("torch", "channels-last", "torch.compile", "onnxruntime", "openvino")
LOWER = ("openvino bf16", "onnxruntime int8")


def network(name: str) -> tuple[nn.Module, Tensor]:
    """The network before pruning, and one example."""
    torch.manual_seed(0)
    if name == "linear":
        return nn.Sequential(nn.Linear(4096, 4096)).eval(), torch.randn(1, 4096)
    return topiarist.load_model(NETWORKS[name][0]).eval(), torch.randn(1, 3, 224, 224)


def excluded(name: str, model: nn.Module) -> tuple[str, ...]:
    """The layers that stay whole."""
    if name != "mobilenet_v2":
        return tuple(NETWORKS[name][2])
    convolutions = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    return (*(n for n, m in convolutions if m.kernel_size != (1, 1)), "classifier")


def pruned(name: str, kept: float, block: int) -> nn.Module:
    """The network with zeros."""
    model, one = network(name)
    budget = Budget(ratio=kept, exclude=excluded(name, model), allocation="uniform")
    return topiarist.prune(model, one, topiarist.methods.make("magnitude", block=block), budget).model


def label(variant: Variant) -> str:
    """How a variant is named."""
    kept, block = variant
    return f"{1 - kept:.0%}{', in fours' * (block == 4)}"


def runs(name: str, threads: int, batch: int) -> dict[str, Callable[[], Any]]:
    """What is measured, by the name of its column or variant."""
    model, one = network(name)
    x = torch.cat([one] * batch)
    last = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    made: dict[str, Callable[[], Any]] = {}
    for variant in NETWORKS[name][1]:
        made[label(variant)] = make_target("sparse", threads).prepare(pruned(name, *variant), x).bind(x)
    for column in DENSE:
        target, given, inputs = column, model, x
        if column == "channels-last":
            if x.ndim != 4:
                continue
            target, given, inputs = "torch", copy.deepcopy(model).to(memory_format=torch.channels_last), last
        try:
            made[column] = make_target(target, threads).prepare(given, inputs).bind(inputs)
        except TopiaristError as error:
            print(f"{name}: no {column} ({error})", flush=True)
    return made | lower_precision(model, x, threads)


def lower_precision(model: nn.Module, x: Tensor, threads: int) -> dict[str, Callable[[], Any]]:
    """The dense network in bfloat16 and in 8-bit integers, calibrated on random inputs: for its speed alone."""
    import onnxruntime
    import openvino
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Random(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, entry: str) -> None:
            self.left = iter([{entry: torch.randn(x[:1].shape).numpy()} for _ in range(4)])

        def get_next(self) -> Any:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder:
        path, ready, small = (str(Path(folder) / f"{name}.onnx") for name in ("whole", "ready", "int8"))
        export(model, x[:1], path)
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "bf16"}
        compiled = openvino.Core().compile_model(path, "CPU", settings | {"PERFORMANCE_HINT": "LATENCY"})
        quant_pre_process(path, ready)
        entry = onnxruntime.InferenceSession(ready).get_inputs()[0].name
        quantize_static(ready, small, Random(entry), per_channel=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(small, options)
    request, array = compiled.create_infer_request(), x.numpy()
    return {
        "openvino bf16": lambda: request.infer([array], share_inputs=True),
        "onnxruntime int8": lambda: session.run(None, {entry: array}),
    }


def medians(of: dict[str, Callable[[], Any]], clock: Callable[[], float]) -> dict[str, list[float]]:
    """Milliseconds of each, run in turns: median, and the quartiles.

    Before each one is a pause, in which threads of the runtime before fall asleep: they wait for more, and a processor
    that they hold is one that the next runtime lacks. Then it runs for a while, or once, before the run that counts.
    """
    times: dict[str, list[float]] = {column: [] for column in of}
    began = time.perf_counter()
    for turn in range(ROUNDS):
        for column, run in of.items():
            time.sleep(PAUSE)
            warm = time.perf_counter() + WARM
            run()
            while time.perf_counter() < warm:
                run()
            start = clock()
            run()
            times[column].append(1000 * (clock() - start))
        if turn >= 2 and time.perf_counter() - began > SECONDS:
            break
    return {column: [statistics.median(t), *statistics.quantiles(t, n=4)[::2]] for column, t in times.items()}


def measure(name: str, threads: int, batch: int) -> dict[str, Any]:
    """One line."""
    clock = time.process_time if threads == 1 else time.perf_counter
    return {"network": name, "threads": threads, "batch": batch, "ms": medians(runs(name, threads, batch), clock)}


def report(lines: list[dict[str, Any]]) -> str:
    """The page."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime", "openvino", "llvmlite"))
    text = [
        "# Sparse weights against dense runtimes",
        "",
        "Milliseconds, medians of runs in turns; the sparse network by `topiarist.sparse`, the whole network by the "
        "others. One thread: CPU time. Two: wall time. The ratio is that of the fastest dense runtime to the sparse "
        "one. Random weights, magnitude pruning layer by layer, first layer whole; 224² images. Made by "
        "`sparse_speed.py`.",
        "",
        f"{machine()} ({host().cpu}, vectors of {host().lanes} floats); {date.today()}; {packages}",
        "",
        "| network | zeros | threads | batch | sparse | "
        + " | ".join(DENSE)
        + " | ratio | "
        + " | ".join(LOWER)
        + " |",
        "|---" * (6 + len(DENSE) + len(LOWER)) + "|",
    ]
    for line in lines:
        ms = line["ms"]
        dense, lower = ([f"{ms[c][0]:.3g}" if c in ms else "–" for c in columns] for columns in (DENSE, LOWER))
        best = min(ms[column][0] for column in DENSE if column in ms)
        text += [
            f"| {line['network']} | {variant} | {line['threads']} | {line['batch']} | {ms[variant][0]:.3g} | "
            f"{' | '.join(dense)} | **{best / ms[variant][0]:.2f}** | {' | '.join(lower)} |"
            for variant in map(label, NETWORKS[line["network"]][1])
        ]
    return "\n".join(text) + "\n"


def main() -> None:
    """Measures what is missing, and writes the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    file = options.out.with_suffix(".jsonl")
    lines = [] if options.fresh or not file.exists() else [json.loads(row) for row in file.read_text().splitlines()]
    for name in options.names:
        for threads, batch in SETTINGS:
            if threads in options.threads and not any(
                (x["network"], x["threads"], x["batch"]) == (name, threads, batch) for x in lines
            ):
                lines.append(measure(name, threads, batch))
                file.write_text("".join(json.dumps(line) + "\n" for line in lines))
                print(json.dumps(lines[-1]), flush=True)
    order = list(NETWORKS)
    lines.sort(key=lambda line: (order.index(line["network"]), SETTINGS.index((line["threads"], line["batch"]))))
    options.out.with_suffix(".md").write_text(report(lines))


if __name__ == "__main__":
    main()
