"""Exporting models that hold quantized GRUs, and proving that the file computes what the module computes.

`torch.onnx.export` alone works as well, on layers whose ``export_mode`` is on.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "CReport": "c99.report",
    "ExportReport": "onnx.report",
    "LayerDifference": "onnx.report",
    "OnnxVerifier": "onnx.verify",
    "VerificationReport": "onnx.report",
    "export_aimet": "aimet",
    "export_c": "c99.export",
    "export_layers": "layers",
    "export_onnx": "onnx.export",
    "export_step": "onnx.step",
    "verify_onnx": "onnx.verify",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is used first, and ONNX no earlier than that name needs it."""
    if name in _HOMES:
        return getattr(import_module(f"qgru.export.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'qgru.export' has no attribute {name!r}")
