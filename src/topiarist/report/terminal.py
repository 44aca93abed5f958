"""The report's table and conclusion for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from topiarist.report import formatting
from topiarist.studies import Json


def show(results: Json, console: Console | None = None) -> None:
    """Prints the tables, the conclusion and the comparisons of a study.

    Args:
        results: plain values of ``results.json``.
        console: where to print; standard output by default.
    """
    console = console or Console()
    pairs = list(dict.fromkeys((row["network"], row["data"]) for row in results["rows"]))
    for network, data in pairs:
        here = [row for row in results["rows"] if (row["network"], row["data"]) == (network, data)]
        console.print(_table(f"{network} on {data}", here, 1 if console.width < 90 else 2))
    for number, sentence in enumerate(results["conclusion"]):
        console.print(_plain(sentence, style="bold" if number == 0 else ""))
    last = ""
    for entry in results["comparisons"]:
        where = f"{entry['network']} on {entry['data']}, " if len(pairs) > 1 else ""
        if (heading := f"{where}{entry['method']}, {entry['goal']}") != last:
            console.print(_plain(heading, style="dim"))
        last = heading
        mark = Text("  ● " if entry["significant"] else "  ○ ", style="green" if entry["significant"] else "dim")
        grid = Table.grid()
        grid.add_row(mark, _plain(entry["verdict"]))
        console.print(grid)
    for error in dict.fromkeys(results["failed"].values()):
        keys = [key for key, why in results["failed"].items() if why == error]
        which = keys[0] if len(keys) == 1 else f"{len(keys)} cells, such as {keys[0]}"
        console.print(_plain(f"missing: {which}: {error}", style="red"))


def _table(title: str, rows: list[Json], gap: int) -> Table:
    """Returns one table; methods have lines of their own, so that it fits a terminal of 80 columns."""
    table = Table(
        title=_plain(title),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, gap, 0, 0),
        header_style="dim",
    )
    table.add_column("", no_wrap=True)
    for name in ("accuracy %", "MACs", "", "params", "file", "latency", "epochs"):
        table.add_column(name, justify="right", no_wrap=True)
    last = "none "
    for row in rows:
        if (heading := f"{row['method']} {row['goal']}") != last:
            table.add_row(_plain(heading.replace(" % of ", " % "), style="bold"))
        last = heading
        table.add_row(
            _plain(row["label"] if row["method"] == "none" else f"  {row['label']}"),
            formatting.accuracy(row["accuracy"]),
            formatting.count(row["macs"]),
            formatting.percent(row["macs_ratio"]),
            formatting.count(row["params"]),
            formatting.size(row["bytes"]),
            formatting.latency(formatting.first_reading(row) if gap == 2 else None, row["latency_ms"]),
            formatting.DASH if row["epochs"] is None else f"{row['epochs']:.0f}",
        )
    return table


def _plain(text: str, style: str = "") -> Text:
    """Returns text without markup and without control characters for the terminal."""
    return Text("".join(sign for sign in text if sign.isprintable()), style=style)
