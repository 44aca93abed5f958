"""What a runtime is: a frozen value that exports a network, loads it, and runs it."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from torch import Tensor, nn

from topiarist.deploy.interface import Draft, as_exported
from topiarist.errors import TopiaristError
from topiarist.files import import_package, one_line, shown
from topiarist.graph import Inputs

Outputs = list[Tensor]
"""What a network returns: its tensors, in order."""


class Session(ABC):
    """A network that is loaded into a runtime, ready to run."""

    @abstractmethod
    def bind(self, inputs: Inputs) -> Callable[[], Outputs]:
        """Returns a function that runs the network once on these inputs; they are converted here, not when it runs."""

    def __call__(self, inputs: Inputs) -> Outputs:
        """Runs the network once."""
        return self.bind(inputs)()


@dataclass(frozen=True)
class Target(ABC):
    """A runtime on this machine, one file each in ``deploy/targets``: the file's name is the target's.

    Attributes:
        threads: of the CPU that one run uses.

    Class attributes:
        name: the target's, as users write it.
        package: what is imported; ``None`` where torch is all it takes.
        extra: the extra of topiarist that installs it.
        suffix: of the files that it reads; empty where it runs the module itself.
        format: what `topiarist.deploy.export` calls these files; empty where it cannot write them.
        exporters: of torch that can write them, the quickest first.
        reads_zeros: weights that are zero make it faster.

    Raises:
        TopiaristError: the number of threads is no whole number, or far above that of the processors.
    """

    name: ClassVar[str]
    package: ClassVar[str | None] = None
    extra: ClassVar[str] = "export"
    suffix: ClassVar[str] = ""
    format: ClassVar[str] = ""
    exporters: ClassVar[tuple[str, ...]] = ()
    reads_zeros: ClassVar[bool] = False

    threads: int = 1

    def __post_init__(self) -> None:
        most = max(64, 4 * (os.cpu_count() or 1))  # torch dies of millions
        if not isinstance(self.threads, int) or isinstance(self.threads, bool) or not 1 <= self.threads <= most:
            raise TopiaristError(f"threads must be a whole number from 1 to {most}, but got {shown(self.threads)}")

    @property
    def version(self) -> str:
        """Returns the runtime's version.

        Raises:
            TopiaristError: its package is missing; the sentence names the extra that installs it.
        """
        return str(self.imported().__version__)

    @property
    def of_layers(self) -> Target:
        """Returns the runtime that shows what layers cost alone: itself, unless it takes too long to load each one."""
        return self

    def imported(self) -> ModuleType:
        """Returns the runtime's package.

        Raises:
            TopiaristError: it is missing; the sentence names the extra that installs it.
        """
        return import_package(self.package or "torch", self.extra)

    def export(self, model: nn.Module, example_inputs: Inputs, path: Path) -> None:
        """Writes the network as a file that this runtime reads, for exactly these shapes and unchecked.

        `topiarist.deploy.export` checks what it writes.

        Raises:
            TopiaristError: the runtime reads no files, or the network does not export.
        """
        if not self.exporters:
            raise self._no_files()
        reasons = []
        with as_exported(model):
            for exporter in self.exporters:
                try:
                    return self.write(replace(Draft.of(model, example_inputs), exporter=exporter), path)
                except TopiaristError:
                    raise
                except Exception as error:  # an exporter's failures have many classes
                    reasons.append(f"{exporter}: {one_line(error)}")
        raise TopiaristError(
            f"the network does not export ({'; '.join(reasons)}): choose another target than {self.name}"
        )

    def write(self, draft: Draft, path: Path) -> None:
        """Writes a file.

        Raises:
            TopiaristError: the runtime reads no files, or a package is missing.
            Exception: of torch's exporter, where the network does not export.
        """
        raise self._no_files()

    def load(self, path: Path) -> Session:
        """Loads a file that `export` wrote.

        Raises:
            TopiaristError: the runtime reads no files, or this one is damaged or foreign.
        """
        raise self._no_files()

    def metadata(self, path: Path) -> str:
        """Returns what a file says about itself, as JSON; empty where it was not written by topiarist.

        Raises:
            TopiaristError: as `load`.
        """
        raise self._no_files()

    def _no_files(self) -> TopiaristError:
        return TopiaristError(f"{self.name} runs the module itself and reads no files: choose another target")

    def prepare(self, model: nn.Module, example_inputs: Inputs) -> Session:
        """Takes a network to the runtime, through a temporary file.

        Raises:
            TopiaristError: as `export` and `load`.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{self.suffix}"
            self.export(model, example_inputs, path)
            try:
                return self.load(path)
            except TopiaristError as error:
                reason = one_line(error.__cause__ or error)
                raise TopiaristError(
                    f"{self.name} does not run this network ({reason}): convert it to 32-bit floating point, or choose "
                    "another target"
                ) from error
