"""What the commands print: tables for people, JSON for machines."""

from __future__ import annotations

import json as json_format
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from topiarist.budget import Cost
    from topiarist.compress import Report
    from topiarist.deploy import Bench, Exported
    from topiarist.graph import Graph
    from topiarist.guided import KernelPattern, WidthPattern
    from topiarist.measure import OnStep
    from topiarist.pruning import Pruned, Sensitivity
    from topiarist.train import Epoch

WIDTH = 120
"""Columns where the output is no terminal."""


def console(*, stderr: bool = False) -> Console:
    """Returns a console on stdout or stderr; colours and the terminal's width only where there is a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else WIDTH, highlight=False)


def json(values: Any) -> None:
    """Prints plain values as JSON; what is not finite is null, since JSON has no word for it."""
    print(json_format.dumps(plain(values), indent=2, allow_nan=False))


def result(values: Any, as_json: bool, text: Callable[[], object]) -> None:
    """Prints a result, as JSON or by a function that prints text."""
    if as_json:
        json(values)
    else:
        text()


def plain(value: Any) -> Any:
    """Returns values that JSON can hold: paths as text, tuples as lists, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def methods(described: Sequence[Mapping[str, Any]]) -> None:
    """Prints a table of methods: what each prunes, and what it does in one sentence, with a heading for each family."""
    from topiarist.methods import families

    by_name = {method["name"]: method for method in described}
    out = console()
    for family, names in families().items():
        table = Table("name", "prunes", "summary", title=escape(family), box=None, pad_edge=False, show_header=False)
        table.title_justify, table.title_style = "left", "bold"
        table.columns[0].min_width = max(map(len, by_name))
        for name in names:
            table.add_row(*(escape(by_name[name][key]) for key in ("name", "granularity", "summary")))
        out.print(table)
        out.print()
    print("`topiarist methods NAME` shows a method's card: formula, paper, what it needs, flags.")
    print("Deep Compression is a command: `topiarist compress`. docs/taxonomy.md has what all of them cost and gave.")


def card(method: Mapping[str, Any]) -> None:
    """Prints a method's docstring, what kind it is, and its flags with their defaults."""
    print(f"{method['name']}\n\n{method['doc'].rstrip()}\n")
    for name in ("family", "granularity", "target", "allocation", "needs", "roles", "paper"):
        value = method[name]
        print(f"{name}: {value if isinstance(value, str) else ', '.join(value) or 'nothing'}")
    print(f"\nFlags:\n  --method {method['name']}")
    for field in method["fields"]:
        print(f"  --method.{field['name']} {field['type']}, default {field['default']}")


def graph_values(graph: Graph, cost: Cost) -> dict[str, Any]:
    """Returns a graph as plain values: its groups, its residual blocks, and what is pinned in it."""
    blocks = graph.blocks()
    return {
        "groups": [
            {
                "name": group.name,
                "units": group.units,
                "stage": group.stage,
                "slices": [{"tensor": part.tensor, "axis": part.axis, "role": part.role} for part in group.slices],
            }
            for group in graph.groups
        ],
        "pinned": [entry._asdict() for entry in graph.pinned],
        "blocks": [
            {"name": block.name, "modules": [part.module for part in block.parts]}
            for group in blocks.groups
            for block in group.blocks
        ],
        "blocks_pinned": dict(blocks.irremovable),
        "unread": {name: unread._asdict() for name, unread in graph.unread.items()},
        "unknown": graph.unknown,
        "macs": cost.macs,
        "params": cost.params,
        "memory": cost.memory,
    }


def graph(values: Mapping[str, Any]) -> None:
    """Prints the plain values of a graph as tables."""
    out, groups = console(), values["groups"]
    units = sum(group["units"] for group in groups)
    counted = "1 group" if len(groups) == 1 else f"{len(groups)} groups"
    out.print(f"{values['macs']:,} MACs, {values['params']:,} parameters, {units:,} units in {counted}")
    table = Table("group", "units", "stage", "tensors")
    for group in groups:
        tensors = dict.fromkeys(part["tensor"] for part in group["slices"])
        table.add_row(escape(group["name"]), str(group["units"]), group["stage"], escape(some(tensors)))
    out.print(table)
    if values["blocks"]:
        removable = Table("residual block", "modules that are removed with it")
        for block in values["blocks"]:
            removable.add_row(escape(block["name"]), escape(some(block["modules"])))
        out.print(removable)
    for name, reason in values["blocks_pinned"].items():
        out.print(f"The block {escape(name)} cannot be removed: {escape(reason)}.")
    axes_by_reason: dict[str, list[str]] = {}
    for pin in values["pinned"]:
        axes_by_reason.setdefault(pin["reason"].partition(" (in ")[0], []).append(f"{pin['tensor']}:{pin['axis']}")
    if axes_by_reason:
        reasons = Table("pinned, since it is", "axes", "tensor:axis")
        for reason, axes in axes_by_reason.items():
            reasons.add_row(escape(reason), str(len(axes)), escape(some(axes)))
        out.print(reasons)
        out.print("`--why NAME` explains one of them; `--json` lists them all.")
    for name, unread in values["unread"].items():
        training = ", which training reads" if unread["in_training"] else ""
        out.print(f"Nothing reads {escape(name)} in evaluation: {unread['parameters']:,} parameters{training}.")
    if values["unknown"]:
        out.print(f"Operators without a rule, which pin what they touch: {escape(', '.join(values['unknown']))}.")


def some(names: Iterable[str]) -> str:
    """Returns the first three names, and how many more there are."""
    first, more = list(names)[:3], len(list(names)) - 3
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


@contextmanager
def training(label: str, quiet: bool) -> Iterator[Callable[[int, int, Epoch], None]]:
    """Shows the epochs of a training on stderr; yields what the training loop calls after each of them."""
    with _progress(TextColumn("{task.fields[state]}"), quiet) as bar:
        task = bar.add_task(label, total=None, state="")

        def update(epoch: int, epochs: int, row: Epoch) -> None:
            accuracy = "" if row.test_accuracy is None else f", {row.test_accuracy:.2f} %"
            bar.update(task, completed=epoch, total=epochs, state=f"{epoch}/{epochs} loss {row.loss:.4f}{accuracy}")

        yield update


@contextmanager
def steps(quiet: bool) -> Iterator[OnStep]:
    """Shows the steps of long work on stderr; yields what is called after each of them."""
    with _progress(MofNCompleteColumn(), quiet) as bar:
        task = bar.add_task("", total=None, visible=False)

        def update(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total, visible=True)

        yield update


def _progress(column: ProgressColumn, quiet: bool) -> Progress:
    """Returns a progress bar on stderr with one more column; it is hidden where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), column, TimeRemainingColumn())
    hidden = quiet or not sys.stderr.isatty()
    return Progress(*columns, console=console(stderr=True), transient=True, disable=hidden)


def sensitivity(scan: Sensitivity, out: Path) -> None:
    """Prints the accuracies of a scan, a line for each group, and where its files are."""
    ratios = list(dict.fromkeys(point.ratio for point in scan.points))
    unpruned = f"{scan.accuracy:.1f} % on {scan.examples} training examples"
    table = Table("group", "units", *(f"{100 * ratio:g} %" for ratio in ratios), title_justify="left")
    table.title = f"accuracy with one group pruned to this width by {scan.method}; unpruned network: {unpruned}"
    for name, points in scan.groups.items():
        table.add_row(escape(name), str(points[0].units), *(f"{point.accuracy:.1f}" for point in points))
    console().print(table)
    print(f"files: {out}/")


def bench(result: Bench, out: Path) -> None:
    """Prints the table of a bench, and where its files are."""
    print(result)
    print(f"files: {out}/")


def pattern(averaged: WidthPattern | KernelPattern, out: Path) -> None:
    """Prints what a design pattern keeps of each stage, and where its files are."""
    widths = averaged.kind == "widths"
    table = Table("feature map", "units kept") if widths else Table("feature map", "kernel", "weights kept")
    for stage, kept in averaged.shares.items():
        table.add_row(*stage, f"{kept:.1%}")
    console().print(table)
    print(f"files: {out}/")


def trained(values: Mapping[str, Any], out: Path) -> None:
    """Prints the result of a training, and where its files are."""
    count = len(values["epochs"])
    epochs = "1 epoch" if count == 1 else f"{count} epochs"
    console().print(f"test accuracy {values['accuracy']:.2f} % after {epochs}", style="bold")
    print(f"weights: {out / 'model.safetensors'}")


def pruned(result: Pruned, values: Mapping[str, Any], out: Path) -> None:
    """Prints the result of a pruning: group by group, then before and after, and where its files are."""
    print(result)
    if (shrunk := values["shrunk"]) is not None:
        sizes = f"{shrunk['macs']:,} MACs and {shrunk['params']:,} parameters"
        print(f"shrunk to a dense network of {sizes}; its outputs moved by {shrunk['drift']:.0e} at most")
    latency = values["latency_ms"]
    print(f"latency of one example in torch: {latency['before']:.3f} → {latency['after']:.3f} ms")
    _accuracy(values)
    print(f"files: {out}/")
    print(f'to load them: topiarist.load(topiarist.make_model("{values["model"]}"), "{out}")')


def exported(done: Exported) -> None:
    """Prints what a file takes, and how it was compared."""
    batch = "any batch" if done.batch is None else f"fixed batch of {done.batch}"
    sides = f", images of {done.image_size[0]}x{done.image_size[1]}" if done.image_size else ""
    shapes = ", ".join(" and ".join("x".join(map(str, shape)) for shape in each) for each in done.shapes)
    print(f"{done.path}: {done.bytes:,} bytes, {batch}{sides}, written by {done.exporter}")
    print(f"outputs of {done.runtime} and torch differ by {done.difference:.0e} of the largest at {shapes}")
    for exporter, reason in done.refused.items():
        print(f"{exporter} did not: {reason}")


def compressed(report: Report, values: Mapping[str, Any], out: Path) -> None:
    """Prints what each tensor of a compressed network takes, and the network's accuracy."""
    print(report)
    _accuracy(values)
    print(f"file: {out}")


def decompressed(values: Mapping[str, Any], out: Path) -> None:
    """Prints the size of a decompressed network."""
    print(f"{values['tensors']} tensors, {values['bytes']:,} bytes")
    print(f"files: {out}/")


def _accuracy(values: Mapping[str, Any]) -> None:
    measured = [f"{when} {value:.2f} %" for when, value in values["accuracy"].items() if value is not None]
    if measured:
        print(f"accuracy: {', '.join(measured)}")
