"""Changes of single grids after calibration, without data; see ``docs/numerics.md#changing-grids``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qgru.calibration.methods import bounded_grid, grid_from_range
from qgru.grid import Grid
from qgru.schema import OPERATORS, BitwidthConfig, OperatorConfig
from qgru.state import CellState


@dataclass(frozen=True)
class Change:
    """What is asked of one operator; None leaves a field as it is.

    Attributes:
        op: canonical name.
        bitwidth: new width over the same range.
        is_symmetric: new symmetry, minmax on the old grid's range.
        exp2_inv: exponent as given, a list with one for each channel for a weight.
        zero_point: zero point as given.
    """

    op: str
    bitwidth: int | None = None
    is_symmetric: bool | None = None
    exp2_inv: int | list[int] | None = None
    zero_point: int | None = None


def with_width(config: BitwidthConfig, bitwidth: int, is_symmetric: bool) -> BitwidthConfig:
    """Give every configured operator a width, and activations a symmetry."""
    operators = {
        name: OperatorConfig(bitwidth, OPERATORS[name].is_weight or is_symmetric, old.is_unsigned)
        for name, old in config.operators.items()
    }
    return replace(config, operators=operators)


def adjusted(cell: CellState, change: Change) -> CellState:
    """Return the cell with one operator changed.

    Raises:
        ValueError: naming the operator, where a value is off its range or grid.
        RuntimeError: where an exponent or zero point is given before calibration.
    """
    try:
        return _adjusted(cell, change)
    except ValueError as error:
        raise ValueError(f"operator {change.op!r}: {error}") from error


def _adjusted(cell: CellState, change: Change) -> CellState:
    old = cell.config.operators.get(change.op) or cell.config.operators["matmul.Rh"]  # op.Rh_add_br starts from there
    asked = {"bitwidth": change.bitwidth, "is_symmetric": change.is_symmetric}
    config = replace(old, **{name: value for name, value in asked.items() if value is not None})
    configs = BitwidthConfig({**cell.config.operators, change.op: config}, cell.config.disable_quantization)
    explicit = change.exp2_inv is not None or change.zero_point is not None
    if cell.grids is None:
        if explicit:
            raise RuntimeError(f"operator {change.op!r}: exp2_inv and zero_point can be given only after calibration")
        return CellState(configs)
    start = cell.grids.get(change.op) or cell.grids["matmul.Rh"]
    exponent, zero_point = _regrid(change, start, config)
    grid = Grid(config.bitwidth, config.is_symmetric, config.is_unsigned, exponent, zero_point)
    return CellState(configs, {**cell.grids, change.op: grid})


def _regrid(change: Change, grid: Grid, config: OperatorConfig) -> tuple[int | tuple[int, ...], int]:
    """Return the exponent and zero point: as given, else those of `config` over the old grid's range."""
    exponent, zero_point = change.exp2_inv, change.zero_point
    if exponent is None or zero_point is None:
        kept = (grid.exp2_inv, grid.zero_point) if grid.config == config else _over_range(change.op, grid, config)
        exponent = kept[0] if exponent is None else exponent
        zero_point = kept[1] if zero_point is None else zero_point
    return _for_each_channel(exponent, len(grid.exponents)) if grid.is_per_channel else exponent, zero_point


def _over_range(op: str, grid: Grid, config: OperatorConfig) -> tuple[int | tuple[int, ...], int]:
    function = OPERATORS[op].function
    if function:
        bounded = bounded_grid(function, config)
        return bounded.exp2_inv, bounded.zero_point
    if grid.is_symmetric != config.is_symmetric:
        ends = (float(grid.scale * (q - grid.zero_point)) for q in (grid.qmin, grid.qmax))
        fitted = grid_from_range(*ends, config)
        return fitted.exp2_inv, fitted.zero_point
    finer = config.bitwidth - grid.bitwidth
    if grid.is_per_channel:
        return tuple(n + finer for n in grid.exponents), 0
    moved = config.qmin + round((grid.zero_point - grid.qmin) * 2.0**finer)
    zero_point = 0 if config.is_symmetric else min(max(moved, config.qmin), config.qmax)
    return grid.exp2_inv + finer, zero_point


def _for_each_channel(exponent: int | Sequence[int], channels: int) -> tuple[int, ...]:
    given = exponent if isinstance(exponent, list | tuple) else [exponent] * channels
    if len(given) != channels:
        raise ValueError(f"exp2_inv has {len(given)} entries; expected {channels}, one for each channel")
    return tuple(given)
