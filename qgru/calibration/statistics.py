"""Statistics of what calibration saw: distributions, and the signal to noise ratio on the grids."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qgru.calibration.histogram import Bins, Histogram
from qgru.calibration.methods import squared_error
from qgru.direction import Direction, directions_of, index_of, parameter_name
from qgru.grid import Grid
from qgru.schema import OPERATORS, OPTIONAL, canonical_name

if TYPE_CHECKING:
    from qgru.gru import QuantGRU


def operator_sqnr(gru: QuantGRU) -> dict[Direction, dict[str, float]]:
    """Return the signal to quantization noise ratio of every operator, in dB.

    Activations are rated on what calibration observed, weights on the parameters' current values. Operators that hold
    nothing but zeros, and activations that were not observed, are left out; a perfect grid reads infinity.

    Returns:
        (layer, reverse), a `Direction`, to canonical operator name to dB.

    Raises:
        RuntimeError: where the layer is not calibrated.
    """
    rated = {}
    for direction in directions_of(gru):
        errors = {name: _signal_and_noise(gru, name, grid, direction) for name, grid in gru.grids(*direction).items()}
        rated[direction] = {name: _decibels(*pair) for name, pair in errors.items() if pair and pair[0]}
    return rated


def histogram(gru: QuantGRU, op: str, layer: int = 0, reverse: bool = False, bins: int = 200) -> tuple[Tensor, Tensor]:
    """Return an operator's distribution in equal bins, of the observed values or of the current weights.

    Returns:
        edges (bins + 1,) float64 and counts (bins,) int64.

    Raises:
        RuntimeError: where an activation was not observed.
    """
    name, direction = canonical_name(op), Direction(layer, reverse)
    if OPERATORS[name].is_weight:
        seen = Histogram.of(_parameter(gru, name, direction)).bins()
    else:
        seen = _observed(gru, name, direction)
        if seen is None:
            raise RuntimeError(f"operator {name!r} of layer {layer} was not observed since the last reset")
    low, high = float(seen.mean[0]), float(seen.mean[-1])
    low, high = (low, high) if low < high else (low - 0.5, high + 0.5)
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    index = ((seen.mean - low) / (high - low) * bins).long().clamp(0, bins - 1)
    return edges, torch.zeros(bins, dtype=torch.int64).index_add_(0, index, seen.count.long())


def _signal_and_noise(gru: QuantGRU, name: str, grid: Grid, direction: Direction) -> tuple[float, float] | None:
    if OPERATORS[name].is_weight:
        weight = _parameter(gru, name, direction)
        noise = grid.dequantize(grid.quantize(weight)) - weight
        return float(weight.square().sum()), float(noise.square().sum())
    seen = _observed(gru, name, direction)
    if seen is None:
        return None
    signal = float((seen.count * (seen.mean**2 + seen.half_width**2 / 3)).sum())
    return signal, squared_error(seen, grid)


def _decibels(signal: float, noise: float) -> float:
    return 10 * math.log10(signal / noise) if noise else math.inf


def _observed(gru: QuantGRU, name: str, direction: Direction) -> Bins | None:
    if gru.observations is None:
        return None
    own = direction._replace(reverse=direction.reverse and name != "input.x")  # both directions share input.x
    cell = gru.observations[index_of(gru, own)]
    seen = cell[name]
    if name == "matmul.Rh" and OPTIONAL not in gru.bitwidth_config.operators:
        seen = seen + cell[OPTIONAL]
    return seen.bins()


def _parameter(gru: QuantGRU, name: str, direction: Direction) -> Tensor:
    own = getattr(gru, parameter_name(name, direction), None)
    return torch.zeros(3 * gru.hidden_size).double() if own is None else own.detach().double().cpu()
