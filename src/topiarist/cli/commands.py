"""The commands: each one is a function whose parameters are its options and whose docstring is its help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from topiarist.cli import show
from topiarist.cli.exporting import export as export
from topiarist.cli.inputs import example_inputs, make_source, own_folder
from topiarist.cli.pruning import TRAINING, Plan, fit, run, write_json
from topiarist.cli.studies import demo as demo
from topiarist.cli.studies import merge as merge
from topiarist.cli.studies import report as report
from topiarist.cli.studies import study as study
from topiarist.errors import TopiaristError
from topiarist.files import locked_file, remove_drafts
from topiarist.methods import Method
from topiarist.pruning import RATIOS, Pruning, trains_sparsely
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
    if name is None:
        show.result(described, json, lambda: show.methods(described))
    else:
        show.result(described[0], json, lambda: show.card(described[0]))


def inspect(
    model: str,
    *,
    input: str | None = None,
    data: str | None = None,
    weights: Path | None = None,
    outputs: tuple[str | int, ...] = (),
    why: str | None = None,
    json: bool = False,
) -> None:
    """Show what can be pruned in a network, in groups of units, what cannot, and why.

    Args:
        model: zoo:NAME, torchvision:NAME, timm:NAME or package.module:factory; options as in zoo:vgg11?width=0.25.
        input: shape of an input, as 1,3,32,32 (the complete tensor) or 3x32x32 (one example), or NAME=SHAPE; several
            times for several arguments.
        data: data set whose examples are the input, instead of a shape.
        weights: file of weights to load (safetensors, or a PyTorch state dict).
        outputs: names or places of what counts of what the network returns; by default all.
        why: name of a tensor (fc.weight, or fc.weight:1 for its axis 1) or of a module: explain why it is not pruned.
        json: print JSON.
    """
    from topiarist.budget import cost
    from topiarist.graph import trace

    source = make_source(model, data, weights)
    graph = trace(source.model(), example_inputs(source, input), outputs=outputs or None)
    if why is not None:
        text = _explained(graph, why)
        show.result({"text": text}, json, lambda: print(text))
    else:
        values = show.graph_values(graph, cost(graph))
        show.result(values, json, lambda: show.graph(values))


def _explained(graph: Graph, name: str) -> str:
    """Returns why each axis of a tensor, or of all tensors of a module, is not pruned."""
    tensor, _, axis = name.rpartition(":")
    if axis.isdecimal() and tensor in graph.shapes:
        return graph.why(tensor, int(axis))
    for group in graph.groups:
        if group.name == name:
            axes = ", ".join(f"{part.tensor} axis {part.axis}" for part in group.slices)
            return f"group {name} can be pruned: its {group.units} units are on {axes}"
    blocks = graph.blocks()
    if name in blocks.irremovable:
        return f"the block {name} cannot be removed: {blocks.irremovable[name]}"
    if name in [block.name for group in blocks.groups for block in group.blocks]:
        return f"the block {name} can be removed (method sss)"
    tensors = [name] if name in graph.shapes else [other for other in graph.shapes if other.startswith(f"{name}.")]
    sites = [(other, axis) for other in tensors for axis, size in enumerate(graph.shapes[other]) if size > 1]
    return "\n".join(graph.why(*site) for site in sites) if sites else graph.why(name)


def train(
    model: str,
    *,
    data: str,
    method: Method | None = None,
    exclude: tuple[str, ...] = (),
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
        exclude: layers, modules, parameters or groups, or globs on them, that the method leaves to plain training.
        recipe: how to train.
        epochs: short for --recipe.epochs.
        weights: file of weights to start from instead of random ones.
        seed: of the initial weights, the order of the examples and the augmentation.
        out: folder for model.safetensors and result.json; an interrupted training continues from its checkpoint there.
        json: print the result as JSON.
    """
    from topiarist.architecture import SHAPE_FILE, WEIGHTS_FILE, write_tensors

    if exclude and (method is None or not trains_sparsely(method)):
        raise TopiaristError("--exclude says what a method leaves alone in training: give --method of one that trains")
    with own_folder(out):
        source = make_source(model, data, weights, seed)
        network = source.model()
        history = fit(source, network, _with_epochs(recipe, epochs), method, exclude, out, quiet=json)
        write_tensors(network, out / WEIGHTS_FILE)
        (out / SHAPE_FILE).unlink(missing_ok=True)  # of a pruned network, which is overwritten
        epochs_done = list(map(asdict, history.epochs))
        result = {"model": model, "data": data, "accuracy": history.accuracy, "epochs": epochs_done}
        write_json(out / "result.json", result)
        (out / TRAINING).unlink(missing_ok=True)
    show.result(result, json, lambda: show.trained(result, out))


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
        input: shape of an input, as 1,3,32,32 or 3x32x32, or NAME=SHAPE; by default that of the data.
        weights: file of trained weights (safetensors or a PyTorch state dict); without it the network is trained first.
        train: how the network is trained where no weights are given, with what the method does in training.
        finetune: how the pruned network is fine-tuned.
        epochs: short for --finetune.epochs.
        selectors: auto, or a glob on names of batch norms: layers behind them lose inputs that others still read.
        shrink: in unstructured pruning, remove the channels and neurons that are dead in the end, and prove it.
        seed: of everything random; rewinding returns to the initial weights that it draws.
        out: folder for result.json, model.safetensors, architecture.json, and latencies.svg under a latency budget.
        json: print the result as JSON.
    """
    if data is None and weights is None:
        raise TopiaristError("pruning needs trained weights: give --weights FILE, or --data DATA to train first")
    if data is None and epochs:
        raise TopiaristError("fine-tuning needs data: give --data DATA, or leave --epochs out")
    with own_folder(out):
        source = make_source(model, data, weights, seed)
        tuned = _with_epochs(finetune, epochs)
        plan = Plan(source, pruning, train, tuned, selectors, shrink, out, quiet=json)
        done, result = run(plan, example_inputs(source, input))
    show.result(result, json, lambda: show.pruned(done, result, out))


def bench(
    networks: list[str],
    *,
    targets: tuple[str, ...] = ("torch",),
    threads: tuple[int, ...] = (1,),
    batch: tuple[int, ...] = (1,),
    input: str | None = None,
    data: str | None = None,
    rounds: int = 200,
    seconds: float = 10.0,
    warmup: int = 3,
    seed: int = 0,
    network: str | None = None,
    no_memory: bool = False,
    out: Path = Path("runs/bench"),
    json: bool = False,
) -> None:
    """Measure how long networks take on runtimes: side by side, in turns, with intervals.

    The first network is what the others are compared with. A folder alone is compared with the network before pruning.

    Args:
        networks: names of models as for inspect, folders that prune wrote, or ONNX files.
        targets: runtimes, of torch, torch.compile, torch.export, onnxruntime, openvino and sparse.
        threads: of the CPU; several numbers are several settings.
        batch: examples of one run; several numbers are several settings.
        input: shape of an input, as 1,3,32,32 or 3x32x32, or NAME=SHAPE; by default that of the data.
        data: data set whose first example is the input; by default that of a folder.
        rounds: in each setting at most; every network runs once in each.
        seconds: after so many no further round of a setting begins.
        warmup: rounds before them, which are not measured.
        seed: of the order of the networks in each round.
        network: the name that a folder gives its network, where that is package.module:factory, whose code will run.
        no_memory: leave peak memory out, which is quicker.
        out: folder for bench.json, bench.svg and bench.png.
        json: print the result as JSON.
    """
    from topiarist.cli.benching import inputs_of, named
    from topiarist.deploy import bench as measure
    from topiarist.measure import Rounds
    from topiarist.report import save_bench

    how = Rounds(rounds, seconds, warmup, seed)
    with own_folder(out):
        found = named(networks, data, input, network)
        with show.steps(quiet=json) as steps, _nothing_yet():
            result = measure(
                {name: each.network for name, each in found.items()},
                inputs_of(found, input),
                targets,
                threads,
                batch,
                rounds=how,
                macs={name: each.macs for name, each in found.items() if each.macs is not None},
                memory=not no_memory,
                progress=steps,
            )
        write_json(out / "bench.json", result.to_json())
        for kind in ("svg", "png"):
            save_bench(result, out / f"bench.{kind}")
    show.result(result.to_json(), json, lambda: show.bench(result, out))
    if result.interrupted:
        raise KeyboardInterrupt(f"interrupted; what was measured is in {out / 'bench.json'}")


@contextmanager
def _nothing_yet() -> Iterator[None]:
    """Context in which an interrupt says that no result is lost, and none is written."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("interrupted before anything was measured: run the same command again") from stop


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
    """Measure how accuracy and loss change as each group alone is pruned, without any training.

    The network is evaluated on a share of the training examples, on which it is too accurate if it was trained on all
    of them; the test examples are not used.

    Args:
        model: zoo:NAME, torchvision:NAME, timm:NAME or package.module:factory; options as in zoo:vgg11?width=0.25.
        weights: file of trained weights (safetensors or a PyTorch state dict).
        data: digits, digits:28, npz:PATH, folder:PATH or torchvision:NAME.
        method: name of the method that ranks the units of a group; l1 by default.
        ratios: fractions of a group's units that are kept.
        held_out: that share.
        seed: of the data's split, and of what is held out.
        out: folder for sensitivity.json, sensitivity.svg and sensitivity.png.
        json: print the result as JSON.
    """
    from topiarist.graph import trace
    from topiarist.pruning import Sensitivity
    from topiarist.pruning import sensitivity as scan
    from topiarist.report import save_sensitivity

    file = out / "sensitivity.json"
    with own_folder(out), show.steps(quiet=json) as steps:
        source = make_source(model, data, weights, seed)
        assert source.data is not None
        network = source.model()
        graph = trace(network, source.data.example())

        def write(partial: Sensitivity) -> None:
            write_json(file, partial.to_json())
            steps("sensitivity", len(partial.points), partial.total)

        try:
            result = scan(
                network, graph, source.data, method or "l1", ratios, held_out=held_out, seed=seed, progress=write
            )
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"interrupted; the points that were measured are in {file}") from stop
        for kind in ("svg", "png"):
            save_sensitivity(result, file.with_suffix(f".{kind}"))
    show.result(result.to_json(), json, lambda: show.sensitivity(result, out))


def _with_epochs(recipe: Recipe, epochs: int | None) -> Recipe:
    return recipe if epochs is None else replace(recipe, epochs=epochs)


def pattern(networks: list[Path], *, out: Path = Path("runs/pattern"), json: bool = False) -> None:
    """Average what pruned networks keep, stage by stage, into a design pattern for new networks, and draw it.

    The pattern has widths after structured pruning, and positions in the kernels after unstructured pruning.

    Args:
        networks: the folders that prune wrote.
        out: folder for pattern.json, pattern.svg and pattern.png.
        json: print the pattern as JSON.
    """
    from topiarist import guided
    from topiarist.architecture import SHAPE_FILE, Architecture
    from topiarist.report import save_pattern

    with own_folder(out):
        averaged = guided.of(*(Architecture.load(folder / SHAPE_FILE) for folder in networks))
        averaged.save(out / "pattern.json")
        for kind in ("svg", "png"):
            save_pattern(averaged, out / f"pattern.{kind}")
    show.result(averaged.to_json(), json, lambda: show.pattern(averaged, out))


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
    """Share the weights of a network, train the centroids, and write one small file (Deep Compression).

    Args:
        weights: the folder that prune wrote, or a file of weights (safetensors, or a PyTorch state dict).
        bits: of a weight: a number, paper (8 for convolutions, 5 for linear layers), {glob: number}; else not shared.
        init: how the centroids start.
        half: round codebooks, biases and all else of 32 bits to 16 bits.
        bare: leave the architecture of the folder out; to load the file, the network is made in its pruned shape.
        model: the network before pruning, as for prune; only needed with data.
        data: data set on which the centroids are trained and the accuracy is measured, as for prune.
        finetune: how the centroids are trained.
        epochs: short for --finetune.epochs.
        seed: of everything random.
        out: the file; an interrupted training continues from its checkpoint beside it.
        json: print the result as JSON.
    """
    from topiarist.cli.compression import Plan, run

    if (model is None) != (data is None):
        raise TopiaristError("training the centroids takes --model MODEL and --data DATA: give both or neither")
    recipe = _with_epochs(finetune, epochs)
    asked = recipe.epochs > 0 and (epochs is not None or finetune != Recipe.finetune())
    if asked and (data is None or bits is None):
        raise TopiaristError("only centroids are trained: give --bits, --model and --data, or leave the epochs out")
    plan = Plan(weights, bits, init, half, bare, recipe, seed, out)
    plan.check()
    with locked_file(out):
        remove_drafts(out.parent, out.name)
        source = None if model is None else make_source(model, data, None, seed)
        report, result = run(plan, source, quiet=json)
    show.result(result, json, lambda: show.compressed(report, result, out))


def decompress(
    file: Path, *, max_bytes: int | None = None, out: Path = Path("runs/decompress"), json: bool = False
) -> None:
    """Restore a compressed network: write its tensors and, if the file has it, its shape.

    Args:
        file: what compress wrote.
        max_bytes: memory that reading may take; by default 256 MiB and 512 times the file.
        out: folder for model.safetensors and architecture.json.
        json: print the result as JSON.
    """
    from topiarist.cli.compression import restore

    with own_folder(out):
        result = restore(file, max_bytes, out)
    show.result(result, json, lambda: show.decompressed(result, out))
