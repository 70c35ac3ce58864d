"""NaN in gives NaN out, from its step on and in its row only: a diverging run must be visible."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from qgru import QuantGRU
from tests.calibrated import calibrated, quantize


def quantized(**options: object) -> QuantGRU:
    config = {"operator_config": {"gate.z_out": {"is_symmetric": False, "is_unsigned": True}}}
    return calibrated(5, 3, config, "sqnr", **{"batch_first": True, **options}).eval()


def padded(gru: QuantGRU, x: Tensor, lengths: list[int] | None, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    if lengths is None:
        return gru(x, h0)
    output, h_n = gru(pack_padded_sequence(x, torch.tensor(lengths), True, enforce_sorted=False), h0)
    return pad_packed_sequence(output, batch_first=True)[0], h_n


@pytest.mark.parametrize("lengths", [None, [4, 6, 1]])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_nan_in_a_row_comes_out_from_that_step_on(num_layers: int, bidirectional: bool, lengths: list | None) -> None:
    gru = quantized(num_layers=num_layers, bidirectional=bidirectional)
    x = torch.randn(3, 6, 3)
    clean, clean_h = padded(gru, x, lengths)
    step = 2
    x[0, step, 1] = math.nan
    output, h_n = padded(gru, x, lengths)
    valid = lengths[0] if lengths else 6
    poisoned = torch.zeros(valid, 5 * (1 + bidirectional), dtype=torch.bool)
    if num_layers == 1:
        poisoned[step:, :5] = True
        poisoned[: step + 1, 5:] = True
    else:
        poisoned[step:] = True
        if bidirectional:
            poisoned[:] = True
    assert torch.equal(output[0, :valid].isnan(), poisoned)
    assert torch.equal(output[0, :valid][~poisoned], clean[0, :valid][~poisoned])
    assert torch.equal(output[1:], clean[1:]) and torch.equal(h_n[:, 1:], clean_h[:, 1:])
    assert bool(h_n[:, 0].isnan().all())


def test_nan_where_sums_take_sixty_bits() -> None:
    gru = QuantGRU(3, 5, batch_first=True, dtype=torch.float64)
    gru.set_all_bitwidth(29)
    x = torch.randn(3, 6, 3, dtype=torch.float64)
    quantize(gru, x)
    clean = gru(x)[0]
    x[1, 2, 0] = math.nan
    output = gru(x)[0]
    assert bool(output[1, 2:].isnan().all()) and torch.equal(output[1, :2], clean[1, :2])
    assert torch.equal(output[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("direction", [0, 1])
def test_nan_in_an_initial_state(direction: int) -> None:
    gru = quantized(bidirectional=True)
    x, h0 = torch.randn(3, 6, 3), torch.randn(2, 3, 5)
    clean, clean_h = gru(x, h0)
    h0[direction, 1, 4] = math.nan
    for lengths in (None, [2, 5, 6]):
        output, h_n = padded(gru, x, lengths, h0)
        valid = lengths[1] if lengths else 6
        half = slice(5 * direction, 5 * direction + 5)
        other = slice(5 - 5 * direction, 10 - 5 * direction)
        assert bool(output[1, :valid, half].isnan().all()) and not bool(output[1, :valid, other].isnan().any())
        assert not bool(output[[0, 2]].isnan().any())
        assert bool(h_n[direction, 1].isnan().all()) and not bool(h_n[1 - direction].isnan().any())
        if lengths is None:
            assert torch.equal(output[[0, 2]], clean[[0, 2]]) and torch.equal(h_n[:, [0, 2]], clean_h[:, [0, 2]])


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("suffix", ["", "_reverse"])
@pytest.mark.parametrize("layer", [0, 1])
def test_nan_in_a_parameter_makes_every_output_nan(name: str, suffix: str, layer: int) -> None:
    gru = quantized(num_layers=2, bidirectional=True)
    with torch.no_grad():
        getattr(gru, name.replace("0", str(layer)) + suffix).view(-1)[-1] = math.nan
    for lengths in (None, [6, 1, 3]):
        output, h_n = padded(gru, torch.randn(3, 6, 3), lengths)
        valid = [range(n) for n in lengths or [6] * 3]
        assert all(bool(output[row, steps].isnan().all()) for row, steps in enumerate(valid))
        assert bool(h_n.isnan().all())


def test_padding_may_hold_anything() -> None:
    gru = quantized(bidirectional=True)
    x = torch.randn(2, 6, 3)
    clean = padded(gru, x, [6, 3])
    x[1, 3:] = math.nan
    assert all(torch.equal(a, b) for a, b in zip(clean, padded(gru, x, [6, 3]), strict=True))


def test_integers_of_a_nan_are_refused() -> None:
    gru = quantized()
    with torch.no_grad():
        gru.weight_hh_l0[3, 2] = math.nan
    with pytest.raises(ValueError, match=r"weight\.R|NaN"):
        gru.quantized_weights()


def test_nan_under_autocast_and_in_float64() -> None:
    gru = quantized()
    x = torch.randn(2, 4, 3)
    x[1, 0] = math.nan
    with torch.autocast("cpu", torch.bfloat16):
        assert gru(x)[0].isnan().any(-1).any(-1).tolist() == [False, True]
    double = quantized(dtype=torch.float64)
    assert double(x.double())[0].isnan().all(-1).all(-1).tolist() == [False, True]
