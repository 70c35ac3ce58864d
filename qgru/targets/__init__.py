"""What a chip or a compiler takes of a quantized GRU, what it will change, and the bit widths to set for it."""

from qgru.targets.claim import Claim
from qgru.targets.cost import TargetCost, cost_table
from qgru.targets.lint import Problem, check, describe, lint
from qgru.targets.preset import preset
from qgru.targets.target import Target, load_target

__all__ = [
    "Claim",
    "Problem",
    "Target",
    "TargetCost",
    "check",
    "cost_table",
    "describe",
    "lint",
    "load_target",
    "preset",
]
