"""A linear layer behind the GRUs, on integers by the same rules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qgru.calibration.methods import finest_exponents, grid_from_range
from qgru.export.c99.matrix import ROWS, Codes, Matrix, matrix
from qgru.grid import MAX_EXPONENT, MIN_EXPONENT, Grid
from qgru.schema import OperatorConfig

WEIGHTS = OperatorConfig(8)
"""The weights: 8 bits, one exponent a row, as those of a GRU."""

LOGITS = OperatorConfig(16)
"""The outputs: 16 bits, for 8 would make ties of close ones."""


@dataclass(frozen=True)
class Head:
    """A quantized linear layer: ``Q_logits(W h + b)``, rounded once.

    Attributes:
        name: of the module.
        weights: (outputs, hidden) integers.
        exponents: of each row.
        biases: (outputs,) integers, on the exponent of the row's products with the state.
        state: the grid of the GRU's output.
        grid: of the outputs.
    """

    name: str
    weights: Tensor
    exponents: tuple[int, ...]
    biases: tuple[int, ...]
    state: Grid
    grid: Grid

    @classmethod
    def of(cls, name: str, linear: nn.Linear, state: Grid, logits: Tensor) -> Head:
        """Quantize a layer.

        Args:
            name: of the module.
            linear: the layer.
            state: the grid of what it is given.
            logits: what it returned; its grid holds all of these.

        Raises:
            ValueError: where a weight or an output is not finite.
        """
        weight = linear.weight.detach().double().cpu()
        if not (torch.isfinite(weight).all() and torch.isfinite(logits).all()):
            raise ValueError(f"{name}: a weight or an output is not finite")
        largest = weight.abs().amax(1)
        exponents = finest_exponents(-largest, largest, WEIGHTS)
        rows = Grid(WEIGHTS.bitwidth, True, False, tuple(exponents.tolist()))
        bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach().cpu()
        sums = (exponents + state.exp2_inv).clamp(MIN_EXPONENT, MAX_EXPONENT)
        biases = Grid(32, True, False, tuple(sums.tolist())).quantize(bias)
        grid = grid_from_range(float(logits.min()), float(logits.max()), LOGITS)
        return cls(name, rows.quantize(weight), rows.exponents, tuple(biases.tolist()), state, grid)

    @property
    def matrix(self) -> Matrix:
        """The program; rows of zeros fill up the last three."""
        filled = -len(self.biases) % ROWS
        rows = [*self.weights.tolist(), *([0] * self.weights.shape[1] for _ in range(filled))]
        exponents = [n + self.state.exp2_inv for n in self.exponents] + [0] * filled
        return matrix("logits", rows, exponents, [*self.biases, *[0] * filled], Codes.of(self.state), self.grid)

    def integers(self, states: Tensor) -> Tensor:
        """Return the outputs for integers of the state: the definition, in whole numbers.

        Args:
            states: (..., hidden) int64, on the grid `state`.

        Returns:
            (..., outputs) int64, on `grid`.
        """
        sums = (states - self.state.zero_point) @ self.weights.T + torch.tensor(self.biases)
        exponents = torch.tensor(self.exponents).double() + self.state.exp2_inv
        return self.grid.quantize(sums.double() * torch.exp2(-exponents))
