"""Tables and pictures of what quantization costs."""

from qgru.report.comparison import compare
from qgru.report.sweep import SweepReport
from qgru.report.table import Row, read_rows, write_rows

__all__ = ["Row", "SweepReport", "compare", "read_rows", "write_rows"]
