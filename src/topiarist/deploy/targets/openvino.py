"""OpenVINO on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch

from topiarist.deploy.interface import EXPORTERS, Draft, Entry, as_array, fitted
from topiarist.deploy.onnx import KEY, export_onnx
from topiarist.deploy.target import Outputs, Session, Target
from topiarist.errors import TopiaristError
from topiarist.files import as_path, one_line
from topiarist.graph import Inputs

_TYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "boolean": torch.bool,
}


@dataclass(frozen=True)
class OpenVino(Target):
    """Runs OpenVINO's own files, or ONNX files, in 32-bit floating point and tuned for latency.

    A network is converted through an ONNX file. Weights stay in 32 bits. A file is two, ``.xml`` and ``.bin``.
    """

    name: ClassVar[str] = "openvino"
    package: ClassVar[str | None] = "openvino"
    suffix: ClassVar[str] = ".xml"
    format: ClassVar[str] = "openvino"
    exporters: ClassVar[tuple[str, ...]] = EXPORTERS

    def write(self, draft: Draft, path: Path) -> None:
        """Writes the two files."""
        runtime: Any = self.imported()
        with tempfile.TemporaryDirectory() as folder:
            onnx = Path(folder) / "model.onnx"
            export_onnx(draft, onnx)
            model = _core(runtime).read_model(str(onnx))
            if draft.metadata:
                model.set_rt_info(draft.metadata, [KEY])
            runtime.save_model(model, str(path), compress_to_fp16=False)

    def load(self, path: Path) -> Session:
        """Loads an ``.xml`` file with the ``.bin`` beside it, or an ONNX file."""
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        runtime: Any = self.imported()
        model = self._read(path)
        try:
            return OpenVinoSession(_core(runtime).compile_model(model, "CPU", settings))
        except RuntimeError as error:
            raise _unreadable(path, error) from error

    def metadata(self, path: Path) -> str:
        """Returns the value of ``topiarist`` in the file's ``rt_info``."""
        model = self._read(path)
        return str(model.get_rt_info([KEY]).value) if model.has_rt_info([KEY]) else ""

    def _read(self, path: Path) -> Any:
        runtime: Any = self.imported()
        path = as_path(path)
        if not path.is_file():
            raise TopiaristError(f"there is no file {path}: export the network again")
        if path.suffix == self.suffix and b"<net" not in path.read_bytes()[:1000]:  # else every other reader tries it
            raise TopiaristError(f"{path} is damaged or not an OpenVINO file: export the network again")
        try:
            return _core(runtime).read_model(str(path))
        except RuntimeError as error:
            raise _unreadable(path, error) from error


@cache
def _core(runtime: Any) -> Any:
    """Returns OpenVINO's entrance, which is slow to make."""
    return runtime.Core()


def _unreadable(path: Path, error: RuntimeError) -> TopiaristError:
    """Returns a sentence with what OpenVINO says, without the places in its source."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith(("Exception from", "Check '"))]
    reason = one_line(RuntimeError(lines[0])) if lines else one_line(error)
    return TopiaristError(f"OpenVINO cannot load {path} ({reason}): export the network again")


class OpenVinoSession(Session):
    """A file that is compiled for this machine."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.entries = [
            Entry(
                port.get_any_name(),
                _TYPES.get(port.get_element_type().get_type_name()),
                tuple(size.get_length() if size.is_static else "?" for size in port.get_partial_shape()),
            )
            for port in compiled.inputs
        ]

    def bind(self, inputs: Inputs) -> Callable[[], Outputs]:
        """Returns a function that runs the network once; tensors are its inputs in order, those of a dict by name.

        Raises:
            TopiaristError: their number, names, types or shapes are not the file's.
        """
        arrays = [as_array(tensor) for tensor in fitted(inputs, self.entries)]
        request = self.compiled.create_infer_request()
        ports = range(len(self.compiled.outputs))

        def run() -> Outputs:
            request.infer(arrays, share_inputs=True)
            return [torch.from_numpy(request.get_output_tensor(port).data.copy()) for port in ports]

        return run
