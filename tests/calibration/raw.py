"""Calibration by brute force: every float value a GRU computes, kept, and the grids of docs/numerics.md."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from qgru import QuantGRU
from tests.oracle import OracleGrid

BOUNDED = ("gate.z_out", "gate.r_out", "gate.g_out")
OBSERVED = (
    "input.x", "output.h", "matmul.Wx", "matmul.Rh", "gate.z_pre", "gate.r_pre", "gate.g_pre",
    "op.rRh", "op.old_contrib", "op.new_contrib",
)  # fmt: skip
Raw = dict[tuple[int, bool], dict[str, np.ndarray]]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def raw_values(gru: torch.nn.GRU, batches: Iterable[tuple]) -> Raw:
    """All float values of every operator; a batch is (x (batch, time, input), lengths or None, h_0 or None)."""
    seen: dict = defaultdict(lambda: defaultdict(list))
    for x, lengths, h0 in batches:
        for b, row in enumerate(x.double().numpy()):
            values = row[: lengths[b] if lengths else len(row)]
            for layer in range(gru.num_layers):
                halves = []
                for d in range(1 + gru.bidirectional):
                    index = layer * (1 + gru.bidirectional) + d
                    start = np.zeros(gru.hidden_size) if h0 is None else h0[index, b].double().numpy()
                    own = seen[layer, bool(d)]
                    for other in range(1 + gru.bidirectional):
                        if d == 0:
                            seen[layer, bool(other)]["input.x"].append(values)
                    halves.append(_run(gru, layer, d, values[:: -1 if d else 1], start, own)[:: -1 if d else 1])
                values = np.concatenate(halves, 1)
    return {
        key: {name: np.concatenate([np.ravel(v) for v in parts]) for name, parts in own.items()}
        for key, own in seen.items()
    }


def _run(gru: torch.nn.GRU, layer: int, reverse: int, x: np.ndarray, h: np.ndarray, seen: dict) -> np.ndarray:
    suffix = f"l{layer}" + "_reverse" * reverse
    zeros = np.zeros(3 * gru.hidden_size)
    W, R = (getattr(gru, f"weight_{kind}_{suffix}").detach().double().numpy() for kind in ("ih", "hh"))
    bw, br = (
        getattr(gru, f"bias_{kind}_{suffix}").detach().double().numpy() if gru.bias else zeros for kind in ("ih", "hh")
    )
    states = []
    seen["output.h"].append(h)
    for x_t in x:
        Wx, Rh = np.split(W @ x_t, 3), np.split(R @ h, 3)
        (bw_r, bw_z, bw_g), (br_r, br_z, br_g) = np.split(bw, 3), np.split(br, 3)
        r_pre, z_pre = Wx[0] + Rh[0] + bw_r + br_r, Wx[1] + Rh[1] + bw_z + br_z
        r, z = sigmoid(r_pre), sigmoid(z_pre)
        c = Rh[2] + br_g
        g_pre = Wx[2] + bw_g + r * c
        g = np.tanh(g_pre)
        values = {
            "matmul.Wx": np.concatenate(Wx), "matmul.Rh": np.concatenate([*Rh, c]), "Rh alone": np.concatenate(Rh),
            "op.Rh_add_br": c, "gate.z_pre": z_pre, "gate.r_pre": r_pre, "gate.g_pre": g_pre, "op.rRh": r * c,
            "op.old_contrib": z * h, "op.new_contrib": (1 - z) * g,
        }  # fmt: skip
        h = z * h + (1 - z) * g
        for name, value in {**values, "output.h": h}.items():
            seen[name].append(value)
        states.append(h)
    return np.stack(states)


def minmax(low: float, high: float, bitwidth: int, is_symmetric: bool, is_unsigned: bool) -> OracleGrid:
    """The definition's minmax grid of a range, in exact arithmetic."""
    lo, hi = min(Fraction(low), Fraction(0)), max(Fraction(high), Fraction(0))
    bounds = OracleGrid(bitwidth, is_unsigned, 0)

    def fits(n: int) -> bool:
        unit = Fraction(2) ** n
        if is_symmetric:
            return round((hi if is_unsigned else max(hi, -lo)) * unit) <= bounds.qmax
        return round(hi * unit) - round(lo * unit) <= bounds.qmax - bounds.qmin

    all_zero = lo == hi == 0
    n = bitwidth - 1 if all_zero else max((n for n in range(-64, 65) if fits(n)), default=-64)
    zero_point = 0 if is_symmetric else bounds.qmin - round(lo * Fraction(2) ** n)
    return OracleGrid(bitwidth, is_unsigned, n, zero_point)


def quantized(values: np.ndarray, grid: object) -> np.ndarray:
    """Values after a grid (the oracle's or qgru's: both have the same names), in float64."""
    scaled = np.rint(np.ldexp(values.astype(np.float64), grid.exp2_inv)) + grid.zero_point
    return np.ldexp(np.clip(scaled, grid.qmin, grid.qmax) - grid.zero_point, -grid.exp2_inv)


def squared_error(values: np.ndarray, grid: object) -> float:
    return float(np.sum((values - quantized(values, grid)) ** 2))


def candidates(values: np.ndarray, base: OracleGrid, is_symmetric: bool) -> list[OracleGrid]:
    """The grids that sqnr chooses from: n_minmax ... n_minmax + b; keeping the low end, the high end, the middle."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    grids = []
    for n in range(base.exp2_inv, min(base.exp2_inv + base.bitwidth, 64) + 1):
        if is_symmetric:
            points = {0}
        else:
            keep_low = base.qmin - round(math.ldexp(low, n))
            keep_high = base.qmax - round(math.ldexp(high, n))
            points = {min(max(p, base.qmin), base.qmax) for p in (keep_low, keep_high, (keep_low + keep_high) // 2)}
        grids += [OracleGrid(base.bitwidth, base.is_unsigned, n, p) for p in sorted(points)]
    return grids


def least_error(values: np.ndarray, base: OracleGrid, is_symmetric: bool) -> float:
    return min(squared_error(values, grid) for grid in candidates(values, base, is_symmetric))


def decibels_worse(error: float, reference: float, values: np.ndarray) -> float:
    """How much lower a signal-to-noise ratio is than another; exact zeros count as 2^-100 of the signal."""
    floor = float(np.sum(values.astype(np.float64) ** 2)) * 2.0**-100 + 1e-300
    return 10 * math.log10(max(error, floor) / max(reference, floor))


def calibrate(gru: QuantGRU, batches: Iterable[tuple], method: str = "minmax", percentile: float = 99.99) -> QuantGRU:
    """Calibrate on batches of (x (batch, time, input), lengths or None, h_0 or None) and finalize."""
    gru.calibration_method, gru.percentile_value = method, percentile
    observe(gru, batches)
    gru.finalize_calibration()
    return gru


def observe(gru: QuantGRU, batches: Iterable[tuple]) -> None:
    gru.calibrating = True
    for x, lengths, h0 in batches:
        arranged = x if gru.batch_first else x.transpose(0, 1)
        if lengths is not None:
            arranged = torch.nn.utils.rnn.pack_padded_sequence(
                arranged, torch.tensor(lengths), gru.batch_first, enforce_sorted=False
            )
        gru(arranged, h0)
    gru.calibrating = False


def random_batches(gru: torch.nn.GRU, count: int = 3, seed: int = 0, packed: bool = True) -> list[tuple]:
    """Batches of odd sizes; in each, padding holds values that would change every grid if it were seen."""
    generator = torch.Generator().manual_seed(seed)
    batches: list[tuple[Tensor, list[int] | None, Tensor | None]] = []
    for i in range(count):
        batch, time = 2 + i, 7 - i
        dtype = gru.weight_ih_l0.dtype
        x = torch.randn(batch, time, gru.input_size, generator=generator, dtype=dtype) * (i + 1) + 0.3
        lengths = [max(1, time - j) for j in range(batch)] if packed else None
        if packed:
            for row, length in enumerate(lengths):
                x[row, length:] = 1e4
        h0 = None
        if i % 2:
            layers = gru.num_layers * (1 + gru.bidirectional)
            h0 = torch.randn(layers, batch, gru.hidden_size, generator=generator, dtype=dtype) * 2
        batches.append((x, lengths, h0))
    return batches
