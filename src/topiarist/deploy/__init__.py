"""Runtimes: take a network to them, check what arrives, and measure how long it takes there."""

from topiarist.deploy.benchmark import Bench, Network, Reading, Setting, bench, onnx_shapes
from topiarist.deploy.exports import Exported, export, format_names, target_of
from topiarist.deploy.interface import EXPORTERS
from topiarist.deploy.prices import Cache, Layer, fastest, latency_table, layers_of, machine, ratio_of, zeros_table
from topiarist.deploy.target import Outputs, Session, Target
from topiarist.deploy.targets import get_target, make_target, target_names

__all__ = [
    "EXPORTERS",
    "Bench",
    "Cache",
    "Exported",
    "Layer",
    "Network",
    "Outputs",
    "Reading",
    "Session",
    "Setting",
    "Target",
    "bench",
    "export",
    "fastest",
    "format_names",
    "get_target",
    "latency_table",
    "layers_of",
    "machine",
    "make_target",
    "onnx_shapes",
    "ratio_of",
    "target_names",
    "target_of",
    "zeros_table",
]
