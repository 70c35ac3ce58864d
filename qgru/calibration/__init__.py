"""Calibration: observers (what is seen) and methods (range to grid)."""

from qgru.calibration.insight import histogram, operator_sqnr
from qgru.calibration.observer import merge_ranks

__all__ = ["histogram", "merge_ranks", "operator_sqnr"]
