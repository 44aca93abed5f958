"""What is excluded by name keeps its shape, and is left to plain training: ten networks, five ways of naming.

    python benchmarks/exclude_names.py [NAME …] [--out benchmarks/exclude_names.md]

For each network a layer in its middle that may be cut is excluded: by its name, by the name of the module around it, by
a glob, by the name of one of its parameters, and as the module itself. Every other group keeps half of its units, drawn
at random. Then all parameters and buffers that were named must have the shapes, and the bits, that they had.

With a ratio of 1 in the place of an exclusion, what is produced there must keep all of its units. And one step of
training with a method that acts in it must leave what is excluded with the values, to the bit, that plain training
gives it; of L0, whose gates on the rest change the loss, no gate may be on it. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import fnmatch
import platform
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import topiarist
from topiarist.budget import units_of
from topiarist.graph import tensors_in
from topiarist.methods import Method, Soft, make
from topiarist.models import load_model
from topiarist.surgery import copied

NETWORKS = (
    "torchvision:vgg16_bn",
    "torchvision:resnet18",
    "torchvision:densenet121",
    "torchvision:googlenet",
    "torchvision:mobilenet_v2",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:convnext_tiny",
    "torchvision:vit_b_16",
    "torchvision:segmentation.lraspp_mobilenet_v3_large",
    "timm:hrnet_w18_small",
)
METHODS = {
    "sfp": {"rate": 0.5},
    "slimming": {"lam": 0.01},
    "group_lasso": {"lam": 0.01},
    "sss": {},
    "l0": {"examples": 2},
}
SIDE = 64
"""Of the images where a network takes any; the transformer has positions for 224 only."""


def middle(model: nn.Module, graph: topiarist.Graph) -> str:
    """The layer in the middle of those that lie within a module and produce units that can be cut."""
    cut = {part.tensor for group in graph.groups for part in group.slices if part.role != "input"}
    kinds = (nn.Conv2d, nn.Linear)
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) and "." in name and f"{name}.weight" in cut
    ]
    return layers[len(layers) // 2]


def ways(model: nn.Module, layer: str) -> dict[str, tuple[str | nn.Module, str]]:
    """Way → what is excluded, and a glob on the tensors that it means."""
    around = layer.rpartition(".")[0]
    return {
        "layer": (layer, f"{layer}.*"),
        "module": (around, f"{around}.*"),
        "glob": (f"{around}.*", f"{around}.*"),
        "parameter": (f"{layer}.weight", f"{layer}.weight"),
        "module object": (model.get_submodule(around), f"{around}.*"),
    }


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def request(budget: topiarist.Budget) -> topiarist.Pruning:
    """ViT's head is zero before training, so that a proof sees nothing of it."""
    return topiarist.Pruning.of("random", budget, allow_blind=True)


def row(name: str) -> dict[str, str]:
    torch.manual_seed(0)
    model = load_model(name).eval()
    side = 224 if "vit" in name else SIDE
    example = torch.randn(1, 3, side, side)
    graph, before = topiarist.trace(model, example), tensors(model)
    layer = middle(model, graph)
    found = {"network": name, "excluded": layer}
    for way, (excluded, meant) in ways(model, layer).items():
        budget = topiarist.Budget(ratio=0.5, exclude=(excluded,))
        small = topiarist.prune(model, example, request(budget), graph=graph)
        after, named = tensors(small.model), fnmatch.filter(before, meant)
        whole = named and all(torch.equal(after[tensor], before[tensor]) for tensor in named)
        (reported,) = small.excluded.values()
        kept = f"{len(named)} of {len(before)}, {len(reported.groups)} of {len(graph.groups)}" if whole else "CUT"
        found[way] = f"{kept}, {small.after.params / small.before.params:.0%}"
    return found


def kept_by_ratio(model: nn.Module, example: torch.Tensor, graph: topiarist.Graph, layer: str) -> int:
    """In how many of the ways a ratio of 1 keeps all units that are produced where a name points to."""
    before, right = tensors(model), 0
    for named, meant in ways(model, layer).values():
        budget = topiarist.Budget(ratio=0.5, ratios={named: 1.0})
        after = tensors(topiarist.prune(model, example, request(budget), graph=graph).model)
        axes = [(name, before[name].shape[:1], after[name].shape[:1]) for name in fnmatch.filter(before, meant)]
        right += bool(axes) and all(here == there for _, here, there in axes)
    return right


def stepped(
    model: nn.Module, example: torch.Tensor, graph: topiarist.Graph, method: Method | None, excluded: str
) -> tuple[nn.Module, topiarist.Graph | None]:
    """A copy of a network after one step of training, and the units that the method acted on."""
    net = copied(model).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with topiarist.attach(method, net, optimizer, graph, exclude=(excluded,)) as attached:
        torch.manual_seed(0)
        outputs = net(torch.cat([example, 0.5 * example.flip(-1)]))
        sum(t.square().mean() for t in tensors_in(outputs)).backward()
        optimizer.step()
        if isinstance(method, Soft):
            method.soften(net, attached.units, 1, 2)
        return copied(net), attached.units


def training(model: nn.Module, example: torch.Tensor, graph: topiarist.Graph, layer: str) -> dict[str, str]:
    """Method → whether it leaves what is excluded to plain training; a dash where it acts on nothing there."""
    cells = {}
    plain = tensors(stepped(model, example, graph, None, layer)[0])
    kept = set(units_of([layer], graph))
    for name, options in METHODS.items():
        try:
            trained, units = stepped(model, example, graph, make(name, **options), layer)
        except topiarist.TopiaristError:
            cells[name] = "–"
            continue
        after = tensors(trained)
        apart = units is not None and not kept & {group.name for group in units.groups}
        same = all(torch.equal(after[t], plain[t]) for t in fnmatch.filter(plain, f"{layer}.*"))
        acted = after.keys() != plain.keys() or any(not torch.equal(after[t], plain[t]) for t in plain)
        cells[name] = (
            ("no gate" if name == "l0" else "equal") if acted and apart and (same or name == "l0") else "DIFFERS"
        )
    return cells


def row_of_training(name: str) -> dict[str, str]:
    torch.manual_seed(0)
    model = load_model(name)
    example = torch.randn(1, 3, *([224 if "vit" in name else SIDE] * 2))
    graph = topiarist.trace(model, example)
    layer = middle(model, graph)
    ratios = f"{kept_by_ratio(model.eval(), example, graph, layer)} of 5"
    return {"network": name, "excluded": layer, "ratios": ratios, **training(model, example, graph, layer)}


def markdown(rows: list[dict[str, str]], trainings: list[dict[str, str]], seconds: float) -> str:
    heads = ("network", "layer", "layer's name", "module's name", "glob", "parameter's name", "module itself")
    cells = [cell for each in rows for cell in list(each.values())[2:]]
    whole = sum("CUT" not in cell for cell in cells)
    lines = [
        "# What is excluded keeps its shape",
        "",
        "A layer in the middle of each network is excluded in five ways: by its name, by the name of the module around "
        "it, by a glob on what is in that module, by its weight's name, and as that module itself. All other groups "
        f"keep half of their units, at random. In {whole} of {len(cells)} prunings all that was named kept its shapes "
        "and its values, to the bit; `CUT` marks the others. A cell says how many tensors were named, how many groups "
        "stay whole for that, and how many parameters are left in the network. "
        f"Images of {SIDE} pixels (224 for ViT), random weights of seed 0, one thread of {platform.machine()}, "
        f"{seconds / 60:.0f} minutes; topiarist {topiarist.__version__}, torch {torch.__version__}. "
        "Rerun: `python benchmarks/exclude_names.py --out benchmarks/exclude_names.md`.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
    ]
    lines += [f"| {' | '.join(each.values())} |" for each in rows]
    lines += [
        "",
        "The same with a ratio of 1 for what the name produces: in how many of the five ways all its units stay. And "
        "one step of training with a method that acts in it, the layer excluded: `equal` where the layer's values are, "
        "to the bit, those of plain training, while the method acts elsewhere; `no gate` where L0 puts none on it; a "
        "dash where the method acts on nothing in the network.",
        "",
        f"| network | layer | ratio | {' | '.join(METHODS)} |",
        f"|{'---|' * (3 + len(METHODS))}",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(each.values())} |" for each in trainings), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="networks; ten of networks.txt without")
    parser.add_argument("--out", type=Path, help="file of the table; else it is printed")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    begin, rows, trainings = time.perf_counter(), [], []
    for name in options.names or NETWORKS:
        rows.append(row(name))
        trainings.append(row_of_training(name))
        print(*rows[-1].values(), *trainings[-1].values(), sep="; ", flush=True)
    table = markdown(rows, trainings, time.perf_counter() - begin)
    print(table) if options.out is None else options.out.write_text(table)


if __name__ == "__main__":
    main()
