"""A format in a folder of its own: the names of a model's quantized layers, one a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from qgru import QuantGRU, quantized_layers


@dataclass(frozen=True)
class Report:
    path: Path
    format: str


def export_model(model: nn.Module, args: Any, path: Path, format: str) -> Report:
    path.write_text("\n".join(quantized_layers(model)))
    return Report(path, format)


def export_layer(gru: QuantGRU, path: Path, format: str, text: str = "") -> Report:
    path.write_text(text or str(gru))
    return Report(path, format)
