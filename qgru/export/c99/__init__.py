"""C99: a folder of plain integer C for bare metal, with its vectors and its test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from qgru.export.c99.export import export_c
from qgru.export.c99.report import CReport
from qgru.gru import QuantGRU

__all__ = ["CReport", "export_c", "export_layer", "export_model"]


def export_model(model: nn.Module, args: Any, path: str | Path, format: str, name: str = "model") -> CReport:
    """Write a whole model; see `export_c`."""
    return export_c(model, path, name, args)


def export_layer(gru: QuantGRU, path: str | Path, format: str) -> CReport:
    """Write one layer, called after its folder; see `export_c`."""
    name = re.sub(r"\W", "_", Path(path).name, flags=re.ASCII).lower()
    return export_c(gru, path, name if name[0].isalpha() else f"gru_{name}")
