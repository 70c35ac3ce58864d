"""The grids of one layer and direction, from what was observed and from its parameters.

See ``docs/numerics.md#calibration``, for parameters ``docs/numerics.md#weights-and-biases``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from qgru.calibration.histogram import Histogram
from qgru.calibration.methods import bounded_grid, finest_exponents, grid_from_histogram
from qgru.grid import MAX_EXPONENT, MIN_EXPONENT, Grid
from qgru.ops.call import Parameters
from qgru.schema import OPERATORS, OPTIONAL, WEIGHTS, BitwidthConfig, OperatorConfig

_BIAS_HEADROOM = 4  # bits finer than the sum it lands on: room for a small bias to grow in QAT
_BIAS_TARGETS = {
    "weight.bw": ("gate.r_pre", "gate.z_pre", "gate.g_pre"),
    "weight.br": ("gate.r_pre", "gate.z_pre", OPTIONAL),
}


class CalibrationError(ValueError):
    """Values that no grid can be made of: not finite, out of every grid's range, or none at all."""


@contextmanager
def naming(operator: str) -> Iterator[None]:
    """Turn a ValueError into a `CalibrationError` that names the operator."""
    try:
        yield
    except ValueError as error:
        raise CalibrationError(f"calibration: operator {operator!r}: {error}") from error


def activation_grids(
    config: BitwidthConfig, observed: Mapping[str, Histogram], method: str, percentile: float
) -> dict[str, Grid]:
    """Choose the grids of all configured operators but the weights.

    Args:
        config: the bit widths.
        observed: canonical operator name to everything that was seen of it, ``op.Rh_add_br`` included.
        method: one of `qgru.calibration.methods.METHODS`.
        percentile: share of values kept by ``"percentile"``, in percent.

    Raises:
        CalibrationError: naming the operator whose range no grid holds.
    """
    grids = {}
    for name in config.operators:
        if not OPERATORS[name].is_weight:
            grids[name] = activation_grid(name, config, observed, method, percentile)
    return grids


def activation_grid(
    name: str, config: BitwidthConfig, observed: Mapping[str, Histogram], method: str, percentile: float
) -> Grid:
    """Choose one operator's grid, which depends on no other operator's width; see `activation_grids`."""
    chosen, function = config.operators[name], OPERATORS[name].function
    if function:
        return bounded_grid(function, chosen)
    histogram = observed[name]
    if name == "matmul.Rh" and OPTIONAL not in config.operators:
        histogram = histogram + observed[OPTIONAL]
    with naming(name):
        grid = grid_from_histogram(histogram, chosen, method, percentile)
    _warn_of_lost_negatives(name, chosen, histogram.low)
    return grid


def weight_grids(
    config: BitwidthConfig, activations: Mapping[str, Grid], parameters: Parameters, bias: bool, method: str, p: float
) -> dict[str, Grid]:
    """Choose the grids of the four weight operators from the parameters' current values.

    Args:
        config: the bit widths.
        activations: the other operators' grids.
        parameters: (weight_ih, weight_hh, bias_ih, bias_hh).
        bias: False where the biases are missing; their grid is then ``exp2_inv = 0``.
        method: one of `qgru.calibration.methods.METHODS`.
        p: share of values kept by ``"percentile"``, in percent.

    Raises:
        CalibrationError: naming the operator that holds a non-finite value or a range that no grid holds.
    """
    grids = {}
    for name, parameter in zip(WEIGHTS, parameters, strict=True):
        grids[name] = weight_grid(name, config, bias_limits(name, activations), parameter, bias, method, p)
    return grids


def bias_limits(name: str, activations: Mapping[str, Grid]) -> tuple[int, ...]:
    """Return all that a weight operator's grid takes from the other operators': nothing but for a bias.

    That is, for each gate, the finest exponent of a bias of 0 bits.
    """
    resolved = {OPTIONAL: activations["matmul.Rh"], **activations}
    targets = [resolved[target] for target in _BIAS_TARGETS.get(name, ())]
    return tuple(grid.exp2_inv - grid.bitwidth + _BIAS_HEADROOM for grid in targets)


def weight_grid(
    name: str, config: BitwidthConfig, limits: tuple[int, ...], parameter: Tensor, bias: bool, method: str, p: float
) -> Grid:
    """Choose one weight operator's grid; `limits` are `bias_limits`'s, the rest is `weight_grids`'s."""
    chosen = config.operators[name]
    if limits and not bias:
        return Grid(chosen.bitwidth, True, chosen.is_unsigned, 0)
    rows = parameter.detach().double().cpu().reshape(len(parameter), -1)
    finest = None
    if limits:
        finest = (torch.tensor(limits) + chosen.bitwidth).repeat_interleave(len(rows) // len(limits))
    with naming(name):
        exponents = weight_exponents(rows, chosen, method, p, finest)
    _warn_of_lost_negatives(name, chosen, float(rows.min()))
    clamped = exponents.clamp(MIN_EXPONENT, MAX_EXPONENT)
    return Grid(chosen.bitwidth, True, chosen.is_unsigned, tuple(clamped.tolist()))


def _warn_of_lost_negatives(name: str, config: OperatorConfig, low: float) -> None:
    if low < 0 and config.is_unsigned and config.is_symmetric:
        warnings.warn(
            f"operator {name!r}: values down to {low:g} saturate to 0 on an unsigned symmetric grid", stacklevel=6
        )


def weight_exponents(
    rows: Tensor, config: OperatorConfig, method: str, percentile: float, finest: Tensor | None = None
) -> Tensor:
    """Choose an exponent for each output channel.

    Args:
        rows: (channels, K) float64.
        config: bit width and sign.
        method: one of `qgru.calibration.methods.METHODS`.
        percentile: share of values kept by ``"percentile"``, in percent.
        finest: (channels,) int64, the largest exponent of each channel; None sets no limit.

    Returns:
        (channels,) int64. A row of zeros takes the smallest exponent of the others, or ``bitwidth - 1``.

    Raises:
        ValueError: where a value is not finite or a range exceeds the coarsest grid.
    """
    if not rows.isfinite().all():
        raise ValueError("a value is NaN or infinite; expected finite numbers")
    largest = rows.clamp(min=0) if config.is_unsigned else rows.abs()
    kept = largest.shape[1] - (int((100 - percentile) / 100 * largest.shape[1] + 1e-9) if method == "percentile" else 0)
    high = largest.kthvalue(max(kept, 1), dim=1).values
    start = exponents = finest_exponents(torch.zeros_like(high), high, config)
    if method == "sqnr":
        least = _row_errors(rows, start, config)
        for finer in range(1, config.bitwidth + 1):
            candidate = (start + finer).clamp(max=MAX_EXPONENT)
            error = _row_errors(rows, candidate, config)
            exponents = torch.where(error < least, candidate, exponents)
            least = torch.minimum(error, least)
    finest = torch.full_like(exponents, MAX_EXPONENT) if finest is None else finest
    exponents, zero = torch.minimum(exponents, finest), high == 0
    if zero.any() and not zero.all():
        exponents = torch.where(zero, torch.minimum(exponents[~zero].min(), finest), exponents)
    return exponents


def _row_errors(rows: Tensor, exponents: Tensor, config: OperatorConfig) -> Tensor:
    steps = torch.exp2(exponents.double()).unsqueeze(1)
    return ((rows * steps).round().clamp(config.qmin, config.qmax) / steps - rows).square().sum(1)
