"""The reference op: function tables against exact fractions, gradients against an independent float64 autograd."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from qgru import QuantGRU
from qgru.grid import Grid
from qgru.ops.reference import activation_table
from tests import straight_through
from tests.calibrated import quantize
from tests.oracle import OracleGrid, real_function
from tests.random_gru import Grids, random_gru


def shifted(rng: random.Random, grid: OracleGrid) -> OracleGrid:
    """With a zero point at an end, in the middle or at zero."""
    return replace(grid, zero_point=rng.choice((0, grid.qmin, grid.qmax, (grid.qmin + grid.qmax) // 2)))


@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
@pytest.mark.parametrize("seed", range(12))
def test_tables_hold_the_rounded_real_function(function: str, seed: int) -> None:
    rng = random.Random(seed)
    bits, out_bits = rng.choice((1, 2, 4, 7, 8, 10)), rng.randint(1, 32)
    pre = shifted(rng, OracleGrid(bits, rng.random() < 0.3, rng.choice((-3, -1, 0, bits - 4, bits, 20))))
    out = shifted(rng, OracleGrid(out_bits, rng.random() < 0.5, out_bits - rng.choice((0, 1, 2))))
    inputs = [pre.real(q) for q in range(pre.qmin, pre.qmax + 1)]
    table = activation_table(
        function,
        Grid(bits, pre.zero_point == 0, pre.is_unsigned, pre.exp2_inv, pre.zero_point),
        Grid(out_bits, out.zero_point == 0, out.is_unsigned, out.exp2_inv, out.zero_point),
    )
    assert table.dtype == torch.int64 and table.device.type == "cpu"
    assert table.tolist() == [out.integer(real_function(function, x.numerator, x.denominator)) for x in inputs]


@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_a_table_of_sixteen_bits_is_right_in_every_thirteenth_entry(function: str) -> None:
    pre, out = OracleGrid(16, False, 12), OracleGrid(16, False, 15)
    table = activation_table(function, Grid(16, True, False, 12), Grid(16, True, False, 15))
    assert table.shape == (2**16,) and bool((table.diff() >= 0).all())
    for index in range(0, 2**16, 13):
        x = pre.real(pre.qmin + index)
        assert table[index] == out.integer(real_function(function, x.numerator, x.denominator))


def loss(output: Tensor, h_n: Tensor) -> Tensor:
    """A weighted sum with weights that depend on the position only."""
    total = output.new_zeros((), dtype=torch.float64)
    for tensor in (output, h_n):
        weights = torch.cos(torch.arange(tensor.numel(), dtype=torch.float64) * 1.7).view(tensor.shape)
        total = total + (tensor.double() * weights).sum()
    return total


def gradients_of_module(gru: QuantGRU, x: Tensor, lengths: list[int], h0: Tensor, **autocast: object) -> tuple:
    gru.zero_grad()
    x, h0 = x.clone().requires_grad_(), h0.clone().requires_grad_()
    with torch.autocast("cpu", enabled=bool(autocast), **autocast):
        packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        output, h_n = gru(packed, h0)
    output, _ = pad_packed_sequence(output, batch_first=True)
    loss(output, h_n).backward()
    gradients = {"x": x.grad, "h0": h0.grad, **{name: p.grad for name, p in gru.named_parameters()}}
    return output.detach(), h_n.detach(), gradients


def gradients_of_oracle(gru: QuantGRU, grids: list[list[Grids]], x: Tensor, lengths: list[int], h0: Tensor) -> tuple:
    x, h0 = x.double().requires_grad_(), h0.double().requires_grad_()
    parameters = {name: p.detach().double().requires_grad_() for name, p in gru.named_parameters()}
    output, h_n = straight_through.run(gru, parameters, grids, x, lengths, h0)
    loss(output, h_n).backward()
    gradients = {"x": x.grad, "h0": h0.grad, **{name: p.grad for name, p in parameters.items()}}
    return output.detach(), h_n.detach(), gradients


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        error = (got[name].double() - gradient).norm()
        assert error <= tolerance * gradient.norm(), f"{name}: {error:.3g} of {gradient.norm():.3g}"


def case(seed: int, path: Path, dtype: torch.dtype, widths: range = range(3, 13), **options: object) -> tuple:
    gru, grids = random_gru(seed, path, widths, dtype, batch_first=True, **options)
    rng = random.Random(seed)
    batch, time = rng.randint(1, 4), rng.randint(2, 6)
    lengths = [time, *(rng.randint(1, time) for _ in range(batch - 1))]
    directions = gru.num_layers * (1 + gru.bidirectional)
    x = torch.randn(batch, time, gru.input_size, dtype=dtype)
    return gru, grids, x, lengths, torch.randn(directions, batch, gru.hidden_size, dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("seed", range(20))
def test_gradients_are_straight_through(seed: int, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    gru, grids, x, lengths, h0 = case(seed, tmp_path / "q.json", dtype)
    output, h_n, got = gradients_of_module(gru, x, lengths, h0)
    want_output, want_h, want = gradients_of_oracle(gru, grids, x, lengths, h0)
    assert torch.equal(output.double(), want_output) and torch.equal(h_n.double(), want_h)
    assert_close(got, want, tolerance)


@pytest.mark.parametrize("seed", range(6))
def test_gradients_past_the_width_of_tables(seed: int, tmp_path: Path) -> None:
    gru, grids, x, lengths, h0 = case(seed, tmp_path / "q.json", torch.float32, range(17, 21))
    output, _, got = gradients_of_module(gru, x, lengths, h0)
    want_output, _, want = gradients_of_oracle(gru, grids, x, lengths, h0)
    assert torch.equal(output.double(), want_output)
    assert_close(got, want, 1e-5)


def test_the_cases_above_clamp_some_and_pass_some(tmp_path: Path) -> None:
    zero = total = 0
    for seed in range(20):
        gru, grids, x, lengths, h0 = case(seed, tmp_path / "q.json", torch.float32)
        for name, gradient in gradients_of_oracle(gru, grids, x, lengths, h0)[2].items():
            if name != "x":
                zero, total = zero + int((gradient == 0).sum()), total + gradient.numel()
    assert 0.1 < zero / total < 0.8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_under_autocast(dtype: torch.dtype, tmp_path: Path) -> None:
    gru, grids, x, lengths, h0 = case(3, tmp_path / "q.json", torch.float32, num_layers=2, bidirectional=True)
    output, _, got = gradients_of_module(gru, x, lengths, h0, dtype=dtype)
    want_output, _, want = gradients_of_oracle(gru, grids, x, lengths, h0)
    assert torch.equal(output.double(), want_output)
    assert_close(got, want, 1e-2)


def test_fine_grids_give_the_gradient_of_nn_gru() -> None:
    """At 28 bits and with nothing clamped, straight-through is the derivative itself."""
    gru = QuantGRU(3, 5, num_layers=2, bidirectional=True, dtype=torch.float64)
    gru.load_bitwidth_config(
        {"operator_config": {name: {"bitwidth": 28} for name in ("input.x", "output.h", "matmul.Wx", "matmul.Rh",
         "weight.W", "weight.R", "weight.bw", "weight.br", "gate.z_pre", "gate.z_out", "gate.r_pre", "gate.r_out",
         "gate.g_pre", "gate.g_out", "op.rRh", "op.old_contrib", "op.new_contrib")}}
    )  # fmt: skip
    gru.calibration_method = "minmax"
    x, h0 = torch.randn(6, 4, 3, dtype=torch.float64), torch.randn(4, 4, 5, dtype=torch.float64)
    gradients = []
    for stage in ("calibrating", "use_quantization"):
        gru.calibrating = gru.use_quantization = False
        setattr(gru, stage, True)
        gru.zero_grad()
        inputs = [x.clone().requires_grad_(), h0.clone().requires_grad_()]
        loss(*gru(*inputs)).backward()
        gradients.append({str(i): p.grad for i, p in enumerate([*inputs, *gru.parameters()])})
    assert_close(gradients[1], gradients[0], 1e-5)


def test_what_was_clamped_gets_no_gradient(tmp_path: Path) -> None:
    gru = quantize(QuantGRU(1, 3, batch_first=True), torch.linspace(-1, 1, 20).view(1, 20, 1))
    grid = gru.grids()["input.x"]
    low, high, step = (grid.qmin * grid.scale, grid.qmax * grid.scale, grid.scale)
    values = [low - 0.6 * step, low - 0.4 * step, low, 0.1, high, high + 0.4 * step, high + 0.6 * step, 1e9, -1e9]
    x = torch.tensor(values).view(len(values), 1, 1).requires_grad_()
    gru(x)[0].sum().backward()
    assert (x.grad.flatten() != 0).tolist() == [False, True, True, True, True, True, False, False, False]


def test_repeated_backward_is_deterministic(tmp_path: Path) -> None:
    gru, _, x, lengths, h0 = case(1, tmp_path / "q.json", torch.float32)
    first, second = (gradients_of_module(gru, x, lengths, h0)[2] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_frozen_parameters_and_detached_inputs(tmp_path: Path) -> None:
    gru, grids, x, lengths, h0 = case(2, tmp_path / "q.json", torch.float32)
    gru.weight_ih_l0.requires_grad_(False)
    gru(x, h0)[0].sum().backward()
    assert gru.weight_ih_l0.grad is None and gru.weight_hh_l0.grad is not None
    with torch.no_grad():
        assert not gru(x, h0)[0].requires_grad
    with torch.inference_mode():
        assert torch.equal(gru(x, h0)[0], gru(x, h0)[0])
