"""Exact arithmetic at the edges of its domain: 62-bit sums, shifts past 64 places, ties that only the last bit sees."""

import math
from pathlib import Path

import pytest
import torch

from tests.oracle import OracleGrid, activation
from tests.random_gru import assert_equal, build, inside_domain, module_grids, oracle_layers, random_gru, uniform_grids


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


@pytest.mark.parametrize("bitwidth", [26, 27, 28, 29, 30])
def test_a_tie_in_the_first_and_the_last_bits_that_float64_lacks(bitwidth: int, tmp_path: Path) -> None:
    """Unsigned operands whose products reach from 2^1 down to 2^-50 ... 2^-58; a float64 holds 2^-51 beside 2^1."""
    fine = OracleGrid(bitwidth, True, bitwidth - 1)
    special = {"input__x": fine, "weight__W": fine, "matmul__Wx": OracleGrid(6, False, 3)}
    grids = uniform_grids(3, 16, **special)
    assert inside_domain(grids, 3, 3)
    gru, _ = build(tmp_path / "q.json", [[grids]])
    last = torch.full((9,), 2.0 ** (1 - bitwidth), dtype=torch.float64)
    halves = 1 + (2 * torch.arange(9).double() + 1) / 16
    gru.weight_ih_l0.data.copy_(torch.stack([last.sign(), halves, last], 1))
    x = torch.tensor([[[1.0, 1.0, 2.0 ** (1 - bitwidth)]], [[1.0, 1.0, 0.0]]], dtype=torch.float64)
    want = assert_equal(gru, oracle_layers(gru, module_grids(gru)), x)
    assert want[0] != want[1], "the last bit decides"


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
