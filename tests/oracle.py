"""The quantized GRU once more, in fractions and Python integers: from docs/numerics.md, sharing no code with qgru.

Real numbers are `Fraction`s, so that nothing rounds but the quantizers; tensors are nested lists.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache

WEIGHTS = ("weight.W", "weight.R", "weight.bw", "weight.br")
ACTIVATIONS = (
    "input.x", "output.h", "matmul.Wx", "matmul.Rh", "gate.z_pre", "gate.z_out", "gate.r_pre", "gate.r_out",
    "gate.g_pre", "gate.g_out", "op.rRh", "op.old_contrib", "op.new_contrib",
)  # fmt: skip
OPTIONAL = "op.Rh_add_br"


def power(n: int) -> Fraction:
    """2^n for any integer n."""
    return Fraction(2) ** n


@dataclass(frozen=True)
class OracleGrid:
    """One quantizer; a weight operator has one for each of its 3H rows."""

    bitwidth: int
    is_unsigned: bool
    exp2_inv: int
    zero_point: int = 0

    @property
    def qmin(self) -> int:
        return 0 if self.is_unsigned else -(2 ** (self.bitwidth - 1))

    @property
    def qmax(self) -> int:
        return 2**self.bitwidth - 1 if self.is_unsigned else 2 ** (self.bitwidth - 1) - 1

    def integer(self, value: Fraction | float) -> int:
        if isinstance(value, float) and math.isinf(value):
            return self.qmax if value > 0 else self.qmin
        return min(max(round(Fraction(value) * power(self.exp2_inv)) + self.zero_point, self.qmin), self.qmax)

    def real(self, q: int) -> Fraction:
        return (q - self.zero_point) * power(-self.exp2_inv)

    def __call__(self, value: Fraction | float) -> Fraction:
        return self.real(self.integer(value))


@cache
def real_function(name: str, numerator: int, denominator: int) -> Fraction:
    """Sigmoid or tanh of a fraction: the real function to 80 digits, then the float64 nearest to it."""
    with localcontext() as context:
        context.prec = 80
        x = min(max(Decimal(numerator) / Decimal(denominator), Decimal(-1000)), Decimal(1000))
        decay = (-x if name == "sigmoid" else -2 * x).exp()
        return Fraction(float((1 if name == "sigmoid" else 1 - decay) / (1 + decay)))


def activation(name: str, x: Fraction, out: OracleGrid) -> Fraction:
    return out(real_function(name, x.numerator, x.denominator))


@dataclass(frozen=True)
class OracleDirection:
    """One direction of one layer: float parameters in PyTorch's gate order r, z, n, and every operator's grid."""

    weight_ih: Sequence[Sequence[float]]
    weight_hh: Sequence[Sequence[float]]
    bias_ih: Sequence[float]
    bias_hh: Sequence[float]
    grids: Mapping[str, OracleGrid]
    weight_grids: Mapping[str, Sequence[OracleGrid]]

    @property
    def hidden_size(self) -> int:
        return len(self.weight_hh[0])

    def integers(self, name: str) -> list:
        """A weight operator's integers, in its parameter's shape."""
        rows = dict(zip(WEIGHTS, (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh), strict=True))[name]
        return [
            [grid.integer(v) for v in row] if isinstance(row, Sequence) else grid.integer(row)
            for row, grid in zip(rows, self.weight_grids[name], strict=True)
        ]

    def reals(self, name: str) -> list:
        return [
            [grid.real(q) for q in row] if isinstance(row, list) else grid.real(row)
            for row, grid in zip(self.integers(name), self.weight_grids[name], strict=True)
        ]

    def run(self, x: Sequence[Sequence[Fraction | float]], h0: Sequence[Fraction | float]) -> list[list[Fraction]]:
        """h_0 (quantized), h_1, ..., h_T of one row; x: (time, input), already in this direction's own order."""
        W, R, bw, br = (self.reals(name) for name in WEIGHTS)
        states = [[self.grids["output.h"](v) for v in h0]]
        for x_t in x:
            states.append(self._step(W, R, bw, br, [self.grids["input.x"](v) for v in x_t], states[-1]))
        return states

    def _step(self, W, R, bw, br, x: list[Fraction], h: list[Fraction]) -> list[Fraction]:
        Q, H = self.grids, self.hidden_size
        Wx = [Q["matmul.Wx"](dot(row, x)) for row in W]
        Rh = [Q["matmul.Rh"](dot(row, h)) for row in R]
        new = []
        for j in range(H):
            r_, z_, g_ = j, H + j, 2 * H + j
            z = activation("sigmoid", Q["gate.z_pre"](Wx[z_] + Rh[z_] + bw[z_] + br[z_]), Q["gate.z_out"])
            r = activation("sigmoid", Q["gate.r_pre"](Wx[r_] + Rh[r_] + bw[r_] + br[r_]), Q["gate.r_out"])
            c = Q.get(OPTIONAL, Q["matmul.Rh"])(Rh[g_] + br[g_])
            m = Q["op.rRh"](r * c)
            g = activation("tanh", Q["gate.g_pre"](Wx[g_] + bw[g_] + m), Q["gate.g_out"])
            new.append(Q["output.h"](Q["op.old_contrib"](z * h[j]) + Q["op.new_contrib"]((1 - z) * g)))
        return new


def dot(a: Sequence[Fraction], b: Sequence[Fraction]) -> Fraction:
    """The inner product, in integers over the largest denominators: all of them are powers of two."""
    unit_a, unit_b = (max(v.denominator for v in vector) for vector in (a, b))
    total = sum(int(p * unit_a) * int(q * unit_b) for p, q in zip(a, b, strict=True) if p and q)
    return Fraction(total, unit_a * unit_b)


def run_gru(
    layers: Sequence[Sequence[OracleDirection]],
    rows: Sequence[Sequence[Sequence[Fraction | float]]],
    h0: Sequence[Sequence[Sequence[float]]] | None = None,
) -> tuple[list[list[list[Fraction]]], list[list[list[Fraction]]]]:
    """All layers over rows of different lengths.

    Args:
        layers: one or two directions for each layer; the second one reads each row from its own end.
        rows: (batch, its length, input).
        h0: (layers * directions, batch, hidden), zero when absent.

    Returns:
        output (batch, its length, directions * hidden) and h_n (layers * directions, batch, hidden).
    """
    outputs = [list(row) for row in rows]
    last: list[list[list[Fraction]]] = []
    for directions in layers:
        first = len(last)
        last += [[] for _ in directions]
        for b, row in enumerate(outputs):
            halves = []
            for d, direction in enumerate(directions):
                start = h0[first + d][b] if h0 is not None else [0] * direction.hidden_size
                states = direction.run(row[:: -1 if d else 1], start)
                last[first + d].append(states[-1])
                halves.append(states[1:][:: -1 if d else 1])
            outputs[b] = [[v for half in step for v in half] for step in zip(*halves, strict=True)]
    return outputs, last
