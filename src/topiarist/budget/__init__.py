"""Budgets, what a network costs, and how a budget is shared out over the groups of units."""

from topiarist.budget.allocation import KEEPS_ITS_MEMORY, allocate, quota
from topiarist.budget.budget import Allocation, Budget, PricedBudget, as_names, matching
from topiarist.budget.by_latency import NO_ZEROS, OutOfReachError, UnreachableError
from topiarist.budget.costs import Cost, cost
from topiarist.budget.knapsack import widths
from topiarist.budget.latency import Axis, Floats, LatencyTable, LayerLatency, axis_of, places_of
from topiarist.budget.n_of_m import not_n_of_m
from topiarist.budget.names import GroupName, Name, spelled, units_of
from topiarist.budget.zeros import LayerZeros, ZerosTable

__all__ = [
    "KEEPS_ITS_MEMORY",
    "NO_ZEROS",
    "Allocation",
    "Axis",
    "Budget",
    "Cost",
    "Floats",
    "GroupName",
    "LatencyTable",
    "LayerLatency",
    "LayerZeros",
    "Name",
    "OutOfReachError",
    "PricedBudget",
    "UnreachableError",
    "ZerosTable",
    "allocate",
    "as_names",
    "axis_of",
    "cost",
    "matching",
    "not_n_of_m",
    "places_of",
    "quota",
    "spelled",
    "units_of",
    "widths",
]
