"""From a range or a distribution to a grid: ``minmax``, ``percentile``, ``sqnr``, and the bounded functions' rule.

See ``docs/numerics.md#calibration``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from qgru.calibration.histogram import Bins, Histogram
from qgru.grid import MAX_EXPONENT, MIN_EXPONENT, Grid
from qgru.schema import OperatorConfig

METHODS = ("sqnr", "percentile", "minmax")
_POINT = 1e-9  # a spread below this share of a step is one point: the closed form would cancel


def grid_from_histogram(histogram: Histogram, config: OperatorConfig, method: str, percentile: float) -> Grid:
    """Choose an activation's grid.

    Args:
        histogram: everything that was observed.
        config: bit width, symmetry and sign.
        method: one of `METHODS`.
        percentile: share of values kept by ``"percentile"``, in percent.

    Raises:
        ValueError: where even the coarsest grid is too fine for the range.
    """
    low, high = histogram.low, histogram.high
    if method == "percentile":
        low, high = percentile_range(histogram, config, percentile)
    grid = grid_from_range(low, high, config)
    return _least_error(histogram.bins(), grid, low, high) if method == "sqnr" and (low or high) else grid


def grid_from_range(low: float, high: float, config: OperatorConfig) -> Grid:
    """Return the finest grid that clips nothing of ``[low, high]``, extended to hold 0, by more than half a step.

    Raises:
        ValueError: where even the coarsest grid is too fine for the range.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    exponent = int(finest_exponents(torch.tensor([low]).double(), torch.tensor([high]).double(), config))
    if config.is_symmetric:
        return _grid(config, exponent, 0)
    return _grid(config, exponent, config.qmin - round(low * 2.0**exponent))


def finest_exponents(low: Tensor, high: Tensor, config: OperatorConfig) -> Tensor:
    """Return, for each range, the largest exponent whose grid holds it; ``bitwidth - 1`` where the range is 0.

    Args:
        low: (channels,) float64, at most 0.
        high: (channels,) float64, at least 0.
        config: bit width, symmetry and sign.

    Returns:
        (channels,) int64.

    Raises:
        ValueError: where even the coarsest grid is too fine.
    """
    exponents = torch.arange(MIN_EXPONENT, MAX_EXPONENT + 1, device=low.device)
    steps = torch.exp2(exponents.double()).unsqueeze(1)
    if config.is_symmetric:
        largest = high if config.is_unsigned else torch.maximum(high, -low)
        fits = (largest * steps).round() <= config.qmax
    else:
        largest = high - low
        fits = (high * steps).round() - (low * steps).round() <= config.qmax - config.qmin
    if not fits[0].all():
        raise ValueError(f"the range [{low.min():g}, {high.max():g}] exceeds the coarsest grid, 2**{-MIN_EXPONENT}")
    finest = exponents[-1] - fits.flip(0).int().argmax(0)
    return torch.where(largest == 0, config.bitwidth - 1, finest)


def percentile_range(histogram: Histogram, config: OperatorConfig, percentile: float) -> tuple[float, float]:
    """Return the nearest-rank range that leaves ``100 - percentile`` percent of the values out.

    Half of it at each end, or all of it at the large magnitudes where the grid is symmetric. Inside a bin the rank is
    placed by the bin's spread.
    """
    bins, outside = histogram.bins(), (100 - percentile) / 100
    low, high = histogram.low, histogram.high
    if not config.is_symmetric:
        return max(-_from_above(bins.mirrored(), outside / 2), low), min(_from_above(bins, outside / 2), high)
    if config.is_unsigned:
        return 0.0, min(_from_above(bins, outside), high)
    magnitude = min(_from_above(bins.magnitudes(), outside), max(-low, high))
    return -magnitude, magnitude


def _from_above(bins: Bins, outside: float) -> float:
    """Return the value that leaves the share `outside` of the values above it; infinity where that is none."""
    left_out = int(outside * float(bins.count.sum()) + 1e-9)
    if left_out == 0:
        return torch.inf
    count = bins.count.flip(0)
    reached = count.cumsum(0)
    index = int(torch.searchsorted(reached, float(left_out), right=True))
    share = (left_out + 0.5 - float(reached[index] - count[index])) / float(count[index])
    return float(bins.mean.flip(0)[index]) + (1 - 2 * share) * float(bins.half_width.flip(0)[index])


def _least_error(bins: Bins, start: Grid, low: float, high: float) -> Grid:
    """Search the exponents from minmax's upwards; ties go to the smaller one."""
    best, least = start, squared_error(bins, start)
    for exponent in range(start.exp2_inv, min(start.exp2_inv + start.bitwidth, MAX_EXPONENT) + 1):
        for zero_point in _zero_points(start, exponent, low, high):
            candidate = _grid(start.config, exponent, zero_point)
            error = squared_error(bins, candidate)
            if error < least:
                best, least = candidate, error
    return best


def _zero_points(grid: Grid, exponent: int, low: float, high: float) -> Iterable[int]:
    """Yield the zero points that keep the low end, keep the high end, or centre the range."""
    if grid.is_symmetric:
        return (0,)
    first, last = round(min(low, 0.0) * 2.0**exponent), round(max(high, 0.0) * 2.0**exponent)
    choices = (grid.qmin - first, grid.qmax - last, (grid.qmin + grid.qmax - first - last) // 2)
    return dict.fromkeys(min(max(choice, grid.qmin), grid.qmax) for choice in choices)


def squared_error(bins: Bins, grid: Grid) -> float:
    """Return the sum of squared quantization errors.

    A bin that falls to one integer has an exact error, from its mean and variance. One that several integers share is
    taken as uniformly spread: with ``k`` the integer that ``y`` falls to, the antiderivative of ``(y - k)**2`` is
    ``k / 12 + (y - k)**3 / 3``, inside the grid and beyond its ends alike.
    """
    steps = 2.0**grid.exp2_inv
    lowest, highest = grid.mantissas
    y, half = bins.mean * steps, bins.half_width * steps
    left, right = y - half, y + half
    left_k, right_k = left.round().clamp(lowest, highest), right.round().clamp(lowest, highest)
    one = (y - y.round().clamp(lowest, highest)) ** 2 + half**2 / 3
    integral = (right_k - left_k) / 12 + ((right - right_k) ** 3 - (left - left_k) ** 3) / 3
    error = torch.where((left_k == right_k) | (half < _POINT), one, integral / (2 * half))
    return float((bins.count * error).sum()) / steps**2


def bounded_grid(function: str, config: OperatorConfig) -> Grid:
    """Return the grid of a ``"sigmoid"`` or ``"tanh"`` output, which follows from the function's range."""
    bits = config.bitwidth
    if function == "sigmoid":
        if config.is_symmetric and not config.is_unsigned:
            return _grid(config, bits - 1, 0)
        return _grid(config, bits, 0 if config.is_symmetric else config.qmin)
    if config.is_unsigned:
        return _grid(config, bits, 0) if config.is_symmetric else _grid(config, bits - 1, 1 << (bits - 1))
    return _grid(config, bits - 1, 0)


def _grid(config: OperatorConfig, exponent: int, zero_point: int) -> Grid:
    return Grid(config.bitwidth, config.is_symmetric, config.is_unsigned, exponent, zero_point)
