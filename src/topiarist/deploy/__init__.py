"""Runtimes: take a network to them, check what arrives, and measure how long it takes there."""

from topiarist.deploy.cache import Cache
from topiarist.deploy.exporting import Exported, export, format_names, target_of
from topiarist.deploy.interface import EXPORTERS
from topiarist.deploy.layers import Layer, layers_of
from topiarist.deploy.table import fastest, latency_table, machine, ratio_of
from topiarist.deploy.target import Outputs, Session, Target
from topiarist.deploy.targets import get_target, make_target, target_names

__all__ = [
    "EXPORTERS",
    "Cache",
    "Exported",
    "Layer",
    "Outputs",
    "Session",
    "Target",
    "export",
    "fastest",
    "format_names",
    "get_target",
    "latency_table",
    "layers_of",
    "machine",
    "make_target",
    "ratio_of",
    "target_names",
    "target_of",
]
