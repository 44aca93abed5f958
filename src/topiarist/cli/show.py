"""What the commands print: tables for people, JSON for machines."""

from __future__ import annotations

import json as json_format
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from topiarist.budget import Cost
    from topiarist.compress import Report
    from topiarist.graph import Graph
    from topiarist.guided import KernelPattern, WidthPattern
    from topiarist.measure import OnStep
    from topiarist.pruning import Pruned, Sensitivity
    from topiarist.train import Epoch

WIDTH = 120
"""Columns where the output is no terminal."""


def console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr; colours and the terminal's width only where there is a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else WIDTH, highlight=False)


def json(values: Any) -> None:
    """Print plain values as JSON; what is not finite is null, since JSON has no word for it."""
    print(json_format.dumps(plain(values), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """Values that JSON can hold: paths as text, tuples as lists, NaN and infinity as null."""
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
    """A method's docstring, what kind it is, and its flags with their defaults."""
    print(f"{method['name']}\n\n{method['doc'].rstrip()}\n")
    for name in ("family", "granularity", "target", "allocation", "needs", "roles", "paper"):
        value = method[name]
        print(f"{name}: {value if isinstance(value, str) else ', '.join(value) or 'nothing'}")
    print(f"\nFlags:\n  --method {method['name']}")
    for field in method["fields"]:
        print(f"  --method.{field['name']} {field['type']}, default {field['default']}")


def graph(found: Graph, cost: Cost, as_json: bool) -> None:
    """The groups of a graph, its residual blocks, and what is pinned in it."""
    blocks = [block for group in found.blocks().groups for block in group.blocks]
    stays = found.blocks().irremovable
    if as_json:
        groups = [
            {
                "name": group.name,
                "units": group.units,
                "stage": group.stage,
                "slices": [{"tensor": part.tensor, "axis": part.axis, "role": part.role} for part in group.slices],
            }
            for group in found.groups
        ]
        pinned = [entry._asdict() for entry in found.pinned]
        values = {
            "groups": groups,
            "pinned": pinned,
            "blocks": [{"name": block.name, "modules": [part.module for part in block.parts]} for block in blocks],
            "blocks_pinned": dict(stays),
            "unknown": found.unknown,
            "macs": cost.macs,
            "params": cost.params,
        }
        json(values)
        return
    out = console()
    units = sum(group.units for group in found.groups)
    counted = "1 group" if len(found.groups) == 1 else f"{len(found.groups)} groups"
    out.print(f"{cost.macs:,} MACs, {cost.params:,} parameters, {units:,} units in {counted}")
    table = Table("group", "units", "stage", "carried by")
    for group in found.groups:
        carriers = list(dict.fromkeys(part.tensor for part in group.slices))
        table.add_row(escape(group.name), str(group.units), group.stage, _some(carriers))
    out.print(table)
    if blocks:
        removable = Table("residual block", "modules that go with it")
        for block in blocks:
            removable.add_row(escape(block.name), _some([part.module for part in block.parts]))
        out.print(removable)
    for name, reason in stays.items():
        out.print(f"The block {escape(name)} stays: {escape(reason)}.")
    pinned_by: dict[str, list[str]] = {}
    for entry in found.pinned:
        pinned_by.setdefault(entry.reason.partition(" (in ")[0], []).append(f"{entry.tensor}:{entry.axis}")
    if pinned_by:
        reasons = Table("stays as it is, since it is", "axes", "tensor:axis")
        for reason, places in pinned_by.items():
            reasons.add_row(escape(reason), str(len(places)), _some(places))
        out.print(reasons)
        out.print("`--why NAME` explains one of them; `--json` lists them all.")
    if found.unknown:
        out.print(f"Operators without a rule, which pin what they touch: {escape(', '.join(found.unknown))}.")


def _some(names: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return escape(", ".join(names[:shown])) + more


def text(words: object, as_json: bool) -> None:
    """Anything that prints as text."""
    if as_json:
        json({"text": str(words)})
    else:
        print(words)


@contextmanager
def training(label: str, quiet: bool) -> Iterator[Callable[[int, int, Epoch], None]]:
    """A line of progress on stderr that follows the epochs; hands over what the training loop calls after each."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    with Progress(
        *columns, console=console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task(label, total=None, state="")

        def told(epoch: int, epochs: int, row: Epoch) -> None:
            accuracy = "" if row.test_accuracy is None else f", {row.test_accuracy:.2f} %"
            bar.update(task, completed=epoch, total=epochs, state=f"{epoch}/{epochs} loss {row.loss:.4f}{accuracy}")

        yield told


@contextmanager
def steps(quiet: bool) -> Iterator[OnStep]:
    """A line of progress on stderr for work that says how far it is; hands over what it calls."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("", total=None, visible=False)

        def told(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total, visible=True)

        yield told


def sensitivity(found: Sensitivity, out: Path, as_json: bool) -> None:
    """The accuracies of a scan, a line for each group, and where its files are."""
    if as_json:
        json(found.to_json())
        return
    ratios = list(dict.fromkeys(point.ratio for point in found.points))
    whole = f"{found.accuracy:.1f} % on {found.examples} training examples"
    table = Table("group", "units", *(f"{100 * ratio:g} %" for ratio in ratios), title_justify="left")
    table.title = f"accuracy where one group alone keeps so many units by {found.method}; whole network: {whole}"
    for name, points in found.groups.items():
        table.add_row(escape(name), str(points[0].units), *(f"{point.accuracy:.1f}" for point in points))
    console().print(table)
    print(f"files: {out}/")


def pattern(found: WidthPattern | KernelPattern, out: Path, as_json: bool) -> None:
    """What a design pattern keeps of each stage, and where its files are."""
    if as_json:
        json(found.to_json())
        return
    widths = found.kind == "widths"
    table = Table("feature map", "units kept") if widths else Table("feature map", "kernel", "weights kept")
    for stage, kept in found.shares.items():
        table.add_row(*stage, f"{kept:.1%}")
    console().print(table)
    print(f"files: {out}/")


def trained(result: Mapping[str, Any], out: Path, as_json: bool) -> None:
    """The result of a training, and where its files are."""
    if as_json:
        json(result)
        return
    count = len(result["epochs"])
    epochs = "1 epoch" if count == 1 else f"{count} epochs"
    console().print(f"test accuracy {result['accuracy']:.2f} % after {epochs}", style="bold")
    print(f"weights: {out / 'model.safetensors'}")


def pruned(done: Pruned, result: Mapping[str, Any], out: Path, as_json: bool) -> None:
    """The result of a pruning: group by group, then before and after, and where its files are."""
    if as_json:
        json(result)
        return
    print(done)
    latency, accuracy = result["latency_ms"], result["accuracy"]
    if (small := result["shrunk"]) is not None:
        sizes = f"{small['macs']:,} MACs and {small['params']:,} parameters"
        print(f"shrunk to a dense network of {sizes}; its outputs moved by {small['drift']:.0e} at most")
    print(f"latency of one example: {latency['before']:.3f} → {latency['after']:.3f} ms")
    measured = [f"{when} {value:.2f} %" for when, value in accuracy.items() if value is not None]
    if measured:
        print(f"accuracy: {', '.join(measured)}")
    print(f"files: {out}/")
    print(f'to load them: topiarist.load(topiarist.make_model("{result["model"]}"), "{out}")')


def compressed(report: Report, result: Mapping[str, Any], out: Path, as_json: bool) -> None:
    """What each tensor of a compressed network takes, and what the network can do."""
    if as_json:
        json(result)
        return
    print(report)
    measured = [f"{when} {value:.2f} %" for when, value in result["accuracy"].items() if value is not None]
    if measured:
        print(f"accuracy: {', '.join(measured)}")
    print(f"file: {out}")


def decompressed(result: Mapping[str, Any], out: Path, as_json: bool) -> None:
    """What came out of a compressed network."""
    if as_json:
        json(result)
        return
    print(f"{result['tensors']} tensors, {result['bytes']:,} bytes")
    print(f"files: {out}/")
