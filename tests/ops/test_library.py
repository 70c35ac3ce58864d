"""The ops without a GPU: schemas, fake kernels, what the plan accepts, how shapes are laid out."""

from __future__ import annotations

import random
import subprocess
import sys
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
import torch

from qgru import Grid, QuantGRU
from qgru.ops import library
from qgru.ops.cuda.geometry import SHARED_BYTES, geometry
from qgru.ops.cuda.plan import ACTIVATIONS, DOUBLE, FLOAT, WEIGHTS, Plan, flatten, plan_of
from tests.random_gru import random_gru


def plan_for(gru: QuantGRU) -> Plan:
    return plan_of(flatten(gru.grids()))


def calibrated(config: str, inputs: int = 6, hidden: int = 10) -> QuantGRU:
    gru = QuantGRU(inputs, hidden)
    gru.load_bitwidth_config(config)
    gru.calibrating = True
    gru(torch.randn(12, 5, inputs))
    gru.calibrating = False
    gru.finalize_calibration()
    gru.use_quantization = True
    return gru


def test_import_neither_initializes_cuda_nor_loads_the_compiler() -> None:
    code = (
        "import sys, torch, qgru; print(torch.cuda.is_initialized(), any(m.startswith('cuda.') for m in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("config", ["int8", "int8_mixed", "w4a8"])
def test_presets_with_8_bit_operands_run_in_float32(config: str) -> None:
    assert plan_for(calibrated(config)).arithmetic(6, 10) == FLOAT


@pytest.mark.parametrize("config", ["w8a16", "int16"])
def test_wider_operands_are_left_to_the_reference(config: str) -> None:
    assert plan_for(calibrated(config)).arithmetic(6, 10) is None


def test_a_tensor_on_the_cpu_is_left_to_the_reference() -> None:
    gru = calibrated("int8")
    assert library.kernels_for(torch.randn(3, 2, 6), gru._cells(), [gru.grids()]) is None


def test_the_plan_reads_back_what_was_written(tmp_path: Path) -> None:
    for seed in range(20):
        gru, _ = random_gru(seed, tmp_path / "q.json", range(2, 9))
        grids, plan = gru.grids(), plan_for(gru)
        assert all(plan.grids[name] == grids[name] for name in plan.grids)
        for name, weight in plan.weights.items():
            assert (weight.lo, weight.hi) == (grids[name].qmin, grids[name].qmax)
            assert (weight.least, weight.most) == (min(grids[name].exponents), max(grids[name].exponents))


def extreme_sums(plan: Plan, terms: tuple[str, ...]) -> list[Fraction]:
    """Every sum of ends of the terms' grids at the ends of their exponents, in steps of the finest."""
    finest = max(max(plan._exponents(name)) for name in terms)
    ends = [
        [m * Fraction(2) ** (finest - n) for m in plan.range(name) for n in plan._exponents(name)] for name in terms
    ]
    return [sum(choice) for choice in product(*ends)]


def random_plan(rng: random.Random) -> Plan:
    """8-bit operands, up to 16 bits elsewhere, exponents that sometimes lie far apart."""
    numbers: list[int] = []
    spread = rng.choice((2, 6, 14, 40))
    for name in ACTIVATIONS:
        bits, unsigned = (8, 0) if name in ("input.x", "output.h") else (rng.randint(2, 16), rng.randint(0, 1))
        qmin, qmax = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        symmetric = rng.random() < 0.5
        zero_point = 0 if symmetric else rng.randint(qmin, qmax)
        numbers += (bits, symmetric, unsigned, bits - 1 + rng.randint(-spread, spread), zero_point)
    for _ in WEIGHTS:
        least = 7 + rng.randint(-3, 3)
        numbers += (8, 0, least, least + rng.randint(0, 3))
    return plan_of(" ".join(str(int(number)) for number in numbers))


def test_float_is_chosen_only_where_it_holds_every_sum() -> None:
    rng, chosen = random.Random(0), {FLOAT: 0, DOUBLE: 0, None: 0}
    for _ in range(300):
        plan = random_plan(rng)
        kind = plan.arithmetic(6, 10)
        chosen[kind] += 1
        if kind is None:
            continue
        for destination, terms in plan._sums().items():
            finest = max(max(plan._exponents(name)) for name in terms)
            for total in extreme_sums(plan, terms):
                assert abs(total) <= 2**kind.exact
                assert abs(total) * Fraction(2) ** (plan.exponent(destination) - finest) <= 2**kind.rounded
    assert min(chosen.values()) >= 20, chosen


def test_unsigned_8_bit_weights_do_not_fit_the_product() -> None:
    gru = calibrated("int8")
    grids = {**gru.grids()}
    assert plan_of(flatten(grids)).arithmetic(6, 10) == FLOAT
    grids["weight.R"] = Grid(8, True, True, grids["weight.R"].exp2_inv)
    assert plan_of(flatten(grids)).arithmetic(6, 10) is None


def test_every_layout_covers_the_units_and_fits() -> None:
    rng = random.Random(0)
    for _ in range(500):
        hidden, batch = rng.randint(1, 1024), rng.choice((1, 3, 32, 128, 1000, 4096))
        code_bytes, limbs, table_bytes = rng.choice((1, 2)), rng.choice((0, 2, 3)), rng.choice((0, 3072, 18432))
        layout = geometry(hidden, batch, code_bytes, table_bytes, 4, limbs, 9, 132)
        if layout is None:
            assert table_bytes or limbs == 3  # then the next choice is tables in global memory
            continue
        assert layout.units >= hidden and layout.padded >= layout.units and layout.padded % 64 == 0
        assert layout.groups * layout.rows >= batch
        assert layout.cluster == 1 or layout.cta_tiles % 4 == 0
        assert layout.threads * (24 * layout.tiles_a_warp * layout.backward_k64 + 60) <= 65536
        assert layout.forward_bytes(code_bytes, table_bytes, 4) <= SHARED_BYTES[9]
        assert not limbs or layout.backward_bytes(code_bytes, table_bytes, 4, limbs) <= SHARED_BYTES[9]


def test_no_cluster_before_hopper() -> None:
    assert geometry(256, 8, 1, 3072, 4, 0, 8, 108) is not None
    assert geometry(512, 8, 1, 3072, 4, 0, 8, 108) is None


def test_fake_kernels_give_the_shapes() -> None:
    gru = calibrated("int8")
    x, h0 = torch.empty(7, 3, 6, device="meta"), torch.empty(3, 10, device="meta")
    parameters = [parameter.to("meta") for parameter in gru.parameters()]
    exponents = torch.empty(4, 30, dtype=torch.int32, device="meta")
    text = flatten(gru.grids())
    states, last, workspace = torch.ops.qgru.gru_layer(x, h0, *parameters, exponents, None, None, text, False, 0)
    assert (states.shape, last.shape, workspace.numel()) == ((7, 3, 10), (3, 10), 0)
    gradients = torch.ops.qgru.gru_layer_backward(
        states, None, x, h0, *parameters, exponents, states, workspace, text, False, 2, True
    )
    assert [g.shape for g in gradients] == [t.shape for t in (x, h0, *parameters)]
