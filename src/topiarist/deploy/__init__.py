"""Runtimes: take a network to them, check what arrives, and measure how long it takes there."""

from topiarist.deploy.benchmark import Bench, Network, Reading, Setting, bench, onnx_shapes
from topiarist.deploy.target import Outputs, Session, Target
from topiarist.deploy.targets import get_target, make_target, target_names

__all__ = [
    "Bench",
    "Network",
    "Outputs",
    "Reading",
    "Session",
    "Setting",
    "Target",
    "bench",
    "get_target",
    "make_target",
    "onnx_shapes",
    "target_names",
]
