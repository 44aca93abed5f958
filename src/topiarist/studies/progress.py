"""The progress of a run: one moving line on a terminal, one line per cell in a file."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from topiarist.studies.cells import Cell
from topiarist.studies.queue import Event
from topiarist.studies.queue import Progress as Listener


class Live:
    """Shows the events of a run; a context manager to be passed as its ``progress``.

    Args:
        total: number of cells.
        quiet: show nothing but failures.
        console: where to show it; standard error by default, so that standard output stays for results.
    """

    def __init__(self, total: int, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.quiet = quiet
        self.total = total
        self.count = 0
        self.reused = 0
        self.running: dict[str, str] = {}
        self.bar = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.task = self.bar.add_task("starting", total=total)

    def __enter__(self) -> Live:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if self.reused and not self.quiet:
            self.console.print(
                f"{self.reused} of {self.total} cells were finished already", style="dim", highlight=False
            )

    def __call__(self, event: Event) -> None:
        """Shows an event."""
        name = describe(event.cell)
        if event.state == "started":
            self.running[event.cell.key] = name
        else:
            self.count += 1
            self.reused += event.state == "reused"
            self.running.pop(event.cell.key, None)
        if event.state in ("failed", "blocked"):
            self.console.print(Text(f"{event.state}: {name}: {event.error}", style="red"), soft_wrap=True)
        elif event.state == "finished" and not self.quiet and not self.console.is_terminal:
            line = f"{self.count}/{self.total} {name} ({event.seconds:.1f} s)"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        self.bar.update(self.task, completed=self.count, description=", ".join(self.running.values()))

    def only(self, arm: str) -> Listener:
        """Returns a listener that shows the events of one arm only: those of what its cells need were shown before."""
        return lambda event: self(event) if event.cell.arm == arm else None


def describe(cell: Cell) -> str:
    """Returns a cell in a few words."""
    method = "" if cell.method == "none" else f"{cell.method} "
    budget = [f"{name} {value:g}" for name, value in cell.budget.items() if isinstance(value, int | float)]
    return ", ".join([f"{method}{cell.arm}", *budget, f"seed {cell.seed}"])
