"""Products of weights with a vector of codes, and their rounding row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qgru.export.c99.arithmetic import INT32, right_shift, saturating
from qgru.export.c99.arrays import INT8, INT16, INT64, UINT8, Array, CType, array, packed
from qgru.export.c99.arrays import INT32 as INT32_TYPE
from qgru.grid import Grid

ROWS = 3
"""Rows that are multiplied together: a unit's r, z and g."""


@dataclass(frozen=True)
class Codes:
    """How a vector on a grid lies in memory: mantissas plus an offset, signed.

    Attributes:
        grid: of the vector.
        type: int8_t or int16_t.
        offset: the code of 0.
    """

    grid: Grid
    type: CType
    offset: int

    @classmethod
    def of(cls, grid: Grid) -> Codes:
        """Return the smallest: the grid's own integers, or those less 128 or 32768 where they are unsigned."""
        kind = INT8 if grid.bitwidth <= 8 else INT16
        half = kind.hi + 1 if grid.qmax > kind.hi else 0
        return cls(grid, kind, grid.zero_point - half)

    @property
    def largest(self) -> int:
        """The largest magnitude of a code."""
        return max(abs(mantissa + self.offset) for mantissa in self.grid.mantissas)


@dataclass(frozen=True)
class Matrix:
    """Weights, and the way of their products with a vector onto a grid; `qgru_matrix` in C.

    Attributes:
        weights: (rows, columns).
        vector: what they are multiplied with.
        start: (rows,) what every sum starts from; None for zeros.
        shift: (rows,), to the right, each at least 1.
        left: before, to the left.
        lo, hi: mantissas of the grid.
        is_wide: sums, and what rounding adds to them, take 64 bits.
    """

    weights: Array
    vector: Codes
    columns: int
    start: Array | None
    shift: Array
    left: int
    lo: int
    hi: int
    is_wide: bool


def matrix(
    operator: str,
    rows: Sequence[Sequence[int]],
    exponents: Sequence[int],
    constants: Sequence[int],
    vector: Codes,
    grid: Grid,
) -> Matrix:
    """Return the program of ``Q(W v + constants)``.

    Args:
        operator: whose grid it is, for errors.
        rows: the weights' integers; a multiple of `ROWS` of rows.
        exponents: of each row's products with the vector's mantissas.
        constants: for each row, an integer on that exponent.
        vector: what the weights are multiplied with.
        grid: of the result.

    Raises:
        ValueError: where 64 bits are too few.
    """
    lo, hi = grid.mantissas
    start = [constant - vector.offset * sum(row) for row, constant in zip(rows, constants, strict=True)]
    bounds = [abs(s) + vector.largest * sum(map(abs, row)) for row, s in zip(rows, start, strict=True)]
    wanted = [max(n - grid.exp2_inv, -saturating(lo, hi)) if b else 1 for n, b in zip(exponents, bounds, strict=True)]
    left = max(0, 1 - min(wanted))
    proven = [right_shift(operator, s + left, b << left) for s, b in zip(wanted, bounds, strict=True)]
    is_wide = any(wide for _, wide in proven)
    starts = array(start, INT64 if is_wide else INT32_TYPE)
    columns = len(rows[0])
    return Matrix(
        _weights(operator, rows, max(bounds), is_wide),
        vector,
        columns,
        starts,
        Array(tuple(shift for shift, _ in proven), UINT8, row=ROWS),
        left,
        lo,
        hi,
        is_wide,
    )


def _weights(operator: str, rows: Sequence[Sequence[int]], bound: int, is_wide: bool) -> Array:
    """Pack weights of four bits, but where sixteen times their products, as kernels sum them up, leave 32 bits."""
    flat = [weight for row in rows for weight in row]
    lo, hi = min(flat), max(flat)
    if lo >= -8 and hi <= 7 and not is_wide and 16 * bound < INT32:
        return packed(rows)
    kind = next((kind for kind in (INT8, INT16) if kind.lo <= lo and hi <= kind.hi), None)
    if kind is None:
        raise ValueError(f"operator {operator!r} has weights up to {hi}; expected at most {INT16.hi} in C")
    return Array(tuple(flat), kind, row=len(rows[0]))
