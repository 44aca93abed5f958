"""How long networks take on runtimes, measured side by side."""

from topiarist.deploy.benchmark.running import bench
from topiarist.deploy.benchmark.subjects import onnx_shapes
from topiarist.deploy.benchmark.values import Bench, Network, Reading, Setting

__all__ = ["Bench", "Network", "Reading", "Setting", "bench", "onnx_shapes"]
