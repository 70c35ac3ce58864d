"""Bit widths found under a budget: what they cost, what each operator's width costs in accuracy, which to choose."""

from qgru.search.assign import assign
from qgru.search.cost import Cost, cost_of, relative_cost
from qgru.search.preset import write_preset
from qgru.search.refine import Move, refine_exponents
from qgru.search.rules import Rules, load_rules
from qgru.search.search import Found, Point, search
from qgru.search.sensitivity import Sensitivities, sensitivities

__all__ = [
    "Cost",
    "Found",
    "Move",
    "Point",
    "Rules",
    "Sensitivities",
    "assign",
    "cost_of",
    "load_rules",
    "refine_exponents",
    "relative_cost",
    "search",
    "sensitivities",
    "write_preset",
]
