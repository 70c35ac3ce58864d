"""What C's integers hold: shifts, biases and the width of every sum, proven for given grids and weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from qgru.grid import Grid

INT32, INT64 = 1 << 31, 1 << 63
_STICKY = 2  # below the finer of what is added and what it is rounded to: one bit to tell sides, one that sticks


class Rounding(NamedTuple):
    """Onto a grid: ``clamp(rne(v * 2**-shift), lo, hi)``; `qgru_grid` in C.

    Attributes:
        shift: to the right, at most 30, or 62 where `is_wide`; negative is to the left.
        lo: the smallest mantissa.
        hi: the largest.
        is_wide: `v`, and what rounding adds to it, takes 64 bits.
    """

    shift: int
    lo: int
    hi: int
    is_wide: bool = False


def rounding(operator: str, exponent: int, bound: int, grid: Grid) -> Rounding:
    """Return how to round integers onto an operator's grid.

    Args:
        operator: its name, for errors.
        exponent: of what is rounded.
        bound: the largest magnitude of it.
        grid: the operator's.

    Raises:
        ValueError: where 64 bits are too few.
    """
    lo, hi = grid.mantissas
    shift, is_wide = right_shift(operator, exponent - grid.exp2_inv, bound)
    return Rounding(max(shift, -saturating(lo, hi)), lo, hi, is_wide)


def saturating(lo: int, hi: int) -> int:
    """Return from which shift to the left on every integer but 0 leaves the range."""
    return max(-lo, hi).bit_length()


def right_shift(operator: str, shift: int, bound: int) -> tuple[int, bool]:
    """Return a shift that rounds as `shift` does, and whether it takes 64 bits.

    What is less than half a step becomes 0 by any shift at which it still is: one that is too long is shortened.

    Raises:
        ValueError: naming the operator, where 64 bits are too few.
    """
    for limit, longest in ((INT32, 30), (INT64, 62)):
        shortened = min(shift, longest) if 2 * bound <= 1 << longest else shift
        if shortened <= longest and bound + (1 << max(shortened, 0) >> 1) < limit:
            return shortened, limit == INT64
    raise ValueError(f"operator {operator!r} rounds integers of {bound.bit_length() + 1} bits by {shift}; C holds 64")


class Biases(NamedTuple):
    """Constants of a sum, on one exponent.

    Attributes:
        exponent: in whose steps the sum is an integer, or as good as one.
        values: one a unit.
    """

    exponent: int
    values: tuple[int, ...]


def biases(
    terms: Sequence[tuple[int, int]], constants: Sequence[Sequence[tuple[int, int]]], grid: Grid
) -> tuple[Biases, int]:
    """Bring the constants of a sum to one exponent that is no finer than rounding can tell apart.

    A constant is cut two bits below the finest of the other terms and of the grid, and its last bit is set where
    anything was cut off: as the sticky bit of floating-point units it keeps the sum on its side of every tie. One that
    saturates the grid whatever is added to it is cut to the least that does.

    Args:
        terms: (exponent, largest magnitude) of each other term.
        constants: for each unit, (mantissa, exponent) of every constant.
        grid: what the sum is rounded to.

    Returns:
        The biases, and a bound on the sum and on each part of it.
    """
    finest = max(exponent for exponent, _ in terms)
    wanted = max((exponent for of_unit in constants for mantissa, exponent in of_unit if mantissa), default=finest)
    exponent = max(finest, min(wanted, max(finest, grid.exp2_inv) + _STICKY))
    rest = sum(magnitude << exponent - n for n, magnitude in terms)
    edge = _ceil_scaled(grid.mantissa_bound + 1, exponent - grid.exp2_inv)
    limit = rest + edge
    values = tuple(max(-limit, min(limit, _sticky_sum(of_unit, exponent))) for of_unit in constants)
    return Biases(exponent, values), rest + max(map(abs, values), default=0)


def _sticky_sum(constants: Iterable[tuple[int, int]], exponent: int) -> int:
    """Return the constants' exact sum in steps of ``2**-exponent``, cut below with a sticky last bit."""
    present = [(mantissa, n) for mantissa, n in constants if mantissa]
    finest = max((n for _, n in present), default=exponent)
    total = sum(mantissa << max(finest, exponent) - n for mantissa, n in present)
    cut = max(finest - exponent, 0)
    if total & ((1 << cut) - 1) == 0:
        return total >> cut
    return total >> cut + 1 << 1 | 1


def _ceil_scaled(value: int, shift: int) -> int:
    return value << shift if shift >= 0 else -(-value >> -shift)
