"""Tables and pictures of what quantization costs."""

from qgru.report.comparison import compare
from qgru.report.csv_logger import ResumableCSVLogger
from qgru.report.sweep import SweepReport
from qgru.report.table import Row, read_rows, write_rows

__all__ = ["ResumableCSVLogger", "Row", "SweepReport", "compare", "read_rows", "write_rows"]
