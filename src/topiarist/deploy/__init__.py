"""Runtimes: take a network to them, check what arrives, and measure how long it takes there."""

from topiarist.deploy.target import Outputs, Session, Target
from topiarist.deploy.targets import get_target, make_target, target_names

__all__ = ["Outputs", "Session", "Target", "get_target", "make_target", "target_names"]
