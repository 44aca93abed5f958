"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from topiarist.deploy.onnx import export_onnx
from topiarist.deploy.target import Outputs, Session, Target
from topiarist.errors import TopiaristError
from topiarist.files import one_line
from topiarist.graph import Inputs, tensors_in


@dataclass(frozen=True)
class OnnxRuntime(Target):
    """Runs ONNX files by the CPU provider, all graph optimisations on."""

    name: ClassVar[str] = "onnxruntime"
    package: ClassVar[str | None] = "onnxruntime"
    suffix: ClassVar[str] = ".onnx"

    def export(self, model: nn.Module, example_inputs: Inputs, path: Path) -> None:
        """Writes an ONNX file."""
        export_onnx(model, example_inputs, path)

    def load(self, path: Path) -> Session:
        """Loads an ONNX file."""
        runtime = self.imported()
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        try:
            session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own exceptions derive from Exception alone
            raise TopiaristError(
                f"ONNX Runtime cannot load {path} ({one_line(error)}): export the network again"
            ) from error
        return OnnxSession(session)


class OnnxSession(Session):
    """An ONNX file that is loaded."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def bind(self, inputs: Inputs) -> Callable[[], Outputs]:
        """Returns a function that runs the file once; the tensors are its inputs in order."""
        names = [entry.name for entry in self.session.get_inputs()]
        feed = {name: t.detach().cpu().contiguous().numpy() for name, t in zip(names, tensors_in(inputs), strict=True)}
        return lambda: [torch.from_numpy(array) for array in self.session.run(None, feed)]
