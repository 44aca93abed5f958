"""Coverage: 200 networks of many kinds, ours and Torch-Pruning's, each within a minute.

    python benchmarks/coverage [--names NAME …] [--fresh] [--side ours] [--check] [--out benchmarks/coverage]

Every network (`networks.py`) keeps 67 %, 50 % and 33 % of each group's units, chosen at random. Cut and mask must agree
in float64: on the example, at twice the batch, at another size or length where the network takes it, and in training
mode. Torch-Pruning halves the same network by the L1 norm; its result must run, and equal the original one with the
removed positions zeroed. Each side has a process of its own with 60 s of CPU time and 10 GiB. Writes one JSON line a
network, after a line that names the machine; such networks are skipped by the next run. Then it writes the page.

`--names` takes names, or how they begin. `--side` measures one side anew, and keeps what is there of the other one.
`--check` only builds each network and runs it once. Needs Linux or macOS,
`timm`, `torchvision`, `transformers` and `torch-pruning`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import operators
import table
import torch
import work
from network import Network, outputs
from versus_torch_pruning import machine, warm_up

import networks

HERE = Path(__file__).resolve().parent
WALL = 7200
"""Seconds after which a process is ended that does not use its CPU time."""
PRELOAD = ("timm", "torchvision.models", "torchvision.models.detection", "torchvision.models.video",
           "torchvision.models.segmentation", "torchvision.models.optical_flow", "transformers",
           "transformers.modeling_utils", "transformers.generation.utils", "transformers.models.bert.modeling_bert",
           "torch_pruning")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=[], help="networks, or how their names begin; all without")
    parser.add_argument("--fresh", action="store_true", help="start anew")
    parser.add_argument("--side", choices=work.SIDES, help="measure this side anew")
    parser.add_argument("--check", action="store_true", help="only build each network, and run it once")
    parser.add_argument("--out", type=Path, default=HERE.with_suffix(""), help="without its suffix")
    options = parser.parse_args()
    for quiet in ("timm", "transformers", "torch_pruning"):
        logging.getLogger(quiet).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    stand_ins = operators.load_torchvision()  # before anything else imports it
    for module in PRELOAD:
        importlib.import_module(module)
    every = networks.networks()
    chosen = [name for name in every if not options.names or name.startswith(tuple(options.names))]
    if options.check:
        for name in chosen:
            print(name, *in_process(every[name], "check").values(), flush=True)
        return
    warm_up()
    lines_file, page = (options.out.with_name(options.out.name + end) for end in (".jsonl", ".md"))
    head = {**machine(), "transformers": importlib.metadata.version("transformers"), "stand_ins": stand_ins}
    if options.fresh or not lines_file.exists():
        lines_file.write_text(json.dumps(head) + "\n")
    there, *rows = map(json.loads, lines_file.read_text().splitlines())
    if there != head:
        sys.exit(f"{lines_file} was measured on another machine or with other versions: start anew with --fresh")
    known = {row["network"]: row for row in rows}  # of two lines about one network the later one counts
    for name in chosen:
        sides = work.SIDES if name not in known else [options.side] if options.side else []
        if sides:
            known[name] = {"network": name, **known.get(name, {}), **{s: in_process(every[name], s) for s in sides}}
            with lines_file.open("a") as file:
                file.write(json.dumps(known[name]) + "\n")
            print(table.line(known[name]), flush=True)
    rows = [known[name] for name in every if name in known]
    page.write_text(table.page(head, rows))


def in_process(network: Network, side: str) -> dict[str, Any]:
    """What one side reported, and how its process ended if it did not end well.

    The process is a fork of this one, which has imported the libraries; nothing else is shared.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(network, side, there))
    process.start()
    there.close()
    found: dict[str, Any] = {}
    deadline = time.monotonic() + WALL
    while here.poll(max(0.0, deadline - time.monotonic())):
        try:
            found |= here.recv()
        except EOFError:
            break
    else:
        process.kill()
    process.join()
    if process.exitcode:
        late = process.exitcode == -signal.SIGXCPU
        found.setdefault("error", f"over {work.SECONDS} s" if late else f"process ends ({process.exitcode})")
    return found


def _child(network: Network, side: str, pipe: Connection) -> None:
    """Measures one side; what libraries print is dropped."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)

    def report(**values: Any) -> None:
        pipe.send(values)

    if side == "check":
        report(**_checked(network))
    else:
        work.work(network, side, report)


def _checked(network: Network) -> dict[str, Any]:
    begin = time.process_time()
    try:
        model, example, more = network.made()
        for inputs in (example, *more):
            found = outputs(model, inputs)
            if not all(bool(torch.isfinite(t).all()) for t in found):
                return {"error": "NOT FINITE"}
    except Exception as error:
        return {"error": f"FAILS {type(error).__name__}: {str(error)[:300]}"}
    params = sum(p.numel() for p in model.parameters())
    return {"ok": "runs", "params": f"{params / 1e6:.1f}M", "seconds": f"{time.process_time() - begin:.1f}s"}


if __name__ == "__main__":
    main()
