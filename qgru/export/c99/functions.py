"""Sigmoid and tanh on a chip: a table over the pre-activation's grid, or thresholds where that would be large."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from qgru.export.c99.arrays import smallest_type
from qgru.grid import Grid
from qgru.ops.plan import FUNCTIONS
from qgru.ops.reference import activation_table

_SMALL_TABLE = 1024  # bytes; a table takes one load, a search one comparison for each bit of the output


class Function(NamedTuple):
    """A gate's function of its pre-activation's mantissas; `qgru_function` in C.

    Attributes:
        lo: the first mantissa it is given for; below it it is what it is there.
        hi: the last one.
        values: mantissas for ``lo .. hi``, or ascending thresholds.
        base: of thresholds: the mantissa at `lo`, to which each one that is at most ``pre - lo`` adds 1. None: a table.
    """

    lo: int
    hi: int
    values: tuple[int, ...]
    base: int | None = None


@lru_cache(maxsize=64)
def function(gate: str, pre: Grid, out: Grid) -> Function:
    """Return a gate's function, exact for every integer of the pre-activation's grid.

    Args:
        gate: ``"gate.r"``, ``"gate.z"`` or ``"gate.g"``.
        pre: its pre-activation's grid, at most 16 bits.
        out: its output's.
    """
    mantissas = (activation_table(FUNCTIONS[gate], pre, out) - out.zero_point).tolist()
    assert all(a <= b for a, b in pairwise(mantissas))
    first = next(i for i, value in enumerate(mantissas) if value == mantissas[-1] or mantissas[i + 1] != value)
    last = next(i for i in reversed(range(len(mantissas))) if i == first or mantissas[i - 1] != mantissas[i])
    values = mantissas[first : last + 1]
    lo, hi = pre.mantissas[0] + first, pre.mantissas[0] + last
    thresholds = [i for i, (a, b) in enumerate(pairwise(values), 1) for _ in range(b - a)]
    table_bytes = len(values) * smallest_type(values).size
    if table_bytes <= _SMALL_TABLE or table_bytes <= len(thresholds) * smallest_type(thresholds).size:
        return Function(lo, hi, tuple(values))
    return Function(lo, hi, tuple(thresholds), values[0])
