"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from topiarist.deploy.interface import EXPORTERS, Draft, Entry, as_array, fitted
from topiarist.deploy.onnx import KEY, describe_onnx, export_onnx
from topiarist.deploy.target import Outputs, Session, Target
from topiarist.errors import TopiaristError
from topiarist.files import one_line
from topiarist.graph import Inputs

_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int16)": torch.int16,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


@dataclass(frozen=True)
class OnnxRuntime(Target):
    """Runs ONNX files by the CPU provider, all graph optimisations on."""

    name: ClassVar[str] = "onnxruntime"
    package: ClassVar[str | None] = "onnxruntime"
    suffix: ClassVar[str] = ".onnx"
    format: ClassVar[str] = "onnx"
    exporters: ClassVar[tuple[str, ...]] = EXPORTERS

    def write(self, draft: Draft, path: Path) -> None:
        """Writes an ONNX file."""
        export_onnx(draft, path)
        if draft.metadata:
            describe_onnx(path, draft.metadata)

    def load(self, path: Path) -> Session:
        """Loads an ONNX file."""
        return OnnxSession(self._loaded(path))

    def metadata(self, path: Path) -> str:
        """Returns the value of ``topiarist`` in the file's ``metadata_props``."""
        return str(self._loaded(path).get_modelmeta().custom_metadata_map.get(KEY, ""))

    def _loaded(self, path: Path) -> Any:
        runtime = self.imported()
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 4
        try:
            return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own exceptions derive from Exception alone
            raise TopiaristError(
                f"ONNX Runtime cannot load {path} ({one_line(error)}): export the network again"
            ) from error


class OnnxSession(Session):
    """An ONNX file that is loaded."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.entries = [
            Entry(entry.name, _TYPES.get(entry.type), tuple("?" if size is None else size for size in entry.shape))
            for entry in session.get_inputs()
        ]

    def bind(self, inputs: Inputs) -> Callable[[], Outputs]:
        """Returns a function that runs the file once; tensors are its inputs in order, those of a dict by name.

        Raises:
            TopiaristError: their number, names, types or shapes are not the file's.
        """
        tensors = fitted(inputs, self.entries)
        feed = {entry.name: as_array(tensor) for entry, tensor in zip(self.entries, tensors, strict=True)}
        return lambda: [torch.from_numpy(array) for array in self.session.run(None, feed)]
