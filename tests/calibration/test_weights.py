"""Grids that don't come from activations: weights, biases, the bounded functions; refreshing; bad data."""

import copy
import math

import numpy as np
import pytest
import torch

from qgru import QuantGRU
from qgru.calibration import CalibrationError
from tests.calibration.raw import BOUNDED, OBSERVED, calibrate, candidates, minmax, random_batches, squared_error
from tests.oracle import OPTIONAL, OracleGrid

pytestmark = pytest.mark.filterwarnings("ignore:.*saturate to 0", "ignore:outside the exactness domain")

NAMES = {"weight.W": "weight_ih_l0", "weight.R": "weight_hh_l0", "weight.bw": "bias_ih_l0", "weight.br": "bias_hh_l0"}
DESTINATIONS = {
    "weight.bw": ("gate.r_pre", "gate.z_pre", "gate.g_pre"),
    "weight.br": ("gate.r_pre", "gate.z_pre", OPTIONAL),
}


def build(bits: dict[str, int] | None = None, **options: object) -> QuantGRU:
    gru = QuantGRU(3, 5, **options, dtype=torch.float64)
    gru.load_bitwidth_config({"operator_config": {name: {"bitwidth": b} for name, b in (bits or {}).items()}})
    return gru


def row_exponent(row: np.ndarray, bitwidth: int, method: str) -> int:
    base = minmax(row.min(), row.max(), bitwidth, True, False)
    if method != "sqnr":
        return base.exp2_inv
    return min(candidates(row, base, True), key=lambda grid: (squared_error(row, grid), grid.exp2_inv)).exp2_inv


def cap(gru: QuantGRU, name: str, channel: int) -> int:
    """The largest exponent that a bias channel may take."""
    destination = gru.grids()[DESTINATIONS[name][channel // gru.hidden_size]]
    bitwidth = gru.bitwidth_config.operators[name].bitwidth
    return destination.exp2_inv + bitwidth - destination.bitwidth + 4


def wanted(gru: QuantGRU, name: str, method: str) -> tuple[int, ...]:
    """Exponents of one weight operator without rows of zeros."""
    bitwidth = gru.bitwidth_config.operators[name].bitwidth
    rows = getattr(gru, NAMES[name]).detach().double().numpy().reshape(3 * gru.hidden_size, -1)
    exponents = [row_exponent(row, bitwidth, method) for row in rows]
    if name in DESTINATIONS:
        exponents = [min(n, cap(gru, name, channel)) for channel, n in enumerate(exponents)]
    return tuple(exponents)


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("bitwidth", [2, 4, 8, 16])
@pytest.mark.parametrize("method", ["minmax", "sqnr"])
def test_each_row_has_its_own_exponent(method: str, bitwidth: int, optional: bool) -> None:
    gru = build({**{name: bitwidth for name in NAMES}, **({OPTIONAL: 13} if optional else {})})
    with torch.no_grad():
        for i, parameter in enumerate(gru.parameters()):
            parameter.mul_(torch.logspace(-3, 1, 15, dtype=torch.float64).view(-1, *[1] * (parameter.dim() - 1)))
            parameter.mul_((-1) ** i)
    calibrate(gru, random_batches(gru), method)
    for name in NAMES:
        assert gru.grids()[name].exp2_inv == wanted(gru, name, method), name
        assert gru.grids()[name].is_symmetric and gru.grids()[name].zero_point == 0


def test_a_small_bias_is_capped_by_the_sum_it_lands_on() -> None:
    for optional in ({}, {OPTIONAL: 12}):
        gru = build({"gate.z_pre": 10, "weight.bw": 6, **optional})
        with torch.no_grad():
            gru.bias_ih_l0.fill_(1e-9)
            gru.bias_hh_l0.fill_(-1e-9)
        calibrate(gru, random_batches(gru))
        for name in DESTINATIONS:
            assert gru.grids()[name].exp2_inv == tuple(cap(gru, name, channel) for channel in range(15))
        gru.bias_ih_l0.data.fill_(1e3)
        gru.refresh_weight_grids()
        assert max(gru.grids()["weight.bw"].exp2_inv) < min(cap(gru, "weight.bw", c) for c in range(15))


@pytest.mark.parametrize("method", ["minmax", "percentile", "sqnr"])
def test_rows_of_zeros(method: str) -> None:
    gru = build({"weight.W": 6, "weight.R": 12})
    with torch.no_grad():
        gru.weight_ih_l0[3], gru.weight_ih_l0[14] = 0.0, 0.0
        gru.weight_ih_l0[4] = 20.0
        gru.weight_hh_l0.zero_()
        gru.bias_ih_l0.fill_(3.0)
        gru.bias_ih_l0[7], gru.bias_ih_l0[2] = 0.0, 100.0
    calibrate(gru, random_batches(gru), method)
    exponents = gru.grids()["weight.W"].exp2_inv
    assert exponents[3] == exponents[14] == exponents[4] == min(exponents) < max(exponents)
    assert set(gru.grids()["weight.R"].exp2_inv) == {11}
    exponents = gru.grids()["weight.bw"].exp2_inv
    assert exponents[7] == exponents[2] == min(exponents) < exponents[0]


@pytest.mark.parametrize("name", DESTINATIONS)
def test_a_bias_of_zero_takes_the_smallest_exponent_of_the_others_and_its_own_cap(name: str) -> None:
    gru = build({"gate.z_pre": 6, "gate.g_pre": 12, "gate.r_pre": 9})
    with torch.no_grad():
        getattr(gru, NAMES[name]).copy_(torch.logspace(-9, -3, 15))
        getattr(gru, NAMES[name])[[0, 7, 14]] = 0.0
    calibrate(gru, random_batches(gru))
    exponents = gru.grids()[name].exp2_inv
    others = min(n for channel, n in enumerate(exponents) if channel not in (0, 7, 14))
    for channel in (0, 7, 14):
        assert exponents[channel] == min(others, cap(gru, name, channel))


def test_all_parameters_zero() -> None:
    gru = build()
    with torch.no_grad():
        for parameter in gru.parameters():
            parameter.zero_()
    calibrate(gru, random_batches(gru), "sqnr")
    for name in ("matmul.Wx", "matmul.Rh", "gate.z_pre", "gate.r_pre", "gate.g_pre", "op.rRh", "op.new_contrib"):
        assert gru.grids()[name].exp2_inv == 7
    for name in ("weight.W", "weight.R"):
        assert set(gru.grids()[name].exp2_inv) == {7}
    gru.use_quantization = True
    assert gru(torch.randn(4, 2, 3, dtype=torch.float64))[0].abs().sum() == 0


@pytest.mark.parametrize("bitwidth", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("is_unsigned", [False, True])
@pytest.mark.parametrize("is_symmetric", [False, True])
def test_bounded_functions_have_fixed_grids(is_symmetric: bool, is_unsigned: bool, bitwidth: int) -> None:
    config = {"bitwidth": bitwidth, "is_symmetric": is_symmetric, "is_unsigned": is_unsigned}
    for scale in (0.01, 100.0):
        gru = QuantGRU(3, 5)
        gru.load_bitwidth_config({"operator_config": {name: config for name in BOUNDED}})
        calibrate(gru, [(torch.randn(5, 4, 3) * scale, None, None)], "sqnr")
        qmin = 0 if is_unsigned else -(2 ** (bitwidth - 1))
        unit = (bitwidth - 1, 0) if is_symmetric and not is_unsigned else (bitwidth, qmin)
        for name in ("gate.z_out", "gate.r_out"):
            assert (gru.grids()[name].exp2_inv, gru.grids()[name].zero_point) == unit
        g = {
            (False, False): (bitwidth - 1, 0),
            (True, False): (bitwidth - 1, 0),
            (False, True): (bitwidth - 1, 2 ** (bitwidth - 1)),
            (True, True): (bitwidth, 0),
        }[is_symmetric, is_unsigned]
        assert (gru.grids()["gate.g_out"].exp2_inv, gru.grids()["gate.g_out"].zero_point) == g


@pytest.mark.parametrize("method", ["minmax", "sqnr"])
def test_refreshing_moves_the_weights_and_nothing_else(method: str) -> None:
    gru = build({"weight.R": 5}, num_layers=1, bidirectional=True)
    calibrate(gru, random_batches(gru), method)
    before = gru.grids()
    with torch.no_grad():
        for parameter in gru.parameters():
            parameter.mul_(16.0)
    assert gru.grids() == before
    gru.refresh_weight_grids()
    after = gru.grids()
    for name in (*OBSERVED, *BOUNDED, OPTIONAL):
        assert after[name] == before[name]
    for name in NAMES:
        assert after[name].exp2_inv == wanted(gru, name, method)
    assert after["weight.W"].exp2_inv == tuple(n - 4 for n in before["weight.W"].exp2_inv)
    once = gru.grids(0, True)
    gru.refresh_weight_grids()
    assert gru.grids(0, True) == once and gru.grids() == after


def test_refreshing_keeps_an_adjusted_width() -> None:
    gru = build()
    calibrate(gru, random_batches(gru))
    gru.adjust_quant_config("W", bitwidth=5)
    gru.refresh_weight_grids()
    rows = gru.weight_ih_l0.detach().numpy()
    assert gru.grids()["weight.W"].bitwidth == 5
    assert gru.grids()["weight.W"].exp2_inv == tuple(row_exponent(row, 5, "minmax") for row in rows)


def test_refreshing_before_calibration_is_refused() -> None:
    with pytest.raises(RuntimeError, match="calibrat"):
        build().refresh_weight_grids()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["input.x", "output.h"])
def test_non_finite_data_is_refused_by_name_and_forgotten(where: str, bad: float) -> None:
    gru = build(batch_first=True)
    good = random_batches(gru)
    want = calibrate(copy.deepcopy(gru), good, "sqnr").grids()
    gru.calibration_method = "sqnr"
    gru.calibrating = True
    for x, lengths, h0 in good:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), True, enforce_sorted=False)
        gru(packed, h0)
    x, h0 = torch.randn(2, 4, 3, dtype=torch.float64), torch.zeros(1, 2, 5, dtype=torch.float64)
    (x if where == "input.x" else h0)[0, 0, 0] = bad
    said = f"operator '{where}': .*{'NaN' if math.isnan(bad) else 'inf'}.*expected finite"
    with pytest.raises(CalibrationError, match=said):
        gru(x, h0)
    gru.calibrating = False
    gru.finalize_calibration()
    assert gru.grids() == want


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_non_finite_parameter_is_refused_by_name(name: str, bad: float) -> None:
    gru = build()
    calibrate(gru, random_batches(gru))
    before = gru.grids()
    with torch.no_grad():
        getattr(gru, NAMES[name]).view(-1)[7] = bad
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        gru.refresh_weight_grids()
    assert gru.grids() == before
    fresh = build()
    fresh.load_state_dict(dict(gru.named_parameters()))
    with pytest.raises(CalibrationError, match=f"operator '{name}': the parameter {NAMES[name]} holds NaN or infinity"):
        calibrate(fresh, random_batches(fresh))
    assert not fresh.is_calibrated()


def test_overflow_inside_the_float_forward_is_refused_by_name() -> None:
    gru = QuantGRU(3, 5)
    with torch.no_grad():
        gru.weight_ih_l0.fill_(3e38)
    with pytest.raises(ValueError, match=r"matmul\.Wx|gate\."):
        calibrate(gru, [(torch.full((4, 2, 3), 100.0), None, None)])
    assert not gru.is_calibrated()


def test_oracle_grids_are_symmetric_for_weights() -> None:
    assert minmax(-2.0, 1.0, 8, True, False) == OracleGrid(8, False, 5)
