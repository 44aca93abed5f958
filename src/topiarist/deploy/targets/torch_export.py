"""Files of `torch.export`, run by PyTorch operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from topiarist.deploy.archive import what_could_run
from topiarist.deploy.interface import Draft, Entry, fitted
from topiarist.deploy.onnx import KEY, exported_program, quiet
from topiarist.deploy.target import Outputs, Session, Target
from topiarist.errors import TopiaristError
from topiarist.files import one_line
from topiarist.graph import Inputs, tensors_in
from topiarist.measure import threads_set

_NOTE, _NAMES = f"{KEY}.json", "inputs"


@dataclass(frozen=True)
class TorchExport(Target):
    """Runs ``.pt2`` files: the network's operators without its Python code.

    A file's author is trusted with its numbers only. Torch alone would unpickle what is in one, load libraries, call
    functions by name and evaluate expressions; here a file is refused that has more than tensors, torch's operators and
    arithmetic on sizes.
    """

    name: ClassVar[str] = "torch.export"
    suffix: ClassVar[str] = ".pt2"
    format: ClassVar[str] = "torch-export"
    exporters: ClassVar[tuple[str, ...]] = ("dynamo",)

    def write(self, draft: Draft, path: Path) -> None:
        """Writes the file."""
        extra = {_NOTE: draft.metadata, _NAMES: " ".join(draft.names)}
        with quiet():
            torch.export.save(exported_program(draft), str(path), extra_files=extra)

    def load(self, path: Path) -> Session:
        """Loads a file."""
        program, extra = self._loaded(path)
        try:
            return ExportedSession(program, str(extra[_NAMES]).split(), self.threads)
        except Exception as error:  # as for `_loaded`
            raise _damaged(path, error) from error

    def metadata(self, path: Path) -> str:
        """Returns the extra file ``topiarist.json`` in the file."""
        return str(self._loaded(path)[1][_NOTE])

    def _loaded(self, path: Path) -> tuple[torch.export.ExportedProgram, dict[str, Any]]:
        extra: dict[str, Any] = {_NOTE: "", _NAMES: ""}
        try:
            danger = what_could_run(path)
            if danger is None:
                with quiet():
                    return torch.export.load(str(path), extra_files=extra), extra
        except Exception as error:  # a damaged file can fail anywhere
            raise _damaged(path, error) from error
        raise TopiaristError(f"{path} could run code, by {danger}, and is not loaded: export the network again")


def _damaged(path: Path, error: Exception) -> TopiaristError:
    return TopiaristError(
        f"{path} is damaged or not a file of torch.export ({one_line(error)}): export the network again"
    )


class ExportedSession(Session):
    """A program that is loaded."""

    def __init__(self, program: torch.export.ExportedProgram, names: list[str], threads: int) -> None:
        self.module, self.threads = program.module(), threads
        users = set(program.graph_signature.user_inputs)
        values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in users]
        names = names if len(names) == len(values) else [f"input_{at}" for at in range(len(values))]
        self.entries = [
            Entry(name, value.dtype, tuple(size if isinstance(size, int) else "?" for size in value.shape))
            for name, value in zip(names, values, strict=True)
        ]

    def bind(self, inputs: Inputs) -> Callable[[], Outputs]:
        """Returns a function that runs the program once; tensors are its inputs in order, those of a dict by name.

        Raises:
            TopiaristError: their number, names, types or shapes are not the file's.
        """
        tensors = fitted(inputs, self.entries)

        def run() -> Outputs:
            with threads_set(self.threads), torch.inference_mode():
                return tensors_in(self.module(*tensors))

        return run
