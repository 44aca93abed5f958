"""Speed against Torch-Pruning: CPU time of tracing, scoring by L1 norm, allocating and cutting, network by network.

    python benchmarks/versus_torch_pruning.py [NAME …] [--out benchmarks/versus_torch_pruning] [--pairs 3] [--fresh]

Both halve every layer of the same networks (`networks.txt`, weights made non-degenerate) by the L1 norm, in one process
and in turn: ours, peer, ours, peer … Times are CPU seconds of one thread (`time.process_time`), medians over the pairs.
What is timed is all that stands between a trained model and a smaller one: `topiarist.trace`, the L1 score, the
allocation and `topiarist.cut`; and Torch-Pruning's `MagnitudePruner(...)` with `step()`. Imports, building the network
and copying it before each run are not timed. The proof is timed apart, since the peer has none.

Every network has a process of its own, in which the peer may take 120 s of CPU time and 10 GiB of address space, so
that a hang or a lack of memory is a row of the table. Each handles a network if it ends, the pruned network runs on the
example input and gives finite outputs of the old shapes, and parameters shrank. Whether the peer's outputs are right is
not checked.

Writes one JSON line a network, after a line that names the machine, and a Markdown table. Networks that are already
there are skipped, so an interrupted run goes on; `--fresh` starts anew. Needs `torch-pruning` and the extra `vision`.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.metadata
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import torch
from proof_table import NETWORKS, non_degenerate
from torch import Tensor, nn

import topiarist
from topiarist.graph import tensors_in
from topiarist.methods.l1 import L1
from topiarist.models import load_model

RATIO = 0.5
PEER_SECONDS = 120
MEMORY = 10 * 2**30
MARK = "@@ "  # begins the lines that a worker reports with, among whatever the networks' libraries print
MET = {True: "met", False: "NOT met"}
PACKAGES = ("topiarist", "torch-pruning", "torch", "torchvision", "timm")


class OutOfTimeError(Exception):
    """The peer has used up its CPU time."""


def prune_ours(model: nn.Module, example: Tensor) -> tuple[nn.Module, dict[str, float], Callable[[], topiarist.Proof]]:
    """The smaller network, CPU seconds of each step, and a function that proves the cut."""
    begin = time.process_time()
    graph = topiarist.trace(model, example)
    traced = time.process_time()
    scores = L1().score(graph, topiarist.collect(model, graph))
    scored = time.process_time()
    keep = topiarist.allocate(graph, scores, topiarist.Budget(ratio=RATIO))
    allocated = time.process_time()
    smaller = topiarist.cut(model, graph, keep)
    end = time.process_time()
    steps = {"trace": traced - begin, "score": scored - traced, "allocate": allocated - scored, "cut": end - allocated}
    return smaller, steps, lambda: topiarist.prove(model, graph, keep, example)


def prune_peer(model: nn.Module, example: Tensor, settings: dict[str, Any]) -> float:
    """CPU seconds of Torch-Pruning, which changes the model in place."""
    import torch_pruning as tp  # type: ignore[import-untyped]

    begin = time.process_time()
    pruner = tp.pruner.MagnitudePruner(
        model,
        example,
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=1 - RATIO,
        global_pruning=False,
        **settings,
    )
    pruner.step()
    return time.process_time() - begin


def peer_settings(model: Any, outputs: Sequence[Tensor]) -> dict[str, Any]:
    """What Torch-Pruning's own examples give beside the ratio: layers to ignore, and the heads of attention layers.

    Layers to ignore are those that make the classes (as many channels as an output has), and a whole feature pyramid,
    whose outputs are the network's. The dictionaries are always passed: the defaults are shared between pruners.
    """
    classes = {output.shape[1] for output in outputs}
    widths = {m: m.weight.shape[0] for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    ignored: list[nn.Module] = [module for module, width in widths.items() if width in classes]
    if isinstance(pyramid := getattr(model, "fpn", None), nn.Module):
        ignored = [pyramid]
    heads: dict[nn.Module, int] = {}
    groups: dict[nn.Module, int] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            groups[module] = module.num_heads
        elif hasattr(module, "num_heads"):
            heads |= dict.fromkeys(_projections(module), module.num_heads)
    return {"ignored_layers": ignored, "num_heads": heads, "out_channel_groups": groups, "in_channel_groups": {}}


def _projections(attention: nn.Module) -> list[nn.Linear]:
    """The layers of an attention module whose outputs are split into heads."""
    names = ("qkv", "qkv_proj", "q", "k", "v", "kv", "q_proj", "k_proj", "v_proj")
    found = (getattr(attention, name, None) for name in names)
    return [layer for layer in found if isinstance(layer, nn.Linear)]


def prepare_for_peer(model: nn.Module) -> None:
    """Attention spelt out rather than fused, as the peer's examples set it (TIMM_FUSED_ATTN=0)."""
    for module in model.modules():
        if "fused_attn" in module.__dict__:
            module.__dict__["fused_attn"] = False


def follow_peer(model: Any) -> None:
    """Sizes that Torch-Pruning leaves to its user, set as in its examples; without them few transformers run."""
    if hasattr(model, "hidden_dim") and hasattr(model, "conv_proj"):  # torchvision's vision transformer
        model.hidden_dim = model.conv_proj.out_channels
    for module in model.modules():
        if hasattr(module, "num_heads") and (layers := _projections(module)):
            packed = hasattr(module, "qkv") or hasattr(module, "qkv_proj")
            width = layers[0].out_features // (3 if packed else 1)
            sizes = {"head_dim": width // module.num_heads, "attn_dim": width, "all_head_dim": width}
            module.__dict__.update({name: sizes[name] for name in sizes.keys() & module.__dict__.keys()})


def verdict(model: nn.Module, example: Tensor, expected: Sequence[Tensor], params: int) -> str:
    """Whether a pruned network runs, and is one: "handled", or what is wrong."""
    with torch.no_grad():
        try:
            outputs = tensors_in(model(example))
        except Exception as error:
            return f"pruned network fails: {told(error)}"
    if [tuple(t.shape) for t in outputs] != [tuple(t.shape) for t in expected]:
        return "pruned network gives outputs of other shapes"
    if not all(bool(torch.isfinite(t).all()) for t in outputs):
        return "pruned network gives outputs that are not finite"
    return "handled" if parameters(model) < params else "nothing removed"


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def told(error: BaseException) -> str:
    """An exception in a few words."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:110].rstrip(": ")


def work(name: str, pairs: int, *, peer: bool) -> None:
    """Times one network, in a process of its own; reports every result as it comes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    warm_up()
    torch.manual_seed(0)
    model = load_model(name).eval()
    side = 299 if "inception_v3" in name else getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))[-1]
    example = torch.randn(1, 3, side, side)
    non_degenerate(model, example)
    with torch.no_grad():
        expected = tensors_in(model(example))
    report("dense", params=parameters(model))
    for _ in range(pairs):
        run_ours(fresh(model), example, expected)
        if peer:
            peer = run_peer(fresh(model), example, expected)


def fresh(model: nn.Module) -> nn.Module:
    """A copy, with no garbage of earlier runs left to collect."""
    copied = copy.deepcopy(model)
    gc.collect()
    return copied


def warm_up() -> None:
    """Both prune a network of two layers first, so that no import is left to time."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    example = torch.randn(1, 3, 8, 8)
    _, _, prove = prune_ours(copy.deepcopy(model), example)
    prove()
    prune_peer(model, example, peer_settings(model, [model(example)]))


def run_ours(model: nn.Module, example: Tensor, expected: Sequence[Tensor]) -> None:
    """Times ours once, and the proof."""
    params = parameters(model)
    try:
        smaller, steps, prove = prune_ours(model, example)
        begin = time.process_time()
        proof = prove()
        proof_s = time.process_time() - begin
    except Exception as error:
        report("ours", fate=f"fails: {told(error)}")
        return
    fate = verdict(smaller, example, expected, params) if proof.ok else f"not proved: {proof.reason}"
    report("ours", fate=fate, seconds=sum(steps.values()), steps=steps, proof=proof_s, params=parameters(smaller))


def run_peer(model: nn.Module, example: Tensor, expected: Sequence[Tensor]) -> bool:
    """Times the peer once; false where it has failed and need not try again."""
    params = parameters(model)
    prepare_for_peer(model)
    settings = peer_settings(model, expected)
    limit_cpu(PEER_SECONDS)
    try:
        seconds = prune_peer(model, example, settings)
    except OutOfTimeError:
        report("peer", fate=f"over {PEER_SECONDS} s")
        return False
    except Exception as error:
        memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
        report("peer", fate="out of memory" if memory else f"fails: {told(error)}")
        return False
    finally:
        limit_cpu(None)
    follow_peer(model)
    fate = verdict(model, example, expected, params)
    report("peer", fate=fate, seconds=seconds, params=parameters(model))
    return fate == "handled"


def limit_cpu(seconds: int | None) -> None:
    """Raises `OutOfTimeError` after so many CPU seconds; if no Python code runs then, the system ends the process."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds or 0)
    soft = resource.RLIM_INFINITY if seconds is None else int(time.process_time()) + seconds + 10
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def report(who: str, **values: Any) -> None:
    print(MARK + json.dumps({"who": who, **values}), flush=True)


def measured(name: str, pairs: int) -> dict[str, Any]:
    """One row: what the network's process reported, and how it ended if it did not end well."""
    events, ending = in_process(name, pairs, peer=True)
    if ending:
        overdue = ending == f"signal {signal.SIGXCPU.value}"
        killer = f"over {PEER_SECONDS} s" if overdue else f"ends the process ({ending})"
        peer_was_on = bool(events) and events[-1]["who"] == "ours"
        events = [e for e in events if e["who"] == "peer"] + in_process(name, pairs, peer=False)[0]
        if peer_was_on:
            events.append({"who": "peer", "fate": killer})
    row: dict[str, Any] = {"network": name, "date": date.today().isoformat()}
    row["params"] = next((e["params"] for e in events if e["who"] == "dense"), None)
    for side in ("ours", "peer"):
        row[side] = summary_of([e for e in events if e["who"] == side], ending or "no result")
    return row


def in_process(name: str, pairs: int, *, peer: bool) -> tuple[list[dict[str, Any]], str]:
    """The reports of a worker, and how it ended ("" if well)."""
    command = [sys.executable, __file__, name, "--worker", "--pairs", str(pairs), *([] if peer else ["--alone"])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600, env=environment, check=False)
        status = done.returncode
        output, ending = done.stdout, f"signal {-status}" if status < 0 else f"exit status {status}" if status else ""
        if status > 0:
            print(done.stderr[-2000:], file=sys.stderr)
    except subprocess.TimeoutExpired as error:
        output, ending = (error.stdout or b"").decode(), "no end within an hour"
    return [json.loads(line.removeprefix(MARK)) for line in output.splitlines() if line.startswith(MARK)], ending


def summary_of(events: list[dict[str, Any]], missing: str) -> dict[str, Any]:
    """Medians over the runs of one side; its fate is the first that is not "handled"."""
    fates = [e["fate"] for e in events] or [missing]
    found: dict[str, Any] = {"fate": next((f for f in fates if f != "handled"), "handled")}
    timed = [e for e in events if "seconds" in e]
    if timed:
        found |= {"median_s": round(median(e["seconds"] for e in timed), 4), "params": timed[0]["params"]}
        found["runs_s"] = [round(e["seconds"], 4) for e in timed]
    if timed and "proof" in timed[0]:
        found["proof_s"] = round(median(e["proof"] for e in timed), 4)
        found["steps_s"] = {k: round(median(e["steps"][k] for e in timed), 4) for k in timed[0]["steps"]}
    return found


def machine() -> dict[str, Any]:
    """Processor, cores and versions; nothing that names the host."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
    return {"processor": model or platform.machine(), "cores": os.cpu_count(), **versions}


def markdown(head: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    both = [row for row in rows if row["ours"]["fate"] == row["peer"]["fate"] == "handled"]
    lines = ["# Speed against Torch-Pruning", "", *about(head, rows), "", *verdicts(rows, both), ""]
    lines += ["| network | ours s | peer s | ratio | proof s | proof / trace | ours | peer |"]
    lines.append("|---|---:|---:|---:|---:|---:|---|---|")
    for row in rows:
        ours, peer = row["ours"], row["peer"]
        ratio = f"{ours['median_s'] / peer['median_s']:.2f}" if row in both else "–"
        peer_s = f"{peer['median_s']:.2f}" if row in both else "–"
        times = [f"{ours[key]:.2f}" if key in ours else "–" for key in ("median_s", "proof_s")]
        times.append(f"{ours['proof_s'] / ours['steps_s']['trace']:.1f}" if "proof_s" in ours else "–")
        fates = [side["fate"].replace("|", "/") for side in (ours, peer)]
        name = row["network"].removeprefix("torchvision:").removeprefix("timm:")
        lines.append(
            f"| {name} | {times[0]} | {peer_s} | {ratio} | {times[1]} | {times[2]} | {fates[0]} | {fates[1]} |"
        )
    return "\n".join(lines) + "\n"


def about(head: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    versions = ", ".join(f"{name} {head[name]}" for name in (*PACKAGES, "python"))
    dates = sorted({row["date"] for row in rows})
    return [
        "CPU seconds of one thread from a trained network to one with half of every layer, ranked by the L1 norm;",
        "medians of runs taken in turn in one process. Ours is trace, score, allocate and cut; the proof, which the",
        "peer does not have, is timed apart. A ratio is given where both handle the network: each ends (the peer",
        f"within {PEER_SECONDS} s and {MEMORY // 2**30} GiB), and its result runs, gives outputs of the old shapes and",
        "is smaller; whether the peer's outputs are right is not checked. Made by `versus_torch_pruning.py`.",
        "",
        f"Machine: {head['processor']}, {head['cores']} cores. Versions: {versions}. Date: {' to '.join(dates)}.",
    ]


def verdicts(rows: list[dict[str, Any]], both: list[dict[str, Any]]) -> list[str]:
    """The criteria, and whether they are met."""
    handled = {side: sum(row[side]["fate"] == "handled" for row in rows) for side in ("ours", "peer")}
    lines = [f"- Handled: ours {handled['ours']} of {len(rows)}, peer {handled['peer']}, both {len(both)}."]
    if len(both) > 2:
        ours, peer = (sum(row[side]["median_s"] for row in both) for side in ("ours", "peer"))
        ratios = {row["network"]: row["ours"]["median_s"] / row["peer"]["median_s"] for row in both}
        worst = max(both, key=lambda row: ratios[row["network"]])
        *others, second, first = sorted(both, key=lambda row: row["peer"]["median_s"])
        ours_else, peer_else = (sum(row[side]["median_s"] for row in others) for side in ("ours", "peer"))
        slowest = [f"{row['network']} ({row['peer']['median_s']:.1f} s)" for row in (first, second)]
        middle = median(ratios.values())
        slow = [r for r in both if r["ours"]["median_s"] > max(1.5 * r["peer"]["median_s"], 0.5)]
        lines += [
            f"- Summed over networks that both handle: ours {ours:.1f} s, peer {peer:.1f} s, ratio {ours / peer:.2f}; "
            f"at most 0.5 is {MET[ours <= 0.5 * peer]}. Median ratio "
            f"{middle:.2f}; at most 0.75 is {MET[middle <= 0.75]}.",
            f"- Faster on {sum(ratio < 1 for ratio in ratios.values())} of {len(both)}. The sum leans on few networks: "
            f"without the peer's slowest, {' and '.join(slowest)}, the ratio is {ours_else / peer_else:.2f}.",
            f"- Worst ratio: {ratios[worst['network']]:.2f} on {worst['network']}, {worst['ours']['median_s']:.2f} s "
            f"of ours; none above the larger of 1.5 × and 0.5 s is {MET[not slow]}.",
        ]
    proved = {r["network"]: r["ours"]["median_s"] + r["ours"]["proof_s"] for r in rows if "proof_s" in r["ours"]}
    if proved:
        name = max(proved, key=lambda n: proved[n])
        met = max(proved.values()) <= 15 and len(proved) == len(rows)
        lines.append(f"- Ours with proof: at most {proved[name]:.1f} s ({name}); 15 s for any is {MET[met]}.")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""), help="without its suffix")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="start anew")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        warnings.filterwarnings("ignore")
        torch.set_num_threads(1)
        work(options.names[0], options.pairs, peer=not options.alone)
        return
    every = [line.strip() for line in NETWORKS.read_text().splitlines() if line.strip() and not line.startswith("#")]
    lines_file, table_file = (options.out.with_name(options.out.name + end) for end in (".jsonl", ".md"))
    head = machine()
    if options.fresh or not lines_file.exists():
        lines_file.write_text(json.dumps(head) + "\n")
    there, *rows = map(json.loads, lines_file.read_text().splitlines())
    if there != head:
        sys.exit(f"{lines_file} was measured on another machine or with other versions: start anew with --fresh")
    for name in options.names or every:
        if name in {row["network"] for row in rows}:
            continue
        row = measured(name, options.pairs)
        rows.append(row)
        with lines_file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(name, row["ours"].get("median_s"), row["peer"].get("median_s"), row["peer"]["fate"], flush=True)
    rows.sort(key=lambda row: [*every, row["network"]].index(row["network"]))
    table_file.write_text(markdown(head, rows))
    print(table_file.read_text().partition("\n|")[0])


if __name__ == "__main__":
    main()
