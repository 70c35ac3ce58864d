"""What a comparison of a file with its module gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class LayerDifference:
    """How many of a layer's output integers differ between the module and the file."""

    differing_integers: int
    total_integers: int


@dataclass(frozen=True)
class VerificationReport:
    """What one or more runs of a file beside its module gave; reports of several runs add up.

    Attributes:
        layers: by name of each quantized layer, all its calls together; `h_n` counts like `output`. A layer is given
            the module's own input to it.
        largest_float_difference: between the outputs of the whole model, in the model's unit.
    """

    layers: dict[str, LayerDifference] = field(default_factory=dict)
    largest_float_difference: float = 0.0

    @property
    def differing_integers(self) -> int:
        """Of all quantized layers."""
        return sum(layer.differing_integers for layer in self.layers.values())

    @property
    def total_integers(self) -> int:
        """Of all quantized layers."""
        return sum(layer.total_integers for layer in self.layers.values())

    def __add__(self, other: VerificationReport) -> VerificationReport:
        """Sum the counts and keep the larger float difference."""
        layers = dict(self.layers)
        for name, more in other.layers.items():
            known = layers.get(name, LayerDifference(0, 0))
            counts = (known.differing_integers + more.differing_integers, known.total_integers + more.total_integers)
            layers[name] = LayerDifference(*counts)
        largest = np.maximum(self.largest_float_difference, other.largest_float_difference)
        return VerificationReport(layers, float(largest))

    def __str__(self) -> str:
        """Say it in one line."""
        integers = f"{self.differing_integers} of {self.total_integers} integers differ"
        return f"{integers}, largest float difference {self.largest_float_difference:.2g}"


@dataclass(frozen=True)
class ExportReport(VerificationReport):
    """A written file, and how it compares with the module on the example input.

    Attributes:
        path: the file.
        format: ``"qdq"`` or ``"float"``.
        opset: version of ONNX's default domain.
    """

    path: Path = Path()
    format: str = ""
    opset: int = 0
