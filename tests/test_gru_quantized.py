"""The quantized forward against the oracle in exact fractions: every width, layer, direction, length, exactly."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qgru import QuantGRU
from tests.calibration.raw import calibrate
from tests.oracle import OPTIONAL, OracleGrid, activation, run_gru
from tests.random_gru import (
    clipped_share,
    differences,
    expected,
    inside_domain,
    module_grids,
    oracle_layers,
    quant_params,
    random_gru,
    run_module,
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


def assert_equal(gru: QuantGRU, layers: list, x: Tensor, lengths: list[int] | None = None, h0: Tensor | None = None):
    output, h_n = run_module(gru, x, lengths, h0)
    want, want_h = expected(layers, x, lengths, h0)
    assert not differences(output, want) and not differences(h_n, want_h)
    return want


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


@pytest.mark.parametrize("bitwidth", [2, 4, 8, 12, 16, 20, 24, 26])
def test_long_rows_of_every_width(bitwidth: int, tmp_path: Path) -> None:
    """129 inputs and 65 units, all at their ends: the sums that a float32, a float64 or an int32 would not hold."""
    gru, grids = random_gru(
        1, tmp_path / "q.json", range(bitwidth, bitwidth + 1), input_size=129, hidden_size=65, num_layers=1, bias=True
    )
    with torch.no_grad():
        gru.weight_ih_l0.sign_().mul_(100)
        gru.weight_hh_l0[:65].sign_().mul_(100)
    x = torch.randn(1, 2, 129, dtype=torch.float64).sign() * 100
    x[0, 0] = gru.weight_ih_l0[0].detach()
    h0 = gru.weight_hh_l0[:1, None].detach()
    directions = 1 + gru.bidirectional
    assert_equal(gru, oracle_layers(gru, grids), x, None, h0.expand(directions, 1, 65).contiguous())


def uniform_grids(hidden_size: int, bitwidth: int, **special: OracleGrid) -> dict:
    """Symmetric signed grids of +-1 (weights and states) or +-8 (sums), with some replaced (dots written as `__`)."""
    unit = OracleGrid(bitwidth, False, bitwidth - 1)
    wide = OracleGrid(bitwidth, False, bitwidth - 4)
    sums = ("matmul.Wx", "matmul.Rh", "gate.z_pre", "gate.r_pre", "gate.g_pre", "input.x")
    grids: dict = {name: wide for name in sums}
    states = ("output.h", "gate.z_out", "gate.r_out", "gate.g_out", "op.rRh", "op.old_contrib", "op.new_contrib")
    grids |= {name: unit for name in states}
    grids |= {name: [unit] * (3 * hidden_size) for name in ("weight.W", "weight.R", "weight.bw", "weight.br")}
    for name, grid in special.items():
        name = name.replace("__", ".")
        grids[name] = [grid] * (3 * hidden_size) if name.startswith("weight") else grid
    return grids


def build(path: Path, grids: list[list[dict]], **options: object) -> tuple[QuantGRU, list]:
    """A float64 module with these grids, and its oracle."""
    settings = {"input_size": 3, "hidden_size": 3, "batch_first": True, **options}
    gru = QuantGRU(**settings, dtype=torch.float64).eval()
    path.write_text(json.dumps(quant_params(gru, grids)))
    gru.load_quant_params(path)
    gru.use_quantization = True
    return gru, oracle_layers(gru, grids)


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "inputs"),
    [(30, 30, 4), (32, 30, 1), (30, 32, 1), (31, 29, 3), (2, 32, 5), (32, 2, 5), (1, 32, 3), (32, 1, 3), (29, 31, 4)],
)
def test_matrix_products_at_the_edge_of_the_domain(
    weight_bits: int, activation_bits: int, inputs: int, tmp_path: Path
) -> None:
    """Operands at their largest magnitudes, so that the sum comes within a factor of two of 2^62."""
    assert weight_bits + activation_bits + math.ceil(math.log2(inputs)) <= 62
    middle = OracleGrid(activation_bits, True, activation_bits - 1, 0)
    special = {
        "input__x": OracleGrid(activation_bits, True, activation_bits - 1, 2 ** (activation_bits - 1) - 1),
        "weight__W": OracleGrid(weight_bits, False, weight_bits - 1),
        "matmul__Wx": OracleGrid(30, False, 26),
    }
    assert middle.qmax == special["input__x"].qmax
    gru, layers = build(tmp_path / "q.json", [[uniform_grids(3, 16, **special)]], input_size=inputs)
    with torch.no_grad():
        gru.weight_ih_l0.uniform_(-1.01, 1.01)
        gru.weight_ih_l0[:4] = -1.0
        gru.weight_ih_l0[4:6] = 1.0
    x = torch.rand(2, 4, inputs, dtype=torch.float64) * 2 - 1
    x[0, 0], x[0, 1], x[1, 0] = 1.0, -1.0, 5.0
    layers = oracle_layers(gru, module_grids(gru))
    assert_equal(gru, layers, x)


@pytest.mark.parametrize("finest", [20, 26, 27, 28])
def test_sums_at_the_edge_of_the_domain(finest: int, tmp_path: Path) -> None:
    """max(b - n) + max(n) up to 60: two products of 2^26 cancel, a bias's last bit decides the tie that is left."""
    whole, even = OracleGrid(32, False, 0), OracleGrid(31, False, -1)
    special = {
        "input__x": OracleGrid(28, False, 0),
        "weight__W": OracleGrid(4, False, 0),
        "weight__R": OracleGrid(8, False, -20),
        "output__h": OracleGrid(8, False, 4),
        "matmul__Wx": whole,
        "matmul__Rh": whole,
        "weight__bw": OracleGrid(8, False, finest),
        "weight__br": OracleGrid(8, False, finest),
        **{f"gate__{gate}_pre": even for gate in "zrg"},
    }
    grids = uniform_grids(3, 8, **special)
    assert inside_domain(grids, 3, 3) and 32 + finest <= 60
    gru, _ = build(tmp_path / "q.json", [[grids]])
    with torch.no_grad():
        gru.weight_ih_l0.copy_(torch.tensor([[1.0, 0, 0]] * 9))
        gru.weight_hh_l0.copy_(torch.tensor([[2.0**26, 0, 0]] * 9))
        gru.bias_ih_l0.copy_(torch.tensor([1.0, -1.0, 0.0] * 3).double() * 2.0**-finest)
        gru.bias_hh_l0.zero_()
    x = torch.zeros(8, 1, 3, dtype=torch.float64)
    x[:, 0, 0] = 2.0**26 + torch.tensor([-5.0, -3, -2, -1, 0, 1, 3, 5]).double()
    h0 = torch.tensor([-1.0, -0.5, 0.5], dtype=torch.float64).expand(1, 8, 3).contiguous()
    want = assert_equal(gru, oracle_layers(gru, [[grids]]), x, None, h0)
    assert len({row[0][0] for row in want}) > 4, "the sums saturate: nothing shows"


@pytest.mark.parametrize("name", ["matmul.Wx", "matmul.Rh"])
def test_matrix_products_break_ties_by_their_last_bit(name: str, tmp_path: Path) -> None:
    """(2k + 1) / 2 steps and 2^-57 of one: a float64 would see a tie."""
    fine = OracleGrid(30, False, 28)
    special = {"input__x": fine, "output__h": fine, "weight__W": OracleGrid(30, False, 29)}
    special |= {"weight__R": special["weight__W"], name.replace(".", "__"): OracleGrid(6, False, 3)}
    grids = uniform_grids(3, 16, **special)
    assert inside_domain(grids, 3, 3)
    gru, _ = build(tmp_path / "q.json", [[grids]])
    for weight in (gru.weight_ih_l0, gru.weight_hh_l0):
        odd = torch.randint(-7, 8, (9,)) * 2 + 1
        weight.data.copy_(torch.stack([odd / 16, (-1.0) ** torch.arange(9) * 2.0**-29, torch.zeros(9)], 1))
    vector = torch.tensor([1.0, 2.0**-28, 0.0], dtype=torch.float64)
    x = torch.stack([vector, -vector, vector * torch.tensor([1, -1, 1])]).unsqueeze(1)
    zero = torch.zeros_like(x.transpose(0, 1))
    arguments = (x, None, zero) if name == "matmul.Wx" else (zero.transpose(0, 1), None, x.transpose(0, 1))
    assert_equal(gru, oracle_layers(gru, [[grids]]), *[a.contiguous() if a is not None else a for a in arguments])


def test_products_break_ties_by_their_last_bit(tmp_path: Path) -> None:
    """h_0 is the inverse of z modulo a step of z * h, which is then half a step and the last of its 59 bits."""
    fine, shift = OracleGrid(30, False, 29), 29
    special = {"gate__z_out": fine, "output__h": fine, "op__old_contrib": OracleGrid(30, False, 2 * 29 - shift)}
    grids = uniform_grids(3, 16, **special)
    assert inside_domain(grids, 3, 3)
    gru, _ = build(tmp_path / "q.json", [[grids]])
    for parameter in gru.parameters():
        parameter.data.zero_()
    z = [0]
    while not all(q % 2 for q in z):
        gru.bias_ih_l0.data[3:6] = torch.rand(3) - 0.5
        bias = oracle_layers(gru, [[grids]])[0][0].reals("weight.bw")[3:6]
        z = [fine.integer(activation("sigmoid", grids["gate.z_pre"](v), fine)) for v in bias]
    rows = [
        [float(fine.real(pow(q, -1, 2**shift) * (2 ** (shift - 1) + off) % 2**shift)) for q in z] for off in (1, -1)
    ]
    h0 = torch.tensor([rows], dtype=torch.float64)
    want = assert_equal(gru, oracle_layers(gru, [[grids]]), torch.zeros(2, 1, 3, dtype=torch.float64), None, h0)
    assert all(0 < v < 1 for row in want for v in row[0])


def test_a_sum_far_below_the_grid_rounds_to_zero(tmp_path: Path) -> None:
    """A product of nearly 2^62 on exponent 94, shifted 64 places to the right."""
    special = {
        "input__x": OracleGrid(30, True, 30),
        "weight__W": OracleGrid(30, True, 64),
        "matmul__Wx": OracleGrid(8, False, 30),
        "weight__bw": OracleGrid(8, False, 30),
        "gate__g_pre": OracleGrid(8, False, 30),
        "gate__g_out": OracleGrid(8, False, 30),
        "op__rRh": OracleGrid(8, False, 30),
        "op__new_contrib": OracleGrid(8, False, 33),
        "op__old_contrib": OracleGrid(8, False, 33),
        "output__h": OracleGrid(8, False, 33),
    }
    for exponent in (29, 30, 31, 32):
        special["matmul__Wx"] = OracleGrid(8, False, exponent)
        grids = uniform_grids(3, 8, **special)
        assert inside_domain(grids, 4, 3)
        gru, _ = build(tmp_path / "q.json", [[grids]], input_size=4)
        with torch.no_grad():
            for parameter in gru.parameters():
                parameter.zero_()
            gru.weight_ih_l0.fill_(1.0)
        assert_equal(gru, oracle_layers(gru, [[grids]]), torch.ones(1, 2, 4, dtype=torch.float64))


@pytest.mark.parametrize("exponent", [-64, -20, -1, 0, 1, 9, 20, 40, 64])
@pytest.mark.parametrize(
    "name",
    ["input.x", "output.h", "matmul.Wx", "matmul.Rh", "gate.z_pre", "gate.z_out", "gate.r_out", "gate.g_out",
     "op.rRh", "op.old_contrib", "op.new_contrib", "op.Rh_add_br", "weight.W", "weight.bw", "weight.br"],
)  # fmt: skip
def test_any_exponent_on_any_operator(name: str, exponent: int, tmp_path: Path) -> None:
    """Shifts far beyond 64 places to either side, as long as the sums stay inside the domain."""
    for shrink in range(30):
        n = exponent - shrink if exponent > 0 else exponent + shrink
        grids = uniform_grids(3, 8, **{name.replace(".", "__"): OracleGrid(8, False, n)})
        if inside_domain(grids, 3, 3):
            break
    else:
        pytest.fail("nothing near this exponent is inside the domain")
    gru, layers = build(tmp_path / "q.json", [[grids]])
    x = torch.randn(2, 3, 3, dtype=torch.float64) * 3
    assert_equal(gru, layers, x, None, torch.randn(1, 2, 3, dtype=torch.float64))


def test_exponents_all_at_one_end(tmp_path: Path) -> None:
    """Every grid but the bounded functions' shifted by the same 56 octaves, and the data with them."""
    for shift in (-56, 50):
        grids = uniform_grids(3, 8)
        grids |= {name: OracleGrid(8, False, 4 + shift) for name in ("input.x", "matmul.Wx")}
        gru, _ = build(tmp_path / "q.json", [[grids]])
        gru.bias_ih_l0.data.zero_()
        grids["gate.g_pre"] = OracleGrid(8, False, 4)
        x = torch.randn(2, 3, 3, dtype=torch.float64) * 2.0**-shift
        assert_equal(gru, oracle_layers(gru, [[grids]]), x)


@pytest.mark.parametrize("exponent", [-3, -1, 0, 1, 7, 12, 28])
@pytest.mark.parametrize(("is_unsigned", "zero_point"), [(False, 0), (False, -128), (False, 127), (True, 0), (True, 9)])
def test_one_minus_z_is_exact_off_the_grid(exponent: int, is_unsigned: bool, zero_point: int, tmp_path: Path) -> None:
    """Where one is far off z's range, on it, and where z's steps are coarser than one."""
    z_out = OracleGrid(8, is_unsigned, exponent, zero_point)
    gru, layers = build(tmp_path / "q.json", [[uniform_grids(3, 12, gate__z_out=z_out)]])
    assert_equal(gru, layers, torch.randn(2, 4, 3, dtype=torch.float64) * 4)


@pytest.mark.parametrize("bitwidth", [8, 16, 17, 20, 32])
def test_saturated_gates(bitwidth: int, tmp_path: Path) -> None:
    """Pre-activations over hundreds of units: sigmoid and tanh at both of their ends, through tables and without."""
    pre = OracleGrid(bitwidth, False, bitwidth - 11)
    special = {f"gate__{gate}_pre": pre for gate in "zrg"}
    gru, layers = build(tmp_path / "q.json", [[uniform_grids(3, 16, matmul__Wx=OracleGrid(16, False, 5), **special)]])
    assert_equal(gru, layers, torch.randn(3, 4, 3, dtype=torch.float64) * 500)


def test_the_optional_operator_has_a_grid_of_its_own(tmp_path: Path) -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64) * 4
    own = OracleGrid(5, False, 1, 3)
    gru, layers = build(tmp_path / "q.json", [[uniform_grids(3, 8, op__Rh_add_br=own)]])
    want = assert_equal(gru, layers, x)
    assert gru.grids()[OPTIONAL].bitwidth == 5
    without, layers = build(tmp_path / "q.json", [[uniform_grids(3, 8)]])
    without.load_state_dict({k: v for k, v in gru.state_dict().items() if "quant" not in k}, strict=False)
    layers = oracle_layers(without, [[uniform_grids(3, 8)]])
    without.load_quant_params(tmp_path / "q.json")
    without.use_quantization = True
    assert without.grids()[OPTIONAL] == without.grids()["matmul.Rh"]
    assert assert_equal(without, layers, x) != want


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
    gru.calibrating = True
    gru(torch.randn(8, 12, 3))
    gru.calibrating = False
    gru.use_quantization = True
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
