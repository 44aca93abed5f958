"""Do sparse kernels compute what torch does? Networks, sparsities, batches, sizes, threads.

    python benchmarks/sparse_outputs.py [NAME …] [--out benchmarks/sparse_outputs]

Random weights with batch norms that do something; zeros at random places, half, 80 and 95 % of each layer. Each network
is compiled once for each number of threads, without measuring, and called with batches of 1, 3 and 16 and with another
size of image or sequence. A number is the largest difference from torch, relative to the largest output. Writes
OUT.json and OUT.md. Needs the extras `vision` and `sparse`, and for BERT `transformers`.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from topiarist import load_model, sparse
from topiarist.deploy import machine
from topiarist.files import write_json
from topiarist.graph import tensors_in
from topiarist.sparse import host

SPARSITIES, BATCHES = (0.5, 0.8, 0.95), (1, 3, 16)
IMAGES = ("resnet18", "resnet50", "vgg16", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0")


def bert() -> nn.Module:
    """A small BERT."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256, vocab_size=500
    )
    return BertModel(config)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    **{name: (lambda name=name: load_model(f"torchvision:{name}"), (96, 128)) for name in IMAGES},  # type: ignore[misc]
    "vit_tiny": (lambda: load_model("timm:vit_tiny_patch16_224"), (224, 224)),
    "bert": (bert, (16, 37)),
}
"""Name → the network, its size of image or sequence, and another one."""


def zeroed(model: nn.Module, sparsity: float) -> nn.Module:
    """The network with zeros, in eval mode."""
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=draw)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=draw)  # type: ignore[union-attr]
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data[torch.rand(module.weight.shape, generator=draw) < sparsity] = 0
    return model.eval()


def example(name: str, batch: int, size: int) -> Tensor:
    """Random inputs."""
    if name == "bert":
        return torch.randint(0, 500, (batch, size))
    return torch.randn(batch, 3, size, size)


def largest(name: str, sparsity: float, threads: int) -> tuple[float, int]:
    """The largest difference, and how many layers run by kernels."""
    torch.manual_seed(0)
    make, sizes = NETWORKS[name]
    model = zeroed(make(), sparsity)
    compiled = sparse.compile(model, example(name, 1, sizes[0]), threads, tune=False, always=True)
    worst = 0.0
    for size in dict.fromkeys(sizes):
        for batch in BATCHES if size == sizes[0] else BATCHES[:2]:
            x = example(name, batch, size)
            with torch.no_grad():
                pairs = zip(tensors_in(compiled(x)), tensors_in(model(x)), strict=True)
                worst = max([worst, *(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)])
    return worst, compiled.report().count("kernel")


def report(rows: list[dict[str, Any]]) -> str:
    """The page."""
    heads = [f"{s:.0%} zeros, {t} thread{'s' * (t > 1)}" for s in SPARSITIES for t in (1, 2)]
    text = [
        "# Outputs of sparse kernels",
        "",
        "The largest difference from torch, over batches of 1, 3 and 16 and a second size, relative to the largest "
        "output. Made by `sparse_outputs.py`.",
        "",
        f"{machine()} ({host().cpu}); {date.today()}; torch {version('torch')}, llvmlite {version('llvmlite')}",
        "",
        "| network | " + " | ".join(heads) + " |",
        "|---" * (1 + len(heads)) + "|",
    ]
    for name in dict.fromkeys(row["network"] for row in rows):
        cells = [f"{row['difference']:.0e}" for row in rows if row["network"] == name]
        text.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def main() -> None:
    """Compares, and writes the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    for name in options.names:
        for sparsity in SPARSITIES:
            for threads in (1, 2):
                difference, kernels = largest(name, sparsity, threads)
                assert kernels, f"{name} runs in torch"
                rows.append({"network": name, "sparsity": sparsity, "threads": threads, "difference": difference})
                print(rows[-1], flush=True)
    write_json(options.out.with_suffix(".json"), rows)
    options.out.with_suffix(".md").write_text(report(rows))


if __name__ == "__main__":
    main()
