"""Budgets, what a network costs, and how a budget is shared out over the groups of units."""

from topiarist.budget.allocation import allocate, quota
from topiarist.budget.budget import Allocation, Budget, matching
from topiarist.budget.costs import Cost, cost
from topiarist.budget.n_of_m import not_n_of_m

__all__ = ["Allocation", "Budget", "Cost", "allocate", "cost", "matching", "not_n_of_m", "quota"]
