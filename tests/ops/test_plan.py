"""What is proven of grids alone: bounds against fractions, carriers, limbs, and the plan's two forms."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest

from qgru import Grid, QuantGRU
from qgru.ops.plan import DOUBLE, FLOAT, STEP, Plan, Sum, plan_from, plan_of
from qgru.schema import ACTIVATIONS, WEIGHTS
from tests.calibrated import calibrated
from tests.random_gru import random_gru


def plan_for(gru: QuantGRU) -> Plan:
    return plan_of(gru.grids())


@pytest.mark.parametrize("config", ["int8", "int8_mixed", "w4a8"])
def test_presets_with_8_bit_operands_run_in_float32(config: str) -> None:
    assert plan_for(calibrated(10, 6, config)).carrier(6, 10) == FLOAT


@pytest.mark.parametrize(("config", "limbs"), [("w8a16", (1, 2)), ("int16", (2, 2))])
def test_presets_with_wider_operands_take_limbs_and_float32(config: str, limbs: tuple[int, int]) -> None:
    plan = plan_for(calibrated(10, 6, config))
    assert (plan.limbs("weight.R"), plan.limbs("output.h")) == limbs
    assert plan.sum_wide(6) and plan.carrier(6, 10) == FLOAT


def test_operands_of_more_than_16_bits_are_left_to_the_reference() -> None:
    gru = calibrated(10, 6, "int16")
    gru.adjust_quant_config("h", bitwidth=17)
    assert plan_for(gru).carrier(6, 10) is None


def test_every_code_fits_its_limbs() -> None:
    for bits, unsigned, zero_point in product(range(1, 17), (False, True), (0, 5, -3, 99, -128, 200, 40000)):
        lo, hi = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        if not lo <= zero_point <= hi:
            continue
        grids = {**calibrated(10, 6, "int8").grids(), "output.h": Grid(bits, False, unsigned, 3, zero_point)}
        plan = plan_of(grids)
        codes = [end - zero_point + plan.offset("output.h") for end in (lo, hi)]
        largest = 128 if plan.limbs("output.h") == 1 else 1 << 15
        assert -largest <= codes[0] and codes[1] < largest and plan.limbs("output.h") == (1 if bits <= 8 else 2)


def test_the_plan_reads_back_what_was_written(tmp_path: Path) -> None:
    for seed in range(20):
        gru, _ = random_gru(seed, tmp_path / "q.json", range(2, 9))
        grids, plan = gru.grids(), plan_for(gru)
        assert plan is plan_of(dict(grids)) and plan is plan_from(plan.text)
        assert all(plan.grids[name] == grids[name] for name in plan.grids)
        for name, weight in plan.weights.items():
            assert weight.mantissas == (grids[name].qmin, grids[name].qmax)
            assert (weight.least, weight.most) == (min(grids[name].exponents), max(grids[name].exponents))


def ends(plan: Plan, name: str) -> list[Fraction]:
    """The real numbers at the ends of an operator's grid, at the ends of its exponents."""
    return [m * Fraction(2) ** -n for m in plan.range(name) for n in plan.exponents(name)]


def extremes(plan: Plan, name: str) -> list[Fraction]:
    """Every real number that the operator `name` may round, with its terms or factors at their ends."""
    made_of = STEP[name]
    if isinstance(made_of, Sum):
        return [sum(choice) for choice in product(*(ends(plan, term) for term in made_of.terms))]
    first = [1 - v for v in ends(plan, made_of.a)] if made_of.is_complement else ends(plan, made_of.a)
    return [a * b for a, b in product(first, ends(plan, made_of.b))]


ELEMENTWISE = [name for name in STEP if not name.startswith("matmul")]


def test_every_bound_holds_and_none_is_twice_too_large() -> None:
    rng = random.Random(1)
    for _ in range(100):
        plan = random_plan(rng)
        for name in ELEMENTWISE:
            largest = max(map(abs, extremes(plan, name))) * Fraction(2) ** plan.unrounded_exponent(name)
            assert largest.denominator == 1, "not an integer in the steps that are said to hold it"
            assert largest <= plan.bound(name) <= 2 * largest


def random_plan(rng: random.Random) -> Plan:
    """8-bit operands, up to 16 bits elsewhere, exponents that sometimes lie far apart."""
    numbers: list[int] = []
    spread = rng.choice((2, 6, 14, 40))
    for name in ACTIVATIONS:
        bits, unsigned = (8, 0) if name in ("input.x", "output.h") else (rng.randint(2, 16), rng.randint(0, 1))
        qmin, qmax = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        symmetric = rng.random() < 0.5
        zero_point = 0 if symmetric else rng.randint(qmin, qmax)
        numbers += (bits, symmetric, unsigned, bits - 1 + rng.randint(-spread, spread), zero_point)
    for _ in WEIGHTS:
        least = 7 + rng.randint(-3, 3)
        numbers += (8, 0, least, least + rng.randint(0, 3))
    return plan_from(" ".join(str(int(number)) for number in numbers))


def test_float_is_chosen_only_where_it_holds_every_sum() -> None:
    rng, chosen = random.Random(0), {FLOAT: 0, DOUBLE: 0, None: 0}
    for _ in range(300):
        plan = random_plan(rng)
        kind = plan.carrier(6, 10)
        chosen[kind] += 1
        if kind is None:
            continue
        for name in ELEMENTWISE:
            finest = Fraction(2) ** plan.unrounded_exponent(name)
            for total in extremes(plan, name):
                if isinstance(STEP[name], Sum):
                    assert abs(total * finest) <= 2**kind.exact
                assert abs(total) * Fraction(2) ** plan.exponent(name) <= 2**kind.rounded
    assert min(chosen.values()) >= 20, chosen


def test_unsigned_weights_take_a_limb_more_or_do_not_fit() -> None:
    gru = calibrated(10, 6, "int8")
    grids = {**gru.grids()}
    assert plan_of(grids).carrier(6, 10) == FLOAT
    grids["weight.R"] = Grid(8, True, True, grids["weight.R"].exp2_inv)
    assert plan_of(grids).limbs("weight.R") == 2
    grids["weight.R"] = Grid(16, True, True, grids["weight.R"].exp2_inv)
    assert plan_of(grids).carrier(6, 10) is None
