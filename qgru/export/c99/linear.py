"""A linear layer behind the GRUs, on integers by the same rules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qgru.calibration.methods import finest_exponents, grid_from_range
from qgru.export.c99.arithmetic import INT32
from qgru.export.c99.matrix import ROWS, Codes, Matrix, matrix
from qgru.grid import Grid
from qgru.schema import OperatorConfig

WEIGHTS = OperatorConfig(8)
"""The weights: 8 bits, one exponent a row, as those of a GRU."""

LOGITS = OperatorConfig(16)
"""The outputs: 16 bits, so that a grid over all that a state can lead to is still fine."""


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
    def of(cls, name: str, linear: nn.Linear, state: Grid) -> Head:
        """Quantize a layer; no output leaves its grid, whatever the state.

        Args:
            name: of the module.
            linear: the layer.
            state: the grid of what it is given.

        Raises:
            ValueError: where a weight or a bias is not finite.
        """
        weight = linear.weight.detach().double().cpu()
        bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach().cpu()
        if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise ValueError(f"{name}: a weight or a bias is not finite")
        largest = weight.abs().amax(1)
        exponents = finest_exponents(-largest, largest, WEIGHTS)
        rows = Grid(WEIGHTS.bitwidth, True, False, tuple(exponents.tolist()))
        steps = torch.exp2((exponents + state.exp2_inv).double())
        biases = (bias.double() * steps).round().clamp(-INT32, INT32 - 1).long()
        weights = rows.quantize(weight)
        largest_state = max(map(abs, state.real_range))
        bound = float((rows.dequantize(weights).abs().sum(1) * largest_state + bias.double().abs()).max())
        return cls(name, weights, rows.exponents, tuple(biases.tolist()), state, grid_from_range(-bound, bound, LOGITS))

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
