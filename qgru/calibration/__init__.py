"""Calibration: observers (what is seen) and methods (range to grid)."""

from qgru.calibration.cell import CalibrationError
from qgru.calibration.observer import merge_ranks
from qgru.calibration.statistics import histogram, operator_sqnr

__all__ = ["CalibrationError", "histogram", "merge_ranks", "operator_sqnr"]
