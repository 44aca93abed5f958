"""MACs budgets against a latency budget: milliseconds before and after, in the runtimes that people use.

    python benchmarks/latency.py [NAME …] [--out benchmarks/latency] [--fresh]

Each network has random weights and 224² images, and is cut by L1 scores in four ways: to a fraction of the MACs with
any width; to the same with widths in multiples of 8; to the fraction of the milliseconds of ONNX Runtime (one thread,
batch 1); and, for comparison with that, to the MACs that it kept with multiples of 8. Whole and cut network run in
turns; numbers are medians of the ratio of a round. Efficiency is speed-up × MACs kept: 1 where time falls as MACs do.

Writes OUT.jsonl, a line for each network and cut, and OUT.md; lines that are there are skipped, so an interrupted run
continues. Needs the extras `vision` and `export`.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import defaultdict
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from topiarist import Budget, allocate, cost, cut, load_model, methods, prune, trace
from topiarist.budget import LatencyTable
from topiarist.deploy import latency_table, machine, make_target, ratio_of
from topiarist.graph import Graph, Keep, batch_of
from topiarist.measure import collect

NETWORKS = {
    "resnet18": "torchvision:resnet18",
    "resnet50": "torchvision:resnet50",
    "vgg16": "torchvision:vgg16",
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "efficientnet_b0": "torchvision:efficientnet_b0",
    "vit_tiny": "timm:vit_tiny_patch16_224",
}
FRACTIONS = (0.5, 0.3)
DECIDING = ("onnxruntime", 1, 1)
BESIDE = (("onnxruntime", 2, 1), ("onnxruntime", 1, 16), ("openvino", 1, 1), ("openvino", 2, 1))
SECONDS = 5.0
STANDS = (
    "First the operators whose time falls least beside the MACs, by ONNX Runtime's profile; then the layers, by the "
    "table."
)


def ways(graph: Graph, scores: Any, fraction: float, by_latency: Keep) -> Iterator[tuple[str, Keep]]:
    """Yields the cuts that are compared."""
    kept = cost(graph, by_latency).macs / cost(graph).macs
    yield "MACs", allocate(graph, scores, Budget(macs=fraction))
    yield "MACs, multiple 8", allocate(graph, scores, Budget(macs=fraction, multiple=8))
    yield "latency", by_latency
    yield "its MACs, multiple 8", allocate(graph, scores, Budget(macs=min(1.0, kept * 1.005), multiple=8))


def measure(name: str, fraction: float) -> dict[str, Any]:
    """Returns one line: what each way kept, and how long it takes."""
    torch.manual_seed(0)
    model, x = load_model(NETWORKS[name]).eval(), torch.randn(1, 3, 224, 224)
    graph, target = trace(model, x), make_target(*DECIDING[:2])
    done = prune(model, x, "l1", Budget(latency=fraction, target=DECIDING[0]), graph=graph)
    table = latency_table(model, graph, x, target)
    l1 = methods.make("l1")
    scores = l1.score(graph, collect(model, graph, None, l1.needs))
    rows = {}
    for way, keep in ways(graph, scores, fraction, done.keep):
        smaller = cut(model, graph, keep)
        times = {setting(*DECIDING): ratios(model, smaller, x, *DECIDING)}
        if way != "its MACs, multiple 8":
            times |= {setting(*each): ratios(model, smaller, x, *each) for each in BESIDE}
        kept = cost(graph, keep).macs / cost(graph).macs
        rows[way] = {"macs": kept, "predicted": table.of(keep), "measured": times}
    of = {"layers": layers(table, done.keep), "operators": [operators(each, x) for each in (model, done.model)]}
    return {"network": name, "fraction": fraction, "ms": table.whole, "proof": done.proof.ok, "ways": rows, **of}


def ratios(whole: nn.Module, smaller: nn.Module, x: Any, target: str, threads: int, batch: int) -> float:
    """Returns the milliseconds after as a fraction of those before."""
    runtime, inputs = make_target(target, threads), batch_of(x, batch)
    seconds, rounds = (SECONDS, 7) if (target, threads, batch) == DECIDING else (SECONDS / 2, 3)
    return ratio_of(runtime.prepare(smaller, inputs), runtime.prepare(whole, inputs), inputs, seconds, rounds)


def operators(model: nn.Module, x: Any, runs: int = 20) -> dict[str, float]:
    """Returns the milliseconds of each kind of operator, by ONNX Runtime's own profile with one thread."""
    import onnxruntime

    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        make_target("onnxruntime").export(model, x, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.enable_profiling = 1, True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, {session.get_inputs()[0].name: x.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text())
    kinds: dict[str, float] = defaultdict(float)
    for event in events:
        if event["name"].endswith("_kernel_time"):
            kinds[event["args"]["op_name"]] += event["dur"] / 1000 / runs
    return dict(kinds)


def setting(target: str, threads: int, batch: int) -> str:
    """Returns how a setting is written."""
    return f"{target}, {threads} thread{'s' * (threads > 1)}, batch {batch}"


def layers(table: LatencyTable, keep: Keep) -> list[dict[str, Any]]:
    """Returns what each layer costs before and after, by the table, with the MACs that it keeps."""
    shares = {name: float(kept.float().mean()) for name, kept in keep.items()}
    rows = []
    for layer in table.layers:
        reads, makes = layer.inputs.width(shares), layer.outputs.width(shares)
        macs = float(reads * makes) / (layer.inputs.size * layer.outputs.size)
        before, after = float(table.layer(layer, {})), float(table.layer(layer, shares))
        rows.append({"layer": layer.layer, "ms": before, "kept": after / before, "macs": macs})
    return rows


def report(lines: list[dict[str, Any]]) -> str:
    """Returns the page."""
    first = setting(*DECIDING)
    text = [
        "# Milliseconds: a latency budget against MACs budgets",
        "",
        "Each network is cut by L1 scores to half and to 0.3: of its MACs, or of its milliseconds in ONNX Runtime "
        "(one thread, batch 1). A cell is time after / time before. Efficiency is speed-up × MACs kept: 1 where time "
        "falls as MACs do; in brackets that of multiples of 8 at the same MACs. Made by `latency.py`, random weights, "
        "seed 0, 224² images; whole and cut network run in turns, medians of rounds.",
        "",
        f"{machine()}; {date.today()}; "
        + ", ".join(f"{package} {version(package)}" for package in ("torch", "onnxruntime", "openvino", "torchvision")),
        "",
        "| network | to | whole, ms | MACs | multiple 8 | latency | predicted | MACs kept | efficiency |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    met, efficient = [], []
    for line in lines:
        by, same = line["ways"]["latency"], line["ways"]["its MACs, multiple 8"]
        cells = [f"{line['ways'][way]['measured'][first]:.3f}" for way in ("MACs", "MACs, multiple 8", "latency")]
        ours, theirs = (row["macs"] / row["measured"][first] for row in (by, same))
        met.append(abs(by["measured"][first] / line["fraction"] - 1))
        efficient.append((ours, theirs, line))
        text.append(
            f"| {line['network']} | {line['fraction']} | {line['ms']:.1f} | {' | '.join(cells)} "
            f"| {by['predicted']:.3f} | {by['macs']:.3f} | {ours:.2f} ({theirs:.2f}) |"
        )
    gap = sum(ours >= (min(theirs, 1) + 1) / 2 for ours, theirs, _ in efficient)
    text += [
        "",
        f"Met within 5 %: {sum(m <= 0.05 for m in met)} of {len(met)}, within 10 %: {sum(m <= 0.1 for m in met)}. "
        f"At least as efficient as multiples of 8: {sum(o >= t for o, t, _ in efficient)} of {len(met)}; at least half "
        f"of the gap to 1 closed: {gap}.",
        "",
        "## Other settings",
        "",
        "The same networks, cut for ONNX Runtime with one thread and batch 1, elsewhere: MACs / multiple 8 / latency.",
        "",
        "| network | to | " + " | ".join(setting(*each) for each in BESIDE) + " |",
        "|---|---|" + "---|" * len(BESIDE),
    ]
    for line in lines:
        rows = [line["ways"][way]["measured"] for way in ("MACs", "MACs, multiple 8", "latency")]
        cells = [" / ".join(f"{row[setting(*each)]:.2f}" for row in rows) for each in BESIDE]
        text.append(f"| {line['network']} | {line['fraction']} | {' | '.join(cells)} |")
    text += ["", "## What stands in the way", "", "Where efficiency is below 0.95. " + STANDS, ""]
    for ours, _, line in efficient:
        if ours < 0.95:
            before, after = line["operators"]
            kept = line["ways"]["latency"]["macs"]
            late = sorted(before, key=lambda kind: kept * before[kind] - after.get(kind, 0.0))[:4]
            kinds = "; ".join(f"{kind} {before[kind]:.2f} → {after.get(kind, 0.0):.2f}" for kind in late)
            worst = sorted(line["layers"], key=lambda row: row["ms"] * (row["macs"] - row["kept"]))[:3]
            named = "; ".join(
                f"{row['layer']}: {row['ms']:.2f} ms, keeps {row['kept']:.2f} of it and {row['macs']:.2f} of its MACs"
                for row in worst
            )
            text += [f"- {line['network']}, {line['fraction']} ({kept:.2f} of MACs): {kinds} ms. Layers: {named}"]
    return "\n".join(text) + "\n"


def main() -> None:
    """Measures what is missing, and writes the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    file = options.out.with_suffix(".jsonl")
    lines = [] if options.fresh or not file.exists() else [json.loads(row) for row in file.read_text().splitlines()]
    for name in options.names:
        for fraction in FRACTIONS:
            if not any((line["network"], line["fraction"]) == (name, fraction) for line in lines):
                lines.append(measure(name, fraction))
                file.write_text("".join(json.dumps(line) + "\n" for line in lines))
                print(json.dumps({key: value for key, value in lines[-1].items() if key != "layers"}), flush=True)
    order = list(NETWORKS)
    lines.sort(key=lambda line: (order.index(line["network"]), -line["fraction"]))
    options.out.with_suffix(".md").write_text(report(lines))


if __name__ == "__main__":
    main()
