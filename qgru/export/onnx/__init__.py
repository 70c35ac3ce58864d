"""ONNX: ``qdq`` holds the integers of the quantized layers, ``float`` ONNX's own GRU.

Time and batch are dynamic, but for a sequence of no time steps, which the module itself refuses as `nn.GRU` does. In
ONNX Runtime 1.31 a ``qdq`` file of the older exporter (``dynamo=False``) then gives no output, and the initial
state on its grid as `h_n`; one of the newer raises ``Fail``, for its Scan takes at least one step; and ONNX's GRU, in a
``float`` file, ends the process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from qgru.export.onnx.arguments import example
from qgru.export.onnx.export import export_onnx
from qgru.export.onnx.report import ExportReport
from qgru.export.onnx.tracing import traced_forward
from qgru.gru import QuantGRU

__all__ = ["export_layer", "export_model", "traced_forward"]


def export_model(model: nn.Module, args: Any, path: str | Path, format: str, **options: Any) -> ExportReport:
    """Write a whole model; see `export_onnx`."""
    return export_onnx(model, args, path, format, **options)


def export_layer(gru: QuantGRU, path: str | Path, format: str, **options: Any) -> ExportReport:
    """Write one layer, with an example that covers its input's range; see `export_onnx`."""
    return export_onnx(gru, example(gru), path, format, **options)
