"""Shifts that are shortened, biases that are cut and functions that are folded give the integers they stand for."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import product

import pytest

from qgru.export.c99.arithmetic import INT32, INT64, biases, right_shift, rounding
from qgru.export.c99.arrays import packed
from qgru.export.c99.functions import Function, function
from qgru.grid import Grid
from qgru.ops.plan import FUNCTIONS
from tests.oracle import OracleGrid, activation

MOST = {False: (INT32, 30), True: (INT64, 62)}


def grid(bitwidth: int, exponent: int, zero_point: int = 0, is_unsigned: bool = False) -> Grid:
    return Grid(bitwidth, zero_point == 0, is_unsigned, exponent, zero_point)


def nearest(value: int, shift: int) -> int:
    """Half to even, by Python's own rule."""
    return round(Fraction(value) / Fraction(2) ** shift)


def test_a_shift_rounds_as_the_one_it_stands_for_inside_its_type() -> None:
    rng = random.Random(0)
    for _ in range(500):
        bound, shift = rng.randrange(1, 1 << rng.randrange(1, 61)), rng.randrange(-3, 130)
        found, is_wide = right_shift("matmul.Wx", shift, bound)
        limit, longest = MOST[is_wide]
        assert found <= longest and bound + (1 << max(found, 0) >> 1) < limit
        tie = min(bound, 1 << max(shift, 1) >> 1)
        for value in (bound, -bound, tie, -tie, tie - 1, 1 - tie, rng.randint(-bound, bound)):
            assert nearest(value, found) == nearest(value, shift)


def test_what_64_bits_do_not_hold_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^operator 'op\.rRh' rounds integers of 64 bits by 3; C holds 64$"):
        right_shift("op.rRh", 3, INT64 - 1)


def test_32_bits_are_left_only_where_they_do_not_do() -> None:
    assert right_shift("x", 30, (1 << 31) - (1 << 29) - 1) == (30, False)
    assert right_shift("x", 30, (1 << 31) - (1 << 29)) == (30, True)
    assert right_shift("x", 31, 1 << 29) == (30, False)  # half a step at most, which goes to 0
    assert right_shift("x", 31, (1 << 29) + 1) == (31, True)


@pytest.mark.parametrize("shift", (-70, -17, -16, -15, -1))
def test_a_shift_to_the_left_is_no_longer_than_it_takes_to_saturate(shift: int) -> None:
    onto = grid(16, 0, zero_point=5)
    found = rounding("input.x", shift, 1 << 20, onto)
    assert -17 <= found.shift < 0
    for value in (0, 1, -1, 2, -3, 1 << 20):
        whole, short = (min(max(value << -s, found.lo), found.hi) for s in (shift, found.shift))
        assert whole == short


@pytest.mark.parametrize("seed", range(40))
def test_a_cut_bias_leads_every_sum_to_the_same_integer(seed: int) -> None:
    """All values of two small terms, beside constants of any exponent: exact fractions against shifted integers."""
    rng = random.Random(seed)
    onto = grid(rng.randint(2, 5), rng.randint(-3, 6), rng.choice((0, 1)))
    exponents = [rng.randint(-4, 7) for _ in range(2)]
    sizes = [rng.randint(1, 9) for _ in range(2)]
    constants = [[(rng.randint(-40, 40), rng.randint(-12, 40)) for _ in range(rng.randint(0, 2))] for _ in range(4)]
    found, bound = biases(list(zip(exponents, sizes, strict=True)), constants, onto)
    finer = max(*exponents, onto.exp2_inv)
    assert found.exponent <= finer + 2
    lo, hi = onto.mantissas
    for bias, of_unit in zip(found.values, constants, strict=True):
        exact = sum(Fraction(m) / Fraction(2) ** n for m, n in of_unit)
        for a, b in product(range(-sizes[0], sizes[0] + 1), range(-sizes[1], sizes[1] + 1)):
            real = a / Fraction(2) ** exponents[0] + b / Fraction(2) ** exponents[1] + exact
            wanted = min(max(round(real * Fraction(2) ** onto.exp2_inv), lo), hi)
            total = (a << found.exponent - exponents[0]) + (b << found.exponent - exponents[1]) + bias
            assert abs(total) <= bound
            assert min(max(nearest(total, found.exponent - onto.exp2_inv), lo), hi) == wanted


def at(known: Function, pre: int) -> int:
    index = min(max(pre, known.lo), known.hi) - known.lo
    return known.values[index] if known.base is None else known.base + sum(t <= index for t in known.values)


@pytest.mark.parametrize("gate", FUNCTIONS)
@pytest.mark.parametrize(
    ("pre", "out"),
    [
        ((8, 4, 0, False), (8, 7, 0, False)),
        ((8, 5, 17, True), (8, 8, 0, True)),
        ((12, 8, 0, False), (4, 3, -2, False)),
        ((11, 7, -300, False), (8, 7, 128, True)),
        ((12, 6, 0, False), (16, 15, 0, False)),
        ((3, -2, 1, False), (2, 0, 0, True)),
    ],
)
def test_a_function_is_right_at_every_integer(gate: str, pre: tuple, out: tuple) -> None:
    pre_bits, pre_n, pre_zero, pre_unsigned = pre
    out_bits, out_n, out_zero, out_unsigned = out
    known = function(gate, grid(pre_bits, pre_n, pre_zero, pre_unsigned), grid(out_bits, out_n, out_zero, out_unsigned))
    source = OracleGrid(pre_bits, pre_unsigned, pre_n, pre_zero)
    target = OracleGrid(out_bits, out_unsigned, out_n, out_zero)
    for q in range(source.qmin, source.qmax + 1):
        wanted = activation(FUNCTIONS[gate], source.real(q), target)
        assert at(known, q - pre_zero) * Fraction(2) ** -out_n == wanted


def test_thresholds_are_for_large_tables_of_few_values() -> None:
    assert function("gate.z", grid(8, 4), grid(16, 15)).base is None
    assert function("gate.g", grid(12, 8), grid(16, 15)).base is None
    thresholds = function("gate.z", grid(16, 12), grid(8, 8, is_unsigned=True))
    assert thresholds.base is not None and len(thresholds.values) <= 255


@pytest.mark.parametrize("columns", (1, 2, 7, 8))
def test_packed_weights_come_apart_again(columns: int) -> None:
    rng = random.Random(columns)
    rows = [[rng.randint(-8, 7) for _ in range(columns)] for _ in range(3)]
    half = (columns + 1) // 2
    found = packed(rows)
    assert found.size == 3 * half
    for row, start in zip(rows, range(0, 3 * half, half), strict=True):
        of_row = found.values[start : start + half]
        halves = [byte & 15 for byte in of_row] + [byte >> 4 for byte in of_row]
        assert [half - 16 if half > 7 else half for half in halves][:columns] == row
