"""One layer in one direction as C computes it: everything that does not change from step to step, worked out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qgru.export.c99.arithmetic import INT32, Rounding, biases, rounding
from qgru.export.c99.arrays import INT64, Array, array
from qgru.export.c99.functions import Function, function
from qgru.export.c99.matrix import ROWS, Codes, Matrix, matrix
from qgru.grid import Grid
from qgru.ops.plan import FUNCTIONS, STEP, Plan, plan_of
from qgru.schema import BIASES, OPTIONAL

BITS = 16
"""The widest grid, but for the biases, which may have 32 bits."""

_PRODUCTS = ("op.rRh", "op.old_contrib", "op.new_contrib")
_SUMS = {"gate.r_pre": 0, "gate.z_pre": 1, OPTIONAL: 2, "gate.g_pre": 2, "output.h": 2}  # and the row of their biases


@dataclass(frozen=True)
class Sum:
    """Two terms and a bias, and the grid of their sum; `qgru_sum` in C."""

    left: tuple[int, int]
    bias: Array | None
    grid: Rounding


@dataclass(frozen=True)
class Cell:
    """One layer and direction; `qgru_cell` in C.

    Attributes:
        input, hidden: sizes.
        x, h: how the input and the state lie in memory.
        Wx, Rh: the products, of rows in the order of units and in each r, z, g.
        sums: by operator: the pre-activations, ``op.Rh_add_br`` and ``output.h``.
        products: by operator: what is rounded of products of two values.
        functions: by gate.
        one, z_left: ``1 - z`` is ``one - z * 2**z_left``.
    """

    input: int
    hidden: int
    x: Codes
    h: Codes
    Wx: Matrix
    Rh: Matrix
    sums: Mapping[str, Sum]
    products: Mapping[str, Rounding]
    functions: Mapping[str, Function]
    one: int
    z_left: int


def cell(grids: Mapping[str, Grid], weights: Mapping[str, Tensor]) -> Cell:
    """Return the program of one layer and direction.

    Args:
        grids: canonical operator name to grid, ``op.Rh_add_br`` included.
        weights: the integers of the four parameters, (3 * hidden, ...) in PyTorch's gate order.

    Raises:
        ValueError: naming the operator, where a grid is wider than C's kernels take, or a sum wider than 64 bits.
    """
    _check_widths(grids)
    plan, rows = plan_of(grids), {name: tensor.tolist() for name, tensor in weights.items()}
    x, h = Codes.of(grids["input.x"]), Codes.of(grids["output.h"])
    n_z = plan.exponent("gate.z_out")
    one = 1 << max(n_z, 0)
    if one + plan.complement >= INT32:
        raise ValueError(f"operator 'gate.z_out' has the exponent {n_z}, with which 1 - z takes more than 32 bits in C")
    return Cell(
        len(rows["weight.W"][0]),
        len(rows["weight.R"][0]),
        x,
        h,
        _matrix("matmul.Wx", "weight.W", grids, rows, x),
        _matrix("matmul.Rh", "weight.R", grids, rows, h),
        {name: _sum(name, row, plan, grids, rows) for name, row in _SUMS.items()},
        {name: rounding(name, plan.unrounded_exponent(name), plan.bound(name), grids[name]) for name in _PRODUCTS},
        {gate: function(gate, grids[f"{gate}_pre"], grids[f"{gate}_out"]) for gate in FUNCTIONS},
        one,
        max(-n_z, 0),
    )


def _check_widths(grids: Mapping[str, Grid]) -> None:
    for name, grid in grids.items():
        if name not in BIASES and grid.bitwidth > BITS:
            raise ValueError(f"operator {name!r} has {grid.bitwidth} bits; expected at most {BITS} in C")


def _by_unit(rows: Sequence[Any], hidden: int) -> list[Any]:
    """Order rows by unit and in each r, z, g, from PyTorch's order r, z, g and in each by unit."""
    return [rows[gate * hidden + unit] for unit in range(hidden) for gate in range(ROWS)]


def _matrix(operator: str, weight: str, grids: Mapping[str, Grid], rows: Mapping[str, list], vector: Codes) -> Matrix:
    channels = len(rows[weight])
    exponents = [n + vector.grid.exp2_inv for n in _exponents(grids[weight], channels)]
    of_units = [_by_unit(values, channels // ROWS) for values in (rows[weight], exponents)]
    return matrix(operator, *of_units, [0] * channels, vector, grids[operator])


def _exponents(grid: Grid, channels: int) -> tuple[int, ...]:
    return grid.exponents if grid.is_per_channel else grid.exponents * channels


def _sum(name: str, row: int, plan: Plan, grids: Mapping[str, Grid], rows: Mapping[str, list]) -> Sum:
    """Return a sum's program; `row` says which third of the biases is added."""
    terms = [term for term in STEP[name].terms if term not in BIASES]
    hidden = len(rows["weight.R"][0])
    units = range(row * hidden, (row + 1) * hidden)
    constants = [(rows[bias], _exponents(grids[bias], 3 * hidden)) for bias in STEP[name].terms if bias in BIASES]
    of_units = [[(mantissas[unit], exponents[unit]) for mantissas, exponents in constants] for unit in units]
    found, bound = biases([(plan.exponent(term), plan.size(term)) for term in terms], of_units, grids[name])
    onto = rounding(name, found.exponent, bound, grids[name])
    if name.endswith("_pre"):  # what its function does not tell apart is cut as well
        known = function(name.removesuffix("_pre"), grids[name], grids[f"{name.removesuffix('_pre')}_out"])
        onto = onto._replace(lo=known.lo, hi=known.hi)
    left = [found.exponent - plan.exponent(term) for term in terms]
    return Sum((*left, 0)[:2], array(found.values, INT64 if onto.is_wide else None), onto)
