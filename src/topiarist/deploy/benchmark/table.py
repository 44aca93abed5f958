"""A bench as text: its table, and a sentence where fewer MACs save no time."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from topiarist.deploy.benchmark.values import Bench, Reading
from topiarist.measure import Median

WIDTH = 118
DASH = "–"
NUMBERS = ("latency, ms", "95 % interval", "examples/s", "speed-up", "MACs", "efficiency", "file", "memory")


def text(bench: Bench) -> str:
    """Returns the table and the sentences."""
    written = io.StringIO()
    console = Console(file=written, width=WIDTH, highlight=False)
    for setting in bench.settings:
        console.print(_table(bench, str(setting), [each for each in bench.readings if each.setting == setting]))
    for sentence in sentences(bench):
        console.print(sentence, markup=False)
    return written.getvalue().rstrip()


def _table(bench: Bench, title: str, readings: list[Reading]) -> Table:
    macs = {network.name: network.macs for network in bench.networks}
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    table.add_column("network", overflow="fold")
    for name in NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    for reading in readings:
        latency, of_first = reading.latency, None
        if latency is not None:
            of_first = "1" if reading.network == bench.networks[0].name else _ratio(reading.speedup)
        table.add_row(
            Text(reading.network),
            DASH if latency is None else f"{latency.value:.3g}",
            _interval(latency),
            DASH if reading.throughput is None else f"{reading.throughput:,.0f}",
            of_first or DASH,
            _count(macs.get(reading.network)),
            DASH if reading.efficiency is None else f"{reading.efficiency:.2f}",
            _bytes(reading.bytes),
            _bytes(reading.memory),
        )
    return table


def sentences(bench: Bench) -> Iterator[str]:
    """Yields what stands below the table."""
    macs = {network.name: network.macs for network in bench.networks}
    first = bench.networks[0].name
    for reading in bench.readings:
        if reading.reason:
            yield f"{reading.network} was not measured on {reading.setting}: {reading.reason}"
        if reading.saves_no_time and reading.speedup is not None:
            share, high = (macs[reading.network] or 0) / (macs[first] or 1), reading.speedup.high
            verdict = "slower" if high is not None and high < 1 else "not measurably faster"
            yield (
                f"{reading.network} has {share:.0%} of the MACs of {first} and is {verdict} on {reading.setting}: "
                f"speed-up {_ratio(reading.speedup)} ({_interval(reading.speedup)})"
            )
    if bench.interrupted:
        yield "The bench was interrupted: this is what was measured until then."


def _ratio(median: Median | None) -> str:
    return DASH if median is None else f"{median.value:.2f}"


def _interval(median: Median | None) -> str:
    return DASH if median is None or median.low is None else f"{median.low:.3g} to {median.high:.3g}"


def _count(value: float | None) -> str:
    """Returns a count with a prefix: ``1234567`` → ``"1.23 M"``."""
    if value is None:
        return DASH
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"


def _bytes(value: int | None) -> str:
    return DASH if value is None else f"{_count(value)}B" if value >= 1000 else f"{value} B"
