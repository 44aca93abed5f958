"""The commands: each one a function whose parameters are its options and whose docstring is its help."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from topiarist.cli import show
from topiarist.cli.inputs import example_inputs, make_source, writable_folder
from topiarist.cli.pruning import TRAINING, Plan, fit, run, write_json, write_weights
from topiarist.cli.studies import demo as demo
from topiarist.cli.studies import merge as merge
from topiarist.cli.studies import report as report
from topiarist.cli.studies import study as study
from topiarist.errors import TopiaristError
from topiarist.methods import Method
from topiarist.pruning import RATIOS, Pruning
from topiarist.train import Recipe

if TYPE_CHECKING:
    from topiarist.graph import Graph


def methods(name: str | None = None, *, json: bool = False) -> None:
    """List the pruning methods, or show the card and the flags of one.

    Args:
        name: a method's name, for its card.
        json: print JSON.
    """
    from topiarist import methods as registry

    described = [registry.describe(each) for each in (registry.names() if name is None else [name])]
    if json:
        show.json(described if name is None else described[0])
    elif name is None:
        show.methods(described)
    else:
        show.card(described[0])


def inspect(
    model: str,
    *,
    input: str | None = None,
    data: str | None = None,
    weights: Path | None = None,
    why: str | None = None,
    json: bool = False,
) -> None:
    """Show what a network can lose: its groups of units, what stays, and why.

    Args:
        model: zoo:NAME, torchvision:NAME, timm:NAME or package.module:factory; options as in zoo:vgg11?width=0.25.
        input: shape of the input, as 1,3,32,32 (the whole tensor) or 3x32x32 (one example).
        data: data set whose examples are the input, instead of a shape.
        weights: file of weights to load (safetensors, or a PyTorch state dict).
        why: name of a tensor (fc.weight, or fc.weight:1 for its axis 1) or of a module: explain why it stays as it is.
        json: print JSON.
    """
    from topiarist.budget import cost
    from topiarist.graph import trace

    source = make_source(model, data, weights)
    graph = trace(source.model(), example_inputs(source, input))
    if why is not None:
        show.text(_explained(graph, why), json)
    else:
        show.graph(graph, cost(graph), json)


def _explained(graph: Graph, name: str) -> str:
    """Why each axis of a tensor, or of all tensors of a module, stays."""
    tensor, _, axis = name.rpartition(":")
    if axis.isdecimal() and tensor in graph.shapes:
        return graph.why(tensor, int(axis))
    for group in graph.groups:
        if group.name == name:
            places = ", ".join(f"{part.tensor} axis {part.axis}" for part in group.slices)
            return f"group {name} can go: its {group.units} units sit on {places}"
    blocks = graph.blocks()
    if name in blocks.irremovable:
        return f"the block {name} stays: {blocks.irremovable[name]}"
    if name in [block.name for group in blocks.groups for block in group.blocks]:
        return f"the block {name} can go as a whole (method sss)"
    tensors = [name] if name in graph.shapes else [other for other in graph.shapes if other.startswith(f"{name}.")]
    axes = [(other, axis) for other in tensors for axis, size in enumerate(graph.shapes[other]) if size > 1]
    return "\n".join(graph.why(*place) for place in axes) if axes else graph.why(name)


def train(
    model: str,
    *,
    data: str,
    method: Method | None = None,
    recipe: Recipe = Recipe.paper(),  # noqa: B008  a frozen value
    epochs: int | None = None,
    weights: Path | None = None,
    seed: int = 0,
    out: Path = Path("runs/train"),
    json: bool = False,
) -> None:
    """Train a network, with the penalty or the gates of a method if one is named, and write its weights.

    Args:
        model: zoo:NAME, torchvision:NAME, timm:NAME or package.module:factory; options as in zoo:vgg11?width=0.25.
        data: digits, digits:28, npz:PATH, folder:PATH or torchvision:NAME.
        method: a method's name.
        recipe: how to train.
        epochs: short for --recipe.epochs.
        weights: file of weights to start from instead of random ones.
        seed: of the initial weights, the order of the examples and the augmentation.
        out: folder for model.safetensors and result.json; an interrupted training goes on from its checkpoint there.
        json: print the result as JSON.
    """
    writable_folder(out)
    source = make_source(model, data, weights, seed)
    network = source.model()
    history = fit(source, network, _with_epochs(recipe, epochs), method, out, quiet=json)
    write_weights(network, out / "model.safetensors")
    (out / "architecture.json").unlink(missing_ok=True)  # of a pruned network, which is overwritten
    result = {"model": model, "data": data, "accuracy": history.accuracy, "epochs": list(map(asdict, history.epochs))}
    write_json(out / "result.json", result)
    (out / TRAINING).unlink(missing_ok=True)
    show.trained(result, out, json)


def prune(
    model: str,
    *,
    pruning: Pruning,
    data: str | None = None,
    input: str | None = None,
    weights: Path | None = None,
    train: Recipe = Recipe.paper(),  # noqa: B008  a frozen value
    finetune: Recipe = Recipe.finetune(),  # noqa: B008
    epochs: int | None = None,
    selectors: str | None = None,
    shrink: bool = False,
    seed: int = 0,
    out: Path = Path("runs/prune"),
    json: bool = False,
) -> None:
    """Prune a network, prove the cut, fine-tune it, and write the smaller network with its costs and accuracy.

    Args:
        model: zoo:NAME, torchvision:NAME, timm:NAME or package.module:factory; options as in zoo:vgg11?width=0.25.
        pruning: how it is pruned.
        data: digits, digits:28, npz:PATH, folder:PATH or torchvision:NAME; without it nothing is trained or measured.
        input: shape of the input, as 1,3,32,32 or 3x32x32; by default that of the data.
        weights: file of trained weights (safetensors or a PyTorch state dict); without it the network is trained first.
        train: how the network is trained where no weights are given, with what the method does in training.
        finetune: how the pruned network is trained on.
        epochs: short for --finetune.epochs.
        selectors: auto, or a glob on names of batch norms: what reads them loses inputs that others need.
        shrink: in unstructured pruning, remove the channels and neurons that are dead in the end, and prove it.
        seed: of everything random; rewinding returns to the initial weights that it draws.
        out: folder for result.json, model.safetensors and architecture.json.
        json: print the result as JSON.
    """
    writable_folder(out)
    if data is None and weights is None:
        raise TopiaristError("pruning needs trained weights: give --weights FILE, or --data DATA to train first")
    if data is None and epochs:
        raise TopiaristError("fine-tuning needs data: give --data DATA, or leave --epochs out")
    source = make_source(model, data, weights, seed)
    tuned = _with_epochs(finetune, epochs)
    plan = Plan(source, pruning, train, tuned, selectors, shrink, out, quiet=json)
    done, result = run(plan, example_inputs(source, input))
    show.pruned(done, result, out, json)


def sensitivity(
    model: str,
    *,
    weights: Path,
    data: str,
    method: Method | None = None,
    ratios: tuple[float, ...] = RATIOS,
    held_out: float = 0.1,
    seed: int = 0,
    out: Path = Path("runs/sensitivity"),
    json: bool = False,
) -> None:
    """Scan how accuracy and loss change as each group alone loses units, all others whole, without any training.

    The network is judged by a share of the training examples, which it has seen where it was trained on all of them;
    the test examples are not looked at.

    Args:
        model: zoo:NAME, torchvision:NAME, timm:NAME or package.module:factory; options as in zoo:vgg11?width=0.25.
        weights: file of trained weights (safetensors or a PyTorch state dict).
        data: digits, digits:28, npz:PATH, folder:PATH or torchvision:NAME.
        method: name of the method that ranks the units of a group; l1 by default.
        ratios: fractions of a group's units that stay.
        held_out: that share.
        seed: of the data's split, and of what is held out.
        out: folder for sensitivity.json, sensitivity.svg and sensitivity.png.
        json: print the result as JSON.
    """
    from topiarist.graph import trace
    from topiarist.pruning import Sensitivity
    from topiarist.pruning import sensitivity as scan
    from topiarist.report import save_sensitivity

    writable_folder(out)
    source = make_source(model, data, weights, seed)
    assert source.data is not None
    network, file = source.model(), out / "sensitivity.json"
    graph = trace(network, source.data.example())
    with show.steps(quiet=json) as steps:

        def note(found: Sensitivity) -> None:
            write_json(file, found.to_json())
            steps("sensitivity", len(found.points), found.total)

        try:
            found = scan(
                network, graph, source.data, method or "l1", ratios, held_out=held_out, seed=seed, progress=note
            )
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"Interrupted; the points that were measured are in {file}.") from stop
    for kind in ("svg", "png"):
        save_sensitivity(found, file.with_suffix(f".{kind}"))
    show.sensitivity(found, out, json)


def _with_epochs(recipe: Recipe, epochs: int | None) -> Recipe:
    return recipe if epochs is None else replace(recipe, epochs=epochs)


def pattern(networks: list[Path], *, out: Path = Path("runs/pattern"), json: bool = False) -> None:
    """Average what pruned networks keep, stage by stage, into a design pattern for new networks, and draw it.

    Widths, where channels went; positions in the kernels, where single weights went.

    Args:
        networks: the folders that prune wrote.
        out: folder for pattern.json, pattern.svg and pattern.png.
        json: print the pattern as JSON.
    """
    from topiarist import guided
    from topiarist.architecture import SHAPE_FILE, Architecture
    from topiarist.report import save_pattern

    writable_folder(out)
    found = guided.of(*(Architecture.load(folder / SHAPE_FILE) for folder in networks))
    found.save(out / "pattern.json")
    for kind in ("svg", "png"):
        save_pattern(found, out / f"pattern.{kind}")
    show.pattern(found, out, json)


def compress(
    weights: Path,
    *,
    bits: int | dict[str, int] | Literal["paper"] | None = None,
    init: Literal["linear", "density", "random"] = "linear",
    half: bool = False,
    bare: bool = False,
    model: str | None = None,
    data: str | None = None,
    finetune: Recipe = Recipe.finetune(),  # noqa: B008  a frozen value
    epochs: int | None = None,
    seed: int = 0,
    out: Path = Path("runs/compress/model.tpcf"),
    json: bool = False,
) -> None:
    """Share the weights of a network, train the centroids on, and write one small file (Deep Compression).

    Args:
        weights: the folder that prune wrote, or a file of weights (safetensors, or a PyTorch state dict).
        bits: of a weight: a number, paper (8 for convolutions, 5 for linear layers), or {glob: number}; else all stay.
        init: how the centroids start.
        half: round codebooks, biases and all else of 32 bits to 16 bits.
        bare: leave the architecture out, which the folder may have: then the network is made in its small shape.
        model: the network before pruning, as for prune; only needed with data.
        data: data set on which the centroids are trained and the accuracy is measured, as for prune.
        finetune: how the centroids are trained.
        epochs: short for --finetune.epochs.
        seed: of everything random.
        out: the file; an interrupted training goes on from its checkpoint beside it.
        json: print the result as JSON.
    """
    from topiarist.cli.compression import Wish, run

    if (model is None) != (data is None):
        raise TopiaristError("Training the centroids takes --model MODEL and --data DATA: give both or neither.")
    recipe = _with_epochs(finetune, epochs)
    asked = recipe.epochs > 0 and (epochs is not None or finetune != Recipe.finetune())
    if asked and (data is None or bits is None):
        raise TopiaristError("Only centroids are trained: give --bits, --model and --data, or leave the epochs out.")
    wish = Wish(weights, bits, init, half, bare, recipe, seed, out)
    wish.check()
    source = None if model is None else make_source(model, data, None, seed)
    report, result = run(wish, source, quiet=json)
    show.compressed(report, result, out, json)


def decompress(
    file: Path, *, max_bytes: int | None = None, out: Path = Path("runs/decompress"), json: bool = False
) -> None:
    """Read a compressed network, and write its tensors and, where it has one, its shape.

    Args:
        file: what compress wrote.
        max_bytes: memory that reading may take; 4 GiB by default.
        out: folder for model.safetensors and architecture.json.
        json: print the result as JSON.
    """
    from topiarist.cli.compression import restore

    writable_folder(out)
    show.decompressed(restore(file, max_bytes, out), out, json)
