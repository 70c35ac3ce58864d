"""Grids against fractions (the definition) and against torch's own fake quantization."""

import itertools
import math
import random

import pytest
import torch

from qgru.grid import Grid
from tests.oracle import OracleGrid


def values_around(grid: OracleGrid, generator: random.Random) -> list[float]:
    """Ties, near-ties, both ends and far beyond them, for a grid of any scale."""
    step = math.ldexp(1.0, -grid.exp2_inv)
    ends = (grid.qmin - grid.zero_point, -1, 0, 1, grid.qmax - grid.zero_point)
    near = [(q + off) * step for q in ends for off in (-1.0, -0.5, -0.25, 0.0, 0.5, 0.75, 1.5)]
    inside = [generator.randint(grid.qmin, grid.qmax) - grid.zero_point for _ in range(20)]
    spread = [(q + generator.choice((0.5, 0.0, generator.random()))) * step for q in inside]
    return [*near, *spread, 0.0, -0.0, math.inf, -math.inf, 1e300, -1e300, 5e-324, -5e-324, math.nextafter(step / 2, 1)]


@pytest.mark.parametrize("is_unsigned", [False, True])
@pytest.mark.parametrize("bitwidth", range(1, 33))
def test_every_width_rounds_as_the_definition_says(bitwidth: int, is_unsigned: bool) -> None:
    generator = random.Random(bitwidth)
    for exponent in (-64, -63, -1, 0, 1, bitwidth - 1, 31, 63, 64):
        bounds = OracleGrid(bitwidth, is_unsigned, exponent)
        for zero_point in {0, bounds.qmin, bounds.qmax, generator.randint(bounds.qmin, bounds.qmax)}:
            oracle = OracleGrid(bitwidth, is_unsigned, exponent, zero_point)
            grid = Grid(bitwidth, zero_point == 0, is_unsigned, exponent, zero_point)
            assert (grid.qmin, grid.qmax) == (oracle.qmin, oracle.qmax)
            values = values_around(oracle, generator)
            quantized = grid.quantize(torch.tensor(values, dtype=torch.float64))
            assert quantized.dtype == torch.int64
            assert quantized.tolist() == [oracle.integer(v) for v in values]
            assert grid.dequantize(quantized).tolist() == [float(oracle(v)) for v in values]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_floats_are_quantized_by_their_exact_value(dtype: torch.dtype) -> None:
    values = torch.cat([torch.randn(500) * 10.0**e for e in range(-6, 5)]).to(dtype)
    for bitwidth, exponent, zero_point in itertools.product((5, 24, 32), (-3, 14, 40), (0, 7)):
        oracle = OracleGrid(bitwidth, False, exponent, zero_point)
        grid = Grid(bitwidth, zero_point == 0, False, exponent, zero_point)
        assert grid.quantize(values).tolist() == [oracle.integer(v) for v in values.tolist()]


@pytest.mark.parametrize("zero_point", [0, 1, 17, -3, 100])
@pytest.mark.parametrize("exponent", [-2, 0, 3, 9])
def test_agrees_with_torch_fake_quantize(exponent: int, zero_point: int) -> None:
    ties = (torch.arange(-600, 600) / 2) * 2.0**-exponent
    values = torch.cat([ties, torch.randn(1000) * 60 * 2.0**-exponent])
    grid = Grid(8, zero_point == 0, False, exponent, zero_point)
    expected = torch.fake_quantize_per_tensor_affine(values, 2.0**-exponent, zero_point, -128, 127)
    assert torch.equal(grid.dequantize(grid.quantize(values)), expected.double())


def test_every_integer_survives_the_way_there_and_back() -> None:
    for bitwidth, is_unsigned in itertools.product((1, 2, 7, 12), (False, True)):
        for exponent in (-64, 0, 64):
            oracle = OracleGrid(bitwidth, is_unsigned, exponent)
            zero_point = oracle.qmax
            grid = Grid(bitwidth, zero_point == 0, is_unsigned, exponent, zero_point)
            integers = torch.arange(grid.qmin, grid.qmax + 1)
            assert torch.equal(grid.quantize(grid.dequantize(integers)), integers)


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 1)])
def test_one_exponent_a_row(shape: tuple[int, ...]) -> None:
    exponents = (-2, 5, 64)
    grid = Grid(7, True, False, exponents)
    values = torch.randn(shape, dtype=torch.float64) * torch.tensor([400.0, 1.0, 1e-18]).view(
        -1, *[1] * (len(shape) - 1)
    )
    quantized = grid.quantize(values)
    rows = [OracleGrid(7, False, n) for n in exponents]
    expected = [[g.integer(v) for v in row.flatten().tolist()] for g, row in zip(rows, values, strict=True)]
    assert quantized.flatten(0).tolist() == list(itertools.chain(*expected))
    assert grid.dequantize(quantized).flatten().tolist() == [
        float(g.real(q)) for g, row in zip(rows, expected, strict=True) for q in row
    ]


def test_scale_is_the_power_of_two() -> None:
    assert Grid(8, True, False, 7).scale == 2.0**-7
    assert Grid(8, True, False, -64).scale == 2.0**64
    assert tuple(Grid(8, True, False, (7, -1)).scale) == (2.0**-7, 2.0)


def test_nan_has_no_integer() -> None:
    with pytest.raises(ValueError, match="NaN"):
        Grid(8, True, False, 7).quantize(torch.tensor([0.0, math.nan]))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, True, False, 0), "bitwidth"),
        ((33, True, False, 0), "bitwidth"),
        (("8", True, False, 0), "bitwidth"),
        ((True, True, False, 0), "bitwidth"),
        ((8, True, False, 65), "65"),
        ((8, True, False, -65), "-65"),
        ((8, True, False, 1.5), "1.5"),
        ((8, True, False, (3, 65)), "65"),
        ((8, True, False, 0, 1), "zero_point"),
        ((8, False, False, 0, 128), "128"),
        ((8, False, False, 0, -129), "-129"),
        ((8, False, True, 0, -1), "-1"),
        ((8, False, True, 0, 256), "256"),
        ((8, False, True, 0, 1.0), "zero_point"),
    ],
)
def test_an_impossible_grid_is_refused_by_name(arguments: tuple, named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=named):
        Grid(*arguments)


def test_grids_are_values() -> None:
    assert Grid(8, True, False, 7) == Grid(8, True, False, 7) != Grid(8, True, False, 6)
    assert len({Grid(8, True, False, (1, 2)), Grid(8, True, False, (1, 2))}) == 1
    with pytest.raises(AttributeError):
        Grid(8, True, False, 7).bitwidth = 4  # type: ignore[misc]
