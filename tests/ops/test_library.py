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
from qgru.ops.cuda.geometry import Geometry, Processor, Widths, geometry
from qgru.ops.cuda.layouts import Loop, Walk
from qgru.ops.cuda.plan import ACTIVATIONS, DOUBLE, FLOAT, WEIGHTS, Plan, flatten, plan_of
from qgru.ops.cuda.projection import projection
from tests.random_gru import random_gru


def plan_for(gru: QuantGRU) -> Plan:
    return plan_of(flatten(gru.grids()))


def calibrated(config: str, inputs: int = 6, hidden: int = 10, **options: bool) -> QuantGRU:
    gru = QuantGRU(inputs, hidden, **options)
    gru.load_bitwidth_config(config)
    gru.calibrating = True
    gru(torch.randn(12, 5, inputs))
    gru.calibrating = False
    gru.finalize_calibration()
    gru.use_quantization = True
    return gru


def test_import_neither_initializes_cuda_nor_loads_the_compiler() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import qgru; loaded = set(sys.modules) - before;"
        "print(torch.cuda.is_initialized(), any(m.startswith('cuda.') for m in loaded))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("config", ["int8", "int8_mixed", "w4a8"])
def test_presets_with_8_bit_operands_run_in_float32(config: str) -> None:
    assert plan_for(calibrated(config)).arithmetic(6, 10) == FLOAT


@pytest.mark.parametrize(("config", "limbs"), [("w8a16", (1, 2)), ("int16", (2, 2))])
def test_presets_with_wider_operands_take_limbs_and_float32(config: str, limbs: tuple[int, int]) -> None:
    plan = plan_for(calibrated(config))
    assert (plan.limbs("weight.R"), plan.limbs("output.h")) == limbs
    assert plan.sum_wide(6) and plan.arithmetic(6, 10) == FLOAT


def test_operands_of_more_than_16_bits_are_left_to_the_reference() -> None:
    gru = calibrated("int16")
    gru.adjust_quant_config("h", bitwidth=17)
    assert plan_for(gru).arithmetic(6, 10) is None


def test_every_code_fits_its_limbs() -> None:
    for bits, unsigned, zero_point in product(range(1, 17), (False, True), (0, 5, -3, 99, -128, 200, 40000)):
        lo, hi = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        if not lo <= zero_point <= hi:
            continue
        grids = {**calibrated("int8").grids(), "output.h": Grid(bits, False, unsigned, 3, zero_point)}
        plan = plan_of(flatten(grids))
        codes = [end - zero_point + plan.offset("output.h") for end in (lo, hi)]
        largest = 128 if plan.limbs("output.h") == 1 else 1 << 15
        assert -largest <= codes[0] and codes[1] < largest and plan.limbs("output.h") == (1 if bits <= 8 else 2)


def test_a_device_without_kernels_is_left_to_the_reference() -> None:
    gru = calibrated("int8")
    assert library.kernels_for(torch.randn(3, 2, 6, device="meta"), gru._cells(), [gru.grids()], 1) is None


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


def test_unsigned_weights_take_a_limb_more_or_do_not_fit() -> None:
    gru = calibrated("int8")
    grids = {**gru.grids()}
    assert plan_of(flatten(grids)).arithmetic(6, 10) == FLOAT
    grids["weight.R"] = Grid(8, True, True, grids["weight.R"].exp2_inv)
    assert plan_of(flatten(grids)).limbs("weight.R") == 2
    grids["weight.R"] = Grid(16, True, True, grids["weight.R"].exp2_inv)
    assert plan_of(flatten(grids)).arithmetic(6, 10) is None


HOPPER = Processor((9, 0), 132, 227 * 1024, ((1, 132), (2, 66), (4, 30), (8, 15), (16, 7)))
AMPERE = Processor((8, 6), 84, 99 * 1024, ((1, 84),))


@pytest.mark.parametrize("kind", [Loop, Walk])
def test_every_layout_covers_the_units_and_fits(kind: type[Geometry]) -> None:
    rng = random.Random(0)
    for _ in range(500):
        hidden, batch = rng.randint(1, 2048), rng.choice((1, 3, 32, 128, 1000, 4096))
        limbs, table_bytes = rng.choice(((1, 1), (1, 2), (2, 2))), rng.choice((0, 3072, 18432))
        widths = Widths(*limbs, rng.choice((1, 2)), table_bytes, rng.choice((4, 8)), rng.choice((2, 3)))
        layout = geometry(kind, hidden, batch, widths, HOPPER)
        assert layout is not None
        assert layout.units >= hidden and layout.padded >= layout.units and layout.padded % 64 == 0
        assert (
            layout.groups * layout.rows >= batch
            and layout.lane_rows * layout.warps == layout.rows // 4 * layout.tile_warps
        )
        assert layout.cluster == 1 or (layout.cta_tiles % 4 == 0 and layout.padded == layout.units)
        assert layout.threads * (layout.register_blocks * layout.lane_bytes(widths) // 4 + 56) <= 65536
        assert layout.streamed_blocks >= 0 and layout.shared_bytes(widths) <= HOPPER.shared_bytes


def test_no_cluster_before_hopper() -> None:
    widths = Widths(1, 1, 1, 3072, 4, 2)
    for kind, hidden in product((Loop, Walk), (1, 37, 128, 256)):
        layout = geometry(kind, hidden, 8, widths, AMPERE)
        assert layout is not None and layout.cluster == 1 and layout.shared_bytes(widths) <= AMPERE.shared_bytes


def test_layouts_mind_how_many_clusters_run_at_once() -> None:
    widths = Widths(1, 1, 1, 3072, 4, 2)
    layout = geometry(Walk, 1024, 56, widths, HOPPER)
    assert layout is not None and (layout.cluster, layout.groups) == (16, 7)


def test_projections_fit() -> None:
    rng = random.Random(0)
    for _ in range(300):
        inputs, tiles, columns = rng.randint(1, 3000), rng.randint(1, 128), 8 * rng.randint(1, 20000)
        limbs, padded = rng.choice(((1, 1), (1, 2), (2, 1), (2, 2))), -(-inputs // 64) * 64
        layout = projection(columns, padded, tiles, *limbs, 132, 227 * 1024)
        assert layout is not None and layout.shared_bytes <= 227 * 1024
        of_block = 8 * layout.column_tiles * 16 // layout.block_tiles
        assert layout.blocks * of_block >= columns and layout.grid[1] * layout.block_tiles >= tiles


def test_fake_kernels_give_the_shapes() -> None:
    gru = calibrated("int8")
    x, h0 = torch.empty(7, 3, 6, device="meta"), torch.empty(1, 3, 10, device="meta")
    parameters = [parameter.to("meta") for parameter in gru.parameters()]
    exponents, grids = [torch.empty(4, 30, dtype=torch.int32, device="meta")], [flatten(gru.grids())]
    arguments = (x, h0, parameters, exponents, None, None, grids)
    states, last, workspace = torch.ops.qgru.gru_layer(*arguments, 0)
    assert (states.shape, last.shape, workspace.numel()) == ((7, 3, 10), (1, 3, 10), 0)
    arguments = (x, h0, parameters, exponents, states, workspace, grids)
    dx, dh, gradients = torch.ops.qgru.gru_layer_backward(states, None, *arguments, 2, True)
    assert (dx.shape, dh.shape) == (x.shape, h0.shape)
    assert [g.shape for g in gradients] == [parameter.shape for parameter in parameters]


def test_fake_kernels_know_two_directions() -> None:
    gru = calibrated("int8", bidirectional=True)
    x, parameters = torch.empty(7, 3, 6, device="meta"), [parameter.to("meta") for parameter in gru.parameters()]
    exponents = [torch.empty(4, 30, dtype=torch.int32, device="meta")] * 2
    grids = [flatten(gru.grids(reverse=reverse)) for reverse in (False, True)]
    states, last, _ = torch.ops.qgru.gru_layer(x, None, parameters, exponents, None, None, grids, 0)
    assert (states.shape, last.shape) == ((7, 3, 20), (2, 3, 10))
