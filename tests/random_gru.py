"""Random quantized GRUs inside the exactness domain: the module, and the oracle of the same numbers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from qgru import QuantGRU
from tests.oracle import ACTIVATIONS, OPTIONAL, WEIGHTS, OracleDirection, OracleGrid, run_gru

Grids = dict[str, "OracleGrid | list[OracleGrid]"]


def random_grid(rng: random.Random, bitwidth: int, is_symmetric: bool, octaves: int | None = None) -> OracleGrid:
    """A grid over +-2^octaves (a quarter to 16 where not given), so that some values clip and most don't."""
    is_unsigned = rng.random() < 0.3
    octaves = rng.randint(-2, 4) if octaves is None else octaves
    grid = OracleGrid(bitwidth, is_unsigned, bitwidth - 1 - octaves)
    if is_symmetric:
        return grid
    middle = (grid.qmin + grid.qmax) // 2
    zero_point = rng.choice((middle, rng.randint(grid.qmin, grid.qmax), min(middle + 1, grid.qmax)))
    return OracleGrid(bitwidth, is_unsigned, grid.exp2_inv, zero_point)


def random_grids(rng: random.Random, widths: range, input_size: int, hidden_size: int) -> Grids:
    """Grids of one direction, drawn anew until the exactness domain holds."""
    while True:
        grids: Grids = {name: random_grid(rng, rng.choice(widths), rng.random() < 0.4) for name in ACTIVATIONS}
        if rng.random() < 0.5:
            grids[OPTIONAL] = random_grid(rng, rng.choice(widths), rng.random() < 0.4)
        for name in WEIGHTS:
            bits, unsigned = rng.choice(widths), rng.random() < 0.1
            grids[name] = [OracleGrid(bits, unsigned, bits - 1 - rng.randint(-3, 1)) for _ in range(3 * hidden_size)]
        if inside_domain(grids, input_size, hidden_size):
            return grids


def inside_domain(grids: Grids, input_size: int, hidden_size: int) -> bool:
    """docs/numerics.md#exactness-domain; `1 - z` counts with the bits of 2^n where that is wider than z."""

    def bits(name: str) -> int:
        grid = grids[name]
        return (grid[0] if isinstance(grid, list) else grid).bitwidth

    def exponents(name: str) -> list[int]:
        grid = grids[name]
        return [g.exp2_inv for g in grid] if isinstance(grid, list) else [grid.exp2_inv]

    def product(a: str, b: str, terms: int = 1) -> bool:
        return bits(a) + bits(b) + math.ceil(math.log2(terms)) <= 62

    def total(*names: str) -> bool:
        return max(bits(n) - min(exponents(n)) for n in names) + max(max(exponents(n)) for n in names) <= 60

    recurrent = OPTIONAL if OPTIONAL in grids else "matmul.Rh"
    complement = max(bits("gate.z_out"), exponents("gate.z_out")[0] + 1)
    return (
        product("weight.W", "input.x", input_size)
        and product("weight.R", "output.h", hidden_size)
        and product("gate.z_out", "output.h")
        and product("gate.r_out", recurrent)
        and complement + bits("gate.g_out") <= 62
        and total("matmul.Wx", "matmul.Rh", "weight.bw", "weight.br")
        and total("matmul.Rh", "weight.br")
        and total("matmul.Wx", "weight.bw", "op.rRh")
        and total("op.old_contrib", "op.new_contrib")
    )


def entry(grid: OracleGrid | list[OracleGrid]) -> dict:
    """An operator's entry in quant_params.json."""
    first = grid[0] if isinstance(grid, list) else grid
    rows = grid if isinstance(grid, list) else [grid]
    exponents = [g.exp2_inv for g in rows]
    scales = [2.0**-n for n in exponents]
    low = [float(g.real(g.qmin)) for g in rows]
    high = [float(g.real(g.qmax)) for g in rows]

    def pick(values: list) -> object:
        return values if isinstance(grid, list) else values[0]

    return {
        "dtype": f"{'U' if first.is_unsigned else ''}INT{first.bitwidth}",
        "symmetric": first.zero_point == 0,
        "scale": pick(scales),
        "zero_point": first.zero_point,
        "real_min": pick(low),
        "real_max": pick(high),
        "enc_type": "PER_CHANNEL" if isinstance(grid, list) else "PER_TENSOR",
        "n": pick(exponents),
    }


def quant_params(gru: torch.nn.GRU, grids: list[list[Grids]]) -> dict:
    """The content of quant_params.json for a GRU whose grids are given for each layer and direction."""
    fields = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional")
    content: dict = {"model_info": {**{field: getattr(gru, field) for field in fields}, "gate_order": "rzn"}}
    for layer, directions in enumerate(grids):
        suffix = f"_l{layer}" if layer else ""
        for name, direction in zip(("operators", "operators_reverse"), directions, strict=False):
            written = [op for op in direction if gru.bias or op not in ("weight.bw", "weight.br")]
            content[name + suffix] = {op.split(".")[1]: entry(direction[op]) for op in written}
    return content


def write_quant_params(path: Path, gru: torch.nn.GRU, grids: list[list[Grids]]) -> Path:
    path.write_text(json.dumps(quant_params(gru, grids)))
    return path


def oracle_direction(gru: torch.nn.GRU, layer: int, reverse: bool, grids: Grids) -> OracleDirection:
    """The oracle of one direction: the module's parameters as they are, and the grids given."""
    suffix = f"l{layer}" + ("_reverse" if reverse else "")
    zeros = [0.0] * (3 * gru.hidden_size)
    biases = [getattr(gru, f"bias_{kind}_{suffix}").tolist() if gru.bias else zeros for kind in ("ih", "hh")]
    return OracleDirection(
        getattr(gru, f"weight_ih_{suffix}").tolist(),
        getattr(gru, f"weight_hh_{suffix}").tolist(),
        *biases,
        {name: grid for name, grid in grids.items() if isinstance(grid, OracleGrid)},
        {name: grid for name, grid in grids.items() if isinstance(grid, list)},
    )


def oracle_layers(gru: torch.nn.GRU, grids: list[list[Grids]]) -> list[list[OracleDirection]]:
    return [
        [oracle_direction(gru, layer, bool(d), direction) for d, direction in enumerate(directions)]
        for layer, directions in enumerate(grids)
    ]


def module_grids(gru: QuantGRU) -> list[list[Grids]]:
    """The grids that a calibrated module reports, as the oracle's."""

    def convert(grid) -> OracleGrid | list[OracleGrid]:
        if isinstance(grid.exp2_inv, int):
            return OracleGrid(grid.bitwidth, grid.is_unsigned, grid.exp2_inv, grid.zero_point)
        return [OracleGrid(grid.bitwidth, grid.is_unsigned, n) for n in grid.exp2_inv]

    directions = 2 if gru.bidirectional else 1
    return [
        [{name: convert(grid) for name, grid in gru.grids(layer, bool(d)).items()} for d in range(directions)]
        for layer in range(gru.num_layers)
    ]


def random_gru(
    seed: int, path: Path, widths: range = range(1, 33), dtype: torch.dtype = torch.float64, **options: object
) -> tuple[QuantGRU, list[list[Grids]]]:
    """A QuantGRU of odd sizes with random grids, loaded from a quant_params.json that is written to `path`."""
    rng = random.Random(seed)
    settings: dict = {
        "input_size": rng.choice((1, 2, 3, 5)),
        "hidden_size": rng.choice((1, 3, 5)),
        "num_layers": rng.choice((1, 1, 2)),
        "bidirectional": rng.random() < 0.4,
        "bias": rng.random() < 0.8,
        "batch_first": rng.random() < 0.5,
        **options,
    }
    torch.manual_seed(seed)
    gru = QuantGRU(**settings, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in gru.parameters():
            parameter.normal_()
    grids: list[list[Grids]] = []
    inputs = gru.input_size
    for _ in range(gru.num_layers):
        directions = [random_grids(rng, widths, inputs, gru.hidden_size) for _ in range(1 + gru.bidirectional)]
        while not inside_domain({**directions[-1], "input.x": directions[0]["input.x"]}, inputs, gru.hidden_size):
            directions[-1] = random_grids(rng, widths, inputs, gru.hidden_size)
        directions[-1]["input.x"] = directions[0]["input.x"]
        grids.append(directions)
        inputs = gru.hidden_size * len(directions)
    gru.load_quant_params(write_quant_params(path, gru, grids))
    gru.use_quantization = True
    return gru, grids


def rows_of(x: Tensor, lengths: list[int]) -> list[list[list[float]]]:
    """The valid steps of every row; x: (batch, time, input)."""
    return [row[:length].tolist() for row, length in zip(x, lengths, strict=True)]


def run_module(
    gru: QuantGRU, x: Tensor, lengths: list[int] | None, h0: Tensor | None
) -> tuple[list[list[list[float]]], list]:
    """The module's (output, h_n) as lists of each row's valid steps; x: (batch, time, input)."""
    batch, time, _ = x.shape
    if lengths is None:
        output, h_n = gru(x if gru.batch_first else x.transpose(0, 1), h0)
        output = output if gru.batch_first else output.transpose(0, 1)
        return rows_of(output, [time] * batch), h_n.tolist()
    order = x if gru.batch_first else x.transpose(0, 1)
    packed = pack_padded_sequence(order, torch.tensor(lengths), gru.batch_first, enforce_sorted=False)
    output, h_n = gru(packed, h0)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
    return rows_of(padded, lengths), h_n.tolist()


def expected(
    layers: list[list[OracleDirection]], x: Tensor, lengths: list[int] | None = None, h0: Tensor | None = None
) -> tuple[list, list]:
    """The oracle's (output, h_n) in the same form, as fractions."""
    lengths = lengths or [x.shape[1]] * x.shape[0]
    return run_gru(layers, rows_of(x, lengths), None if h0 is None else h0.tolist())


def differences(module: object, oracle: object) -> list[tuple[float, Fraction]]:
    """Where two nested lists differ: exact comparisons, since a float equals a fraction only when it is that number."""
    if isinstance(oracle, list):
        assert isinstance(module, list) and len(module) == len(oracle)
        return [pair for a, b in zip(module, oracle, strict=True) for pair in differences(a, b)]
    return [] if module == oracle else [(module, oracle)]  # type: ignore[list-item]


def assert_equal(
    gru: QuantGRU, layers: list, x: Tensor, lengths: list[int] | None = None, h0: Tensor | None = None
) -> list:
    """The module's and the oracle's numbers are the same; returns the oracle's output."""
    output, h_n = run_module(gru, x, lengths, h0)
    want, want_h = expected(layers, x, lengths, h0)
    assert not differences(output, want) and not differences(h_n, want_h)
    return want


def clipped_share(layers: list[list[OracleDirection]], outputs: Mapping | list) -> float:
    """Share of output values that sit at an end of output.h's grid: a test where all do shows nothing."""
    grid = layers[-1][0].grids["output.h"]
    H = layers[-1][0].hidden_size
    values = [v for row in outputs for step in row for v in step[:H]]
    ends = {grid.real(grid.qmin), grid.real(grid.qmax)}
    return sum(v in ends for v in values) / len(values)


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
    gru.load_quant_params(write_quant_params(path, gru, grids))
    gru.use_quantization = True
    return gru, oracle_layers(gru, grids)
