"""Quantized GRUs for integer hardware: the integers that you trained are the integers that you ship."""

from importlib import import_module
from typing import Any

from qgru.checkpoints import load_from_checkpoint, loads_quantized
from qgru.configs import load_config
from qgru.convert import convert, float_state_dict, quantized_layers, revert
from qgru.entry_points import tell_hydra
from qgru.grid import Grid
from qgru.gru import QuantGRU
from qgru.schema import BitwidthConfig, OperatorConfig

__all__ = [
    "BitwidthConfig",
    "Grid",
    "OperatorConfig",
    "QuantGRU",
    "callbacks",
    "convert",
    "export",
    "float_state_dict",
    "load_config",
    "load_from_checkpoint",
    "loads_quantized",
    "quantized_layers",
    "report",
    "revert",
    "search",
    "stages",
    "targets",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the parts that few programs need, some of them with Lightning, ONNX or matplotlib, when they are used."""
    if name in ("callbacks", "export", "report", "search", "stages", "targets"):
        return import_module(f"qgru.{name}")
    raise AttributeError(f"module 'qgru' has no attribute {name!r}")


tell_hydra()
