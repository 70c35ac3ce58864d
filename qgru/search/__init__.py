"""Bit widths found under a budget: what they cost, what each operator's width costs in accuracy, which to choose."""

from qgru.search.cost import Cost, cost_of, relative_cost

__all__ = ["Cost", "cost_of", "relative_cost"]
