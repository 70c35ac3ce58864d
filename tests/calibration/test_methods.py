"""From what was seen to a grid: minmax, percentile, sqnr against brute force on the same values."""

import math
import zlib

import numpy as np
import pytest
import torch

from qgru import QuantGRU, calibration
from tests.calibration.raw import (
    OBSERVED,
    calibrate,
    candidates,
    decibels_worse,
    least_error,
    minmax,
    quantized,
    random_batches,
    raw_values,
    squared_error,
)
from tests.calibration.test_observation import configured

pytestmark = pytest.mark.filterwarnings("ignore:.*saturate to 0", "ignore:outside the exactness domain")


def draw(name: str, size: int = 3000) -> np.ndarray:
    """Data of one shape, float32; the same at each call."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    gaussian = rng.standard_normal(size)
    spikes = np.where(rng.random(size) < 3 / size, 900.0, 0.01)
    data = {
        "gaussian": gaussian,
        "lognormal": np.exp(2 * gaussian),
        "negative lognormal": -np.exp(1.5 * gaussian),
        "cubed": gaussian**3,
        "to the ninth": gaussian**9,
        "sparse": np.where(rng.random(size) < 0.01, gaussian, 0.0),
        "spikes": gaussian * spikes,
        "one spike": np.append(gaussian[1:], 1e6),
        "near-constant": 2.71828 + 1e-6 * gaussian,
        "negative near-constant": -777.1 + 1e-4 * gaussian,
        "discrete": rng.integers(-1, 2, size).astype(float),
        "three levels": rng.choice([0.1, 0.7, 5.3], size),
        "bimodal": gaussian * 0.01 + rng.choice([-3.0, 4.0], size),
        "uniform": rng.random(size) * 2 - 0.5,
        "tiny": gaussian * 1e-12,
        "huge": gaussian * 1e12,
    }
    return data[name].astype(np.float32)


SHAPES = (
    "gaussian", "lognormal", "negative lognormal", "cubed", "to the ninth", "sparse", "spikes", "one spike",
    "near-constant", "negative near-constant", "discrete", "three levels", "bimodal", "uniform", "tiny", "huge",
)  # fmt: skip


def input_grid(data: np.ndarray, bitwidth: int, is_symmetric: bool, is_unsigned: bool, method: str, **options: float):
    """The grid that `input.x` gets when these are all the inputs."""
    gru = QuantGRU(1, 1, batch_first=True)
    config = {"bitwidth": bitwidth, "is_symmetric": is_symmetric, "is_unsigned": is_unsigned}
    gru.load_bitwidth_config({"operator_config": {"input.x": config}})
    x = torch.from_numpy(data).view(-1, 2, 1)
    return calibrate(gru, [(x[:4], None, None), (x[4:], None, None)], method, **options).grids()["input.x"]


@pytest.mark.parametrize("shape", SHAPES)
def test_minmax_is_the_definition_s(shape: str) -> None:
    data = draw(shape)
    for bitwidth in (1, 2, 3, 8, 16, 24, 32):
        for is_symmetric, is_unsigned in ((True, False), (False, False), (False, True)):
            got = input_grid(data, bitwidth, is_symmetric, is_unsigned, "minmax")
            want = minmax(float(data.min()), float(data.max()), bitwidth, is_symmetric, is_unsigned)
            assert (got.exp2_inv, got.zero_point) == (want.exp2_inv, want.zero_point), (bitwidth, is_symmetric)
            worst = np.abs(data - quantized(data, got)).max()
            assert worst <= 0.5 * got.scale * (1 + 1e-9), "nothing observed clips by more than half a step"


def test_minmax_keeps_the_ends_of_float64_data() -> None:
    gru = QuantGRU(1, 1, batch_first=True, dtype=torch.float64)
    gru.load_bitwidth_config({"operator_config": {"input.x": {"bitwidth": 32, "is_symmetric": False}}})
    data = np.linspace(-math.pi, 1, 12)
    grid = calibrate(gru, [(torch.from_numpy(data).view(4, 3, 1), None, None)]).grids()["input.x"]
    want = minmax(-math.pi, 1.0, 32, False, False)
    assert (grid.exp2_inv, grid.zero_point) == (want.exp2_inv, want.zero_point)


@pytest.mark.parametrize("edge", [127.0, 127.49, 127.5, 127.51, 128.0, 63.5, 1.0, 254.9, 255.1])
def test_minmax_at_the_rounding_edge(edge: float) -> None:
    data = np.full(10, edge, dtype=np.float32)
    data[0] = -edge / 3
    for is_symmetric, is_unsigned in ((True, False), (False, False), (False, True)):
        got = input_grid(data, 8, is_symmetric, is_unsigned, "minmax")
        want = minmax(float(data.min()), float(data.max()), 8, is_symmetric, is_unsigned)
        assert (got.exp2_inv, got.zero_point) == (want.exp2_inv, want.zero_point)


@pytest.mark.parametrize("method", ["minmax", "percentile", "sqnr"])
def test_unsigned_symmetric_looks_at_the_high_end_and_warns_of_negatives(method: str) -> None:
    data = np.linspace(-50, 3, 1000).astype(np.float32)
    with pytest.warns(UserWarning, match=r"input\.x"):
        grid = input_grid(data, 8, True, True, method)
    assert grid.zero_point == 0
    if method == "minmax":
        assert grid.exp2_inv == minmax(-50, 3, 8, True, True).exp2_inv == 6


@pytest.mark.parametrize("bitwidth", [2, 3, 4, 6, 8, 11, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_sqnr_is_no_worse_than_minmax_or_any_candidate(shape: str, bitwidth: int) -> None:
    data = draw(shape)
    for is_symmetric, is_unsigned in ((True, False), (False, False), (False, True)):
        grid = input_grid(data, bitwidth, is_symmetric, is_unsigned, "sqnr")
        base = minmax(float(data.min()), float(data.max()), bitwidth, is_symmetric, is_unsigned)
        assert base.exp2_inv <= grid.exp2_inv <= base.exp2_inv + bitwidth
        error = squared_error(data, grid)
        best = least_error(data.astype(np.float64), base, is_symmetric)
        assert decibels_worse(error, squared_error(data, base), data) <= 0.05
        assert decibels_worse(error, best, data) <= 0.05


@pytest.mark.parametrize("seed", range(6))
def test_sqnr_is_no_worse_than_minmax_on_any_operator(seed: int) -> None:
    gru = configured(seed)
    batches = random_batches(gru, 6, seed)
    raw = raw_values(gru, batches)
    calibrate(gru, batches, "sqnr")
    for (layer, reverse), values in raw.items():
        for name in OBSERVED:
            data, config = values[name], gru.bitwidth_config.operators[name]
            base = minmax(data.min(), data.max(), config.bitwidth, config.is_symmetric, config.is_unsigned)
            error = squared_error(data, gru.grids(layer, reverse)[name])
            assert decibels_worse(error, squared_error(data, base), data) <= 0.05, name
            assert decibels_worse(error, least_error(data, base, config.is_symmetric), data) <= 0.05, name


def test_sqnr_beats_minmax_where_it_should() -> None:
    """A search that never moved off minmax would pass every comparison above."""
    data = draw("one spike")
    base = minmax(float(data.min()), float(data.max()), 4, True, False)
    gaussian = draw("gaussian")
    wide = minmax(float(gaussian.min()), float(gaussian.max()), 3, True, False)
    assert input_grid(gaussian, 3, True, False, "sqnr").exp2_inv > wide.exp2_inv
    assert input_grid(data, 4, True, False, "sqnr").exp2_inv == base.exp2_inv


def test_ties_go_to_the_smaller_exponent() -> None:
    assert input_grid(np.tile(np.float32([-1.0, 0.0, 1.0, 1.0, 0.0]), 20), 8, True, False, "sqnr").exp2_inv == 6


def nearest_rank_grids(
    data: np.ndarray, percentile: float, bitwidth: int, is_symmetric: bool, is_unsigned: bool
) -> list:
    """Grids of the nearest-rank range, a rank and 0.1 % (the histogram's resolution) to either side."""
    grids = []
    for off in (-1, 0, 1):
        for factor in (0.999, 1.0, 1.001):
            if is_symmetric:
                out = math.floor(len(data) * (100 - percentile) / 100)
                ordered = np.sort(np.abs(data))
                reach = ordered[min(len(data) - 1 - out + off, len(data) - 1)] * factor
                grids.append(minmax(-float(reach), float(reach), bitwidth, True, is_unsigned))
            else:
                out = math.floor(len(data) * (100 - percentile) / 200)
                ordered = np.sort(data)
                low, high = ordered[max(out - off, 0)], ordered[min(len(data) - 1 - out + off, len(data) - 1)]
                grids.append(minmax(float(low) * factor, float(high) * factor, bitwidth, False, is_unsigned))
    return grids


@pytest.mark.parametrize("percentile", [99.99, 99.0, 95.0, 100.0])
@pytest.mark.parametrize(
    "shape", ["gaussian", "lognormal", "negative lognormal", "cubed", "one spike", "bimodal", "uniform", "discrete"]
)
def test_percentile_is_minmax_of_the_nearest_rank_range(shape: str, percentile: float) -> None:
    data = draw(shape)
    for bitwidth in (4, 8, 12):
        for is_symmetric, is_unsigned in ((True, False), (False, False), (False, True)):
            got = input_grid(data, bitwidth, is_symmetric, is_unsigned, "percentile", percentile=percentile)
            near = nearest_rank_grids(data, percentile, bitwidth, is_symmetric, is_unsigned)
            assert got.exp2_inv in {grid.exp2_inv for grid in near}
            points = [grid.zero_point for grid in near if grid.exp2_inv == got.exp2_inv]
            assert min(points) <= got.zero_point <= max(points)


def test_percentile_ignores_an_outlier_and_a_hundred_is_minmax() -> None:
    data = draw("one spike")
    assert input_grid(data, 8, True, False, "percentile", percentile=99.9).exp2_inv == 5
    full = input_grid(data, 8, False, False, "percentile", percentile=100.0)
    assert full == input_grid(data, 8, False, False, "minmax")


@pytest.mark.parametrize("value", [0.0, -1.0, 100.5, math.nan, "99"])
def test_an_impossible_percentile_is_refused(value: object) -> None:
    gru = QuantGRU(1, 1)
    with pytest.raises((ValueError, TypeError), match="percentile"):
        gru.percentile_value = value
        calibrate(gru, [(torch.randn(2, 3, 1), None, None)], "percentile", value)


def test_an_unknown_method_is_refused() -> None:
    gru = QuantGRU(1, 1)
    with pytest.raises(ValueError, match="entropy"):
        calibrate(gru, [(torch.randn(2, 3, 1), None, None)], "entropy")


@pytest.mark.parametrize("method", ["minmax", "percentile", "sqnr"])
@pytest.mark.parametrize("is_symmetric", [False, True])
@pytest.mark.parametrize("value", [3.3, -3.3, 1e-30, -1e15, 2.0**40, 0.0, 1e-45])
def test_a_constant_tensor_has_a_grid(value: float, is_symmetric: bool, method: str) -> None:
    data = np.full(50, value, dtype=np.float32)
    for bitwidth in (1, 2, 8, 16, 32):
        grid = input_grid(data, bitwidth, is_symmetric, False, method)
        assert -64 <= grid.exp2_inv <= 64 and grid.qmin <= grid.zero_point <= grid.qmax
        if value == 0:
            assert grid.exp2_inv == bitwidth - 1
        elif bitwidth > 1 and abs(value) > 1e-18 and abs(value) < 1e18:
            base = minmax(float(data[0]), float(data[0]), bitwidth, is_symmetric, False)
            assert squared_error(data, grid) <= squared_error(data, base) * 1.01 + 1e-300


@pytest.mark.parametrize("bitwidth", [3, 8, 11, 14, 16])
def test_operator_sqnr_is_that_of_the_raw_values(bitwidth: int) -> None:
    gru = configured(8, num_layers=2, bidirectional=True)
    gru.set_all_bitwidth(bitwidth)
    batches = [(torch.randn(64, 20, 3, dtype=torch.float64), None, None)]
    raw = raw_values(gru, batches)
    calibrate(gru, batches, "sqnr")
    reported = calibration.operator_sqnr(gru)
    assert set(reported) == set(raw)
    for key, values in raw.items():
        for name in OBSERVED:
            error = squared_error(values[name], gru.grids(*key)[name])
            want = 10 * math.log10(np.sum(values[name] ** 2) / error)
            assert abs(reported[key][name] - want) < 0.2, (key, name)


@pytest.mark.parametrize("centre", [2.5, 2.5005, -3.0])
def test_operator_sqnr_knows_the_spread_inside_a_bin(centre: float) -> None:
    """Values around one grid point: all the error there is is their spread."""
    data = (centre + 1e-5 * draw("gaussian")).astype(np.float32)
    gru = QuantGRU(1, 1, batch_first=True)
    calibrate(gru, [(torch.from_numpy(data).view(-1, 2, 1), None, None)])
    error = squared_error(data.astype(np.float64), gru.grids()["input.x"])
    want = 10 * math.log10(np.sum(data.astype(np.float64) ** 2) / error)
    assert abs(calibration.operator_sqnr(gru)[0, False]["input.x"] - want) < 0.2


def test_candidates_of_the_oracle_are_wide_enough() -> None:
    """The oracle's own list holds minmax, so that `least_error` can't exceed it."""
    data = draw("cubed")
    base = minmax(float(data.min()), float(data.max()), 5, False, False)
    assert base in candidates(data, base, False)
