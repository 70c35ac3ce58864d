"""High-level synthesis: a header of `ap_fixed` types for Vitis HLS, with its vectors and its test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from qgru.export.hls.export import HlsReport, write_folder
from qgru.gru import QuantGRU

__all__ = ["HlsReport", "export_layer", "export_model"]


def export_model(model: nn.Module, args: Any, path: str | Path, format: str) -> HlsReport:
    """Write a model that is one layer; see `write_folder`.

    Raises:
        ValueError: where it is anything else.
    """
    if not isinstance(model, QuantGRU):
        raise ValueError(f"the model is a {type(model).__name__}; expected a QuantGRU: {format} writes single layers")
    return export_layer(model, path, format)


def export_layer(gru: QuantGRU, path: str | Path, format: str) -> HlsReport:
    """Write one layer, called after its folder; see `write_folder`."""
    name = re.sub(r"\W", "_", Path(path).name, flags=re.ASCII).lower()
    return write_folder(gru, Path(path), name if name[0].isalpha() else f"gru_{name}")
