"""The quantized forward against the oracle in exact fractions: every width, layer, direction, length, exactly."""

import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qgru import QuantGRU
from tests.calibrated import quantize
from tests.calibration.raw import calibrate
from tests.oracle import OPTIONAL, OracleGrid, run_gru
from tests.random_gru import (
    assert_equal,
    build,
    clipped_share,
    differences,
    expected,
    module_grids,
    oracle_layers,
    random_gru,
    uniform_grids,
    write_quant_params,
)


def random_input(gru: QuantGRU, seed: int) -> tuple[Tensor, list[int], Tensor]:
    """Input (batch, time, input), a length for each row and h_0."""
    rng = random.Random(1000 + seed)
    batch, time = rng.randint(1, 4), rng.randint(1, 6)
    lengths = [rng.randint(1, time) for _ in range(batch)]
    lengths[rng.randrange(batch)] = time
    dtype = next(gru.parameters()).dtype
    x = torch.randn(batch, time, gru.input_size, dtype=dtype) * rng.choice((0.3, 1.0, 3.0))
    h0 = torch.randn(gru.num_layers * (1 + gru.bidirectional), batch, gru.hidden_size, dtype=dtype)
    return x, lengths, h0


@pytest.mark.parametrize("seed", range(40))
def test_every_width_equals_the_oracle(seed: int, tmp_path: Path) -> None:
    gru, grids = random_gru(seed, tmp_path / "q.json")
    layers = oracle_layers(gru, grids)
    x, lengths, h0 = random_input(gru, seed)
    assert_equal(gru, layers, x)
    assert_equal(gru, layers, x, None, h0)
    assert_equal(gru, layers, x, lengths, h0)
    for layer, directions in enumerate(layers):
        for reverse, direction in enumerate(directions):
            for name, integers in gru.quantized_weights(layer, bool(reverse)).items():
                assert integers.dtype == torch.int64 and integers.tolist() == direction.integers(name)


@pytest.mark.parametrize("widths", [(2, 6), (8, 9), (4, 16), (12, 17), (16, 25)])
@pytest.mark.parametrize("seed", range(5))
def test_float32_modules_equal_the_oracle_up_to_24_bits(seed: int, widths: tuple[int, int], tmp_path: Path) -> None:
    gru, grids = random_gru(seed, tmp_path / "q.json", range(*widths), torch.float32)
    x, lengths, h0 = random_input(gru, seed)
    assert_equal(gru, oracle_layers(gru, grids), x, lengths, h0)


@pytest.mark.parametrize("widths", [(8, 9), (16, 17), (17, 25)])
def test_a_long_sequence_does_not_drift(widths: tuple[int, int], tmp_path: Path) -> None:
    gru, grids = random_gru(5, tmp_path / "q.json", range(*widths), num_layers=1, bidirectional=True)
    want = assert_equal(gru, oracle_layers(gru, grids), torch.randn(1, 150, gru.input_size, dtype=torch.float64))
    assert clipped_share(oracle_layers(gru, grids), want) < 0.9
    assert len({tuple(step) for step in want[0]}) > 20


def test_the_optional_operator_has_a_grid_of_its_own(tmp_path: Path) -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64) * 4
    own = OracleGrid(5, False, 1, 3)
    gru, layers = build(tmp_path / "q.json", [[uniform_grids(3, 8, op__Rh_add_br=own)]])
    want = assert_equal(gru, layers, x)
    assert gru.grids()[OPTIONAL].bitwidth == 5
    gru.load_quant_params(write_quant_params(tmp_path / "q.json", gru, [[uniform_grids(3, 8)]]))
    assert gru.grids()[OPTIONAL] == gru.grids()["matmul.Rh"]
    assert assert_equal(gru, oracle_layers(gru, [[uniform_grids(3, 8)]]), x) != want


def test_infinities_saturate(tmp_path: Path) -> None:
    gru, grids = random_gru(3, tmp_path / "q.json", range(4, 17), num_layers=2)
    x, _, h0 = random_input(gru, 3)
    x[0, 0, 0], x[-1, -1, -1], h0[0, 0, 0], h0[-1, -1, -1] = math.inf, -math.inf, -math.inf, math.inf
    want = assert_equal(gru, oracle_layers(gru, grids), x, None, h0)
    assert all(math.isfinite(v) for row in want for step in row for v in step)
    with torch.no_grad():
        gru.weight_hh_l0[0, 0], gru.weight_ih_l0[-1, -1] = math.inf, -math.inf
    assert_equal(gru, oracle_layers(gru, grids), x, None, h0)


def test_non_contiguous_input_and_double_run(tmp_path: Path) -> None:
    gru, grids = random_gru(9, tmp_path / "q.json", range(2, 17), torch.float32, batch_first=False)
    base = torch.randn(gru.input_size, 3, 5)
    x = base.permute(2, 1, 0)
    first, again, copied = gru(x)[0], gru(x)[0], gru(x.contiguous())[0]
    assert torch.equal(first, again) and torch.equal(first, copied)
    assert not differences(first.transpose(0, 1).tolist(), expected(oracle_layers(gru, grids), x.transpose(0, 1))[0])


@pytest.mark.parametrize("seed", range(6))
def test_calibrated_grids_equal_the_oracle_too(seed: int) -> None:
    """The whole way, as users go it: default configuration, calibrate, finalize, run."""
    rng = random.Random(seed)
    gru = QuantGRU(3, 5, num_layers=2, bidirectional=bool(seed % 2), batch_first=True).eval()
    gru.set_all_bitwidth(rng.choice((4, 8, 12, 16)), is_symmetric=bool(seed % 3))
    quantize(gru, torch.randn(8, 12, 3))
    x, lengths, h0 = random_input(gru, seed)
    want = assert_equal(gru, oracle_layers(gru, module_grids(gru)), x, lengths, h0)
    assert clipped_share(oracle_layers(gru, module_grids(gru)), want) < 0.5


@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_shapes_and_types_are_those_of_nn_gru(batch_first: bool, unbatched: bool, tmp_path: Path) -> None:
    gru, grids = random_gru(
        2, tmp_path / "q.json", range(4, 12), torch.float32, batch_first=batch_first, num_layers=2, bidirectional=True
    )
    plain = torch.nn.GRU(gru.input_size, gru.hidden_size, 2, batch_first=batch_first, bidirectional=True)
    x = torch.randn(5, gru.input_size) if unbatched else torch.randn(5, 3, gru.input_size)
    output, h_n = gru(x)
    want, want_h = plain(x)
    assert output.shape == want.shape and h_n.shape == want_h.shape
    assert output.dtype == h_n.dtype == torch.float32
    row = x if unbatched else (x[0] if batch_first else x[:, 0])
    got = output if unbatched else (output[0] if batch_first else output[:, 0])
    assert not differences([got.tolist()], expected(oracle_layers(gru, grids), row[None])[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_integers_do_not_change_under_autocast(dtype: torch.dtype, tmp_path: Path) -> None:
    gru, grids = random_gru(4, tmp_path / "q.json", range(10, 20), torch.float32, num_layers=2, batch_first=True)
    x, _, h0 = random_input(gru, 4)
    with torch.autocast("cpu", dtype):
        output, h_n = gru(x, h0)
    assert output.dtype == h_n.dtype == torch.float32
    want, want_h = expected(oracle_layers(gru, grids), x, None, h0)
    assert not differences(output.tolist(), want) and not differences(h_n.tolist(), want_h)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_modules_round_only_their_output(dtype: torch.dtype) -> None:
    """Between layers there are integers: rounding the first layer's output to 8 bits of mantissa would show."""
    gru = QuantGRU(3, 5, num_layers=2, batch_first=True)
    gru.set_all_bitwidth(14)
    calibrate(gru, [(torch.randn(4, 6, 3), None, None)])
    gru.use_quantization = True
    gru.to(dtype)
    x = torch.randn(3, 6, 3).to(dtype)
    output, h_n = gru(x)
    want, want_h = expected(oracle_layers(gru, module_grids(gru)), x)
    assert output.dtype == h_n.dtype == dtype
    assert torch.equal(output, torch.tensor([[[float(v) for v in step] for step in row] for row in want]).to(dtype))
    assert torch.equal(h_n, torch.tensor([[[float(v) for v in row] for row in layer] for layer in want_h]).to(dtype))


def test_an_empty_batch_has_an_empty_output(tmp_path: Path) -> None:
    gru, _ = random_gru(1, tmp_path / "q.json", range(4, 12), torch.float32, batch_first=True, num_layers=1)
    plain = torch.nn.GRU(gru.input_size, gru.hidden_size, batch_first=True, bidirectional=gru.bidirectional)
    for got, want in zip(gru(torch.zeros(0, 4, gru.input_size)), plain(torch.zeros(0, 4, gru.input_size)), strict=True):
        assert got.shape == want.shape


def test_outside_the_domain_it_warns_and_stays_close() -> None:
    gru = QuantGRU(3, 5, batch_first=True, dtype=torch.float64)
    names = ("input.x", "output.h", "weight.W", "weight.R", "matmul.Wx", "matmul.Rh", "gate.z_out", "gate.r_out")
    gru.load_bitwidth_config({"operator_config": {name: {"bitwidth": 32} for name in names}})
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"exactness domain.*weight\.W.*input\.x.*66.*62") as warned:
        calibrate(gru, [(x, None, None)])
    assert len(warned) == 1
    gru.use_quantization = True
    output = gru(x)[0]
    want = expected(oracle_layers(gru, module_grids(gru)), x)[0]
    exact = torch.tensor([[[float(v) for v in step] for step in row] for row in want], dtype=torch.float64)
    assert (output - exact).abs().max() <= 1e-6


def test_inside_the_domain_nothing_warns(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    gru = QuantGRU(3, 5)
    gru.set_all_bitwidth(24)
    calibrate(gru, [(torch.randn(4, 6, 3), None, None)], "sqnr")
    gru.use_quantization = True
    gru(torch.randn(4, 2, 3))
    assert not recwarn.list


def test_a_packed_sequence_comes_out_packed_alike(tmp_path: Path) -> None:
    gru, grids = random_gru(6, tmp_path / "q.json", range(4, 12), torch.float32, batch_first=True, bidirectional=True)
    x, lengths = torch.randn(4, 6, gru.input_size), [2, 6, 1, 4]
    for enforce_sorted in (False, True):
        chosen = sorted(lengths, reverse=True) if enforce_sorted else lengths
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(chosen), True, enforce_sorted)
        output, h_n = gru(packed)
        reference, _ = torch.nn.GRU(gru.input_size, gru.hidden_size, gru.num_layers, bidirectional=True)(packed)
        assert torch.equal(output.batch_sizes, reference.batch_sizes)
        for got, want in zip(output[2:], reference[2:], strict=True):
            assert (got is None and want is None) or torch.equal(got, want)
        padded, _ = torch.nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
        want, want_h = expected(oracle_layers(gru, grids), x, chosen)
        assert not differences([r[:n].tolist() for r, n in zip(padded, chosen, strict=True)], want)
        assert not differences(h_n.tolist(), want_h)


def test_dropout_acts_between_layers_in_training_only() -> None:
    gru = QuantGRU(3, 5, num_layers=2, dropout=0.5, bidirectional=True, batch_first=True)
    x = torch.randn(3, 6, 3)
    calibrate(gru, [(x, None, None)])
    gru.use_quantization = True
    layers = oracle_layers(gru, module_grids(gru))
    torch.manual_seed(1)
    first = gru(x)[0]
    torch.manual_seed(1)
    assert torch.equal(gru(x)[0], first) and not torch.equal(gru(x)[0], first)
    gru.dropout = 1.0
    output, h_n = gru(x)
    assert not differences(output.tolist(), run_gru(layers[1:], [[[0.0] * 10] * 6] * 3)[0])
    assert not differences(h_n[:2].tolist(), expected(layers[:1], x)[1])
    assert_equal(gru.eval(), layers, x)


def test_a_disabled_configuration_stays_float(tmp_path: Path) -> None:
    gru = QuantGRU(3, 5)
    gru.load_bitwidth_config({"GRU_config": {"default_config": {"disable_quantization": True}}})
    gru.use_quantization = True
    x = torch.randn(4, 2, 3)
    plain = torch.nn.GRU(3, 5)
    plain.load_state_dict({name: p for name, p in gru.named_parameters()})
    assert torch.equal(gru(x)[0], plain(x)[0])


def test_calibrating_wins_over_use_quantization() -> None:
    gru = QuantGRU(3, 5)
    plain = torch.nn.GRU(3, 5)
    plain.load_state_dict({name: p for name, p in gru.named_parameters()})
    gru.calibrating = gru.use_quantization = True
    x = torch.randn(4, 2, 3)
    assert torch.equal(gru(x)[0], plain(x)[0])
    gru.calibrating = False
    assert not torch.equal(gru(x)[0], plain(x)[0])
    assert gru.is_calibrated()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*is deprecated")
def test_tracing_takes_a_float_layer_and_refuses_a_quantized_one() -> None:
    gru, x = QuantGRU(3, 5), torch.randn(6, 2, 3)
    assert torch.equal(torch.jit.trace(gru, (x,))(x)[0], gru(x)[0])
    quantize(gru, x)
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace can't .*qgru\.export\.export_onnx"):
        torch.jit.trace(gru, (torch.randn(6, 2, 3),))
