"""Runtimes: take a network to them, check what arrives, and measure how long it takes there."""

from topiarist.deploy.cache import Cache
from topiarist.deploy.layers import Layer, layers_of
from topiarist.deploy.table import fastest, latency_table, machine, ratio_of
from topiarist.deploy.target import Outputs, Session, Target
from topiarist.deploy.targets import get_target, make_target, target_names

__all__ = [
    "Cache",
    "Layer",
    "Outputs",
    "Session",
    "Target",
    "fastest",
    "get_target",
    "latency_table",
    "layers_of",
    "machine",
    "make_target",
    "ratio_of",
    "target_names",
]
