"""adjust_quant_config: other grids over the same range, without data."""

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from qgru import QuantGRU
from qgru.grid import Grid
from tests.calibration.raw import calibrate, minmax
from tests.oracle import ACTIVATIONS, WEIGHTS
from tests.random_gru import differences, expected, module_grids, oracle_layers, random_gru
from tests.test_quant_params import all_grids, calibrated


def rescaled(grid: Grid, bitwidth: int) -> tuple[int, int]:
    """The definition's rule for a bit width alone: (exponent, zero point), in integers and halves to even."""
    low, high = (0, 2**bitwidth - 1) if grid.is_unsigned else (-(2 ** (bitwidth - 1)), 2 ** (bitwidth - 1) - 1)
    moved = low + round((grid.zero_point - grid.qmin) * Fraction(2) ** (bitwidth - grid.bitwidth))
    zero_point = 0 if grid.is_symmetric else min(max(moved, low), high)
    return grid.exp2_inv + bitwidth - grid.bitwidth, zero_point


@pytest.mark.parametrize("bitwidth", [1, 2, 3, 7, 8, 9, 16, 24, 32])
@pytest.mark.parametrize("seed", range(4))
def test_a_width_alone_keeps_the_range(seed: int, bitwidth: int, tmp_path: Path) -> None:
    gru, _ = random_gru(seed, tmp_path / "q.json", range(3, 17), torch.float32, num_layers=1, bidirectional=False)
    before = gru.grids()
    bounded = ("gate.z_out", "gate.r_out", "gate.g_out")
    for name in [name for name in ACTIVATIONS if name not in bounded]:
        gru.adjust_quant_config(name.split(".")[1], bitwidth=bitwidth)
        grid = gru.grids()[name]
        assert (grid.exp2_inv, grid.zero_point) == rescaled(before[name], bitwidth)
        assert (grid.bitwidth, grid.is_symmetric) == (bitwidth, before[name].is_symmetric)
        assert gru.get_quant_config(name)["bitwidth"] == bitwidth


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_s_width_moves_every_row(name: str) -> None:
    gru = calibrated()
    before = gru.grids()[name]
    gru.adjust_quant_config(name, bitwidth=5)
    assert gru.grids()[name].exp2_inv == tuple(n + 5 - before.bitwidth for n in before.exp2_inv)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        gru.adjust_quant_config(name, is_symmetric=False)


def test_bounded_functions_keep_their_own_rule() -> None:
    gru = calibrated()
    gru.adjust_quant_config("z_out", bitwidth=5)
    assert (gru.grids()["gate.z_out"].exp2_inv, gru.grids()["gate.z_out"].zero_point) == (5, 0)
    gru.adjust_quant_config("r_out", bitwidth=5, is_symmetric=False)
    assert (gru.grids()["gate.r_out"].exp2_inv, gru.grids()["gate.r_out"].zero_point) == (5, -16)
    gru.adjust_quant_config("g_out", bitwidth=5)
    assert (gru.grids()["gate.g_out"].exp2_inv, gru.grids()["gate.g_out"].zero_point) == (4, 0)


def test_explicit_settings_are_taken_as_given() -> None:
    gru = calibrated()
    gru.adjust_quant_config("input.x", exp2_inv=3, zero_point=-17)
    assert (gru.grids()["input.x"].exp2_inv, gru.grids()["input.x"].zero_point) == (3, -17)
    assert gru.grids()["input.x"].bitwidth == 11
    assert gru.grids(0, True)["input.x"] == gru.grids()["input.x"] != gru.grids(1)["input.x"]
    gru.adjust_quant_config("gate.z_out", exp2_inv=12, zero_point=9)
    assert (gru.grids()["gate.z_out"].exp2_inv, gru.grids()["gate.z_out"].zero_point) == (12, 9)


def test_explicit_settings_win_over_where_a_new_width_would_put_them() -> None:
    gru = calibrated()
    gru.adjust_quant_config("x", exp2_inv=60)
    gru.adjust_quant_config("x", bitwidth=32, exp2_inv=20, zero_point=2**31 - 1)
    grid = gru.grids()["input.x"]
    assert (grid.bitwidth, grid.exp2_inv, grid.zero_point) == (32, 20, 2**31 - 1)


def test_only_the_layer_and_direction_named_changes() -> None:
    gru = calibrated()
    before = all_grids(gru)
    gru.adjust_quant_config("z_pre", bitwidth=4, layer=1, reverse=True)
    after = all_grids(gru)
    assert after[:3] == before[:3] and after[3]["gate.z_pre"].bitwidth == 4
    assert [name for name in after[3] if after[3][name] != before[3][name]] == ["gate.z_pre"]
    gru.adjust_quant_config("x", bitwidth=4, layer=1, reverse=True)
    assert gru.grids(1, False)["input.x"] == gru.grids(1, True)["input.x"] != before[2]["input.x"]
    assert gru.grids(0)["input.x"] == before[0]["input.x"]


@pytest.mark.parametrize("is_unsigned", [False, True])
def test_a_change_of_symmetry_is_minmax_on_the_old_range(is_unsigned: bool) -> None:
    gru = QuantGRU(3, 5)
    config = {"bitwidth": 9, "is_symmetric": False, "is_unsigned": is_unsigned}
    gru.load_bitwidth_config({"operator_config": {"input.x": config}})
    calibrate(gru, [(torch.randn(4, 20, 3) + 1.5, None, None)])
    for is_symmetric in (True, False):
        old = gru.grids()["input.x"]
        low, high = (math.ldexp(q - old.zero_point, -old.exp2_inv) for q in (old.qmin, old.qmax))
        gru.adjust_quant_config("x", is_symmetric=is_symmetric)
        new, want = gru.grids()["input.x"], minmax(low, high, 9, is_symmetric, is_unsigned)
        assert (new.bitwidth, new.is_symmetric, new.is_unsigned) == (9, is_symmetric, is_unsigned)
        assert (new.exp2_inv, new.zero_point) == (want.exp2_inv, want.zero_point)


@pytest.mark.parametrize("bitwidth", [3, 9, 20])
def test_width_and_symmetry_together_are_minmax_on_the_old_range(bitwidth: int) -> None:
    gru = calibrated()
    old = gru.grids()["input.x"]
    low, high = (math.ldexp(q - old.zero_point, -old.exp2_inv) for q in (old.qmin, old.qmax))
    gru.adjust_quant_config("x", bitwidth=bitwidth, is_symmetric=True)
    new, want = gru.grids()["input.x"], minmax(low, high, bitwidth, True, False)
    assert (new.bitwidth, new.exp2_inv, new.zero_point) == (bitwidth, want.exp2_inv, 0)


def test_an_adjusted_module_runs_on_the_new_grid(tmp_path: Path) -> None:
    gru = calibrated(batch_first=True)
    x = torch.randn(3, 5, 3)
    before = gru(x)[0]
    gru.adjust_quant_config("z_pre", bitwidth=3)
    gru.adjust_quant_config("x", bitwidth=5)
    gru.adjust_quant_config("W", bitwidth=4)
    after = gru(x)[0]
    assert not torch.equal(before, after)
    assert not differences(after.tolist(), expected(oracle_layers(gru, module_grids(gru)), x)[0])
