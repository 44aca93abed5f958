"""Exports: networks cut to half of their MACs, as ONNX files by both of torch's exporters, and as OpenVINO files.

    python benchmarks/exports.py [NAME …] [--out benchmarks/exports]

Each network of the zoo, and 25 of the proof table, gets random weights that are not degenerate, and is cut by l1 to
half of its MACs. `topiarist.deploy.export` writes it and compares it with torch: at two batch sizes no output may
differ by more than 1e-4 of the largest. Where a cut network is refused, or its batch is fixed, the whole network is
exported as well, to see whether it is alike. A row once computed is kept. Writes JSON, and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import torch
from proof_table import non_degenerate
from torch import nn

import topiarist
from topiarist import Budget, TopiaristError, deploy
from topiarist.models import load_model, zoo

FORMATS = {
    "torchscript": ("onnx", "torchscript"),
    "dynamo": ("onnx", "dynamo"),
    "openvino": ("openvino", None),
    "torch-export": ("torch-export", None),
}
"""Column → target and exporter."""

SIDES = (64, 128)
"""Of the images, in pixels; the network's own size where it takes neither."""

NETWORKS = (
    "torchvision:alexnet",
    "torchvision:squeezenet1_1",
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:mnasnet1_0",
    "torchvision:regnet_y_400mf",
    "torchvision:googlenet",
    "torchvision:resnet50",
    "torchvision:segmentation.lraspp_mobilenet_v3_large",
    "torchvision:convnext_tiny",
    "torchvision:swin_t",
    "torchvision:efficientnet_b0",
    "timm:repvgg_a0",
    "timm:mobilenetv4_conv_small",
    "timm:ghostnet_100",
    "timm:deit_tiny_patch16_224",
    "timm:mixer_s16_224",
    "timm:resmlp_12_224",
    "timm:poolformer_s12",
    "timm:pvt_v2_b0",
    "timm:edgenext_small",
    "timm:ese_vovnet19b_dw",
    "timm:seresnet50",
)


def example(name: str, model: nn.Module) -> torch.Tensor:
    """A random image, as small as the network takes it."""
    kind, _, rest = name.partition(":")
    if kind == "zoo":
        channels, side = (1, 28) if rest.startswith(("lenet", "mlp")) else (1, 8) if rest == "digitsnet" else (3, 32)
        return torch.randn(1, channels, side, side)
    own = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))[-1]
    for side in SIDES:
        image = torch.randn(1, 3, side, side)
        try:
            with torch.no_grad():
                model(image)
        except Exception:  # the network's own code says no in many ways
            continue
        return image
    return torch.randn(1, 3, own, own)


def written(model: nn.Module, image: torch.Tensor, column: str, folder: Path) -> dict:
    """Exports a network; says how far the file is from torch, or why there is none."""
    target, exporter = FORMATS[column]
    begin = time.perf_counter()
    try:
        done = deploy.export(
            model, image, folder / f"{column}{deploy.target_of(target).suffix}", target, exporter=exporter
        )
    except TopiaristError as error:
        found = {"refused": str(error)}
    except Exception as error:  # a failure that has no sentence is a bug, and a row of the table
        found = {"bug": f"{type(error).__name__}: {str(error)[:300]}"}
    else:
        found = {"difference": done.difference, "batch": done.batch, "exporter": done.exporter, "bytes": done.bytes}
        found |= {"tried": dict(done.refused)} if done.refused else {}
    return {**found, "seconds": round(time.perf_counter() - begin, 1)}


def row(name: str, before: dict) -> dict:
    """Exports a network in the columns that it lacks."""
    torch.manual_seed(0)
    model = load_model(name).eval()
    image = example(name, model)
    model = non_degenerate(model, image).eval()
    pruned = topiarist.prune(model, image, "l1", Budget(macs=0.5))
    result = {
        "network": name,
        "input": list(image.shape),
        "macs": [pruned.before.macs, pruned.after.macs],
        "cut": before.get("cut", {}),
        "whole": before.get("whole", {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        for column in FORMATS:
            if column in result["cut"]:
                continue
            found = result["cut"][column] = written(pruned.model, image, column, Path(folder))
            if "difference" not in found or found["batch"] is not None:
                result["whole"][column] = written(model, image, column, Path(folder))
    return result


def verdict(found: dict, column: str) -> str:
    """What a cell of the table says."""
    cut, whole = found["cut"][column], found["whole"].get(column)
    if "difference" in cut:
        fixed = "" if cut["batch"] is None else " (fixed batch; the whole too)"
        if fixed and whole is not None and whole.get("batch", 0) is None:
            fixed = " (fixed batch; the whole has any)"
        return (f"{cut['difference']:.0e}" if cut["difference"] else "0") + fixed
    return "no; the whole too" if whole is None or "difference" not in whole else "no; **the whole does**"


def kind(found: dict, column: str) -> str:
    """Whether a cut network's file agrees with torch, or is refused like the whole network's, or unlike it."""
    if "difference" in found["cut"][column]:
        return "equal"
    return "wrong" if "difference" in found["whole"][column] else "alike"


def markdown(saved: dict) -> str:
    rows = [found for found in saved["rows"] if found.get("cut", {}).keys() >= FORMATS.keys()]
    cells = Counter(kind(found, column) for found in rows for column in FORMATS)
    files = [each for found in rows for each in found["cut"].values() if "difference" in each]
    free = sum(each["batch"] is None for each in files)
    lines = [
        "# Exports",
        "",
        f"{len(rows)} networks, cut by l1 to half of their MACs. Of {sum(cells.values())} exports {cells['equal']} "
        f"agree with torch, {free} of them at any batch. Refused for the cut network as for the whole one: "
        f"{cells['alike']}. Refused although the whole network exports: {cells['wrong']}.",
        "",
        "A cell is the largest difference from torch's outputs, relative to the largest number in each output, over "
        "random inputs at two batch sizes. A file is kept up to 1e-4.",
        "",
        f"One thread of {saved['machine']}; {', '.join(f'{k} {v}' for k, v in saved['versions'].items())}; random "
        "weights and inputs of seed 0. Rerun: `python benchmarks/exports.py --out benchmarks/exports`.",
        "",
        "| network | input | MACs kept | ONNX, torchscript | ONNX, dynamo | OpenVINO | torch.export |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in rows:
        size = "×".join(map(str, found["input"][1:]))
        kept = found["macs"][1] / found["macs"][0]
        lines.append(
            f"| {found['network']} | {size} | {kept:.3f} | {' | '.join(verdict(found, column) for column in FORMATS)} |"
        )
    reasons = [
        f"- {found['network']}, {column}: {found['cut'][column].get('refused', found['cut'][column].get('bug'))}"
        for found in rows
        for column in FORMATS
        if "difference" not in found["cut"][column]
    ]
    errors = [f"- {found['network']}: {found['error']}" for found in saved["rows"] if "error" in found]
    lines += ["", "Refused:", "", *reasons] if reasons else []
    lines += ["", "Not pruned:", "", *errors] if errors else []
    return "\n".join(lines) + "\n"


def machine() -> str:
    """The processor's name, where the system tells it."""
    file = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in file.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({os.cpu_count()} cores)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="networks; all without")
    parser.add_argument("--out", type=Path, help="FILE.json, which is resumed, and FILE.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    file = options.out and options.out.with_suffix(".json")
    packages = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "topiarist")
    saved = {"machine": machine(), "versions": {each: version(each) for each in packages}, "seed": 0, "rows": []}
    if file and file.exists():
        saved["rows"] = json.loads(file.read_text())["rows"]
    for name in options.names or [*(f"zoo:{each}" for each in zoo.names()), *NETWORKS]:
        before = next((found for found in saved["rows"] if found["network"] == name), {})
        if "error" in before or before.get("cut", {}).keys() >= FORMATS.keys():
            continue
        begin = time.perf_counter()
        try:
            found = row(name, before)
        except Exception as error:  # a failing network is a row of the table
            found = {"network": name, "error": f"{type(error).__name__}: {str(error)[:300]}"}
        found["wall_s"] = round(time.perf_counter() - begin + before.get("wall_s", 0), 1)
        saved["rows"] = [each for each in saved["rows"] if each is not before] + [found]
        print(name, found.get("error") or [verdict(found, column) for column in FORMATS], found["wall_s"], flush=True)
        if file:
            file.write_text(json.dumps(saved, indent=1) + "\n")
    if options.out:
        options.out.with_suffix(".md").write_text(markdown(saved))


if __name__ == "__main__":
    main()
