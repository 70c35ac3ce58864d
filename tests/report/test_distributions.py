import pytest
import torch
from torch import nn

from qgru import QuantGRU
from qgru.report.distributions import draw_distributions, panels
from qgru.schema import OPERATORS
from tests.calibrated import quantize

STEPS, BATCH, INPUT, HIDDEN = 9, 5, 3, 4


@pytest.fixture
def observed() -> QuantGRU:
    gru = QuantGRU(INPUT, HIDDEN, num_layers=2, bidirectional=True)
    gru.load_bitwidth_config("w4a8")
    return quantize(gru, torch.randn(STEPS, BATCH, INPUT))


def test_every_operator_shows_all_that_was_seen(observed):
    shown = {panel.name: panel for panel in panels(observed, layer=1, reverse=True)}
    assert list(shown) == list(OPERATORS)
    seen = {
        "input.x": STEPS * BATCH * 2 * HIDDEN,
        "output.h": (STEPS + 1) * BATCH * HIDDEN,
        "matmul.Wx": STEPS * BATCH * 3 * HIDDEN,
        "gate.z_out": STEPS * BATCH * HIDDEN,
        "weight.W": 3 * HIDDEN * 2 * HIDDEN,
        "weight.bw": 3 * HIDDEN,
    }
    assert {name: int(shown[name].counts.sum()) for name in seen} == seen


def test_a_panel_shows_the_grid_of_its_layer_and_direction(observed):
    observed.adjust_quant_config("z_pre", bitwidth=5, is_symmetric=False, exp2_inv=3, zero_point=-7, layer=1)
    panel = {panel.name: panel for panel in panels(observed, layer=1)}["gate.z_pre"]
    assert panel.ranges() == [((-16 + 7) / 8, (15 + 7) / 8)]
    assert panel.caption().startswith("5 bit signed, n=3, zp=-7\nSQNR ")
    other = {panel.name: panel for panel in panels(observed, layer=1, reverse=True)}["gate.z_pre"]
    assert other.grid.bitwidth == 8


def test_a_weight_shows_the_range_of_every_exponent(observed):
    panel = {panel.name: panel for panel in panels(observed)}["weight.W"]
    exponents = sorted(set(observed.get_quant_config("W")["exp2_inv"]))
    assert panel.ranges() == [(-8 / 2**n, 7 / 2**n) for n in exponents]


def test_one_picture_for_each_layer_and_direction(tmp_path):
    gru = QuantGRU(INPUT, HIDDEN, bidirectional=True, bias=False)
    gru.calibrating = True
    gru(torch.zeros(STEPS, BATCH, INPUT))  # what is constant has no spread to draw
    gru.finalize_calibration()
    written = draw_distributions(nn.ModuleDict({"encoder": gru}), tmp_path)
    assert [path.name for path in written] == ["distributions-encoder-l0.png", "distributions-encoder-l0-reverse.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_nothing_to_draw_once_the_observations_are_gone(observed, tmp_path):
    observed.load_state_dict(observed.state_dict())
    assert not observed.has_observations() and observed.is_calibrated()
    assert draw_distributions(nn.ModuleDict({"encoder": observed}), tmp_path) == []
    assert list(tmp_path.iterdir()) == []
